"""Statements of the accept path, written with SQLAlchemy and compiled once, and given to SQLite's driver as they are then.

SQLAlchemy takes 20 to 30 µs of a statement whatever it does, the driver 2; a request that starts a run needs half a dozen.
Owns nothing but that. On PostgreSQL they go the usual way.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.exc import DBAPIError


class Prepared:
    """One statement that takes the `names` as parameters; each column of its result is an attribute of a row."""

    def __init__(self, statement: Executable, *names: str) -> None:
        self._statement, self._names = statement, names
        self._sql = ""
        self._fixed: dict[str, Any] = {}
        self._order: tuple[str, ...] = ()
        self._row: Callable[[Any], Any] | None = None

    def first(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        """Execute it and give the first row, None where there is none."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, dict(parameters)).first()
        driver = connection.connection.dbapi_connection
        return self.first_of(driver, connection.dialect, parameters)

    def first_of(self, driver: Any, dialect: Dialect, parameters: Mapping[str, Any]) -> Any:
        """Do so on a connection of SQLite's driver. Raises what SQLAlchemy would."""
        if not self._sql:
            self._compile(dialect)
        values = [parameters[name] if name in parameters else self._fixed[name] for name in self._order]
        base = cast(Any, dialect.loaded_dbapi).Error
        try:
            cursor = driver.execute(self._sql, values)
            found = cursor.fetchone()
        except base as fault:
            raise DBAPIError.instance(self._sql, None, fault, base, hide_parameters=True, dialect=dialect) from fault
        if found is None:
            return None
        if self._row is None:
            self._row = cast(Any, namedtuple("Row", [column[0] for column in cursor.description]))._make
        # A statement that was not read to its end would keep its snapshot.
        cursor.close()
        return self._row(found)

    def _compile(self, dialect: Dialect) -> None:
        compiled = cast(Any, self._statement).compile(dialect=dialect, column_keys=list(self._names) or None)
        self._fixed, self._order = dict(compiled.params), tuple(compiled.positiontup)
        self._sql = str(compiled)
