"""Rows: what each operation costs with a thousand runs and with a million, three deliveries each, on both engines.

`python -m bench rows [--runs 1000000] [--repeats 60] [--engine sqlite|postgresql|both]`: the two databases of an engine are
asked in turn, within one process and by the application's own ways; lower quartiles of many. Exit status 1 where one grows by over
20 %, each of three times.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import boxes, bulk, operations
from bench.operations import Operation, Side
from orqo import (
    apply,
    callbacks,
    clock,
    create_app,
    dashboard,
    db,
    definition,
    instance,
    overview,
    people,
    runs,
    tokens,
    triggers,
    valkey,
    workflows,
)
from orqo.config import Config

SMALL_RUNS, BIG_RUNS, REPEATS = 1_000, 1_000_000, 60
GROWTH_MAX = 1.2
AGAIN = 2
# The small one is younger too, so that Home has as many to show of the last day.
SMALL_OVER, BIG_OVER = timedelta(hours=48), timedelta(days=29)
BUILD = """
name: build
stages: [{name: one, stub: {}}]
callbacks:
  - {url: "https://one.example.com/done"}
  - {url: "https://two.example.com/done"}
  - {url: "https://three.example.com/done"}
"""
OLD = 'name: old\nstages: [{name: one, stub: {}}]\ncallbacks: [{url: "https://ci.example.com/old"}]\n'


def main(arguments: list[str]) -> int:
    """Measure and print; exit status 1 where an operation grows by more than a fifth."""
    parser = argparse.ArgumentParser(prog="python -m bench rows", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=BIG_RUNS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--engine", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--only", default="", help="operations whose name holds this")
    wanted = parser.parse_args(arguments)
    engines = ("sqlite", "postgresql") if wanted.engine == "both" else (wanted.engine,)
    grown = [each for engine in engines for each in _engine(engine, wanted)]
    print(f"\n{len(grown)} grow by more than {GROWTH_MAX - 1:.0%}" + "".join(f"\n  {each}" for each in grown))
    return int(bool(grown))


def _engine(engine: str, wanted: argparse.Namespace) -> list[str]:
    """Measure one engine; gives what grows."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orqo-bench-")))
        redis_url = stack.enter_context(valkey.running(folder))
        made = stack.enter_context(_sides(engine, folder, redis_url, wanted.runs))
        print(f"\n{engine:<60}{SMALL_RUNS:>12,}{wanted.runs:>14,}  ratio", flush=True)
        found = {}
        for group in operations.groups():
            if any(wanted.only in name for name in group):
                found |= {name: _print(name, *row) for name, row in _confirmed(group, made, wanted.repeats).items()}
        return [f"{engine}: {name}" for name, grows in found.items() if grows]


def _confirmed(group: Mapping[str, Operation], sides: tuple[Side, Side], repeats: int) -> dict[str, tuple[float, float]]:
    """Measure a group, and again what seems to grow: on a machine that others use too, what really grows does so each time."""
    taken = _measured(group, sides, repeats)
    for _ in range(AGAIN):
        grown = [name for name, row in taken.items() if _grows(name, *row)]
        if not grown:
            break
        again = _measured(group, sides, repeats)
        taken |= {name: min(taken[name], again[name], key=lambda row: row[1] / row[0]) for name in grown}
    return taken


def _grows(name: str, small: float, big: float) -> bool:
    return big / small > GROWTH_MAX and name not in operations.BOUNDED


def _print(name: str, small: float, big: float) -> bool:
    """Print what an operation takes; tells whether it grows."""
    grows = _grows(name, small, big)
    note = operations.BOUNDED.get(name) or ("grows" if grows else "")
    print(f"{name:<60}{small:>9.2f} ms{big:>11.2f} ms  {big / small:.2f}  {note}".rstrip(), flush=True)
    return grows


