"""`db copy`: a box's data moves from SQLite to PostgreSQL, all or nothing, and is compared row by row.

Owns the order of tables and the counters of ids. The source is locked for writing meanwhile and never changed; what it
accepted is in the copy, and what it does not accept is told so (503).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Table, func, select, text

from orqo import db
from orqo.config import ConfigError
from orqo.db import Database
from orqo.models import Base

BATCH = 200
COUNTERS = text("SELECT name, seq FROM sqlite_sequence")
ANALYZE = text("ANALYZE")
NEXT_ID = text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)")


class CannotCopy(Exception):
    """A row cannot be copied, or the copy differs from it; nothing was kept. The text names the table."""


def copy(source_url: str, target_url: str, *, say: Callable[[str, int], None]) -> int:
    """Copy every row and give how many; `say` hears each table's name and rows. One commit, at the end.

    Raises ConfigError where the databases are not of these kinds, or the target holds rows already; SchemaMismatch,
    Unavailable, CannotCopy.
    """
    source, target = Database.open(_driven(source_url)), Database.open(_driven(target_url))
    try:
        if not source.is_sqlite or target.is_sqlite:
            raise ConfigError(["db copy goes from SQLite to PostgreSQL: db copy sqlite:////path/orqo.db postgresql://user@host/name"])
        db.check_version(source)
        db.initialise(target)
        db.check_version(target)
        with source.transaction() as reading, target.transaction() as writing:
            return _copy_tables(reading, writing, say)
    finally:
        source.close()
        target.close()


def _driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _copy_tables(reading: Connection, writing: Connection, say: Callable[[str, int], None]) -> int:
    tables = [table for table in Base.metadata.sorted_tables if table.name != "schema_version"]
    for table in tables:
        if writing.execute(select(table.primary_key.columns[0]).limit(1)).first() is not None:
            raise ConfigError([f"The target holds rows already (in {table.name}): db copy needs an empty database."])
    total = 0
    for table in tables:
        rows = _copy_table(reading, writing, table)
        _compare(reading, writing, table)
        say(table.name, rows)
        total += rows
    # An id that was given once is never given again, even if its row is gone.
    for name, last in reading.execute(COUNTERS).all():
        if last:
            writing.execute(NEXT_ID, {"name": name, "last": last})
    # The server would do it by itself, a minute after the box went on with plans for empty tables.
    writing.execute(ANALYZE)
    return total


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    """Stream one table by PostgreSQL's COPY: a row may hold megabytes, so never more than a few are in memory."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    cursor = writing.connection.cursor()
    count = 0
    try:
        with cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as into:
            for row in _rows(reading, table):
                into.write_row(row)
                count += 1
    except _driver(writing).Error as fault:
        raise CannotCopy(f"Table {table.name} could not be copied, after {count} rows: {str(fault).splitlines()[0]}") from fault
    return count


def _driver(connection: Connection) -> ModuleType:
    driver: ModuleType = connection.dialect.dbapi  # type: ignore[assignment]
    return driver


def _rows(connection: Connection, table: Table) -> Iterator[tuple[Any, ...]]:
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=BATCH)
    for row in connection.execute(query):
        yield tuple(row)


def _compare(reading: Connection, writing: Connection, table: Table) -> None:
    """Hold each copied row against its source; rows are found by their key, for the two sort texts differently."""
    key = list(table.primary_key.columns)
    count = writing.execute(select(func.count()).select_from(table)).scalar_one()
    if count != reading.execute(select(func.count()).select_from(table)).scalar_one():
        raise CannotCopy(f"Table {table.name} has {count} rows in the copy, and another number in the source.")
    places = [list(table.columns).index(column) for column in key]
    for batch in reading.execute(select(table).order_by(*key).execution_options(yield_per=BATCH)).partitions(BATCH):
        first = key[0].in_({row[places[0]] for row in batch})
        copied = {tuple(row[place] for place in places): tuple(row) for row in writing.execute(select(table).where(first))}
        for row in batch:
            if copied.get(tuple(row[place] for place in places)) != tuple(row):
                shown = ", ".join(f"{column.name}={row[place]!r}" for column, place in zip(key, places, strict=True))
                raise CannotCopy(f"The row {shown} of table {table.name} is not the same in the copy.")
