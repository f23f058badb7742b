"""The run's state machine: accept, claim, record, wait, hand back, finish, stop, sweep.

Owns the tables runs, stages and idempotency_keys: the only writer of them. Each function is one use case and one commit
unless it takes a connection. A worker's write names its fencing token, and a worker whose lease is lost writes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Row, Table, case, exists, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from orqo import callbacks, clock, facts, flow, jsontext, leases
from orqo.db import Database
from orqo.definition import Definition, StageDefinition
from orqo.errors import Conflict, Invalid, NotFound
from orqo.models import TERMINAL, IdempotencyKey, Reason, Run, RunStatus, Stage, StageStatus, Trigger, Workflow
from orqo.workflows import LARGEST_ID, Definitions

log = logging.getLogger(__name__)

LEASE_S = 30.0
CLAIMS_MAX = 5
IDEMPOTENCY_HOURS = 24
SWEEP_LIMIT = 200
NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_boot": None, "lease_until": None}
RUNS = cast(Table, Run.__table__)
STAGES = cast(Table, Stage.__table__)


class LeaseLost(Exception):
    """The run is no longer this worker's: somebody else has it, or it has ended."""


@dataclass(frozen=True)
class Replay:
    """What makes a call the same as an earlier one: `body_hash` None means whatever the body (a vendor's id)."""

    scope: str
    key: str
    body_hash: str | None


@dataclass(frozen=True)
class NewRun:
    """What is accepted. `callbacks` are the request's own, as `callbacks.requested` gives them."""

    workflow_id: int
    version_id: int
    origin: str
    input: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    trigger_id: int | None = None
    token_id: int | None = None
    trigger_facts: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Mapping[str, Any]] = ()
    replay: Replay | None = None


@dataclass(frozen=True)
class Accepted:
    """The answer to an accept: the run, and whether it was there before."""

    run_id: int
    duplicate: bool = False


@dataclass(frozen=True)
class StageEnd:
    """What an attempt of a stage came to, as it is recorded; already masked. `error_reason` None: it completed."""

    output: bytes | None = None
    output_kind: str | None = None
    truncated: bool = False
    outcome: str | None = None
    error_reason: str | None = None
    error_detail: str | None = None
    exit_code: int | None = None
    stderr: bytes | None = None
    response: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Output:
    """A run's result: bytes and how to read them."""

    data: bytes | None
    kind: str | None
    truncated: bool = False


@dataclass(frozen=True)
class Box:
    """What the state machine knows of this box."""

    database: Database
    definitions: Definitions
    base_url: str


@dataclass(frozen=True)
class Claim:
    """What a worker holds: a running run, its definition, the stage execution to work on and those before it."""

    run: Row[Any]
    definition: Definition
    stage: StageDefinition
    stage_row: Row[Any]
    history: tuple[Row[Any], ...]

    @property
    def fence(self) -> tuple[Any, ...]:
        """The condition that every write under this claim carries."""
        return (Run.id == self.run.id, Run.fence == self.run.fence, Run.status == RunStatus.RUNNING)


# ── accept ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def accept(connection: Connection, new: NewRun, *, now: datetime) -> Accepted:
    """Write a pending run, or find the one that the same call made within 24 hours.

    Raises Invalid where an Idempotency-Key comes again with another body. Durable once the caller's transaction commits.
    """
    earlier = _earlier(connection, new.replay, now) if new.replay else None
    if earlier is not None:
        return Accepted(earlier, duplicate=True)
    moment = clock.to_text(now)
    values = {
        "workflow_id": new.workflow_id,
        "version_id": new.version_id,
        "status": RunStatus.PENDING,
        "input": jsontext.dump(new.input),
        "metadata": jsontext.dump(new.metadata),
        "trigger_id": new.trigger_id,
        "token_id": new.token_id,
        "origin": new.origin,
        "trigger_facts": jsontext.dump(new.trigger_facts),
        "callbacks": jsontext.dump(list(new.callbacks)),
        "created_at": moment,
    }
    run_id = connection.execute(insert(RUNS).values(values).returning(RUNS.c.id)).scalar_one()
    if new.trigger_id is not None:
        fired = {"fired_count": Trigger.fired_count + 1, "last_fired_at": moment}
        connection.execute(update(Trigger).where(Trigger.id == new.trigger_id).values(fired))
    if new.replay:
        _remember(connection, new.replay, run_id, moment)
    return Accepted(run_id)


