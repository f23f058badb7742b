"""The database as the checker sees it, SQLite's file or PostgreSQL: read only, rows by number and by name, `?` in both."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg

Gone = (sqlite3.OperationalError, psycopg.OperationalError)
"""What a database that is locked or away answers."""


class Row(tuple[Any, ...]):
    """One row of PostgreSQL's, as sqlite3.Row is one."""

    names: dict[str, int]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names[key] if isinstance(key, str) else key)


class Postgres:
    """So much of sqlite3.Connection as the checker uses."""

    def __init__(self, url: str) -> None:
        self._connection: psycopg.Connection[Row] = psycopg.connect(url, autocommit=True, row_factory=_rows)

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Row]:
        query = "BEGIN ISOLATION LEVEL REPEATABLE READ" if query == "BEGIN" else query.replace("?", "%s")
        return self._connection.execute(query.encode(), parameters)

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()


def _rows(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], Row]:
    names = {column.name: place for place, column in enumerate(cursor.description or ())}
    return lambda values: type("Row", (Row,), {"names": names})(values)


def open_file(path: Path) -> sqlite3.Connection:
    """Open SQLite's file for reading alone."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def is_free(path: Path) -> bool:
    """Tell whether the write lock can be had within some seconds: those who commit all the time leave little room."""
    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection, suppress(sqlite3.OperationalError):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        return True
    return False


def lock_file(path: Path, seconds: float) -> None:
    """Hold the write lock, as a backup tool or a careless shell would."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    with suppress(sqlite3.OperationalError):
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    connection.close()


def lock_server(url: str, seconds: float) -> None:
    """End all connections of the service, as a failover does, and let nobody write for a while."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orqo'")
        with connection.transaction():
            connection.execute("LOCK TABLE runs, deliveries IN EXCLUSIVE MODE")
            time.sleep(seconds)
