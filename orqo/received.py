"""Received callbacks: events that this box sent to itself, kept so that a developer can look at what arrives.

Owns where this box's own callback endpoint is. The events lie in the request log.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, select

from orqo import requestlog
from orqo.call import Call
from orqo.config import Config
from orqo.models import Request, Verdict
from orqo.requestlog import Entry

CALLBACK_PATH = "/api/v1/callback"


def own_urls(config: Config) -> list[str]:
    """Give the URLs under which this box may have configured its own callback endpoint.

    Never the request's Host: a receiver that knows the secret of its own URL could then name itself there.
    """
    loopback = [f"http://{host}:{config.port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    bases = dict.fromkeys([config.base_url, *loopback])
    return [base + CALLBACK_PATH for base in bases if urlsplit(base).hostname]


def keep(connection: Connection, given: Call, *, run_id: int, event: str, now: datetime) -> bool:
    """Store a signed event unless its webhook-id is there already; tells which."""
    webhook_id = given.headers["webhook-id"]
    if connection.execute(select(Request.id).where(Request.webhook_id == webhook_id)).scalar() is not None:
        return False
    entry = Entry("callback", given, Verdict.RECEIVED, 200, run_id=run_id, webhook_id=webhook_id, event=event)
    requestlog.write(connection, entry, now=now)
    return True


def list_all(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Give the received events, newest first, their bodies as text."""
    query = select(Request.__table__).where(Request.webhook_id.is_not(None)).order_by(Request.id.desc()).limit(limit)
    told = ("id", "webhook_id", "run_id", "event", "received_at")
    rows = connection.execute(query)
    return [{key: getattr(row, key) for key in told} | {"body": row.body.decode("utf-8", errors="replace")} for row in rows]
