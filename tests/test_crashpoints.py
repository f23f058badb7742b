"""Each gap between two steps of a run's life, with the process killed in it: what DESIGN §5 promises holds afterwards."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inbox import Inbox, inbox
from orqo import clock, crashpoints, deliveries, dispatcher, executor, leases, outbound, runs
from orqo.config import PROJECT_DIR
from orqo.secretstore import SecretStore
from support import TestBox, wait_for

FULL = bool(os.environ.get("ORQO_TEST_FULL"))
KINDS = ("stub", "command", "script", "get", "post")
IN_DOUBT = ("claimed", "stage-started", "effect-done", "record-before-commit", "result-recorded", "finish-before-commit")
WORKER_POINTS = ("claim-before-commit", *IN_DOUBT, "finished")
DISPATCHER_POINTS = ("delivery-claimed", "delivery-sent", "attempt-before-commit", "attempt-recorded")
# These two are tried in test_waiting_crashes.py.
WAITING_POINTS = ("wait-before-commit", "wait-open", "wait-asked", "child-before-commit", "child-started")
SCHEDULE_POINTS = ("schedule-before-commit", "schedule-fired")
WEB_POINTS = ("accept-before-commit", "accept-committed", "workers-woken")
# Which time each point is reached: in the first of two stages, and in the second.
TWICE = ("stage-started", "effect-done")


def crash_here(box: TestBox, settings: dict[str, str], point: str, act: str, *names: str) -> None:
    """Have a process of its own do something for each name and end at the point."""
    env = {"PATH": os.environ["PATH"], **settings, crashpoints.VARIABLE: point, "PYTHONPATH": str(PROJECT_DIR)}
    argv = [sys.executable, str(Path(__file__).with_name("crashing.py")), act, *names]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, cwd=box.config.data)
    assert done.stdout.split() == ["-9"] * len(names), done.stderr


def test_every_point_has_a_test() -> None:
    assert {*WORKER_POINTS, *WAITING_POINTS, *SCHEDULE_POINTS, *DISPATCHER_POINTS, *WEB_POINTS} == set(crashpoints.POINTS)


def test_a_point_that_does_not_exist_is_named() -> None:
    env = {**os.environ, crashpoints.VARIABLE: "nowhere"}

    done = subprocess.run([sys.executable, "-c", "import orqo.crashpoints"], env=env, cwd=PROJECT_DIR, capture_output=True, text=True)

    assert "there is no point nowhere" in done.stderr


# ── the worker ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def counting_server() -> Iterator[tuple[str, Counter[str]]]:
    """A server that counts the requests of each path."""
    seen: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen[self.path] += 1
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


def effect(kind: str, stage: str, base: str, folder: Path) -> str:
    """Give a stage of this kind whose effect can be counted from outside (but for a stub, which has none)."""
    mark = folder / stage
    return {
        "stub": "stub: {output: done}",
        "command": f"command: [sh, {folder}/effect.sh, '${{run.id}}-{stage}']",
        "script": f"script: 'echo $ORQO_RUN_ID-{mark.name} >> {folder}/effects'",
        "get": f"http: {{url: '{base}/${{run.id}}-{stage}'}}",
        "post": f"http: {{method: POST, url: '{base}/${{run.id}}-{stage}', body: x}}",
    }[kind]


def apply_all(box: TestBox, done: Inbox, base: str, folder: Path) -> list[str]:
    """Apply a workflow of two stages for each kind, idempotent and not; gives their names."""
    (folder / "effects").touch()
    (folder / "effects").chmod(0o666)
    (folder / "effect.sh").write_text(f"echo $1 >> {folder}/effects\n")
    names = []
    for kind, idempotent in itertools.product(KINDS, (False, True)):
        name = f"{kind}-{'again' if idempotent else 'once'}"
        again = str(idempotent).lower()
        stages = "".join(f"  - {{name: {stage}, {effect(kind, stage, base, folder)}, idempotent: {again}}}\n" for stage in ("one", "two"))
        box.apply(f"name: {name}\ncallbacks: [{{url: '{done.url()}'}}]\nstages:\n{stages}")
        names.append(name)
    return names


def recover(box: TestBox, worker: executor.Worker) -> None:
    """Do what the living processes do after a crash: sweep, work, deliver."""
    runs.sweep(box.box, stale_s=2, now=clock.now())
    executor.work()
    deliveries.sweep(box.database)
    deliver(box)


def deliver(box: TestBox) -> None:
    """Send whatever is due until nothing is pending."""
    stopping = threading.Event()
    sender = deliveries.Sender(outbound.Client(), SecretStore.from_config(box.config), box.key)
    sending = dispatcher.Dispatcher(box.box, box.bell, sender, (0.1,) * 9, leases.owner(), stopping)
    thread = threading.Thread(target=dispatcher.loop, args=(sending,))
    thread.start()
    try:
        wait_for(lambda: not box.rows("SELECT id FROM deliveries WHERE status = 'pending'"), within_s=15)
    finally:
        stopping.set()
        box.bell.notify()
        thread.join()


def is_repeatable(name: str) -> bool:
    kind, _, again = name.partition("-")
    return again == "again" or kind in ("stub", "get")


def executions(point: str, time: int, name: str) -> tuple[int, int]:
    """Give how often the two stages' effects may have happened, by DESIGN §5.4."""
    if point not in IN_DOUBT:
        return 1, 1
    # The stage that was under way, and whether its effect had happened when the process ended.
    stage = 1 if time == 2 or point in ("result-recorded", "finish-before-commit") else 0
    happened = point in ("effect-done", "record-before-commit", "finish-before-commit")
    counts = [1, 1] if stage == 1 or is_repeatable(name) else [1, 0]
    counts[stage] = int(happened) + int(is_repeatable(name))
    return counts[0], counts[1]


