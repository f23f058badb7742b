"""Wait: a stage's wait becomes durable, the run lets its worker go, and a claim finds what ended the wait.

Owns the table waits, but for the answer (answering.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from orqo import callbacks, clock, crashpoints, facts, jsontext, tokens
from orqo.models import RunStatus, StageStatus, WaitStatus
from orqo.runs.ending import stop_unfinished, tell
from orqo.runs.state import CHANGE_HELD, IS_HELD, NO_LEASE, RUNS, STAGES, WAITS, Box, Claim, LeaseLost, Output, WaitEnd

MESSAGE_MAX = 4096
LOCK = update(RUNS).where(*IS_HELD).values(wake_at=None).returning(RUNS)
STOP_ASKED = select(RUNS.c.stop_requested_at).where(*IS_HELD)


@dataclass(frozen=True)
class NewWait:
    """What a stage waits for. `is_answerable` mints a token; `child_id` is the run whose end it is."""

    timeout_s: float
    is_answerable: bool = False
    message: str | None = None
    child_id: int | None = None


def wait(box: Box, claim: Claim, new: NewWait, *, pauses: bool, elapsed_ms: int, now: datetime) -> tuple[str | None, int]:
    """Make a stage's wait durable, and let the worker go where the stage `pauses` at once: one commit.

    Gives the wait's token, and how many deliveries of the event `waiting` can be sent now. A stage that comes again after
    a crash keeps its wait. LeaseLost where the lease is gone.
    """
    with box.database.transaction() as connection:
        lock(connection, claim)
        row = current(connection, claim.stage_row.id)
        told = 0
        if row is None:
            row = open_wait(box, connection, claim, new, now=now)
            told = _tell(box, connection, claim, row, now=now) if new.is_answerable else 0
        if pauses:
            pause_within(connection, claim, row, elapsed_ms=elapsed_ms, now=now)
        crashpoints.reach("wait-before-commit")
    return token_of(box, row), told


def pause(box: Box, claim: Claim, *, elapsed_ms: int, now: datetime) -> bool:
    """Let the worker go once the stage's request is out; tells whether the run can go on already: it was answered meanwhile."""
    with box.database.transaction() as connection:
        return pause_within(connection, claim, current(connection, claim.stage_row.id), elapsed_ms=elapsed_ms, now=now)


def lock(connection: Connection, claim: Claim) -> Row[Any]:
    """Make sure of the claim's lease before anything is written; gives the run's row."""
    row = connection.execute(LOCK, claim.held).one_or_none()
    if row is None:
        raise LeaseLost
    return row


def open_wait(box: Box, connection: Connection, claim: Claim, new: NewWait, *, now: datetime) -> Row[Any]:
    """Write a wait; of its token only the digest."""
    nonce = tokens.mint_nonce() if new.is_answerable else None
    values = {
        "run_id": claim.run.id,
        "stage_id": claim.stage_row.id,
        "stage": claim.stage.name,
        "kind": claim.stage.kind,
        "status": WaitStatus.OPEN,
        "nonce": nonce,
        "token_hash": tokens.digest(tokens.wait_token(_key(box), nonce)) if nonce else None,
        "outcomes": jsontext.dump(list(claim.stage.outcomes)),
        # A character that PostgreSQL's text cannot hold.
        "message": new.message[:MESSAGE_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}") if new.message else None,
        "deadline_at": clock.to_text(now + timedelta(seconds=new.timeout_s)),
        "child_id": new.child_id,
        "created_at": clock.to_text(now),
    }
    return connection.execute(insert(WAITS).values(values).returning(WAITS)).one()


def token_of(box: Box, row: Row[Any]) -> str | None:
    """Give the token that answers a wait, None where nobody answers it by token."""
    return tokens.wait_token(_key(box), row.nonce) if row.nonce else None


def _key(box: Box) -> bytes:
    if not box.key:
        raise RuntimeError("this process was given no instance key, and wait tokens are derived from it")
    return box.key