def _earlier(connection: Connection, replay: Replay, now: datetime) -> int | None:
    """Give the run that this call made before; a vendor's redelivery after a failed or stopped run makes a new one."""
    same = (IdempotencyKey.scope == replay.scope, IdempotencyKey.key == replay.key)
    query = select(IdempotencyKey.run_id, IdempotencyKey.body_hash, Run.status).join(Run, Run.id == IdempotencyKey.run_id)
    fresh = IdempotencyKey.created_at > clock.to_text(now - timedelta(hours=IDEMPOTENCY_HOURS))
    row = connection.execute(query.where(*same, fresh)).one_or_none()
    if row is None:
        return None
    if replay.body_hash is None:
        return None if row.status in (RunStatus.FAILED, RunStatus.STOPPED) else int(row.run_id)
    if row.body_hash != replay.body_hash:
        raise Invalid(
            f"This Idempotency-Key came with another body within the last {IDEMPOTENCY_HOURS} hours. Use a new key for a new request."
        )
    return int(row.run_id)


def _remember(connection: Connection, replay: Replay, run_id: int, moment: str) -> None:
    values = {"run_id": run_id, "body_hash": replay.body_hash, "created_at": moment}
    same = (IdempotencyKey.scope == replay.scope, IdempotencyKey.key == replay.key)
    if not connection.execute(update(IdempotencyKey).where(*same).values(values)).rowcount:
        connection.execute(insert(IdempotencyKey).values(values | {"scope": replay.scope, "key": replay.key}))


# ── claim ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def claim(box: Box, *, owner: str, now: datetime) -> Claim | None:
    """Take the oldest pending run under a lease and start its stage, one commit; None where nothing is pending."""
    with box.database.read() as connection:
        if not any_pending(connection):
            return None
    with box.database.transaction() as connection:
        return claim_next(box, connection, owner=owner, now=now)


def any_pending(connection: Connection) -> bool:
    """Tell whether a run waits to be claimed."""
    return bool(connection.execute(select(exists().where(Run.status == RunStatus.PENDING))).scalar())


def claim_next(box: Box, connection: Connection, *, owner: str, now: datetime) -> Claim | None:
    """Do what `claim` does within the caller's transaction."""
    while (run := _take(box, connection, owner, now)) is not None:
        try:
            claim = _claimed(box, connection, run, now)
        except (LeaseLost, DBAPIError):
            raise
        except Exception:
            # One run that a fault of ours makes unusable must not hold up all that come after it.
            log.exception("step=claim run=%s status=fault", run.id)
            _end_without_word(connection, run, now)
            continue
        if claim is not None:
            return claim
    return None


def _claimed(box: Box, connection: Connection, run: Row[Any], now: datetime) -> Claim | None:
    """Start the stage that a run just taken goes on with; None where the run ended instead."""
    definition = box.definitions.of(connection, run.version_id)
    # The first claim finds nothing: no stage was ever started.
    history = _stage_rows(connection, run.id) if run.fence > 1 else ()
    current = history[-1] if history and history[-1].finished_at is None else None
    stage = flow.stage_named(definition, current.name) if current else definition.stages[0]
    if run.stop_requested_at is not None:
        _end(box, connection, run, definition, RunStatus.STOPPED, None, Output(None, None), now=now)
        return None
    error = _unclaimable(run, stage, current)
    if error is not None or stage is None:
        _end(box, connection, run, definition, RunStatus.FAILED, error, Output(None, None), now=now)
        return None
    row = _start(connection, run.id, stage, current, history, now)
    return Claim(run, definition, stage, row, history[:-1] if current else history)


def _end_without_word(connection: Connection, run: Row[Any], now: datetime) -> None:
    """Fail a run without telling its callbacks: telling may be what could not be done."""
    error = {"error_reason": Reason.FAULT, "error_detail": "A fault of the service's own; its log beside this time says which."}
    ended = NO_LEASE | {"status": RunStatus.FAILED, "finished_at": clock.to_text(now)} | error
    connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(ended))