def _measured(group: Mapping[str, Operation], sides: tuple[Side, Side], repeats: int) -> dict[str, tuple[float, float]]:
    """Take each operation of a group after the other, on both sides in turn; gives the lower quartiles in ms."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in group}
    for number in range(repeats + 3):
        gc.collect()
        gc.disable()
        for place in (0, 1) if number % 2 else (1, 0):
            for name, operation in group.items():
                began = time.perf_counter()
                operation(sides[place])
                taken[name][place].append((time.perf_counter() - began) * 1000)
        gc.enable()
    # The first ones fill caches, and let PostgreSQL settle on its plans.
    return {name: (_quartile(small[3:]), _quartile(big[3:])) for name, (small, big) in taken.items()}


def _quartile(taken: list[float]) -> float:
    """Give the lower quartile: what else the machine does only ever makes a call slower."""
    return statistics.quantiles(taken, n=4)[0]


# ── the two boxes ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _sides(engine: str, folder: Path, redis_url: str, big_runs: int) -> Iterator[tuple[Side, Side]]:
    with contextlib.ExitStack() as stack:
        made = []
        for name, count, over in (("small", SMALL_RUNS, SMALL_OVER), ("big", big_runs, BIG_OVER)):
            env = {"ORQO_DATA": str(folder / name), "REDIS_URL": redis_url}
            if engine == "postgresql":
                env["DATABASE_URL"] = stack.enter_context(boxes.fresh_postgresql())
            made.append(stack.enter_context(side(Config.from_environ(env), count, over)))
        yield made[0], made[1]


@contextlib.contextmanager
def side(config: Config, count: int, over: timedelta) -> Iterator[Side]:
    now, began = clock.now(), time.monotonic()
    config.data.mkdir(mode=0o700)
    database = db.Database.open(config.database_url)
    db.initialise(database)
    key = instance.establish(database, config, now=now)
    with database.transaction() as connection:
        names, headers, hook = _made(connection, key)
        link = people.make_link(connection, now=now)
    session = people.sign_in_by_link(database, link, None, agent="bench", now=now)
    bulk.fill(database, names, runs=count, over=over, now=now)
    megabytes = _bytes(database) / 1e6
    print(
        f"{count:,} runs, {count * bulk.DELIVERIES_PER_RUN:,} deliveries: {time.monotonic() - began:.0f} s, {megabytes:,.0f} MB", flush=True
    )
    app = create_app(config)
    dashboard.warm(app)
    client = app.test_client()
    client.set_cookie("orqo_session", session)
    yield Side(client, database, runs.Box(database, workflows.Definitions(), config.base_url, key), names, headers, hook, count)
    app.extensions["orqo"].database.close()
    app.extensions["orqo"].bell.close()
    database.close()


def _bytes(database: db.Database) -> int:
    with database.read() as connection:
        return overview.database_bytes(database, connection)


def _made(connection: Any, key: bytes) -> tuple[bulk.Names, dict[str, dict[str, str]], str]:
    """Make the workflows, triggers and tokens; gives their ids, headers by who asks, and the webhook's path."""
    now = clock.now()
    build, old = (apply.apply(connection, definition.parse(source), key=key, now=now).id for source in (BUILD, OLD))
    often, seldom = (
        triggers.create(connection, workflow_id=build, name=name, key=key, origin="cli", now=now) for name in ("often", "seldom")
    )
    scopes = ("trigger", "read", "admin")
    token_id, token = tokens.create(connection, name="bench", scopes=scopes, now=now)
    _, limited = tokens.create(connection, name="limited", scopes=("read",), workflow_ids=[old], now=now)
    configured = {row["id"]: row for row in callbacks.list_all(connection)}
    mine = sorted(each for each, row in configured.items() if row["workflow_id"] == build)
    names = bulk.Names(
        workflow_id=build,
        version_id=workflows.get(connection, build).version_id,
        old_workflow_id=old,
        old_version_id=workflows.get(connection, old).version_id,
        trigger_ids=(often, seldom),
        callback_ids=(mine[0], mine[1], mine[2]),
        old_callback_id=next(each for each in configured if each not in mine),
        token_id=token_id,
    )
    hook = triggers.url_of(triggers.get(connection, often), key, "")
    headers = {name: {"Authorization": f"Bearer {each}"} for name, each in (("all", token), ("limited", limited))}
    return names, headers, hook
