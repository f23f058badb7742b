"""A run whose folder holds files goes on where they lie, or says why it cannot; all others go on anywhere."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from chaos.network import Link, State, to_unix
from sqlalchemy import text

import postgresql
from inbox import inbox
from orqo import clock, deliveries, dispatcher, executor, machines, retention, runs, workflows
from support import Service, TestBox, application, running, wait_for
from visitor import sign_in

LOST_AFTER_S = 60.0
several_machines = pytest.mark.skipif(not postgresql.IS_WANTED, reason="SQLite has one machine: make test DB=postgresql")
KEEPS = "{name: keep, script: 'echo kept > kept.txt'}"
READS = "{name: read, script: 'cat kept.txt'}"
FLOWS = {
    "files": f"stages: [{KEEPS}, {{name: nap, delay: 1h}}, {READS}]",
    "none": "stages: [{name: keep, script: 'echo kept'}, {name: nap, delay: 1h}, {name: read, script: 'echo read'}]",
    "tidy": f"stages: [{KEEPS}, {{name: tidy, script: 'rm kept.txt'}}, {{name: nap, delay: 1h}}, {{name: read, script: 'echo read'}}]",
    "retried": "stages: [{name: keep, script: 'cat kept.txt || { echo kept > kept.txt; exit 1; }', retry: {attempts: 2, delay: 1h}}]",
}


@pytest.fixture
def flows(box: TestBox) -> TestBox:
    """The box with the workflows."""
    for name, stages in FLOWS.items():
        box.apply(f"name: {name}\n{stages}\n")
    return box


@pytest.fixture
def other(box: TestBox, worker: executor.Worker) -> executor.Worker:
    """A worker with a data folder of its own: another machine's."""
    config = replace(box.config, data=box.config.data.with_name("other"), key=key_of(box))
    config.data.mkdir(mode=0o711)
    for machine in (worker.box.machine, machines.established(config)):
        machines.seen(box.database, machine)
    made = runs.Box(box.database, workflows.Definitions(), config.base_url, box.key, machine)
    return replace(worker, box=made, config=config, owner="boot/elsewhere/1/1")


def work(worker: executor.Worker) -> None:
    executor.prepare(worker)
    executor.work()


def nap_is_over(box: TestBox) -> None:
    """Let what waits go on now."""
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE waits SET deadline_at = '2000' WHERE status = 'open'"))
        connection.execute(text("UPDATE runs SET status = 'pending', wake_at = NULL WHERE status = 'waiting'"))


def slept(box: TestBox, worker: executor.Worker, flow: str) -> int:
    """Give a run that this worker began, and that can go on now."""
    run_id = box.accept(flow)
    work(worker)
    assert box.run(run_id)["status"] == "waiting", box.run(run_id)
    nap_is_over(box)
    return run_id


def bound_to(box: TestBox, run_id: int) -> str:
    return box.rows("SELECT machine FROM runs WHERE id = :id", id=run_id)[0]["machine"]  # type: ignore[no-any-return]


def unseen(box: TestBox, machine: str) -> None:
    """Let a machine have been seen last long ago."""
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE machines SET seen_at = '2026-01-01T00:00:00.000Z' WHERE id = :id"), {"id": machine})


def sweep(worker: executor.Worker) -> runs.Swept:
    return runs.sweep(worker.box, stale_s=0.0, machine_lost_after_s=LOST_AFTER_S, now=clock.now())


# ── where it goes on ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("flow", ["none", "tidy"])
def test_a_run_that_left_no_files_goes_on_on_any_machine(
    flows: TestBox, worker: executor.Worker, other: executor.Worker, flow: str
) -> None:
    run_id = slept(flows, worker, flow)

    work(other)

    assert (flows.run(run_id)["status"], bound_to(flows, run_id)) == ("completed", "")


def test_a_run_with_files_is_left_to_the_machine_that_has_them(flows: TestBox, worker: executor.Worker, other: executor.Worker) -> None:
    run_id, free = slept(flows, worker, "files"), flows.accept("hello")

    work(other)

    assert flows.run(free)["status"] == "completed"
    assert (flows.run(run_id)["status"], bound_to(flows, run_id)) == ("pending", worker.box.machine)
    assert runs.claim(other.box, owner="x", now=clock.now()) is None

    work(worker)

    assert (flows.run(run_id)["status"], flows.run(run_id)["output"]) == ("completed", "kept")