def _take(box: Box, connection: Connection, owner: str, now: datetime) -> Row[Any] | None:
    reading = box.database.lease_clock(connection)
    # Runs that cost a worker come last: one that kills every worker must not hold up the others.
    waiting = select(RUNS.c.id).where(RUNS.c.status == RunStatus.PENDING).order_by(RUNS.c.claims, RUNS.c.id)
    oldest = waiting.limit(1).with_for_update(skip_locked=True)
    taken = {
        "status": RunStatus.RUNNING,
        "started_at": func.coalesce(RUNS.c.started_at, clock.to_text(now)),
        "claims": RUNS.c.claims + 1,
        "fence": RUNS.c.fence + 1,
        "lease_owner": owner,
        "lease_boot": reading.boot,
        "lease_until": reading.seconds + LEASE_S,
    }
    pending = (RUNS.c.id == oldest.scalar_subquery(), RUNS.c.status == RunStatus.PENDING)
    return connection.execute(update(RUNS).where(*pending).values(taken).returning(RUNS)).one_or_none()


def _stage_rows(connection: Connection, run_id: int) -> tuple[Row[Any], ...]:
    return tuple(connection.execute(select(STAGES).where(STAGES.c.run_id == run_id).order_by(STAGES.c.sequence)))


def _unclaimable(run: Row[Any], stage: StageDefinition | None, current: Row[Any] | None) -> flow.RunError | None:
    """Give why a claimed run cannot go on: its stage must not be repeated, or has cost too many workers already."""
    if current is not None and current.status == StageStatus.RUNNING and stage is not None and not flow.repeatable(stage):
        return flow.interrupted(stage.name)
    if run.claims > CLAIMS_MAX:
        name = stage.name if stage else None
        return flow.RunError(Reason.WORKER_LOST, f"The worker was lost {CLAIMS_MAX} times while executing stage {name}.", name)
    if stage is None:
        return flow.RunError(Reason.FAULT, "The definition does not hold the stage that was to go on.", current and current.name)
    return None


def _start(
    connection: Connection, run_id: int, stage: StageDefinition, current: Row[Any] | None, history: Sequence[Row[Any]], now: datetime
) -> Row[Any]:
    """Write that a stage is about to be executed: committed before its effect begins."""
    if current is not None:
        again = update(STAGES).where(STAGES.c.id == current.id).values(status=StageStatus.RUNNING, attempts=STAGES.c.attempts + 1)
        return connection.execute(again.returning(STAGES)).one()
    return _enter(connection, run_id, stage, history, StageStatus.RUNNING, now)


def _enter(
    connection: Connection, run_id: int, stage: StageDefinition, history: Sequence[Row[Any]], status: StageStatus, now: datetime
) -> Row[Any]:
    values = {
        "run_id": run_id,
        "sequence": len(history) + 1,
        "name": stage.name,
        "kind": stage.kind,
        "pass": 1 + sum(row.name == stage.name for row in history),
        "status": status,
        "attempts": int(status == StageStatus.RUNNING),
        "started_at": clock.to_text(now),
    }
    return connection.execute(insert(STAGES).values(values).returning(STAGES)).one()


def renew(box: Box, claim: Claim, *, elapsed_ms: int) -> bool:
    """Prolong a lease and note the time spent; tells whether somebody asked for the run to stop. LeaseLost where it is gone."""
    with box.database.transaction() as connection:
        until = box.database.lease_clock(connection).seconds + LEASE_S
        renewed = update(RUNS).where(*claim.fence).values(lease_until=until, running_ms=claim.run.running_ms + elapsed_ms)
        row = connection.execute(renewed.returning(RUNS.c.stop_requested_at)).one_or_none()
    if row is None:
        raise LeaseLost
    return row.stop_requested_at is not None


