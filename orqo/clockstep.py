"""The wall clock was set: what was planned by the old clock happens after the same time as before, not in a storm or an hour late.

Owns noticing it, against the clock of this boot, and the shift of what is planned. On SQLite alone: a PostgreSQL serves many
machines, and what happens to the clock of one says nothing about what the others planned. Schedules follow the wall clock.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Connection, bindparam, func, update

from orqo import clock
from orqo.models import Delivery, DeliveryStatus, Run, RunStatus, Trigger, Wait, WaitStatus

STEP = timedelta(seconds=5)
# A machine without a battery starts with an old time and is told the right one soon: what was planned before it booted was
# planned by the right one.
BOOTING_S = 600.0
PLANNED: tuple[tuple[Any, Any], ...] = (
    (Delivery.next_attempt_at, Delivery.status == DeliveryStatus.PENDING),
    (Run.wake_at, Run.status == RunStatus.WAITING),
    (Wait.deadline_at, Wait.status == WaitStatus.OPEN),
)


class WallClock:
    """Compares the wall clock with the clock of this boot each time it is asked. For one thread."""

    def __init__(self) -> None:
        self._offset = _offset()

    def stepped(self) -> timedelta | None:
        """Tell by how much the wall clock was set since the last look; None where it was not, or the machine just booted."""
        offset = _offset()
        step, self._offset = offset - self._offset, offset
        return step if abs(step) >= STEP and clock.boot_seconds() >= BOOTING_S else None


def _offset() -> timedelta:
    return timedelta(seconds=clock.now().timestamp() - clock.boot_seconds())


def follow(connection: Connection, step: timedelta, *, now: datetime) -> int:
    """Shift what is planned by the step of the clock, and let schedules be reckoned anew; gives how many rows were shifted.

    `now` is by the new clock. What was written by the new clock in the moment before this comes early at the worst.
    """
    shifted = sum(_shift(connection, column, is_open, step, now) for column, is_open in PLANNED)
    if step < timedelta():
        # The next time by the old clock may be as far away as that was ahead.
        connection.execute(update(Trigger).where(Trigger.kind == "schedule").values(next_fire_at=None))
    return shifted


def _shift(connection: Connection, column: Any, is_open: Any, step: timedelta, now: datetime) -> int:
    if step < timedelta():
        concerned = column > clock.to_text(now)
    else:
        concerned = column.between(clock.to_text(now - step + timedelta(milliseconds=1)), clock.to_text(now))
    planned: Column[Any] = column.property.columns[0]
    # As clock.to_text writes it: %f is seconds with milliseconds here.
    moved = func.strftime("%Y-%m-%dT%H:%M:%fZ", planned, bindparam("by"))
    change = update(planned.table).where(is_open, concerned).values({planned.name: moved})
    return connection.execute(change, {"by": f"{step.total_seconds():+.3f} seconds"}).rowcount
