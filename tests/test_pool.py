"""The worker's processes: killed ones leave nothing running and lose nothing; told to end, they end in order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from orqo import clock, runs
from support import Service, wait_for


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def start(service: Service, name: str, stages: str) -> int:
    """Apply a workflow, start a run of it over HTTP and give its id."""
    service.box.apply(f"name: {name}\nstages:\n  - {stages}\n")
    answer = requests.post(service.url + service.box.hook(name), timeout=5)
    assert answer.status_code == 201
    return int(answer.json()["workflow_run_id"])


def pids(service: Service, run_id: int, *names: str) -> list[int]:
    """Wait for the process ids that a run's script wrote down."""
    folder = service.box.config.data / "runs" / str(run_id)
    return [int(wait_for(lambda f=folder / name: f.exists() and f.read_text().strip(), what=f"{name} of run {run_id}")) for name in names]


def worker_of(service: Service, pid: int) -> int:
    """Give the worker's process, a child of the pool's, that a command descends from."""
    while parent_of(pid) != service.processes["worker"].pid:
        pid = parent_of(pid)
    return pid


def ended(service: Service, run_id: int) -> dict[str, Any] | None:
    run = service.box.run(run_id)
    return run if run["finished_at"] else None


SLEEPS = "script: 'echo $$ > pid; setsid sh -c \"echo \\$\\$ > far; sleep 300\" & sleep 300'"


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_killed_workers_command_is_gone_and_its_run_is_taken_over(service: Service, idempotent: bool) -> None:
    repeat = "echo $$ > pid; if [ -e tried ]; then echo again; else touch tried; sleep 300 & echo $! > far; sleep 300; fi"
    stage = f"{{name: one, script: '{repeat}', idempotent: true}}" if idempotent else f"{{name: one, {SLEEPS}}}"
    run_id = start(service, "long", stage)
    near, far = pids(service, run_id, "pid", "far")
    killed = worker_of(service, near)

    os.kill(killed, signal.SIGKILL)

    wait_for(lambda: not alive(near) and not alive(far), within_s=5, what="the command's processes are gone")
    run = wait_for(lambda: ended(service, run_id), within_s=20, what="the run is taken over")
    if idempotent:
        assert (run["status"], run["output"], run["stages"][0]["attempts"]) == ("completed", "again", 2)
    else:
        assert (run["status"], run["error"]["reason"]) == ("failed", "interrupted")
    # The others go on, and a new worker stands in for the dead one.
    other = start(service, "quick", "{name: one, stub: {}}")
    assert wait_for(lambda: ended(service, other))["status"] == "completed"


def test_killing_the_whole_pool_leaves_no_process_of_it(settings: dict[str, str], request: pytest.FixtureRequest) -> None:
    # Its workers are told by the kernel, and give a command the time that they always do.
    settings["ORQO_STOP_TIMEOUT"] = "500ms"
    service: Service = request.getfixturevalue("service")
    run_id = start(service, "long", f"{{name: one, {SLEEPS}}}")
    near, far = pids(service, run_id, "pid", "far")
    worker = worker_of(service, near)

    service.stop("worker", signal.SIGKILL)
    wait_for(lambda: not any(map(alive, (worker, near, far))), within_s=8, what="its processes are gone")
    service.start("worker")

    run = wait_for(lambda: ended(service, run_id), within_s=20, what="the run is taken over")
    assert run["error"]["reason"] == "interrupted"


def test_a_stop_reaches_a_running_command(service: Service) -> None:
    run_id = start(service, "long", f"{{name: one, {SLEEPS}}}")
    near, far = pids(service, run_id, "pid", "far")

    assert runs.stop(service.box.box, run_id, now=clock.now()) == "running"

    run = wait_for(lambda: ended(service, run_id), within_s=12, what="the run is stopped")
    assert (run["status"], run["stages"][0]["status"], run["error"]) == ("stopped", "stopped", None)
    assert not alive(near)
    assert not alive(far)


def test_sigterm_lets_a_command_end_hands_the_rest_back_and_leaves_nothing(service: Service) -> None:
    quick = start(service, "quick", "{name: one, script: 'echo $$ > pid; sleep 1.5; echo done'}\n  - {name: two, stub: {}}")
    slow = start(service, "slow", "{name: one, stub: {delay: 60s}}")
    near = pids(service, quick, "pid")[0]
    wait_for(lambda: service.box.run(slow)["status"] == "running")
    began = time.monotonic()

    assert service.stop("worker") == 0

    assert time.monotonic() - began < 8
    assert not alive(near)
    assert [(s["name"], s["status"], s["output"]) for s in service.box.run(quick)["stages"]] == [
        ("one", "completed", "done"),
        ("two", "pending", None),
    ]
    assert service.box.run(slow)["status"] == "pending"
    service.start("worker")
    assert wait_for(lambda: ended(service, quick), within_s=15)["status"] == "completed"


def test_a_command_that_does_not_end_in_time_is_killed_and_the_run_says_so(
    settings: dict[str, str], request: pytest.FixtureRequest
) -> None:
    settings["ORQO_STOP_TIMEOUT"] = "1s"
    service: Service = request.getfixturevalue("service")
    run_id = start(service, "long", f"{{name: one, {SLEEPS}}}")
    near, far = pids(service, run_id, "pid", "far")
    began = time.monotonic()

    assert service.stop("worker") == 0

    assert 1 <= time.monotonic() - began < 8
    assert (service.box.run(run_id)["status"], service.box.run(run_id)["error"]["reason"]) == ("failed", "interrupted")
    assert not alive(near)
    assert not alive(far)