CRASHES = [pytest.param(point, 1, id=point) for point in WORKER_POINTS] + [
    pytest.param(point, 2, id=f"{point}-of-the-second-stage", marks=pytest.mark.full) for point in TWICE
]


@pytest.mark.parametrize(("point", "time"), CRASHES)
def test_a_worker_killed_in_any_gap_leaves_each_run_one_end_and_repeats_nothing_that_must_not_be(
    point: str, time: int, box: TestBox, settings: dict[str, str], worker: executor.Worker
) -> None:
    folder = Path(settings["ORQO_DATA"]).parent / "effects"
    folder.mkdir(mode=0o711)
    with inbox() as done, counting_server() as (base, seen):
        names = apply_all(box, done, base, folder)

        crash_here(box, settings, f"{point}:{time}", "work", *names)
        recover(box, worker)

    effects = Counter((folder / "effects").read_text().split()) + Counter({path[1:]: count for path, count in seen.items()})
    found = {}
    for row in box.rows("SELECT r.id, r.status, r.error_reason, w.name FROM runs r JOIN workflows w ON w.id = r.workflow_id"):
        found[row["name"]] = ended = (row["status"], row["error_reason"])
        interrupted = point in IN_DOUBT and not is_repeatable(row["name"])
        assert ended == (("failed", "interrupted") if interrupted else ("completed", None)), row["name"]
        if not row["name"].startswith("stub"):
            assert (effects[f"{row['id']}-one"], effects[f"{row['id']}-two"]) == executions(point, time, row["name"]), row["name"]
    assert sorted(found) == sorted(names)
    told = {arrived.json["workflow_run_id"]: arrived.json["status"] for arrived in done.arrived}
    assert len(done.arrived) == len(told) == len(names)
    assert told == {row["id"]: row["status"] for row in box.rows("SELECT id, status FROM runs")}


# ── the dispatcher ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("point", "sent"), list(zip(DISPATCHER_POINTS, (1, 2, 2, 1), strict=True)), ids=DISPATCHER_POINTS)
def test_a_dispatcher_killed_in_any_gap_loses_no_callback_and_repeats_the_same_one(
    point: str, sent: int, box: TestBox, settings: dict[str, str], worker: executor.Worker
) -> None:
    with inbox() as done:
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{output: 1}}}}]\n")
        run_id = box.accept("told")
        executor.work()

        crash_here(box, settings, point, "send", "told")
        recover(box, worker)

    assert len(done.arrived) == sent
    assert len({(arrived.headers["webhook-id"], arrived.body) for arrived in done.arrived}) == 1
    assert json.loads(done.arrived[0].body)["workflow_run_id"] == run_id
    assert [row["status"] for row in box.rows("SELECT status FROM deliveries")] == ["delivered"]


# ── the web process ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("point", "kept"), list(zip(WEB_POINTS, (0, 1, 1), strict=True)), ids=WEB_POINTS)
def test_a_web_process_killed_in_any_gap_starts_one_run_for_a_sender_that_tries_again(
    point: str, kept: int, box: TestBox, settings: dict[str, str], worker: executor.Worker, client: Any
) -> None:
    hook, token = box.hook(), box.token("trigger")
    crash_here(box, settings, point, "accept", hook, f"/api/v1/trigger {token}")
    assert len(box.rows("SELECT id FROM runs")) == 2 * kept

    headers = {"Authorization": f"Bearer {token}"}
    for path in (hook, "/api/v1/trigger"):
        answer = client.post(path, json={"workflow": "hello"}, headers={"Idempotency-Key": path, **headers})
        assert answer.status_code == (200 if kept else 201), answer.text
    recover(box, worker)

    assert [row["status"] for row in box.rows("SELECT status FROM runs")] == ["completed", "completed"]
