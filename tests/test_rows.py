"""What an operation costs does not depend on how many rows there are: counted in SQLite's own steps, which no loaded machine changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from bench import operations, rows
from orqo.config import Config

SMALL, BIG = 1_000, 5_000
# A few for what an index page more or less takes.
SPARE = 300
# For each row that is counted or looked at beyond those that the small database has.
BOUNDED_SPARE = 12 * 2_500


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[tuple[operations.Side, operations.Side]]:
    folder: Path = tmp_path_factory.mktemp("rows")
    made = (rows.side(_config(folder / str(count), redis_url), count, timedelta(hours=48 * count / SMALL)) for count in (SMALL, BIG))
    with next(made) as small, next(made) as big:
        yield small, big


def _config(data: Path, redis_url: str) -> Config:
    return Config.from_environ({"ORQO_DATA": str(data), "REDIS_URL": redis_url})


def steps_of(side: operations.Side, group: dict[str, operations.Operation]) -> Counter[str]:
    """Give how many steps SQLite takes for each operation of a group, carried out one after the other."""
    counted: Counter[str] = Counter()
    current = [""]

    def step() -> int:
        counted[current[0]] += 1
        return 0

    engines = (side.database.engine, side.client.application.extensions["orqo"].database.engine)
    for engine in engines:
        engine.dispose()
        event.listen(engine, "connect", lambda connection, _: connection.set_progress_handler(step, 1))
    for name, operation in group.items():
        current[0] = name
        operation(side)
    return counted


@pytest.mark.parametrize("group", operations.groups(), ids=lambda group: next(iter(group)))
def test_an_operation_takes_as_many_steps_whatever_the_number_of_rows(sides: Any, group: dict[str, operations.Operation]) -> None:
    small, big = (steps_of(side, group) for side in sides)

    spare = {name: BOUNDED_SPARE if name in operations.BOUNDED else SPARE for name in group}
    grown = {name: (small[name], big[name]) for name in group if big[name] > small[name] + spare[name]}
    assert grown == {}
    assert all(small[name] > 10 for name in group)