# ── record ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def record(
    box: Box, claim: Claim, end: StageEnd, following: StageDefinition, *, go_on: bool, elapsed_ms: int, now: datetime
) -> Claim | None:
    """Write a stage's end and the start of the next, one commit; gives the claim on that next stage.

    Without `go_on` the run is handed back instead, the next stage pending, and the answer is None. LeaseLost where the
    lease is gone.
    """
    with box.database.transaction() as connection:
        ended = _record_end(box, connection, claim, end, now=now)
        history = (*claim.history, ended)
        status = StageStatus.RUNNING if go_on else StageStatus.PENDING
        row = _enter(connection, claim.run.id, following, history, status, now)
        changes: dict[str, Any] = {"running_ms": claim.run.running_ms + elapsed_ms, "claims": 1}
        if go_on:
            changes["lease_until"] = box.database.lease_clock(connection).seconds + LEASE_S
        else:
            changes |= NO_LEASE | {"status": RunStatus.PENDING, "claims": 0}
        _change(connection, claim, changes)
    return replace(claim, stage=following, stage_row=row, history=history) if go_on else None


def record_failure(box: Box, claim: Claim, end: StageEnd, *, wait_s: float | None, elapsed_ms: int, now: datetime) -> Claim | None:
    """Write a failed attempt that will be retried. `wait_s` None: at once, and the claim goes on; else the run waits.

    A waiting run holds no worker: the sweep makes it pending when its time has come.
    """
    with box.database.transaction() as connection:
        failed = _end_columns(end) | {"failures": STAGES.c.failures + 1}
        if wait_s is None:
            failed |= {"status": StageStatus.RUNNING, "attempts": STAGES.c.attempts + 1}
            changes: dict[str, Any] = {"lease_until": box.database.lease_clock(connection).seconds + LEASE_S}
        else:
            failed["status"] = StageStatus.WAITING
            # A stop that was asked for meanwhile is not to wait as long as the retry.
            wake_at = case((RUNS.c.stop_requested_at.is_(None), clock.to_text(now + timedelta(seconds=wait_s))), else_=clock.to_text(now))
            changes = NO_LEASE | {"status": RunStatus.WAITING, "wake_at": wake_at, "claims": 0}
        _change(connection, claim, changes | {"running_ms": claim.run.running_ms + elapsed_ms})
        row = connection.execute(update(STAGES).where(STAGES.c.id == claim.stage_row.id).values(failed).returning(STAGES)).one()
    return replace(claim, stage_row=row) if wait_s is None else None


def hand_back(box: Box, claim: Claim, *, elapsed_ms: int) -> None:
    """Give a claimed run back unharmed, its stage to be executed anew: the worker stops. LeaseLost where it is gone."""
    with box.database.transaction() as connection:
        changes = NO_LEASE | {"status": RunStatus.PENDING, "claims": RUNS.c.claims - 1}
        _change(connection, claim, changes | {"running_ms": claim.run.running_ms + elapsed_ms})
        connection.execute(update(STAGES).where(STAGES.c.id == claim.stage_row.id).values(status=StageStatus.PENDING))


def finish(
    box: Box,
    claim: Claim,
    end: StageEnd,
    verdict: flow.End,
    output: Output,
    *,
    elapsed_ms: int,
    next_owner: str | None,
    now: datetime,
) -> tuple[int, Claim | None]:
    """Write a run's end and its deliveries, and claim the next run for `next_owner`: one commit.

    Gives how many deliveries can be sent now, and the next claim. LeaseLost where the lease is gone.
    """
    with box.database.transaction() as connection:
        ended = _record_end(box, connection, claim, end, stopped=verdict.status == RunStatus.STOPPED, now=now)
        run = claim.run
        _change(connection, claim, {"running_ms": run.running_ms + elapsed_ms})
        rows = (*claim.history, ended)
        told = _end(box, connection, run, claim.definition, verdict.status, verdict.error, output, stages=rows, now=now)
        following = claim_next(box, connection, owner=next_owner, now=now) if next_owner else None
    return told, following


def _change(connection: Connection, claim: Claim, changes: Mapping[str, Any]) -> None:
    """Write to the run under the claim's fence, or raise LeaseLost and so undo the whole transaction."""
    if connection.execute(update(RUNS).where(*claim.fence).values(changes)).rowcount != 1:
        raise LeaseLost


def _end_columns(end: StageEnd) -> dict[str, Any]:
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
    }


