"""What Home shows: runs under way, failed, waiting, how many per hour, and how full things are.

Reads only, and never counts a whole table: every figure stops at a limit and then says so.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, text

from orqo import clock
from orqo.db import Database, sqlite_path
from orqo.listings import RUNS, listed_runs
from orqo.models import TERMINAL, Delivery, DeliveryStatus, RunStatus, Wait, WaitStatus

HOURS = 48
DAY_HOURS = 24
COUNTED_MAX = 1000
PER_HOUR_MAX = 10_000
SHOWN_ROWS = 10
# A run is given its time before it is committed: an hour is closed only once such stragglers are in.
CLOSED_AFTER = timedelta(minutes=2)


@dataclass(frozen=True)
class Hour:
    """The runs that ended within one hour, by status; `begins` is its first moment. `full`: there were more than are counted."""

    begins: datetime
    counts: Mapping[str, int]
    full: bool

    @property
    def total(self) -> int:
        """Give the runs that ended, whatever came of them."""
        return sum(self.counts.values())


class Hours:
    """Runs per hour of the last 48 hours. Hours that are over never change and are kept. Thread-safe."""

    def __init__(self) -> None:
        self._closed: dict[datetime, Hour] = {}
        self._lock = threading.Lock()

    def of(self, connection: Connection, *, now: datetime) -> list[Hour]:
        """Give the hours, oldest first; the last is the one that now lies in."""
        current = now.replace(minute=0, second=0, microsecond=0)
        wanted = [current - timedelta(hours=back) for back in range(HOURS - 1, -1, -1)]
        with self._lock:
            known = dict(self._closed)
        hours = [known.get(begins) or _hour(connection, begins) for begins in wanted]
        closed = {hour.begins: hour for hour in hours if hour.begins + timedelta(hours=1) + CLOSED_AFTER <= now}
        with self._lock:
            self._closed = closed
        return hours


def _hour(connection: Connection, begins: datetime) -> Hour:
    within = (RUNS.c.finished_at >= clock.to_text(begins), RUNS.c.finished_at < clock.to_text(begins + timedelta(hours=1)))
    # The two columns are the whole index: no row is read.
    ended = select(RUNS.c.status).where(*within).limit(PER_HOUR_MAX).subquery()
    rows = connection.execute(select(ended.c.status, func.count()).group_by(ended.c.status)).all()
    counts = {str(status): sum(count for found, count in rows if found == status) for status in TERMINAL}
    return Hour(begins, counts, full=sum(counts.values()) >= PER_HOUR_MAX)


@dataclass(frozen=True)
class Count:
    """A count that stops at a limit."""

    number: int
    more: bool

    def __str__(self) -> str:
        return f"{self.number:,}+" if self.more else f"{self.number:,}"


def _bounded(connection: Connection, query: Select[Any]) -> Count:
    number = connection.execute(select(func.count()).select_from(query.limit(COUNTED_MAX + 1).subquery())).scalar_one()
    return Count(min(number, COUNTED_MAX), number > COUNTED_MAX)


@dataclass(frozen=True)
class Present:
    """What is under way now: rows as lists show them, at most ten of each, how many there are, and by run what it waits for."""

    running: list[Row[Any]]
    running_count: Count
    waiting: list[Row[Any]]
    waiting_count: Count
    waits: dict[int, Row[Any]]
    failed: list[Row[Any]]


def present(connection: Connection, *, now: datetime) -> Present:
    """Give what runs, what waits (for a worker or for its time), and what failed within a day, newest first."""
    running, pending, waiting = (RUNS.c.status == status for status in (RunStatus.RUNNING, RunStatus.PENDING, RunStatus.WAITING))
    # One query for each status: each has an index of its own.
    held = [*_newest(connection, waiting), *_newest(connection, pending)][:SHOWN_ROWS]
    pending_count, waiting_count = _bounded(connection, _ids(pending)), _bounded(connection, _ids(waiting))
    day_ago = clock.to_text(now - timedelta(hours=DAY_HOURS))
    failed = [row for row in _newest(connection, RUNS.c.status == RunStatus.FAILED) if row.finished_at >= day_ago]
    return Present(
        running=_newest(connection, running),
        running_count=_bounded(connection, _ids(running)),
        waiting=held,
        waiting_count=Count(pending_count.number + waiting_count.number, pending_count.more or waiting_count.more),
        waits=_waits(connection, [row.id for row in held]),
        failed=failed,
    )


def _ids(condition: Any) -> Select[Any]:
    return select(RUNS.c.id).where(condition)


def _newest(connection: Connection, condition: Any) -> list[Row[Any]]:
    return list(connection.execute(listed_runs().where(condition).order_by(RUNS.c.id.desc()).limit(SHOWN_ROWS)))


def _waits(connection: Connection, run_ids: list[int]) -> dict[int, Row[Any]]:
    """Give the open wait of each run that has one."""
    mine = select(Wait.__table__).where(Wait.run_id.in_(run_ids), Wait.status == WaitStatus.OPEN)
    return {row.run_id: row for row in connection.execute(mine.order_by(Wait.id).limit(COUNTED_MAX))}


def deliveries_due(connection: Connection) -> Count:
    """Count the deliveries that will be attempted, now or later."""
    due = select(Delivery.id).where(Delivery.status == DeliveryStatus.PENDING, Delivery.next_attempt_at.is_not(None))
    return _bounded(connection, due)


def deliveries_dead(connection: Connection) -> Count:
    """Count the deliveries that were given up."""
    return _bounded(connection, select(Delivery.id).where(Delivery.status == DeliveryStatus.DEAD))


def database_bytes(database: Database, connection: Connection) -> int:
    """Give the size of the database, its write-ahead log included."""
    path = sqlite_path(database)
    if path is None:
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
