"""Statements of the hot path, written with SQLAlchemy and compiled once, and given to SQLite's driver as they are then.

SQLAlchemy takes 20 to 30 µs of a statement whatever it does, the driver 2; to accept, claim and finish a run takes a dozen.
Owns nothing but that. On PostgreSQL they go the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, cast
from weakref import WeakSet

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.exc import DBAPIError

# Those that there are in this process.
_known: WeakSet[Prepared] = WeakSet()


def compile_all(dialect: Dialect) -> None:
    """Compile the statements that are known so far, for processes that are forked from this one; on PostgreSQL there is nothing to do."""
    if dialect.name == "sqlite":
        for each in list(_known):
            each.compile(dialect)


class Prepared:
    """One statement that takes the `names` as parameters; each column of its result is an attribute of a row."""

    def __init__(self, statement: Executable, *names: str) -> None:
        self.statement, self._names = statement, names
        self._sql = ""
        self._fixed: dict[str, Any] = {}
        self._order: tuple[str, ...] = ()
        self._row: Callable[[Any], Any] | None = None
        _known.add(self)

    def first(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        """Execute it and give the first row, None where there is none."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, dict(parameters)).first()
        driver = connection.connection.dbapi_connection
        return self.first_of(driver, connection.dialect, parameters)

    def all(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Execute it and give all rows."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, dict(parameters)).all()
        cursor = self._executed(connection.connection.dbapi_connection, connection.dialect, parameters)
        made = self._row or self._learn(cursor)
        return [made(found) for found in cursor.fetchall()]

    def change(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute it and tell how many rows it changed."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, dict(parameters)).rowcount
        return int(self._executed(connection.connection.dbapi_connection, connection.dialect, parameters).rowcount)

    def first_of(self, driver: Any, dialect: Dialect, parameters: Mapping[str, Any]) -> Any:
        """Do what `first` does on a connection of SQLite's driver. Raises what SQLAlchemy would."""
        cursor = self._executed(driver, dialect, parameters)
        found = cursor.fetchone()
        if found is None:
            return None
        made = self._row or self._learn(cursor)
        # A statement that was not read to its end would keep its snapshot.
        cursor.close()
        return made(found)

    def _executed(self, driver: Any, dialect: Dialect, parameters: Mapping[str, Any]) -> Any:
        if not self._sql:
            self.compile(dialect)
        values = [parameters[name] if name in parameters else self._fixed[name] for name in self._order]
        base = cast(Any, dialect.loaded_dbapi).Error
        try:
            return driver.execute(self._sql, values)
        except base as fault:
            raise DBAPIError.instance(self._sql, None, fault, base, hide_parameters=True, dialect=dialect) from fault

    def _learn(self, cursor: Any) -> Callable[[Any], Any]:
        self._row = made = _row_class([column[0] for column in cursor.description])
        return made

    def compile(self, dialect: Dialect) -> None:
        """Make the text that the driver is given."""
        compiled = cast(Any, self.statement).compile(dialect=dialect, column_keys=list(self._names) or None)
        self._fixed, self._order = dict(compiled.params), tuple(compiled.positiontup)
        self._sql = str(compiled)


class Writing:
    """An INSERT or UPDATE whose columns come with the parameters: prepared once for each set of them that comes."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement
        self._forms: dict[tuple[str, ...], Prepared] = {}

    def first(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        """Execute it and give the first row that it returns, None where there is none."""
        return self._form(parameters).first(connection, parameters)

    def change(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute it and tell how many rows it changed."""
        return self._form(parameters).change(connection, parameters)

    def _form(self, parameters: Mapping[str, Any]) -> Prepared:
        names = tuple(parameters)
        if names not in self._forms:
            self._forms[names] = Prepared(self.statement, *names)
        return self._forms[names]


def _row_class(names: Sequence[str]) -> Callable[[Any], Any]:
    """Make the class of a result's rows, which are read as SQLAlchemy's are: by attribute, by position, as a `_mapping`."""
    fields: dict[str, Any] = {name: property(itemgetter(place)) for place, name in enumerate(names)}
    as_mapping = property(lambda row: dict(zip(names, row, strict=True)))
    return type("Row", (tuple,), {"__slots__": (), **fields, "_mapping": as_mapping})