def _record_end(box: Box, connection: Connection, claim: Claim, end: StageEnd, *, stopped: bool = False, now: datetime) -> Row[Any]:
    _change(connection, claim, {"wake_at": None})
    failed = end.error_reason is not None
    status = StageStatus.STOPPED if stopped else StageStatus.FAILED if failed else StageStatus.COMPLETED
    columns = _end_columns(end) | {"status": status, "finished_at": clock.to_text(now)}
    if failed:
        columns["failures"] = STAGES.c.failures + 1
    row = connection.execute(update(STAGES).where(STAGES.c.id == claim.stage_row.id).values(columns).returning(STAGES)).one()
    if not failed and end.output is not None:
        output = Output(end.output, end.output_kind, end.truncated)
        _tell(box, connection, "output", claim.run, claim.definition, {}, output, (*claim.history, row), stage=row.name, now=now)
    return row


def _end(
    box: Box,
    connection: Connection,
    run: Row[Any],
    definition: Definition,
    status: RunStatus,
    error: flow.RunError | None,
    output: Output,
    *,
    stages: Sequence[Row[Any]] | None = None,
    now: datetime,
) -> int:
    """Write the terminal status and its deliveries; gives how many deliveries can be sent now."""
    changes = NO_LEASE | {
        "status": status,
        "finished_at": clock.to_text(now),
        "wake_at": None,
        "output": output.data,
        "output_kind": output.kind,
        "output_truncated": int(output.truncated),
        "error_reason": error.reason if error else None,
        "error_detail": error.detail if error else None,
        "error_stage": error.stage if error else None,
    }
    alive = (RUNS.c.id == run.id, RUNS.c.status.not_in(TERMINAL))
    if connection.execute(update(RUNS).where(*alive).values(changes)).rowcount != 1:
        raise LeaseLost
    if stages is None:
        stages = _stage_rows(connection, run.id)
        _end_open_stage(connection, run.id, status, now)
    return _tell(box, connection, str(status), run, definition, changes, output, stages, stage=error.stage if error else None, now=now)


def _end_open_stage(connection: Connection, run_id: int, status: RunStatus, now: datetime) -> None:
    """End the execution that was under way or to come when a run ended from outside."""
    ended = StageStatus.STOPPED if status == RunStatus.STOPPED else StageStatus.FAILED
    opened = (STAGES.c.run_id == run_id, STAGES.c.finished_at.is_(None))
    connection.execute(update(STAGES).where(*opened).values(status=ended, finished_at=clock.to_text(now)))


def _tell(
    box: Box,
    connection: Connection,
    name: str,
    run: Row[Any],
    definition: Definition,
    changes: Mapping[str, Any],
    output: Output,
    stages: Sequence[Row[Any]],
    *,
    stage: str | None,
    now: datetime,
) -> int:
    """Record an event of a run for its callbacks."""
    shown = dict(run._mapping) | dict(changes)
    error = {key: shown[f"error_{key}"] for key in ("reason", "detail", "stage")} if shown["error_reason"] else None
    told = {key: shown[key] for key in ("id", "workflow_id", "status", "trigger_id", "created_at", "started_at", "finished_at")}
    told |= {"workflow": definition.name, "error": error, "metadata": json.loads(run.metadata), "url": facts.run_url(box.base_url, run.id)}
    event = callbacks.Event(
        name=name,
        run=told,
        roots=lambda: facts.roots(run, stages, workflow=definition.name, base_url=box.base_url, changes=changes),
        output=output.data,
        output_kind=output.kind,
        stage=stage,
        requested=json.loads(run.callbacks),
    )
    return callbacks.record(connection, event, now=now)


# ── stop and sweep ──────────────────────────────────────────────────────────────────────────────────────────────────


def stop(box: Box, run_id: int, *, now: datetime) -> str:
    """Stop a run: pending and waiting ones at once, a running one by asking its worker. Gives the status then.

    NotFound where there is none; Conflict where it has ended.
    """
    with box.database.transaction() as connection:
        run = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none()
        if run is None:
            raise NotFound(f"There is no run {run_id}. List them with: run list")
        if RunStatus(run.status).terminal:
            raise Conflict(f"Run {run_id} has ended already: it is {run.status}.")
        if run.status == RunStatus.RUNNING:
            asked = func.coalesce(RUNS.c.stop_requested_at, clock.to_text(now))
            connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(stop_requested_at=asked))
            return RunStatus.RUNNING
        _end(box, connection, run, box.definitions.of(connection, run.version_id), RunStatus.STOPPED, None, Output(None, None), now=now)
        return RunStatus.STOPPED


