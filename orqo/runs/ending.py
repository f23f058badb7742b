"""The end of a run, told to its callbacks in the same transaction.

Owns the terminal statuses: a run gets one here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, select, update

from orqo import callbacks, clock, facts, flow, metrics
from orqo.definition import Definition
from orqo.models import TERMINAL, Reason, RunStatus, StageStatus, WaitStatus
from orqo.prepared import Prepared, Writing
from orqo.runs import concurrency
from orqo.runs.state import IS_HELD, NO_LEASE, RUNS, STAGES, WAITS, Box, LeaseLost, Output

END_HELD = Writing(update(RUNS).where(*IS_HELD))
END = Writing(update(RUNS).where(RUNS.c.id == bindparam("alive_id"), RUNS.c.status.not_in(TERMINAL)))
HISTORY = Prepared(select(STAGES).where(STAGES.c.run_id == bindparam("run_id")).order_by(STAGES.c.sequence))


def end(
    box: Box,
    connection: Connection,
    run: Row[Any],
    definition: Definition,
    status: RunStatus,
    error: flow.RunError | None,
    output: Output,
    *,
    now: datetime,
) -> int:
    """Write the terminal status of a run that no worker goes on with, and its deliveries; gives how many can be sent now.

    LeaseLost where the run has ended already.
    """
    changes = close(connection, run, flow.End(status, error), output, now=now)
    stages = stage_rows(connection, run.id)
    _end_open_stage(connection, run.id, status, error, now)
    listeners = callbacks.listeners(connection, run.workflow_id, run.trigger_id)
    return follow(box, connection, run, definition, changes, output, stages, listeners, now=now)


def close(
    connection: Connection, run: Row[Any], verdict: flow.End, output: Output, *, held: Mapping[str, Any] | None = None, now: datetime
) -> dict[str, Any]:
    """Write the terminal status and give what was written.

    `held` are the parameters of `IS_HELD` and what else the worker that holds the run changes; without it the run must only
    not have ended yet. LeaseLost otherwise.
    """
    error = verdict.error
    changes = NO_LEASE | {
        "status": verdict.status,
        "finished_at": clock.to_text(now),
        "wake_at": None,
        "held": 0,
        "output": output.data,
        "output_kind": output.kind,
        "output_truncated": int(output.truncated),
        "error_reason": error.reason if error else None,
        "error_detail": error.detail if error else None,
        "error_stage": error.stage if error else None,
    }
    ended = END_HELD.change(connection, {**changes, **held}) if held else END.change(connection, {**changes, "alive_id": run.id})
    if ended != 1:
        raise LeaseLost
    return changes


def follow(
    box: Box,
    connection: Connection,
    run: Row[Any],
    definition: Definition,
    changes: Mapping[str, Any],
    output: Output,
    stages: Sequence[Row[Any]],
    listeners: callbacks.Listeners,
    *,
    now: datetime,
) -> int:
    """Do what the end of a run brings with it: waits end, the next of its concurrency key goes, callbacks are told."""
    status, stage = changes["status"], changes["error_stage"]
    metrics.ended(connection, definition.name, str(status))
    _end_waits(box, connection, run, definition, status, now=now)
    concurrency.let_go(connection, run)
    return tell(box, connection, str(status), run, definition, changes, output, stages, listeners, stage=stage, now=now)


def end_without_word(connection: Connection, run: Row[Any], now: datetime) -> None:
    """Fail a run without telling its callbacks: telling may be what could not be done."""
    error = {"error_reason": Reason.FAULT, "error_detail": "A fault of the service's own; its log beside this time says which."}
    ended = NO_LEASE | {"status": RunStatus.FAILED, "finished_at": clock.to_text(now)} | error
    connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(ended))
    wake_parent(connection, run, now)
    concurrency.let_go(connection, run)


def _end_waits(box: Box, connection: Connection, run: Row[Any], definition: Definition, status: RunStatus, *, now: datetime) -> None:
    """End what waits for this run or within it: the parent goes on, and a stopped run's children are stopped."""
    if any(stage.kind in flow.WAITING_KINDS for stage in definition.stages):
        still_open = (WAITS.c.run_id == run.id, WAITS.c.status == WaitStatus.OPEN)
        connection.execute(update(WAITS).where(*still_open).values(status=WaitStatus.CLOSED))
    if status == RunStatus.STOPPED:
        stop_unfinished(box, connection, RUNS.c.parent_id == run.id, now=now)
    wake_parent(connection, run, now)


