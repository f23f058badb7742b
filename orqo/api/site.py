"""What a request handler works with, and who may call what.

Owns the Site that create_app() hangs on the application, and the one way of presenting an API token.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from flask import current_app, request
from sqlalchemy import Connection

from orqo import db, runs, tokens
from orqo.api.validation import Validators
from orqo.config import Config
from orqo.db import Database
from orqo.errors import Forbidden, Unauthorized, Unavailable
from orqo.queue import Bell

BEARER = re.compile(r"Bearer +([\x21-\x7e]+) *", re.IGNORECASE)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="orqo"'}
INVALID_TOKEN = {"WWW-Authenticate": 'Bearer realm="orqo", error="invalid_token"'}


@dataclass
class Site:
    """The parts of one web process. `counts` are since its start: what was refused without being stored."""

    config: Config
    database: Database
    box: runs.Box
    bell: Bell
    key: bytes
    validators: Validators
    counts: Counter[str] = field(default_factory=Counter)


def site() -> Site:
    """Give the current application's Site."""
    return current_app.extensions["orqo"]  # type: ignore[no-any-return]


@contextmanager
def reading() -> Iterator[Connection]:
    """Give a read-only connection of Flask-SQLAlchemy's session for this request."""
    session = current_app.extensions["sqlalchemy"].session
    yield session.connection(execution_options={"read_only": True})
    session.rollback()


def presented_token() -> str | None:
    """Give the Bearer token of the request, None where there is none of that form. Source: RFC 6750 §2.1."""
    found = BEARER.fullmatch(request.headers.get("Authorization", ""))
    return found[1] if found else None


def holder_with(connection: Connection, scope: str, *, now: datetime) -> tokens.Holder:
    """Give the holder of the presented API token; Unauthorized without a valid one, Forbidden without the scope."""
    token = presented_token()
    if token is None:
        raise Unauthorized("Send an API token: Authorization: Bearer orqo_… (make one in Settings → API Tokens).", headers=CHALLENGE)
    holder = tokens.find(connection, token, now=now)
    if holder is None:
        raise Unauthorized("The API token is unknown, expired or revoked. Make a new one in Settings → API Tokens.", headers=INVALID_TOKEN)
    if not holder.may(scope):
        raise Forbidden(f"This API token lacks the scope {scope}. Make one that has it in Settings → API Tokens.")
    return holder


def check_room(config: Config) -> None:
    """Raise Unavailable below the disk's watermark: what could not be finished is not accepted."""
    free = db.free_bytes(config.database_path)
    if free is not None and free < config.disk_free_min_bytes:
        raise Unavailable("The disk is nearly full (ORQO_DISK_FREE_MIN): free some space. Nothing was stored.", retry_after_s=60)
