"""The newest rows of several ranges of an index, and where a time begins among them: what keeps a page as cheap as the first.

Reads only. Of ranges asked for in one condition (`IN`) both engines would sort all that they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select, text, union_all

# One statement asks for so many ranges: SQLite takes five hundred.
RANGES = 100
# The greatest id from which on a row is older than a moment, bit by bit within one statement: as many steps whatever there is.
HIGHEST_STEP = 2**40
OLDER = text("""
WITH RECURSIVE search (id, step) AS (
    SELECT CAST(0 AS BIGINT), CAST(:highest AS BIGINT)
    UNION ALL
    SELECT id + CASE WHEN (SELECT created_at FROM runs WHERE runs.id >= search.id + step ORDER BY runs.id LIMIT 1) < :moment
        THEN step ELSE 0 END, step / 2
    FROM search WHERE step > 0
)
SELECT max(id) FROM search
""")


def rows(connection: Connection, query: Select[Any], key: Any, ranges: Sequence[Any], *, limit: int) -> list[Row[Any]]:
    """Give the newest rows of a query, by `key`, that lie in one of the `ranges`: conditions, each the start of an index on key.

    What the query itself asks for beside them must not tempt an engine to another index.
    """
    newest = query.order_by(key.desc()).limit(limit)
    if len(ranges) <= 1:
        return list(connection.execute(newest.where(*ranges)))
    ids: set[int] = set()
    for start in range(0, len(ranges), RANGES):
        of_each = (
            newest.with_only_columns(key.label("id"), maintain_column_froms=True).where(each) for each in ranges[start : start + RANGES]
        )
        ids.update(connection.execute(union_all(*(select(each.subquery().c.id) for each in of_each))).scalars())
    found = sorted(ids, reverse=True)[:limit]
    return list(connection.execute(newest.where(key.in_(found)))) if found else []


def first_since(connection: Connection, moment: str) -> int:
    """Give the smallest id of a run that was created at a moment or later, one more than the last where there is none.

    Times have no index; ids are as old as they are small.
    """
    return 1 + int(connection.execute(OLDER, {"moment": moment, "highest": HIGHEST_STEP}).scalar_one())
