"""Claim: a worker takes a pending run under a lease and starts the stage that it goes on with.

Owns the lease and the fencing token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, insert, literal_column, select, update
from sqlalchemy.exc import DBAPIError

from orqo import clock, crashpoints, facts, flow
from orqo.db import SCHEMA_VERSION, SERVER_SECONDS
from orqo.definition import Definition, StageDefinition
from orqo.models import Reason, RunStatus, SchemaVersion, StageStatus
from orqo.prepared import Prepared, Writing
from orqo.runs import result, waiting
from orqo.runs.ending import end, end_without_word, stage_rows
from orqo.runs.state import CHANGE_HELD, LEASE_S, RUNS, STAGES, Box, Claim, LeaseLost, Output

log = logging.getLogger(__name__)

CLAIMS_MAX = 5
NONE: ColumnElement[int] = literal_column("0")
ONE: ColumnElement[int] = literal_column("1")
# What any machine may go on with, and what this one alone may: it has the files.
ANYWHERE = RUNS.c.machine == cast("ColumnElement[str]", literal_column("''"))
HERE = RUNS.c.machine == bindparam("machine")
FREE = (RUNS.c.status == RunStatus.PENDING, RUNS.c.held == 0)
OLDEST = select(RUNS.c.id).where(*FREE).order_by(RUNS.c.machine, RUNS.c.claims, RUNS.c.id).limit(ONE)
PENDING = Prepared(select(*(OLDEST.where(place).scalar_subquery().label(name) for name, place in (("anywhere", ANYWHERE), ("here", HERE)))))
# So many that were accepted after it go before a run that cost two workers or more.
PASSED_BY = 50
COSTS = ((RUNS.c.claims == NONE, 0), (RUNS.c.claims == ONE, 0), (RUNS.c.claims > ONE, PASSED_BY))
# Two workers on PostgreSQL pass each other by.
NOT_TAKEN = OLDEST.with_for_update(skip_locked=True)


def _heads(*more: ColumnElement[Any]) -> Prepared:
    return Prepared(
        select(
            # In the statement that locks what is claimed: an upgrade comes before it or after this commit.
            select(SchemaVersion.version).scalar_subquery(),
            *(NOT_TAKEN.where(place, cost).scalar_subquery() for place in (ANYWHERE, HERE) for cost, _ in COSTS),
            *more,
        )
    )


HEADS = _heads()
# The server is asked for the time of its lease by the way: one round trip less for each run.
HEADS_AND_TIME = _heads(literal_column(SERVER_SECONDS))
TAKE = Prepared(
    update(RUNS)
    .where(RUNS.c.id == bindparam("wanted_id"), RUNS.c.status == RunStatus.PENDING)
    .values(
        status=RunStatus.RUNNING,
        started_at=func.coalesce(RUNS.c.started_at, bindparam("now")),
        claims=RUNS.c.claims + 1,
        fence=RUNS.c.fence + 1,
        lease_owner=bindparam("lease_owner"),
        lease_boot=bindparam("lease_boot"),
        lease_until=bindparam("lease_until"),
    )
    .returning(RUNS)
)
ENTER = Writing(insert(STAGES).returning(STAGES))
CHANGE_STAGE = Writing(update(STAGES).where(STAGES.c.id == bindparam("stage_id")).returning(STAGES))


def claim(box: Box, *, owner: str, now: datetime, told: bool = False) -> Claim | None:
    """Take the oldest pending run under a lease and start its stage, one commit; None where nothing is pending.

    Whoever was `told` that there is one asks for the write lock at once, which a look before would otherwise spare.
    """
    if not told:
        with box.database.read() as connection:
            if not any(pending(connection, box.machine)):
                return None
    with box.database.transaction() as connection:
        claimed = claim_next(box, connection, owner=owner, now=now)
        others = pending(connection, box.machine) if claimed is not None else (False, False)
        crashpoints.reach("claim-before-commit")
    return replace(claimed, others=others[0], others_here=others[1]) if claimed is not None else None


def pending(connection: Connection, machine: str) -> tuple[bool, bool]:
    """Tell whether a run waits to be claimed by any machine, and whether one waits for this one alone."""
    row = PENDING.first(connection, {"machine": machine})
    return row.anywhere is not None, row.here is not None


def claim_next(box: Box, connection: Connection, *, owner: str, now: datetime) -> Claim | None:
    """Do what `claim` does within the caller's transaction."""
    leased_until = clock.boot_seconds() + LEASE_S
    while (run := _take(box, connection, owner, now)) is not None:
        try:
            claim = _claimed(box, connection, run, leased_until, now)
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


def _claimed(box: Box, connection: Connection, run: Row[Any], leased_until: float, now: datetime) -> Claim | None:
    """Start the stage that a run just taken goes on with; None where the run ended instead."""
    definition = box.definitions.of(connection, run.version_id)
    # The first claim finds nothing: no stage was ever started, unless it goes on from where another run was.
    history = stage_rows(connection, run.id) if run.fence > 1 or run.rerun_of is not None else ()
    current = history[-1] if history and history[-1].finished_at is None else None
    if run.stop_requested_at is not None:
        end(box, connection, run, definition, RunStatus.STOPPED, None, Output(None, None), now=now)
        return None
    if current is None:
        history, step = _first(box, connection, run, definition, history, now)
        if isinstance(step, flow.End):
            _end_unexecuted(box, connection, run, definition, step, history, now)
            return None
        stage: StageDefinition | None = step.stage
    else:
        stage = flow.stage_named(definition, current.name)
    error = _unclaimable(run, stage, current)
    if error is not None or stage is None:
        end(box, connection, run, definition, RunStatus.FAILED, error, Output(None, None), now=now)
        return None
    waited = current is not None and stage.kind in flow.WAITING_KINDS
    ended = waiting.ended(box, connection, current.id, now=now) if waited and current else None
    row = _start(connection, run.id, stage, current, history, now, goes_on=ended is not None)
    return Claim(run, definition, stage, row, history[:-1] if current else history, leased_until, ended)