def test_a_retry_goes_where_the_first_attempt_left_files(flows: TestBox, worker: executor.Worker, other: executor.Worker) -> None:
    run_id = slept(flows, worker, "retried")

    work(other)

    assert flows.run(run_id)["status"] == "pending"

    work(worker)

    assert (flows.run(run_id)["status"], flows.run(run_id)["output"]) == ("completed", "kept")


def test_a_run_with_files_keeps_its_place_in_the_queue(flows: TestBox, worker: executor.Worker) -> None:
    bound = slept(flows, worker, "files")
    newer = flows.accept("hello")

    claims = [runs.claim(worker.box, owner="x", now=clock.now()) for _ in range(3)]

    assert [claim.run.id if claim else None for claim in claims] == [bound, newer, None]


def test_whoever_sees_that_only_this_machine_may_go_on_wakes_its_workers(
    flows: TestBox, worker: executor.Worker, other: executor.Worker
) -> None:
    slept(flows, worker, "files")

    here, there = sweep(worker), sweep(other)

    assert (here.stale, here.bound_here) == (False, True)
    assert (there.stale, there.bound_here) == (False, False)


# ── where it cannot ─────────────────────────────────────────────────────────────────────────────────────────────────


@several_machines
def test_where_its_machine_is_lost_the_run_fails_and_names_it(
    flows: TestBox, worker: executor.Worker, other: executor.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inbox() as done:
        flows.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\n{FLOWS['files']}\n")
        run_id = slept(flows, worker, "told")
        assert sweep(other).stranded == 0, "its machine was seen just now"
        unseen(flows, worker.box.machine)

        swept = sweep(other)

    run = flows.run(run_id)
    name = flows.rows("SELECT name FROM machines WHERE id = :id", id=worker.box.machine)[0]["name"]
    assert swept.stranded == 1
    assert (run["status"], run["error"]["reason"], run["error"]["stage"]) == ("failed", "files_lost", "nap")
    assert all(word in run["error"]["detail"] for word in (name, worker.box.machine[:8], "2026-01-01", "ORQO_MACHINE_LOST_AFTER"))
    assert [row["event"] for row in flows.rows("SELECT event FROM deliveries WHERE run_id = :id", id=run_id)] == ["run.failed"]
    assert sweep(other).stranded == 0


@several_machines
def test_the_machine_itself_never_gives_up_its_own_runs(flows: TestBox, worker: executor.Worker) -> None:
    run_id = slept(flows, worker, "files")
    unseen(flows, worker.box.machine)

    assert sweep(worker).stranded == 0
    assert flows.run(run_id)["status"] == "pending"


def test_a_run_that_its_machine_took_up_again_is_not_given_up(flows: TestBox, worker: executor.Worker, other: executor.Worker) -> None:
    run_id = slept(flows, worker, "files")
    unseen(flows, worker.box.machine)
    with flows.database.read() as connection:
        seen = runs.binding.stranded(other.box, connection, lost_after_s=LOST_AFTER_S)
    assert runs.claim(worker.box, owner="x", now=clock.now()) is not None

    with flows.database.transaction() as connection:
        runs.binding.give_up(other.box, connection, seen[0], lost_after_s=LOST_AFTER_S, now=clock.now())

    assert flows.run(run_id)["status"] == "running"


@pytest.mark.skipif(postgresql.IS_WANTED, reason="on PostgreSQL it may be another machine's")
def test_a_database_restored_without_its_folders_says_that_the_files_are_gone(
    flows: TestBox, worker: executor.Worker, other: executor.Worker
) -> None:
    run_id, free = flows.accept("files"), flows.accept("none")
    work(worker)
    nap_is_over(flows)

    swept = sweep(other)
    work(other)

    assert (swept.stranded, flows.run(free)["status"]) == (1, "completed")
    assert (flows.run(run_id)["error"]["reason"], "restored" in flows.run(run_id)["error"]["detail"]) == ("files_lost", True)


def test_a_folder_that_was_removed_is_not_taken_for_an_empty_one(flows: TestBox, worker: executor.Worker) -> None:
    run_id = slept(flows, worker, "files")
    shutil.rmtree(flows.config.data / "runs" / str(run_id))

    work(worker)

    run = flows.run(run_id)
    assert (run["status"], run["error"]["reason"], run["error"]["stage"]) == ("failed", "files_lost", "read")


def test_a_run_that_waits_for_a_lost_machine_can_be_stopped(flows: TestBox, worker: executor.Worker, other: executor.Worker) -> None:
    run_id = slept(flows, worker, "files")

    assert runs.stop(other.box, run_id, now=clock.now()) == "stopped"


# ── files that are looked for ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def left(box: TestBox, worker: executor.Worker) -> int:
    """A run that ended and left a file."""
    box.apply("name: report\nstages: [{name: write, script: 'mkdir artifacts; echo 1 > artifacts/a.txt'}]\n")
    run_id = box.accept("report")
    work(worker)
    assert box.run(run_id)["status"] == "completed"
    return run_id


@pytest.fixture
def elsewhere(other: executor.Worker) -> Iterator[Any]:
    """A client of the other machine's web."""
    with application(other.config) as app, app.test_client() as client:
        yield client


@pytest.mark.parametrize("path", ["artifacts", "artifacts/a.txt", "artifacts/none.txt"])
def test_another_machine_says_where_the_files_lie(box: TestBox, elsewhere: Any, left: int, path: str) -> None:
    given = elsewhere.get(f"/api/v1/runs/{left}/{path}", headers={"Authorization": f"Bearer {box.token('read')}"})

    name = box.rows("SELECT name FROM machines")[0]["name"]
    assert (given.status_code, given.content_type) == (421, "application/problem+json")
    assert f"machine {name}" in given.get_json()["detail"]


def test_the_page_of_a_run_says_where_its_files_lie(box: TestBox, elsewhere: Any, left: int) -> None:
    visitor = sign_in(elsewhere, box)

    page, file = visitor.get(f"/runs/{left}"), visitor.get(f"/runs/{left}/artifacts/a.txt")

    assert page.status_code == 200 and "They lie on machine" in page.text
    assert (file.status_code, "lie on machine" in file.text) == (421, True)


def test_a_rerun_from_a_later_stage_says_that_the_files_are_not_inherited(flows: TestBox, worker: executor.Worker) -> None:
    old = slept(flows, worker, "files")
    work(worker)
    with flows.database.transaction() as connection:
        new = runs.rerun(flows.box, connection, old, from_stage="read", origin="cli", now=clock.now())

    work(worker)

    stages = flows.run(new)["stages"]
    assert stages[0]["note"] == f"Its output is inherited; what it left in the folder of run {old} is not."
    assert "note" not in stages[1]
    assert (flows.run(new)["status"], bound_to(flows, new)) == ("failed", "")


# ── what a machine is ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_data_folder_keeps_its_id(box: TestBox) -> None:
    made = machines.established(box.config)

    assert machines.established(box.config) == made
    assert os.stat(box.config.data / machines.FILE).st_mode & 0o777 == 0o600


def test_a_folder_without_workers_has_none(box: TestBox, tmp_path: Path) -> None:
    assert machines.identity(replace(box.config, data=tmp_path)) == ""


def test_a_machine_that_beats_is_seen_and_forgets_the_folders_of_runs_deleted_elsewhere(box: TestBox, worker: executor.Worker) -> None:
    runs_dir, kept = box.config.data / "runs", box.accept()
    for run_id in (kept, 999):
        (runs_dir / str(run_id)).mkdir(parents=True)
    sender = deliveries.Sender(worker.client, worker.secrets, box.key)
    parts = {"sender": sender, "schedule_s": (), "owner": "x", "stopping": threading.Event(), "runs_dir": runs_dir}

    dispatcher.beat(dispatcher.Dispatcher(worker.box, box.bell, **parts))

    assert [row["id"] for row in box.rows("SELECT id FROM machines")] == [worker.box.machine]
    assert [entry.name for entry in runs_dir.iterdir()] == [str(kept)]


def test_a_machine_that_was_not_seen_for_as_long_as_runs_are_kept_is_forgotten(box: TestBox, tmp_path: Path) -> None:
    for machine in ("here", "gone"):
        machines.seen(box.database, machine)
    with box.database.transaction() as connection:
        long_ago = clock.to_text(clock.now() - timedelta(days=31))
        connection.execute(text("UPDATE machines SET seen_at = :then WHERE id = 'gone'"), {"then": long_ago})

    retention.prune(box.database, retention.Limits(30, 10_000), tmp_path, now=clock.now())

    # On SQLite a machine is seen at its start alone, and there is one.
    left = {"here"} if postgresql.IS_WANTED else {"here", "gone"}
    assert {row["id"] for row in box.rows("SELECT id FROM machines")} - {machines.identity(box.config)} == left


def test_a_machine_is_noted_once_and_seen_again(box: TestBox) -> None:
    machines.seen(box.database, "a")
    unseen(box, "a")

    machines.seen(box.database, "a")

    assert [row["seen_at"] > "2026-01-02" for row in box.rows("SELECT * FROM machines")] == [True]


@several_machines
def test_real_machines_leave_a_run_to_the_one_that_has_its_files(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    box.apply(f"name: files\nstages: [{KEEPS}, {{name: nap, delay: 1h}}, {READS}]\n")
    other = box.config.data.with_name("other")
    other.mkdir(mode=0o711)
    here, there = {"ORQO_WORKERS": "1"}, {"ORQO_WORKERS": "1", "ORQO_DATA": str(other), "ORQO_KEY": key_of(box)}
    with running(box, settings | here, tmp_path / "here.log", "app", "worker") as service:
        asleep = [box.accept("files") for _ in range(3)]
        wait_for(lambda: {box.run(run_id)["status"] for run_id in asleep} == {"waiting"})
        with running(box, settings | there, tmp_path / "there.log", "worker"):
            service.stop("worker")
            nap_is_over(box)
            free = box.accept()
            wait_for(lambda: box.run(free)["status"] == "completed")
            assert {box.run(run_id)["status"] for run_id in asleep} == {"pending"}
            service.start("worker")
            wait_for(lambda: {box.run(run_id)["status"] for run_id in asleep} == {"completed"}, within_s=20)

    assert [box.run(run_id)["output"] for run_id in asleep] == ["kept"] * 3


@several_machines
def test_a_worker_that_was_cut_off_records_nothing_when_it_is_back(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, tmp_path: Path
) -> None:
    box.apply("name: slow\nstages: [{name: one, script: 'sleep 1; echo $ORQO_RUN_DIR', idempotent: true}]\n")
    run_id, log = box.accept("slow"), tmp_path / "cut.log"
    links = [Link([to_unix(path)]) for path in sockets_of(settings)]
    cut = Service(box, {"PATH": os.environ["PATH"], **settings, **behind(links, box)}, log=log)
    cut.start("worker")
    try:
        wait_for(lambda: box.run(run_id)["status"] == "running", within_s=20)
        for link in links:
            link.be(State.SILENT)
        with box.database.transaction() as connection:
            # What thirty seconds do.
            connection.execute(text("UPDATE runs SET lease_until = 0"))
        assert sweep(worker).lost == 1
        work(worker)
        taken_over = box.run(run_id)
        for link in links:
            link.be(State.WHOLE)
        wait_for(lambda: f"step=lease run={run_id} status=lost" in log.read_text(), within_s=20)
        newer = box.accept()
        wait_for(lambda: box.run(newer)["status"] == "completed", within_s=20)
    finally:
        for link in links:
            link.be(State.WHOLE)
        cut.stop("worker")
        for link in links:
            link.close()

    assert (taken_over["status"], taken_over["stages"][0]["attempts"]) == ("completed", 2)
    assert taken_over["output"] == str(box.config.data / "runs" / str(run_id))
    assert box.run(run_id) == taken_over


def sockets_of(settings: dict[str, str]) -> tuple[str, str]:
    """Give where PostgreSQL and Redis are reached."""
    folder = parse_qs(urlsplit(settings["DATABASE_URL"]).query)["host"][0]
    return f"{folder}/.s.PGSQL.5432", settings["REDIS_URL"].removeprefix("unix://")


def behind(links: list[Link], box: TestBox) -> dict[str, str]:
    """Give the settings of a machine that reaches both through links."""
    data = box.config.data.with_name("cut")
    data.mkdir(mode=0o711)
    database = f"postgresql://postgres@127.0.0.1:{links[0].port}/{urlsplit(box.config.database_url).path.lstrip('/')}?sslmode=disable"
    own = {"ORQO_DATA": str(data), "ORQO_KEY": key_of(box), "ORQO_WORKERS": "1"}
    return own | {"DATABASE_URL": database, "REDIS_URL": f"redis://127.0.0.1:{links[1].port}"}


def key_of(box: TestBox) -> str:
    return (box.config.data / "instance.key").read_text(encoding="ascii").strip()
