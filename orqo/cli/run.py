"""`run start | list | show | tail | stop`; `answer | rerun` are continuing.py's."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orqo import clock, db, runs, workflows
from orqo.cli import continuing, output, progress
from orqo.cli.arguments import PROGRAM, Refused, count, json_value, number, verb, verbs
from orqo.cli.opening import Opened, opened
from orqo.config import Config
from orqo.errors import Conflict, NotFound, Unavailable
from orqo.models import RunStatus

POLL_FIRST_S, POLL_MAX_S, POLL_GROWTH = 0.05, 0.5, 1.3
STDERR_LINES = 20


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    start = verb(commands, "start", _start, "Start a workflow")
    start.add_argument("workflow", metavar="WORKFLOW")
    start.add_argument("--input", type=json_value, default=None, metavar="JSON", help="the run's input (default: null)")
    start.add_argument("--wait", action="store_true", help="wait for its end and print the result; the exit status follows it")
    listing = verb(commands, "list", _list, "List runs, newest first")
    listing.add_argument("--status", choices=[str(status) for status in RunStatus], help="only those that stand so")
    listing.add_argument("--workflow", metavar="WORKFLOW", help="only those of one workflow")
    listing.add_argument("--limit", type=count, default=20, metavar="N", help="at most so many (default: 20)")
    for name, run, purpose in (
        ("show", _show, "Show a run and its stages"),
        ("tail", _tail, "Show a run's progress as it happens; the exit status follows its end"),
        ("stop", _stop, "Stop a run"),
    ):
        verb(commands, name, run, purpose).add_argument("id", type=number, metavar="ID")
    continuing.add(commands)


# ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _start(arguments: argparse.Namespace) -> int:
    with _ended_by_ctrl_c(when=arguments.wait), opened() as box:
        _check_room(box.config)
        with box.database.transaction() as connection:
            workflow = workflows.named(connection, arguments.workflow)
            if not workflow.enabled:
                raise Conflict(f"Workflow {workflow.name} is disabled; to enable it: {box.hint(f'workflow enable {workflow.name}')}")
            new = runs.NewRun(workflow_id=workflow.id, version_id=workflow.version_id, origin="cli", input=arguments.input)
            run_id = runs.accept(connection, new, now=clock.now()).run_id
        box.wake_workers()
        if arguments.wait:
            _wait(box, run_id)
        run = _shown(box, run_id)
        if arguments.json:
            output.as_json(run)
        elif not arguments.wait:
            output.say(f"Run {run_id} of {run['workflow']} is accepted. To see it happen: {box.hint(f'run tail {run_id}')}")
    return _ended(run, as_json=arguments.json) if arguments.wait else 0


@contextmanager
def _ended_by_ctrl_c(*, when: bool) -> Iterator[None]:
    """Let Ctrl-C end the process itself: nothing is left to undo, and an interrupt that comes within a destructor is lost to Python."""
    before = signal.getsignal(signal.SIGINT)
    if not when or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_room(config: Config) -> None:
    free = db.free_bytes(config.database_path)
    if free is not None and free < config.disk_free_min_bytes:
        raise Unavailable("The disk is nearly full (ORQO_DISK_FREE_MIN): free some space. Nothing was stored.")


def _wait(box: Opened, run_id: int) -> None:
    """Return when a run has ended; it needs no Redis, only the database."""
    patience, pause_s = progress.Patience(), POLL_FIRST_S
    while True:
        with box.database.read() as connection:
            status = runs.status_of(connection, run_id)
        if status is None or status.terminal:
            return
        patience.seen(box, run_id, status)
        time.sleep(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)


def _ended(run: dict[str, Any], *, as_json: bool) -> int:
    """Print what a run came to and give the exit status that follows it."""
    if run["status"] == RunStatus.COMPLETED:
        if not as_json:
            output.result(run["output"])
        return 0
    why = f": {output.error(run['error'])}" if run["error"] else ""
    raise Refused(output.clean(f"orqo: run {run['id']} {'was stopped' if run['status'] == RunStatus.STOPPED else 'failed'}{why}"))


def _shown(box: Opened, run_id: int) -> dict[str, Any]:
    with box.database.read() as connection:
        run = runs.show(connection, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}. List them with: run list")
    return run


# ── list, show ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        workflow_id = workflows.named(connection, arguments.workflow).id if arguments.workflow else None
        listed = runs.list_all(connection, status=arguments.status, workflow_id=workflow_id, limit=arguments.limit)
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "WORKFLOW", "STATUS", "CREATED", "TOOK", "ERROR")
    rows = [
        (
            *(run[key] for key in ("id", "workflow", "status", "created_at")),
            output.took(run["started_at"], run["finished_at"]),
            output.error(run["error"]),
        )
        for run in listed
    ]
    output.table(headings, rows, nothing=f"There are no such runs. To make one: {PROGRAM} run start WORKFLOW")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with opened() as box:
        run = _shown(box, arguments.id)
    if arguments.json:
        output.as_json(run)
        return 0
    told = {"run": run["id"], "workflow": run["workflow"], "status": run["status"]}
    told |= {"created": run["created_at"], "started": run["started_at"], "finished": run["finished_at"]}
    told |= {"took": output.took(run["started_at"], run["finished_at"]), "trigger": run["trigger_id"]}
    told |= {"metadata": run["metadata"]} if run["metadata"] else {}
    output.fields(told | {"input": run["input"], "output": run["output"], "error": output.error(run["error"])})
    print()
    _print_stages(run["stages"])
    return 0


def _print_stages(stages: list[dict[str, Any]]) -> None:
    headings = ("STAGE", "KIND", "STATUS", "ATTEMPTS", "TOOK", "OUTCOME", "EXIT", "ERROR")
    rows = [
        (
            *(stage[key] for key in ("name", "kind", "status", "attempts")),
            output.took(stage["started_at"], stage["finished_at"]),
            *(stage[key] for key in ("outcome", "exit_code")),
            stage["error"] and f"{stage['error']['reason']}: {stage['error']['detail']}",
        )
        for stage in stages
    ]
    output.table(headings, rows, nothing="No stage was reached yet.")
    for stage in stages:
        told = {f"note on {stage['name']}": stage["note"]} if "note" in stage else {}
        told |= {f"tokens of {stage['name']}": stage["usage"]} if "usage" in stage else {}
        if stage["stderr"]:
            lines = stage["stderr"].rstrip("\n").split("\n")[-STDERR_LINES:]
            told[f"stderr of {stage['name']}"] = "\n".join(lines)
        if told:
            print()
            output.fields(told)


# ── tail, stop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _tail(arguments: argparse.Namespace) -> int:
    with opened() as box:
        status = progress.follow(box, arguments.id, as_json=arguments.json)
    return 0 if status == RunStatus.COMPLETED else 1


def _stop(arguments: argparse.Namespace) -> int:
    with opened() as box:
        status = runs.stop(box.box, arguments.id, now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "status": str(status)})
    elif status == RunStatus.STOPPED:
        output.say(f"Run {arguments.id} is stopped.")
    else:
        output.say(f"Run {arguments.id} is running: its worker is asked to stop it, and does within seconds.")
    return 0