def _first(
    box: Box, connection: Connection, run: Row[Any], definition: Definition, history: tuple[Row[Any], ...], now: datetime
) -> tuple[tuple[Row[Any], ...], flow.Enter | flow.End]:
    """Find the first stage whose `when` holds; gives the history with those that were skipped before it."""
    step = flow.Enter(definition.stages[0])
    if step.stage.when is None:
        return history, step
    skipped, then = flow.past_skipped(definition, step, _roots(box, run, definition, history))
    return skip(connection, run.id, history, skipped, now), then


def _end_unexecuted(
    box: Box, connection: Connection, run: Row[Any], definition: Definition, step: flow.End, history: Sequence[Row[Any]], now: datetime
) -> None:
    """End a run of which no stage was executed."""
    output = Output(None, None)
    if step.status == RunStatus.COMPLETED and definition.has_output:
        step, output = result.of(step, definition.output, _roots(box, run, definition, history), output)
    end(box, connection, run, definition, step.status, step.error, output, now=now)


def _roots(box: Box, run: Row[Any], definition: Definition, history: Sequence[Row[Any]]) -> dict[str, Any]:
    changes = {"status": RunStatus.RUNNING, "error_reason": None}
    return facts.roots(run, history, workflow=definition.name, base_url=box.base_url, changes=changes)


def _take(box: Box, connection: Connection, owner: str, now: datetime) -> Row[Any] | None:
    run_id, seconds = _next_pending(box, connection)
    if run_id is None:
        return None
    lease = {"lease_owner": owner, "lease_boot": box.database.boot, "lease_until": seconds + LEASE_S}
    return cast("Row[Any] | None", TAKE.first(connection, {"wanted_id": run_id, "now": clock.to_text(now), **lease}))


def _next_pending(box: Box, connection: Connection) -> tuple[int | None, float]:
    """Give the run whose turn it is and the time by the clock of leases. It is the oldest, but one that cost two workers or more
    only after some that came later.

    One that kills every worker must not hold up the others, nor wait for ever where there are always others; one that lost a
    single worker keeps its place. The index has (machine, claims, id): six looks at its heads, whatever the queue's length.
    """
    if box.database.is_sqlite:
        version, *found = HEADS.first(connection, {"machine": box.machine})
        seconds = box.database.lease_clock(connection).seconds
    else:
        version, *found, seconds = HEADS_AND_TIME.first(connection, {"machine": box.machine})
    if version != SCHEMA_VERSION:
        # Another release upgraded the database: what runs mean now is not this one's to say. The dispatcher tells.
        return None, float(seconds)
    heads = zip(found, 2 * [passed_by for _, passed_by in COSTS], strict=True)
    places = [(run_id + passed_by, passed_by, run_id) for run_id, passed_by in heads if run_id is not None]
    return min(places)[-1] if places else None, float(seconds)


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
    connection: Connection,
    run_id: int,
    stage: StageDefinition,
    current: Row[Any] | None,
    history: Sequence[Row[Any]],
    now: datetime,
    *,
    goes_on: bool,
) -> Row[Any]:
    """Write that a stage is about to be executed: committed before its effect begins. One that `goes_on` after a wait is no new attempt."""
    if current is not None:
        return change_stage(connection, current.id, {"status": StageStatus.RUNNING, "attempts": current.attempts + int(not goes_on)})
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
    return cast("Row[Any]", ENTER.first(connection, values))


def change_stage(connection: Connection, stage_id: int, changes: Mapping[str, Any]) -> Row[Any]:
    """Write to one execution of a stage and give its row; the caller holds the run."""
    return cast("Row[Any]", CHANGE_STAGE.first(connection, {**changes, "stage_id": stage_id}))


def skip(
    connection: Connection, run_id: int, history: tuple[Row[Any], ...], skipped: Sequence[flow.Skipped], now: datetime
) -> tuple[Row[Any], ...]:
    """Write the stages that were passed over; gives the history with them."""
    for each in skipped:
        row = enter(connection, run_id, each.stage, history, StageStatus.SKIPPED, now)
        history = (*history, change_stage(connection, row.id, {"finished_at": row.started_at, "note": each.reason}))
    return history


def renew(box: Box, claim: Claim, *, elapsed_ms: int) -> bool:
    """Prolong a lease and note the time spent; tells whether somebody asked for the run to stop. LeaseLost where it is gone."""
    with box.database.transaction() as connection:
        until = box.database.lease_clock(connection).seconds + LEASE_S
        renewed = {"lease_until": until, "running_ms": claim.run.running_ms + elapsed_ms}
        row = CHANGE_HELD.first(connection, renewed | claim.held)
    if row is None:
        raise LeaseLost
    return bool(row.stop_requested_at is not None)
