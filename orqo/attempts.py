"""Attempts: what came of sending a delivery, recorded with all that follows from it.

Owns the table attempts and a delivery's way to delivered or dead: retries, pauses, the order within a run. Never sends.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, cast

from sqlalchemy import Connection, Row, Table, bindparam, func, insert, select, update

from orqo import callbacks, clock, crashpoints
from orqo.db import Database
from orqo.deliveries import GONE, NO_LEASE, Outcome
from orqo.models import Attempt, Callback, Delivery, DeliveryStatus

JITTER = 0.1
# A claimed delivery and what came of sending it.
Sent = tuple[Row[Any], Outcome]

DELIVERIES, ATTEMPTS = cast(Table, Delivery.__table__), cast(Table, Attempt.__table__)
# Built once: SQLAlchemy takes longer to put such a statement together than SQLite to carry it out.
STANDING = (
    select(DELIVERIES.c.id, DELIVERIES.c.lease_owner, DELIVERIES.c.status, DELIVERIES.c.attempts)
    .where(DELIVERIES.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(DELIVERIES.c.id)
    .with_for_update()
)
PAUSED = select(Callback.id).where(Callback.id.in_(bindparam("ids", expanding=True)), Callback.paused_at.is_not(None))
CHANGED = (
    update(DELIVERIES)
    .where(DELIVERIES.c.id == bindparam("of"))
    .values(
        {
            "attempts": DELIVERIES.c.attempts + 1,
            "retries": DELIVERIES.c.retries + 1,
            "status": bindparam("to"),
            "next_attempt_at": bindparam("due"),
            "finished_at": bindparam("ended"),
            **NO_LEASE,
        }
    )
)
LATER = DELIVERIES.alias()
HEAD = select(func.min(LATER.c.id)).where(
    LATER.c.run_id == bindparam("of_run"), LATER.c.channel == bindparam("of_channel"), LATER.c.status == DeliveryStatus.PENDING
)
# Make the next delivery of the same run and callback due: this is what keeps them in order.
NEXT_RELEASED = (
    update(DELIVERIES)
    .where(DELIVERIES.c.id == HEAD.scalar_subquery(), DELIVERIES.c.next_attempt_at.is_(None))
    .values(next_attempt_at=bindparam("moment"))
)


@dataclass(frozen=True)
class _Verdict:
    """What one attempt makes of its delivery; `next_s` are the seconds to the next attempt while it stays pending."""

    row: Row[Any]
    status: DeliveryStatus
    next_s: float | None

    @property
    def ended(self) -> bool:
        return self.status != DeliveryStatus.PENDING


def record_attempt(
    database: Database, delivery: Row[Any], outcome: Outcome, *, owner: str, schedule_s: Sequence[float], now: datetime
) -> DeliveryStatus | None:
    """Record one attempt and what follows from it: delivered, pending again or dead; one commit.

    Gives the delivery's new status, None where its lease was lost meanwhile: then another attempt is under way and
    this one is recorded as a duplicate without changing the delivery.
    """
    with database.transaction() as connection:
        status = record(connection, [(delivery, outcome)], owner=owner, schedule_s=schedule_s, now=now)[0]
        crashpoints.reach("attempt-before-commit")
        return status


def record(
    connection: Connection, sent: Sequence[Sent], *, owner: str, schedule_s: Sequence[float], now: datetime
) -> list[DeliveryStatus | None]:
    """Do what `record_attempt` does for many, with few statements for all of them, within the caller's transaction."""
    _note_callbacks(connection, sent, now)
    standing = {row.id: row for row in connection.execute(STANDING, {"ids": sorted({row.id for row, _ in sent})})}
    verdicts: dict[int, _Verdict] = {}
    statuses: list[DeliveryStatus | None] = []
    told: list[dict[str, Any]] = []
    for row, outcome in sent:
        found = standing.get(row.id)
        mine = found is not None and row.id not in verdicts and (found.lease_owner, found.status) == (owner, DeliveryStatus.PENDING)
        if found is not None:
            # Without a row it was pruned with its run meanwhile: there is nothing left to record it for.
            told.append(_attempt(row, outcome, number=(found if mine else row).attempts + 1))
        if mine:
            verdicts[row.id] = _verdict(row, outcome, schedule_s)
        statuses.append(verdicts[row.id].status if mine else None)
    if told:
        connection.execute(insert(ATTEMPTS), told)
    _change(connection, list(verdicts.values()), paused(connection, sent), now)
    return statuses