@dataclass(frozen=True)
class Swept:
    """What a sweep found: runs taken from lost workers, runs whose wait is over, and whether any has waited too long."""

    lost: int = 0
    woken: int = 0
    stale: bool = False


def sweep(box: Box, *, stale_s: float, now: datetime) -> Swept:
    """Make pending again what a lost worker held and what has waited long enough. Reads only where there is nothing to do."""
    with box.database.read() as connection:
        lost = _lost(box, connection)
        due = _due(connection, now)
        pending = select(RUNS.c.created_at).where(RUNS.c.status == RunStatus.PENDING).order_by(RUNS.c.id).limit(1)
        oldest = connection.execute(pending).scalar()
    if lost or due:
        with box.database.transaction() as connection:
            for run in lost:
                _take_back(box, connection, run, now=now)
            over = (RUNS.c.id.in_(due), RUNS.c.status == RunStatus.WAITING)
            connection.execute(update(RUNS).where(*over).values(status=RunStatus.PENDING, wake_at=None))
    stale = oldest is not None and oldest < clock.to_text(now - timedelta(seconds=stale_s))
    return Swept(len(lost), len(due), stale or bool(lost or due))


def _lost(box: Box, connection: Connection) -> list[Row[Any]]:
    """Give the running runs whose lease has run out, was given in an earlier boot, or whose process is dead."""
    reading = box.database.lease_clock(connection)
    rows = connection.execute(select(RUNS).where(RUNS.c.status == RunStatus.RUNNING).order_by(RUNS.c.id).limit(SWEEP_LIMIT)).all()
    return [row for row in rows if row.lease_boot != reading.boot or row.lease_until <= reading.seconds or leases.is_gone(row.lease_owner)]


def _due(connection: Connection, now: datetime) -> list[int]:
    over = (RUNS.c.status == RunStatus.WAITING, RUNS.c.wake_at <= clock.to_text(now))
    return list(connection.execute(select(RUNS.c.id).where(*over).order_by(RUNS.c.wake_at).limit(SWEEP_LIMIT)).scalars())


def _take_back(box: Box, connection: Connection, run: Row[Any], *, now: datetime) -> None:
    """Make a lost run pending, or stopped where that was asked for; nothing where its worker has written meanwhile."""
    same = (RUNS.c.id == run.id, RUNS.c.status == RunStatus.RUNNING, RUNS.c.fence == run.fence, RUNS.c.lease_until == run.lease_until)
    changed = update(RUNS).where(*same).values(NO_LEASE | {"status": RunStatus.PENDING})
    if not connection.execute(changed).rowcount or run.stop_requested_at is None:
        return
    _end(box, connection, run, box.definitions.of(connection, run.version_id), RunStatus.STOPPED, None, Output(None, None), now=now)


# ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def show(connection: Connection, run_id: int) -> dict[str, Any] | None:
    """Give a run as `GET /api/v1/runs/<id>` does, with its stages in order; None where there is none."""
    row = connection.execute(_with_workflow().where(RUNS.c.id == run_id)).one_or_none() if 0 < run_id <= LARGEST_ID else None
    if row is None:
        return None
    return facts.run_shape(row, row.workflow) | {"stages": [facts.stage_shape(stage) for stage in _stage_rows(connection, run_id)]}


def status_of(connection: Connection, run_id: int) -> RunStatus | None:
    """Give where a run stands, None where there is none."""
    status = connection.execute(select(RUNS.c.status).where(RUNS.c.id == run_id)).scalar() if 0 < run_id <= LARGEST_ID else None
    return RunStatus(status) if status else None


def list_all(connection: Connection, *, status: str | None = None, workflow_id: int | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Give runs as lists show them, newest first."""
    query = _with_workflow().order_by(RUNS.c.id.desc()).limit(limit)
    if status:
        query = query.where(RUNS.c.status == status)
    if workflow_id is not None:
        query = query.where(RUNS.c.workflow_id == workflow_id)
    return [facts.run_shape(row, row.workflow) for row in connection.execute(query)]


def _with_workflow() -> Any:
    return select(RUNS, Workflow.name.label("workflow")).join(Workflow, Workflow.id == RUNS.c.workflow_id)
