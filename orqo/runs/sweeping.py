"""Stop, and the sweep: what happens to a run from outside its worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from orqo import clock, leases
from orqo.errors import Conflict, NotFound
from orqo.models import RunStatus, WaitStatus
from orqo.runs import binding
from orqo.runs.binding import MACHINE_LOST_AFTER_S
from orqo.runs.claiming import ANYWHERE, FREE, pending
from orqo.runs.ending import end, wake_parent
from orqo.runs.state import NO_LEASE, RUNS, WAITS, Box, Output

SWEEP_LIMIT = 200
OLDEST = select(RUNS.c.created_at).where(*FREE, ANYWHERE).order_by(RUNS.c.id).limit(1)


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
        end(box, connection, run, box.definitions.of(connection, run.version_id), RunStatus.STOPPED, None, Output(None, None), now=now)
        return RunStatus.STOPPED


@dataclass(frozen=True)
class Swept:
    """What a sweep found: runs taken from lost workers, runs whose wait is over, runs whose files are out of reach.

    `stale` tells whether any has waited too long for a worker, `bound_here` whether any waits that this machine alone may
    execute: whoever made it pending could not tell its workers.
    """

    lost: int = 0
    woken: int = 0
    stranded: int = 0
    stale: bool = False
    bound_here: bool = False


def sweep(box: Box, *, stale_s: float, machine_lost_after_s: float = MACHINE_LOST_AFTER_S, now: datetime) -> Swept:
    """Make pending again what a lost worker held and what has waited long enough, and fail what no machine can go on with.

    Reads only where there is nothing to do.
    """
    with box.database.read() as connection:
        lost = _lost(box, connection)
        due = _due(connection, now)
        healed = _unheard(connection)
        stranded = binding.stranded(box, connection, lost_after_s=machine_lost_after_s)
        oldest = connection.execute(OLDEST).scalar()
        _, waits_here = pending(connection, box.machine)
    if lost or due or healed or stranded:
        with box.database.transaction() as connection:
            for run in lost:
                _take_back(box, connection, run, now=now)
            for run in healed:
                wake_parent(connection, run, now)
            for run in stranded:
                binding.give_up(box, connection, run, lost_after_s=machine_lost_after_s, now=now)
            over = (RUNS.c.id.in_(row.id for row in due), RUNS.c.status == RunStatus.WAITING)
            connection.execute(update(RUNS).where(*over).values(status=RunStatus.PENDING, wake_at=None))
    late = clock.to_text(now - timedelta(seconds=stale_s))
    stale = bool(lost or due or healed) or (oldest is not None and oldest < late)
    bound_here = waits_here or any(row.machine == box.machine for row in (*lost, *due))
    return Swept(len(lost), len(due), len(stranded), stale, bound_here and box.machine != "")


def _lost(box: Box, connection: Connection) -> list[Row[Any]]:
    """Give the running runs whose lease has run out, was given in an earlier boot, or whose process is dead."""
    reading = box.database.lease_clock(connection)
    rows = connection.execute(select(RUNS).where(RUNS.c.status == RunStatus.RUNNING).order_by(RUNS.c.id).limit(SWEEP_LIMIT)).all()
    return [row for row in rows if row.lease_boot != reading.boot or row.lease_until <= reading.seconds or leases.is_gone(row.lease_owner)]


def _unheard(connection: Connection) -> list[Row[Any]]:
    """Give the ended runs whose parent still waits for them: their end ought to have told it."""
    waiting = select(RUNS).join(WAITS, WAITS.c.child_id == RUNS.c.id).where(WAITS.c.status == WaitStatus.OPEN)
    return list(connection.execute(waiting.where(WAITS.c.child_id.is_not(None), RUNS.c.finished_at.is_not(None)).limit(SWEEP_LIMIT)))


def _due(connection: Connection, now: datetime) -> list[Row[Any]]:
    over = (RUNS.c.status == RunStatus.WAITING, RUNS.c.wake_at <= clock.to_text(now))
    return list(connection.execute(select(RUNS.c.id, RUNS.c.machine).where(*over).order_by(RUNS.c.wake_at).limit(SWEEP_LIMIT)))


def _take_back(box: Box, connection: Connection, run: Row[Any], *, now: datetime) -> None:
    """Make a lost run pending, or stopped where that was asked for; nothing where its worker has written meanwhile."""
    same = (
        RUNS.c.id == run.id,
        RUNS.c.status == RunStatus.RUNNING,
        RUNS.c.fence == run.fence,
        RUNS.c.lease_until == run.lease_until,
    )
    changed = update(RUNS).where(*same).values(NO_LEASE | {"status": RunStatus.PENDING})
    if not connection.execute(changed).rowcount or run.stop_requested_at is None:
        return
    end(box, connection, run, box.definitions.of(connection, run.version_id), RunStatus.STOPPED, None, Output(None, None), now=now)