def pause_within(connection: Connection, claim: Claim, row: Row[Any] | None, *, elapsed_ms: int, now: datetime) -> bool:
    """Do what `pause` does within the caller's transaction."""
    is_open = row is not None and row.status == WaitStatus.OPEN
    changes = NO_LEASE | {"running_ms": claim.run.running_ms + elapsed_ms, "claims": 0}
    asked = connection.execute(STOP_ASKED, claim.held).one_or_none()
    # A stop that was asked for meanwhile is not to wait as long as the stage.
    goes_on = not is_open or (asked is not None and asked.stop_requested_at is not None)
    status = {"status": RunStatus.PENDING} if goes_on else {"status": RunStatus.WAITING, "wake_at": row.deadline_at if row else None}
    if CHANGE_HELD.first(connection, changes | status | claim.held) is None:
        raise LeaseLost
    connection.execute(update(STAGES).where(STAGES.c.id == claim.stage_row.id).values(status=StageStatus.WAITING))
    return goes_on


def current(connection: Connection, stage_id: int) -> Row[Any] | None:
    """Give the wait of a stage's execution that the run has not gone on from, None where it has none."""
    unused = select(WAITS).where(WAITS.c.stage_id == stage_id, WAITS.c.used == 0)
    return connection.execute(unused.order_by(WAITS.c.id.desc()).limit(1)).one_or_none()


def ended(box: Box, connection: Connection, stage_id: int, *, now: datetime) -> WaitEnd | None:
    """Give what ended a stage's wait; None where it goes on. A wait whose time is over ends here, and its child is stopped."""
    row = current(connection, stage_id)
    if row is None:
        return None
    if row.status == WaitStatus.OPEN and row.deadline_at <= clock.to_text(now):
        still_open = (WAITS.c.id == row.id, WAITS.c.status == WaitStatus.OPEN)
        if connection.execute(update(WAITS).where(*still_open).values(status=WaitStatus.TIMED_OUT)).rowcount:
            if row.child_id is not None:
                stop_unfinished(box, connection, RUNS.c.id == row.child_id, now=now)
            return WaitEnd("timed_out")
        row = connection.execute(select(WAITS).where(WAITS.c.id == row.id)).one()
    if row.status == WaitStatus.TIMED_OUT:
        return WaitEnd("timed_out")
    if row.status != WaitStatus.ANSWERED:
        return None
    return _of_child(connection, row.child_id) if row.child_id is not None else WaitEnd(**json.loads(row.answer))


def _of_child(connection: Connection, child_id: int) -> WaitEnd:
    child = connection.execute(select(RUNS).where(RUNS.c.id == child_id)).one_or_none()
    if child is None:
        return WaitEnd("failed", error=f"run {child_id} is gone")
    error = f"run {child_id}: {child.error_reason}: {child.error_detail}" if child.error_reason else f"run {child_id}"
    failed = None if child.status == RunStatus.COMPLETED else error
    return WaitEnd(child.status, jsontext.value_of(child.output, child.output_kind), bool(child.output_truncated), error=failed)


def used(connection: Connection, claim: Claim, *, ended: bool) -> None:
    """Note that a run goes on from its stage's wait: an answer was used; where the stage `ended`, an open wait is over too."""
    mine = WAITS.c.stage_id == claim.stage_row.id
    if ended:
        still_open = (mine, WAITS.c.status == WaitStatus.OPEN)
        connection.execute(update(WAITS).where(*still_open).values(status=WaitStatus.CLOSED))
    connection.execute(update(WAITS).where(mine, WAITS.c.status != WaitStatus.OPEN).values(used=1))


def _tell(box: Box, connection: Connection, claim: Claim, row: Row[Any], *, now: datetime) -> int:
    """Record the event `waiting`, with the link that decides an approval."""
    told = facts.wait_told(row, token_of(box, row), box.base_url)
    changes, nothing = {"status": RunStatus.WAITING}, Output(None, None)
    run, definition = claim.run, claim.definition
    to = callbacks.listeners(connection, run.workflow_id, run.trigger_id)
    return tell(box, connection, "waiting", run, definition, changes, nothing, claim.history, to, stage=row.stage, wait=told, now=now)