def paused(connection: Connection, sent: Sequence[Sent]) -> set[int]:
    """Give which of their callbacks are paused."""
    ids = sorted({row.callback_id for row, _ in sent if row.callback_id is not None})
    return set(connection.execute(PAUSED, {"ids": ids}).scalars()) if ids else set()


def _note_callbacks(connection: Connection, sent: Sequence[Sent], now: datetime) -> None:
    """Tell the callbacks how they fare, of several attempts alike in a row once: 410 pauses, so do five days of failures."""
    told = [each for each in sent if each[0].callback_id is not None and (each[1].status_code == GONE or not _is_hopeless(*each))]
    # Stable: one callback's attempts stay in their order, which is what tells since when it has only failed.
    told.sort(key=lambda each: each[0].callback_id)
    for (callback_id, gone, delivered), _ in groupby(
        told, lambda each: (each[0].callback_id, each[1].status_code == GONE, each[1].delivered)
    ):
        if gone:
            callbacks.pause(connection, callback_id, reason="The receiver answered 410 Gone.", now=now)
        else:
            callbacks.note_attempt(connection, callback_id, delivered=delivered, now=now)


def _change(connection: Connection, verdicts: Sequence[_Verdict], held: Collection[int], now: datetime) -> None:
    """Write what the attempts make of their deliveries, and let the next of each run and callback go."""
    if not verdicts:
        return
    connection.execute(CHANGED, [_changes(each, held=each.row.callback_id in held, now=now) for each in verdicts])
    free = [each.row for each in verdicts if each.ended and each.row.callback_id not in held]
    if free:
        moment = clock.to_text(now)
        connection.execute(NEXT_RELEASED, [{"of_run": row.run_id, "of_channel": row.channel, "moment": moment} for row in free])


def _changes(verdict: _Verdict, *, held: bool, now: datetime) -> dict[str, Any]:
    due = None if verdict.ended or held else clock.to_text(now + timedelta(seconds=verdict.next_s or 0.0))
    return {"of": verdict.row.id, "to": verdict.status, "due": due, "ended": clock.to_text(now) if verdict.ended else None}


def _is_hopeless(delivery: Row[Any], outcome: Outcome) -> bool:
    """Tell whether what cannot be sent now never can: its bytes are frozen, and no secret of it can be mended."""
    return outcome.reason == "bad_url" and '"secret"' not in delivery.url + delivery.headers


def _verdict(row: Row[Any], outcome: Outcome, schedule_s: Sequence[float]) -> _Verdict:
    """Decide a delivery's status after an attempt, its `retries` as they were when it was claimed: nobody else changes them."""
    if outcome.delivered:
        return _Verdict(row, DeliveryStatus.DELIVERED, None)
    delay_s = retry_delay(row.retries + 1, schedule_s)
    if outcome.status_code == GONE or delay_s is None or _is_hopeless(row, outcome):
        return _Verdict(row, DeliveryStatus.DEAD, None)
    jittered_s = delay_s * random.uniform(1 - JITTER, 1 + JITTER)
    return _Verdict(row, DeliveryStatus.PENDING, max(jittered_s, outcome.retry_after_s or 0.0))


def retry_delay(number: int, schedule_s: Sequence[float]) -> float | None:
    """Give the pause after the `number`-th counted attempt, None after the last: then the delivery is dead."""
    return schedule_s[number - 1] if number <= len(schedule_s) else None


def _attempt(row: Row[Any], outcome: Outcome, *, number: int) -> dict[str, Any]:
    return {
        "delivery_id": row.id,
        "number": number,
        "started_at": clock.to_text(outcome.started_at),
        "duration_ms": outcome.duration_ms,
        "status_code": outcome.status_code,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "excerpt": outcome.excerpt,
    }
