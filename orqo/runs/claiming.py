"""Claim: a worker takes a pending run under a lease and starts the stage that it goes on with.

Owns the lease and the fencing token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from orqo import clock, flow
from orqo.definition import StageDefinition
from orqo.models import Reason, Run, RunStatus, StageStatus
from orqo.runs.ending import end, end_without_word, stage_rows
from orqo.runs.state import LEASE_S, RUNS, STAGES, Box, Claim, LeaseLost, Output

log = logging.getLogger(__name__)

CLAIMS_MAX = 5


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
            end_without_word(connection, run, now)
            continue
        if claim is not None:
            return claim
    return None


def _claimed(box: Box, connection: Connection, run: Row[Any], now: datetime) -> Claim | None:
    """Start the stage that a run just taken goes on with; None where the run ended instead."""
    definition = box.definitions.of(connection, run.version_id)
    # The first claim finds nothing: no stage was ever started.
    history = stage_rows(connection, run.id) if run.fence > 1 else ()
    current = history[-1] if history and history[-1].finished_at is None else None
    stage = flow.stage_named(definition, current.name) if current else definition.stages[0]
    if run.stop_requested_at is not None:
        end(box, connection, run, definition, RunStatus.STOPPED, None, Output(None, None), now=now)
        return None
    error = _unclaimable(run, stage, current)
    if error is not None or stage is None:
        end(box, connection, run, definition, RunStatus.FAILED, error, Output(None, None), now=now)
        return None
    row = _start(connection, run.id, stage, current, history, now)
    return Claim(run, definition, stage, row, history[:-1] if current else history)


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
    return enter(connection, run_id, stage, history, StageStatus.RUNNING, now)


def enter(
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