def wake_parent(connection: Connection, run: Row[Any], now: datetime) -> None:
    """Answer the stage that waits for this run; a parent that a worker holds finds the answer itself."""
    if run.parent_id is None:
        return
    waiting = (WAITS.c.child_id == run.id, WAITS.c.status == WaitStatus.OPEN)
    answered = {"status": WaitStatus.ANSWERED, "answered_at": clock.to_text(now)}
    if connection.execute(update(WAITS).where(*waiting).values(answered)).rowcount:
        parent = (RUNS.c.id == run.parent_id, RUNS.c.status == RunStatus.WAITING)
        connection.execute(update(RUNS).where(*parent).values(status=RunStatus.PENDING, wake_at=None))


def stop_unfinished(box: Box, connection: Connection, which: Any, *, now: datetime) -> None:
    """Stop runs: those that no worker has at once, with their own children, the others by asking their workers."""
    unfinished = select(RUNS).where(which, RUNS.c.status.not_in(TERMINAL)).order_by(RUNS.c.id)
    for run in connection.execute(unfinished).all():
        if run.status == RunStatus.RUNNING:
            asked = func.coalesce(RUNS.c.stop_requested_at, clock.to_text(now))
            connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(stop_requested_at=asked))
        else:
            definition = box.definitions.of(connection, run.version_id)
            end(box, connection, run, definition, RunStatus.STOPPED, None, Output(None, None), now=now)


def _end_open_stage(connection: Connection, run_id: int, status: RunStatus, error: flow.RunError | None, now: datetime) -> None:
    """End the execution that was under way when a run ended from outside; one that never began was not reached."""
    opened = (STAGES.c.run_id == run_id, STAGES.c.finished_at.is_(None))
    connection.execute(delete(STAGES).where(*opened, STAGES.c.attempts == 0))
    ended: dict[str, Any] = {"status": StageStatus.STOPPED, "finished_at": clock.to_text(now)}
    if status == RunStatus.FAILED and error:
        ended |= {"status": StageStatus.FAILED, "error_reason": error.reason, "error_detail": error.detail}
    connection.execute(update(STAGES).where(*opened).values(ended))


def tell(
    box: Box,
    connection: Connection,
    name: str,
    run: Row[Any],
    definition: Definition,
    changes: Mapping[str, Any],
    output: Output,
    stages: Sequence[Row[Any]],
    listeners: callbacks.Listeners,
    *,
    stage: str | None,
    wait: Mapping[str, Any] | None = None,
    now: datetime,
) -> int:
    """Record an event of a run for its callbacks; `wait` is what the event `waiting` tells besides."""
    requested = json.loads(run.callbacks)
    if not callbacks.is_wanted(listeners, requested, name):
        return 0
    shown = dict(run._mapping) | dict(changes)
    error = {key: shown[f"error_{key}"] for key in ("reason", "detail", "stage")} if shown["error_reason"] else None
    told = {key: shown[key] for key in ("id", "workflow_id", "status", "trigger_id", "created_at", "started_at", "finished_at")}
    told |= {"workflow": definition.name, "error": error, "metadata": json.loads(run.metadata), "url": facts.run_url(box.base_url, run.id)}
    event = callbacks.Event(
        name=name,
        run=told,
        roots=lambda: {
            **facts.roots(run, stages, workflow=definition.name, base_url=box.base_url, changes=changes),
            "wait": wait or {},
        },
        output=output.data,
        output_kind=output.kind,
        stage=stage,
        wait=wait,
        requested=requested,
    )
    return callbacks.record(connection, event, listeners, now=now)


def stage_rows(connection: Connection, run_id: int) -> tuple[Row[Any], ...]:
    return tuple(HISTORY.all(connection, {"run_id": run_id}))
