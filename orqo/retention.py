"""Retention: what is old or too much is deleted, a little at a time, and the file's space given back.

Owns the deletion of runs with all that belongs to them: stages, deliveries, attempts, keys, run folders. Never touches a run
that has not ended, nor one with a delivery that is still to be sent.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from orqo import clock
from orqo.db import Database
from orqo.models import Delivery, DeliveryStatus, IdempotencyKey, Machine, Request, Run

BATCH = 200
VACUUM_PAGES = 2000
# Keys count for a day (DESIGN §1); requests are kept a week by their own rule, which only acts while requests come.
KEYS_KEPT = timedelta(hours=24)
REQUESTS_KEPT = timedelta(days=7)
# Bodies of requests in all: ten thousand of a mebibyte each would fill a small disk.
BODIES_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """How long and how many ended runs are kept."""

    days: int
    runs: int
    bodies_bytes: int = BODIES_MAX_BYTES


def prune(database: Database, limits: Limits, runs_dir: Path, *, now: datetime) -> int:
    """Delete one batch of what is kept no longer and give how many rows went; 0 where there is nothing left to delete.

    Commits once; reads only where there is nothing to do. A run's folder goes after its row: a crash between the two leaves
    a folder, which `prune_folders` finds.
    """
    with database.read() as connection:
        over = _over(connection, limits, now)
        stale = _stale_rows(connection, limits, now)
        heavy = _heavy_requests(connection, limits.bodies_bytes)
    if not over and not stale and not heavy:
        return 0
    with database.transaction() as connection:
        gone = list(connection.execute(delete(Run).where(Run.id.in_(over), *_free()).returning(Run.id)).scalars()) if over else []
        rows = _delete_stale(connection, limits, now) if stale else 0
        if heavy:
            rows += connection.execute(update(Request).where(Request.id.in_(heavy)).values(body=None)).rowcount
    for run_id in gone:
        shutil.rmtree(runs_dir / str(run_id), ignore_errors=True)
    database.tidy(pages=VACUUM_PAGES)
    return len(gone) + rows


def _free() -> tuple[Any, ...]:
    """Give the condition under which a run may go: it has ended, nothing of it is to be sent, and no parent waits for it."""
    # Said so that no index of a status is taken for it: all that ended, or is to be sent, would be looked at for each run.
    unsent = exists().where(Delivery.run_id == Run.id, Delivery.status.not_in((DeliveryStatus.DELIVERED, DeliveryStatus.DEAD)))
    parent = aliased(Run)
    waited_for = exists().where(parent.id == Run.parent_id, parent.finished_at.is_(None))
    return (Run.finished_at.is_not(None), ~unsent, ~waited_for)


def _over(connection: Connection, limits: Limits, now: datetime) -> list[int]:
    """Give the oldest ended runs past their days or their number."""
    before = clock.to_text(now - timedelta(days=limits.days))
    # One query for each limit: for both in one, every run would be looked at where none is over.
    old = select(Run.id).where(Run.finished_at < before, *_free()).order_by(Run.finished_at).limit(BATCH)
    found = set(connection.execute(old).scalars())
    beyond = _newest_beyond(connection, limits.runs)
    if beyond is not None:
        many = select(Run.id).where(Run.id <= beyond, *_free()).order_by(Run.id).limit(BATCH)
        found.update(connection.execute(many).scalars())
    return sorted(found)[:BATCH]


def _newest_beyond(connection: Connection, kept: int) -> int | None:
    """Give the newest run that so many newer ones leave no place for, None where there are not as many."""
    first, last = connection.execute(select(*(select(of(Run.id)).scalar_subquery() for of in (func.min, func.max)))).one()
    if first is None or last - first < kept:
        # Ids tell that there cannot be as many, without a walk over them.
        return None
    return connection.execute(select(Run.id).order_by(Run.id.desc()).offset(kept).limit(1)).scalar()


def _stale_rows(connection: Connection, limits: Limits, now: datetime) -> bool:
    key = exists().where(IdempotencyKey.created_at < clock.to_text(now - KEYS_KEPT))
    request = exists().where(Request.received_at < clock.to_text(now - REQUESTS_KEPT))
    machine = exists().where(_is_unseen(connection, limits, now))
    return bool(connection.execute(select(or_(key, request, machine))).scalar())


def _is_unseen(connection: Connection, limits: Limits, now: datetime) -> Any:
    """Give the condition under which a machine has files of no run that is kept."""
    # On SQLite a machine is seen at its start alone, which may be longer ago; and there is one.
    return Machine.seen_at < ("" if connection.dialect.name == "sqlite" else clock.to_text(now - timedelta(days=limits.days)))


def _heavy_requests(connection: Connection, bytes_max: int) -> list[int]:
    """Give the oldest requests whose bodies, with those of all newer ones, are more than the bound."""
    kept = select(Request.id, func.sum(Request.size).over(order_by=Request.id.desc()).label("total"))
    bodies = kept.where(Request.body.is_not(None)).subquery()
    over = select(bodies.c.id).where(bodies.c.total > bytes_max).order_by(bodies.c.id).limit(BATCH)
    return list(connection.execute(over).scalars())


def _delete_stale(connection: Connection, limits: Limits, now: datetime) -> int:
    """Delete a batch of keys that count no longer and of requests past their week, and machines that are gone."""
    key = select(IdempotencyKey.scope, IdempotencyKey.key).where(IdempotencyKey.created_at < clock.to_text(now - KEYS_KEPT)).limit(BATCH)
    old = connection.execute(key).all()
    for scope, name in old:
        connection.execute(delete(IdempotencyKey).where(IdempotencyKey.scope == scope, IdempotencyKey.key == name))
    request = select(Request.id).where(Request.received_at < clock.to_text(now - REQUESTS_KEPT)).limit(BATCH)
    machines = connection.execute(delete(Machine).where(_is_unseen(connection, limits, now))).rowcount
    return len(old) + machines + connection.execute(delete(Request).where(Request.id.in_(request))).rowcount


def prune_folders(database: Database, runs_dir: Path) -> int:
    """Remove the folders of runs that are no more; gives how many."""
    folders = (
        {int(entry.name): entry for entry in runs_dir.glob("[0-9]*") if entry.name.isascii() and entry.name.isdigit()}
        if runs_dir.is_dir()
        else {}
    )
    names = sorted(folders)
    removed = 0
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        with database.read() as connection:
            known = set(connection.execute(select(Run.id).where(Run.id.in_(some))).scalars())
        for run_id in set(some) - known:
            with contextlib.suppress(OSError):
                shutil.rmtree(folders[run_id])
                removed += 1
    return removed
