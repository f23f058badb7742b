"""Received callbacks: events that this box sent to itself, kept so that a developer can look at what arrives.

Owns the table requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete, func, insert, select

from orqo import clock, jsontext
from orqo.config import Config
from orqo.models import Request

CALLBACK_PATH = "/api/v1/callback"
KEPT_MAX = 10_000
KEPT_DAYS = 7
TRIM_LIMIT = 100


@dataclass(frozen=True)
class Event:
    """One received event; `headers` hold no credential."""

    webhook_id: str
    run_id: int
    name: str
    headers: Mapping[str, str]
    body: bytes


def own_urls(config: Config) -> list[str]:
    """Give the URLs under which this box may have configured its own callback endpoint.

    Never the request's Host: a receiver that knows the secret of its own URL could then name itself there.
    """
    loopback = [f"http://{host}:{config.port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    bases = dict.fromkeys([config.base_url, *loopback])
    return [base + CALLBACK_PATH for base in bases if urlsplit(base).hostname]


def keep(connection: Connection, event: Event, *, now: datetime) -> bool:
    """Store an event unless its webhook-id is there already; tells which. Trims what is too old or too much."""
    known = select(Request.id).where(Request.webhook_id == event.webhook_id)
    if connection.execute(known).scalar() is not None:
        return False
    values = {
        "endpoint": "callback",
        "webhook_id": event.webhook_id,
        "run_id": event.run_id,
        "event": event.name,
        "headers": jsontext.dump(event.headers),
        "body": event.body,
        "received_at": clock.to_text(now),
    }
    connection.execute(insert(Request).values(values))
    _trim(connection, now)
    return True


def _trim(connection: Connection, now: datetime) -> None:
    newest = connection.execute(select(func.max(Request.id))).scalar_one()
    too_old = Request.received_at < clock.to_text(now - timedelta(days=KEPT_DAYS))
    gone = select(Request.id).where((Request.id <= newest - KEPT_MAX) | too_old).order_by(Request.id).limit(TRIM_LIMIT)
    connection.execute(delete(Request).where(Request.id.in_(gone)))


def list_all(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Give the received events, newest first, their bodies as text."""
    rows = connection.execute(select(Request.__table__).order_by(Request.id.desc()).limit(limit))
    told = ("id", "webhook_id", "run_id", "event", "received_at")
    return [{key: getattr(row, key) for key in told} | {"body": row.body.decode("utf-8", errors="replace")} for row in rows]
