"""/metrics, for Prometheus: what this machine's processes counted, and how full the box is now.

To holders of an API token of scope read that is not limited to some workflows: the figures name all of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Blueprint, Response
from sqlalchemy import Connection, func, select

from orqo import clock, db, metrics
from orqo.api.access import check_unlimited, guard, note_use
from orqo.api.site import Site, reading, site
from orqo.errors import NotFound
from orqo.models import Delivery, DeliveryStatus, Run, RunStatus

COUNTED_MAX = 10_000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNFINISHED = (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING)
Figures = dict[str, tuple[str, dict[tuple[str, ...], float]]]

blueprint = Blueprint("metrics", __name__)
blueprint.before_request(guard)
blueprint.after_request(note_use)


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Give the metrics; NotFound with a hint where the package that writes them is not installed."""
    check_unlimited()
    if not metrics.are_available():
        raise NotFound(metrics.HOW_TO_INSTALL)
    now = clock.now()
    with reading() as connection:
        figures, busy = _of_database(connection, now), _busy(connection)
    return Response(metrics.text(site().config.data, figures | _of_machine(site(), busy, now)), content_type=CONTENT_TYPE)


def _busy(connection: Connection) -> int:
    """Give how many workers have a run; RQ calls one busy also while it waits for the next wake-up within its job."""
    owners = select(func.count(Run.lease_owner.distinct())).where(Run.status == RunStatus.RUNNING)
    return int(connection.execute(owners).scalar_one())


def _of_database(connection: Connection, now: datetime) -> Figures:
    """Read what an index knows; no count goes beyond ten thousand rows."""
    runs: dict[tuple[str, ...], float] = {(str(status),): _count(connection, Run.status == status) for status in UNFINISHED}
    pending = (Run.status == RunStatus.PENDING, Run.held == 0)
    waits_since = connection.execute(select(Run.created_at).where(*pending).order_by(Run.id).limit(1)).scalar()
    due = (Delivery.status == DeliveryStatus.PENDING, Delivery.next_attempt_at <= clock.to_text(now))
    due_since = connection.execute(select(func.min(Delivery.next_attempt_at)).where(*due)).scalar()
    return {
        "orqo_runs": ("Runs that have not ended, 10000 at most", runs),
        "orqo_oldest_pending_seconds": ("Age of the oldest run that a worker may claim", {(): _age(waits_since, now)}),
        "orqo_deliveries_due": ("Deliveries that are due, 10000 at most", {(): _count(connection, *due)}),
        "orqo_oldest_due_delivery_seconds": ("How long the longest due delivery is due", {(): _age(due_since, now)}),
    }


def _count(connection: Connection, *conditions: Any) -> float:
    table = Delivery if "deliveries" in str(conditions[0]) else Run
    some = select(table.id).where(*conditions).limit(COUNTED_MAX).subquery()
    return float(connection.execute(select(func.count()).select_from(some)).scalar_one())


def _age(since: str | None, now: datetime) -> float:
    return max(0.0, (now - clock.from_text(since)).total_seconds()) if since else 0.0


def _of_machine(here: Site, busy: int, now: datetime) -> Figures:
    heard = len(here.bell.workers(now=now))
    states = {"busy": float(min(busy, heard)), "idle": float(max(0, heard - busy))}
    figures: Figures = {
        "orqo_workers": ("Workers heard of in the last minute, on all machines", {(state,): count for state, count in states.items()}),
        "orqo_redis_up": ("Whether Redis answers", {(): float(here.bell.is_reachable())}),
    }
    free = db.free_bytes(here.config.database_path)
    return figures if free is None else figures | {"orqo_disk_free_bytes": ("Free bytes beside the database", {(): float(free)})}
