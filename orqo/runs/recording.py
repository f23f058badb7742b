"""Record: what an attempt of a stage came to, and what the run does next, one commit each.

Every write names the claim's fencing token; a worker whose lease is lost writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from orqo import callbacks, clock, crashpoints, facts, flow, jsontext
from orqo.definition import StageDefinition
from orqo.models import Reason, RunStatus, StageStatus
from orqo.runs import chaining, waiting
from orqo.runs.claiming import change_stage, claim_next, enter, skip
from orqo.runs.ending import close, follow, tell
from orqo.runs.state import CHANGE_HELD, LEASE_S, NO_LEASE, Box, Claim, LeaseLost, Output, StageEnd


def record(
    box: Box,
    claim: Claim,
    end: StageEnd,
    following: StageDefinition,
    *,
    skipped: Sequence[flow.Skipped] = (),
    go_on: bool,
    elapsed_ms: int,
    now: datetime,
) -> Claim | None:
    """Write a stage's end, what is skipped after it and the start of the next, one commit; gives the claim on that next stage.

    Without `go_on`, and where a stop was asked for, the run is handed back instead, the next stage pending, and the answer
    is None: the next claim stops it. LeaseLost where the lease is gone.
    """
    leased_until = clock.boot_seconds() + LEASE_S
    with box.database.transaction() as connection:
        lease_until = box.database.lease_clock(connection).seconds + LEASE_S
        changes = {"running_ms": claim.run.running_ms + elapsed_ms, "claims": 1, "lease_until": lease_until, "wake_at": None}
        changes |= _bound(box, end)
        go_on = not _change(connection, claim, changes) and go_on
        listeners = callbacks.listeners(connection, claim.run.workflow_id, claim.run.trigger_id)
        ended = _record_end(box, connection, claim, end, listeners, now=now)
        history = skip(connection, claim.run.id, (*claim.history, ended), skipped, now)
        status = StageStatus.RUNNING if go_on else StageStatus.PENDING
        row = enter(connection, claim.run.id, following, history, status, now)
        if not go_on:
            _change(connection, claim, NO_LEASE | {"status": RunStatus.PENDING, "claims": 0})
        crashpoints.reach("record-before-commit")
    crashpoints.reach("result-recorded")
    if not go_on:
        return None
    return replace(claim, stage=following, stage_row=row, history=history, leased_until=leased_until, ended=None, went_on=True)


def record_failure(box: Box, claim: Claim, end: StageEnd, *, wait_s: float | None, elapsed_ms: int, now: datetime) -> Claim | None:
    """Write a failed attempt that will be retried. `wait_s` None: at once, and the claim goes on; else the run waits.

    A waiting run holds no worker: the sweep makes it pending when its time has come.
    """
    leased_until = clock.boot_seconds() + LEASE_S
    with box.database.transaction() as connection:
        failed = _end_columns(claim, end) | {"failures": claim.stage_row.failures + 1}
        if wait_s is None:
            failed |= {"status": StageStatus.RUNNING, "attempts": claim.stage_row.attempts + 1}
            changes: dict[str, Any] = {"lease_until": box.database.lease_clock(connection).seconds + LEASE_S}
        else:
            failed["status"] = StageStatus.WAITING
            # A stop that was asked for meanwhile is not to wait as long as the retry.
            stop_asked = _change(connection, claim, {"wake_at": None})
            wake_at = clock.to_text(now if stop_asked else now + timedelta(seconds=wait_s))
            changes = NO_LEASE | {"status": RunStatus.WAITING, "wake_at": wake_at, "claims": 0}
        _change(connection, claim, changes | _bound(box, end) | {"running_ms": claim.run.running_ms + elapsed_ms})
        row = change_stage(connection, claim.stage_row.id, failed)
        if claim.stage.kind in flow.WAITING_KINDS:
            waiting.used(connection, claim, ended=False)
    return replace(claim, stage_row=row, leased_until=leased_until, ended=None) if wait_s is None else None


def hand_back(box: Box, claim: Claim, *, began: bool, elapsed_ms: int) -> None:
    """Give a claimed run back unharmed, its stage to be executed anew: the worker stops. LeaseLost where it is gone.

    A stage that never `began` has made no attempt, though the claim counted one.
    """
    with box.database.transaction() as connection:
        changes = NO_LEASE | {"status": RunStatus.PENDING, "claims": 0 if claim.went_on else claim.run.claims - 1}
        _change(connection, claim, changes | {"running_ms": claim.run.running_ms + elapsed_ms})
        # One that goes on after its wait was counted when it began to wait.
        attempts = claim.stage_row.attempts - int(not began and claim.ended is None)
        change_stage(connection, claim.stage_row.id, {"status": StageStatus.PENDING, "attempts": attempts})


def finish(
    box: Box,
    claim: Claim,
    end: StageEnd,
    verdict: flow.End,
    output: Output,
    *,
    skipped: Sequence[flow.Skipped] = (),
    elapsed_ms: int,
    next_owner: str | None,
    now: datetime,
) -> tuple[int, Claim | None]:
    """Write a run's end and its deliveries, and claim the next run for `next_owner`: one commit.

    Gives how many deliveries can be sent now, and the next claim. LeaseLost where the lease is gone.
    """
    run, held = claim.run, {**claim.held, "running_ms": claim.run.running_ms + elapsed_ms, **_bound(box, end)}
    with box.database.transaction() as connection:
        starts = verdict.starts is not None
        if starts:
            # Whether the other workflow can be started decides how this run ends.
            _change(connection, claim, {"wake_at": None})
        changes = {} if starts else close(connection, run, verdict, output, held=held, now=now)
        listeners = callbacks.listeners(connection, run.workflow_id, run.trigger_id)
        ended = _record_end(box, connection, claim, end, listeners, stopped=verdict.status == RunStatus.STOPPED, now=now)
        rows = skip(connection, run.id, (*claim.history, ended), skipped, now)
        if starts:
            verdict = _chained(box, connection, claim, ended, verdict, now=now)
            changes = close(connection, run, verdict, output, held=held, now=now)
        told = follow(box, connection, run, claim.definition, changes, output, rows, listeners, now=now)
        following = claim_next(box, connection, owner=next_owner, now=now) if next_owner else None
        crashpoints.reach("finish-before-commit")
    return told, following


def _chained(box: Box, connection: Connection, claim: Claim, ended: Row[Any], verdict: flow.End, *, now: datetime) -> flow.End:
    """Start the workflow that the last stage leads to, with its output as input; where it cannot be started, this run fails."""
    if verdict.starts is None:
        return verdict
    if ended.output_truncated:
        fault: str | None = f"Workflow {verdict.starts} was not started: {facts.CUT.format(stage=ended.name)}."
    else:
        value = jsontext.value_of(ended.output, ended.output_kind)
        started = chaining.start(box, connection, claim.run, ended, verdict.starts, value, via=chaining.BY_ROUTING, now=now)
        fault = started.detail if isinstance(started, chaining.Refused) else None
    return verdict if fault is None else flow.End(RunStatus.FAILED, flow.RunError(Reason.STAGE_FAILED, fault, ended.name))


def _change(connection: Connection, claim: Claim, changes: Mapping[str, Any]) -> bool:
    """Write to the run under the claim's fence, or raise LeaseLost and so undo the whole transaction.

    Tells whether a stop was asked for.
    """
    row = CHANGE_HELD.first(connection, {**changes, **claim.held})
    if row is None:
        raise LeaseLost
    return bool(row.stop_requested_at is not None)


def _bound(box: Box, end: StageEnd) -> dict[str, Any]:
    """Give what binds a run to this machine, or frees it where nothing is left in its folder; nothing where neither is known."""
    return {} if end.has_files is None else {"machine": box.machine if end.has_files else ""}


def _end_columns(claim: Claim, end: StageEnd) -> dict[str, Any]:
    used = Counter(json.loads(claim.stage_row.usage or "{}")) + Counter(end.usage or {})
    return {
        "output": end.output,
        "output_kind": end.output_kind,
        "output_truncated": int(end.truncated),
        "outcome": end.outcome,
        "error_reason": end.error_reason,
        "error_detail": end.error_detail,
        "exit_code": end.exit_code,
        "stderr": end.stderr,
        "response": jsontext.dump(end.response) if end.response is not None else None,
        "usage": jsontext.dump(used) if used else None,
        "note": end.note,
    }


def _record_end(
    box: Box,
    connection: Connection,
    claim: Claim,
    end: StageEnd,
    listeners: callbacks.Listeners,
    *,
    stopped: bool = False,
    now: datetime,
) -> Row[Any]:
    """Write a stage's end; the caller has written to the run under the claim's fence before."""
    failed = end.error_reason is not None
    if claim.stage.kind in flow.WAITING_KINDS:
        waiting.used(connection, claim, ended=True)
    status = StageStatus.STOPPED if stopped else StageStatus.FAILED if failed else StageStatus.COMPLETED
    columns = _end_columns(claim, end) | {"status": status, "finished_at": clock.to_text(now)}
    if failed:
        columns["failures"] = claim.stage_row.failures + 1
    row = change_stage(connection, claim.stage_row.id, columns)
    if not failed and end.output is not None:
        output = Output(end.output, end.output_kind, end.truncated)
        told, history = claim.definition, (*claim.history, row)
        tell(box, connection, "output", claim.run, told, {}, output, history, listeners, stage=row.name, now=now)
    return row
