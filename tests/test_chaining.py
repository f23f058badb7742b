"""One workflow starts another: once for each pass, waited for or not, stopped together, no deeper than ten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orqo import apply, clock, db, definition, executor, instance, runs
from orqo.config import Config
from orqo.queue import Bell
from support import Service, TestBox, fresh_settings, wait_for

CHILD = "name: child\nstages:\n  - {name: work, stub: {output: {said: '${input.text}'}}}\n"


def parent(box: TestBox, stage: str = "{name: call, workflow: {name: child, input: {text: '${input}'}}}", *more: str) -> int:
    """Apply the parent and accept a run of it."""
    listed = "".join(f"  - {each}\n" for each in (stage, *more))
    box.apply(f"name: parent\nstages:\n{listed}")
    return box.accept("parent", input="hello")


def children(box: TestBox, run_id: int) -> list[dict[str, Any]]:
    ids = [row["id"] for row in box.rows("SELECT id FROM runs WHERE parent_id = :id ORDER BY id", id=run_id)]
    return [box.run(child) for child in ids]


def change(box: TestBox, statement: str, **values: Any) -> None:
    with box.database.transaction() as connection:
        connection.execute(text(statement), values)


def sweep(box: TestBox, *, later_s: float = 0) -> None:
    runs.sweep(box.box, stale_s=2.0, now=clock.now() + timedelta(seconds=later_s))


def test_the_childs_output_is_the_stages(box: TestBox, worker: executor.Worker) -> None:
    box.apply(CHILD)
    call = "{name: call, workflow: {name: child, input: {text: '${input}'}}}"
    run_id = parent(box, call, "{name: after, stub: {output: '${stages.call.output.said}'}}")

    executor.work()

    ended = box.run(run_id)
    assert (ended["status"], ended["output"]) == ("completed", "hello")
    (child,) = children(box, run_id)
    assert (child["status"], child["input"]) == ("completed", {"text": "hello"})
    assert box.rows("SELECT origin, depth, parent_stage, parent_pass FROM runs WHERE id = :id", id=child["id"]) == [
        {"origin": "workflow", "depth": 1, "parent_stage": "call", "parent_pass": 1}
    ]


def test_the_child_does_not_know(box: TestBox, worker: executor.Worker) -> None:
    box.apply(CHILD)
    run_id = parent(box)
    executor.work()

    (child,) = children(box, run_id)
    alone = box.run(box.accept("child", input={"text": "hello"}))

    assert set(child) == set(alone)
    assert (child["metadata"], child["trigger_id"]) == ({}, None)


def test_a_parent_holds_no_worker_while_its_child_runs(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: child\nstages:\n  - {name: work, delay: 1h}\n")
    run_id = parent(box)

    executor.work()

    assert [box.run(run_id)["status"], children(box, run_id)[0]["status"]] == ["waiting", "waiting"]
    assert box.rows("SELECT id FROM runs WHERE status = 'running'") == []


@pytest.mark.parametrize(
    ("stage", "words"), [("{name: work, stub: {fail: no disk}}", "says failed"), ("{name: work, command: ['false']}", "says failed")]
)
def test_a_failed_child_fails_the_stage(box: TestBox, worker: executor.Worker, stage: str, words: str) -> None:
    box.apply(f"name: child\nstages:\n  - {stage}\n")
    run_id = parent(box)

    executor.work()

    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("stage_failed", "call")
    assert words in error["detail"] and f"run {children(box, run_id)[0]['id']}" in error["detail"]


def test_wait_false_starts_it_and_goes_on(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: child\nstages:\n  - {name: work, delay: 1h}\n")
    run_id = parent(box, "{name: call, workflow: {name: child, wait: false}}")

    executor.work()

    (child,) = children(box, run_id)
    assert (box.run(run_id)["status"], child["status"]) == ("completed", "waiting")
    assert box.run(run_id)["output"] == {"workflow_run_id": child["id"]}


def test_a_child_that_outlives_its_time_is_stopped_and_the_stage_fails(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: child\nstages:\n  - {name: work, delay: 1h}\n")
    run_id = parent(box, "{name: call, workflow: {name: child, timeout: 2m}}")
    executor.work()
    change(box, "UPDATE waits SET deadline_at = '2020-01-01T00:00:00.000Z' WHERE kind = 'workflow'")
    sweep(box, later_s=121)

    executor.work()

    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("timeout", "call")
    assert "within 2m" in error["detail"]
    assert children(box, run_id)[0]["status"] == "stopped"


@pytest.mark.parametrize("name", ["nobody", "off"])
def test_a_workflow_that_cannot_be_started_fails_the_stage(box: TestBox, worker: executor.Worker, name: str) -> None:
    box.apply("name: off\nstages:\n  - {name: one, stub: {}}\n")
    change(box, "UPDATE workflows SET enabled = 0 WHERE name = 'off'")
    run_id = parent(box, f"{{name: call, workflow: {{name: {name}}}}}")

    executor.work()

    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("stage_failed", "call")
    assert name in error["detail"]


def test_a_cycle_ends_at_the_tenth_child_with_a_clear_error(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: round\nstages:\n  - {name: again, workflow: {name: round}}\n")
    run_id = box.accept("round")

    executor.work()

    assert [row["depth"] for row in box.rows("SELECT depth FROM runs ORDER BY id")] == list(range(11))
    assert {row["status"] for row in box.rows("SELECT status FROM runs")} == {"failed"}
    assert "10 workflows deep" in box.run(run_id + 10)["error"]["detail"]


def test_stopping_a_parent_stops_its_children_and_theirs(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: grandchild\nstages:\n  - {name: work, delay: 1h}\n")
    box.apply("name: child\nstages:\n  - {name: work, workflow: {name: grandchild}}\n")
    run_id = parent(box)
    executor.work()

    runs.stop(box.box, run_id, now=clock.now())

    assert [row["status"] for row in box.rows("SELECT status FROM runs ORDER BY id")] == ["stopped"] * 3
    assert box.rows("SELECT id FROM waits WHERE status = 'open'") == []


def test_a_running_child_is_asked_to_stop_with_its_parent(box: TestBox, worker: executor.Worker) -> None:
    box.apply(CHILD)
    run_id = parent(box)
    held = runs.claim(box.box, owner="w", now=clock.now())
    assert held is not None
    child = runs.start_child(box.box, held, "child", {"text": "x"}, timeout_s=300, elapsed_ms=1, now=clock.now())
    assert runs.claim(box.box, owner="w", now=clock.now()) is not None

    runs.stop(box.box, run_id, now=clock.now())

    assert box.run(run_id)["status"] == "stopped"
    asked = box.rows("SELECT status, stop_requested_at FROM runs WHERE id = :id", id=child)[0]
    assert (asked["status"], asked["stop_requested_at"] is not None) == ("running", True)


@pytest.mark.parametrize("timeout_s", [300, None])
def test_a_child_is_started_once_whatever_is_repeated_after_a_crash(box: TestBox, worker: executor.Worker, timeout_s: float | None) -> None:
    box.apply(CHILD)
    run_id = parent(box, "{name: call, workflow: {name: child, wait: false}}")
    held = runs.claim(box.box, owner="dead", now=clock.now())
    assert held is not None
    first = runs.start_child(box.box, held, "child", {"text": "x"}, timeout_s=None, elapsed_ms=1, now=clock.now())
    change(box, "UPDATE runs SET lease_until = 1 WHERE id = :id", id=run_id)
    sweep(box)

    claimed = [runs.claim(box.box, owner="w", now=clock.now()) for _ in range(2)]
    (held,) = [each for each in claimed if each is not None and each.run.id == run_id]
    second = runs.start_child(box.box, held, "child", {"text": "y"}, timeout_s=timeout_s, elapsed_ms=1, now=clock.now())

    assert first == second
    assert len(children(box, run_id)) == 1


def test_a_worker_that_lost_its_lease_starts_no_child(box: TestBox) -> None:
    box.apply(CHILD)
    parent(box)
    held = runs.claim(box.box, owner="w", now=clock.now())
    assert held is not None
    change(box, "UPDATE runs SET fence = fence + 1")

    with pytest.raises(runs.LeaseLost):
        runs.start_child(box.box, held, "child", None, timeout_s=300, elapsed_ms=1, now=clock.now())

    assert len(box.rows("SELECT id FROM runs")) == 1


def test_the_sweep_heals_a_parent_that_was_not_told(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: child\nstages:\n  - {name: work, delay: 1h}\n")
    run_id = parent(box)
    executor.work()
    change(
        box,
        "UPDATE runs SET status = 'completed', finished_at = '2026-01-01T00:00:00.000Z', wake_at = NULL WHERE parent_id = :id",
        id=run_id,
    )

    sweep(box)
    executor.work()

    assert box.run(run_id)["status"] == "completed"


def test_an_unknown_workflow_is_a_warning_when_applied(box: TestBox) -> None:
    with box.database.read() as connection:
        source = "name: parent\nstages:\n  - {name: call, workflow: {name: nobody}}\n  - {name: other, workflow: {name: hello}}\n"
        told = apply.warnings(connection, definition.parse(source))

    assert told == ["stages[0] (call) starts workflow nobody, which is not there; until it is, the stage fails"]


def test_a_chain_of_real_processes_goes_through_quickly(service: Service) -> None:
    box = service.box
    box.apply(CHILD)
    run_id = parent(box)
    service.box.bell.wake_workers()

    wait_for(lambda: box.run(run_id)["finished_at"], within_s=5)

    ended = box.run(run_id)
    assert (ended["status"], ended["output"]) == ("completed", {"said": "hello"})
    assert json.dumps(ended["error"]) == "null"


# ── across boxes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def other_box(settings: dict[str, str], redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A second box with its own database, key, web and worker; it may call back to loopback."""
    with fresh_settings(redis_url) as own:
        env = {**settings, **own, "ORQO_ALLOWED_NETWORKS": "127.0.0.0/8"}
        config = Config.from_environ(env)
        config.data.mkdir(mode=0o711)
        database = db.Database.open(config.database_url)
        db.initialise(database)
        key = instance.establish(database, config, now=clock.now())
        made = TestBox(config, database, key, Bell.of(config, key))
        service = Service(made, {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}, log=tmp_path / "other.log")
        service.start("app")
        service.start("worker")
        try:
            service.wait_ready()
            yield service
        finally:
            for name in list(service.processes):
                service.stop(name)
            made.bell.close()
            database.close()


