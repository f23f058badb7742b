"""What the web's entry points work with: the Site that create_app() hangs on the application.

Owns how a request handler reaches the parts of its process. Who may call what is the entry points' own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from flask import current_app
from sqlalchemy import Connection

from orqo import db, runs
from orqo.config import Config
from orqo.db import Database
from orqo.errors import Unavailable
from orqo.queue import Bell


@dataclass(kw_only=True)
class Site:
    """The parts of one web process. `counts` are since its start: what was refused without being stored."""

    config: Config
    database: Database
    box: runs.Box
    bell: Bell
    key: bytes
    secrets: Mapping[str, str] = field(repr=False)
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


def check_room(config: Config) -> None:
    """Raise Unavailable below the disk's watermark: what could not be finished is not accepted."""
    free = db.free_bytes(config.database_path)
    if free is not None and free < config.disk_free_min_bytes:
        raise Unavailable("The disk is nearly full (ORQO_DISK_FREE_MIN): free some space. Nothing was stored.", retry_after_s=60)