@pytest.mark.parametrize(
    ("stage", "status", "output"),
    [("stub: {output: {twice: '${input.n}'}}", "completed", {"twice": 21}), ("stub: {fail: no}", "failed", "")],
)
def test_a_workflow_of_another_box_is_waited_for(
    service: Service, other_box: Service, settings: dict[str, str], stage: str, status: str, output: Any
) -> None:
    other_box.box.apply(f"name: remote\nstages:\n  - {{name: work, {stage}}}\n")
    bearer = other_box.box.token("trigger")
    service.box.apply(f"""
name: local
stages:
  - name: ask
    wait:
      timeout: 1m
      request:
        method: POST
        url: {other_box.url}/api/v1/trigger
        headers: {{Authorization: "Bearer {bearer}"}}
        json: {{workflow: remote, input: {{n: 21}}, callback_url: "${{wait.url}}"}}
output: "${{stages.ask.output}}"
""")
    run_id = service.box.accept("local")
    service.box.bell.wake_workers()

    wait_for(lambda: service.box.run(run_id)["finished_at"], within_s=15)

    ended = service.box.run(run_id)
    assert (ended["status"], ended["output"]) == (status, output), ended["error"]
    assert other_box.box.rows("SELECT count(*) AS n FROM runs")[0]["n"] == 1
