"""Callbacks: deliveries a second by the real dispatcher, beside bare `requests` loops to the same receiver.

`python -m bench deliveries [--rounds 3]`: a fast receiver, one that takes 50 ms, eight of those; then how long others wait
beside one dead receiver of 100 with 10,000 deliveries waiting for it, and beside eight dead ones.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import insert, text

from bench.report import Figure, number, table
from orqo import apply, clock, db, definition, instance, runs, valkey, workflows
from orqo.config import PROJECT_DIR, Config
from orqo.models import Delivery
from orqo.slots import PER_HOST_MAX

WORKFLOW = "name: told\nstages: [{name: one, stub: {}}]\n"
BODY = json.dumps({"type": "run.completed", "data": {"output": "x" * 400}}).encode()
TIMEOUT_S = 120
SLOW_S = 0.05


def main(arguments: list[str]) -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench deliveries", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    print(table([*figures(rounds), *_besides(rounds)]))
    return 0


def figures(rounds: int) -> list[Figure]:
    """Give figure 9: one receiver that takes 50 ms, and so 8 in flight, beside what that allows."""
    taken = [_side_by_side(count=1600, receivers=1, delay_s=SLOW_S) for _ in range(rounds)]
    ours, bare = (statistics.median(each) for each in zip(*taken, strict=True))
    name = f"callbacks to a receiver of 50 ms, 8 in flight (8 bare requests loops: {number(bare)}/s)"
    return [Figure("9", name, ours, "/s", 0.9, ">=", PER_HOST_MAX / SLOW_S, "ideal")]


def _besides(rounds: int) -> list[Figure]:
    """Give what is no goal of the table's: other receivers, and how long the others wait for dead ones."""
    fast, eight = [], []
    for _ in range(rounds):
        fast.append(_side_by_side(count=3000, receivers=1, loops=1))
        eight.append(_side_by_side(count=4000, receivers=8, delay_s=SLOW_S, loops=1))
    told = []
    for name, taken in (("callbacks to a fast receiver", fast), ("callbacks to 8 receivers of 50 ms", eight)):
        ours, bare = (statistics.median(each) for each in zip(*taken, strict=True))
        told.append(Figure("-", name, ours, "/s", 0.5, ">=", bare, "a bare requests loop"))
    for dead, waiting, name in ((1, 10_000, "1 of 100 receivers dead, 10,000 waiting for it"), (8, 1000, "8 of 100 dead, 8,000 waiting")):
        p95 = _isolation(dead=dead, waiting=waiting, others=100 - dead, each=10)
        told.append(Figure("-", f"{name}: p95 from commit to the attempt's end at the others", p95, "s", 5, "<="))
    return told


@contextmanager
def _receiver(count: int, *, delay_s: float = 0.0, hanging: int = 0) -> Iterator[list[int]]:
    argv = [sys.executable, "-m", "bench.receiver", str(count), str(delay_s), str(hanging)]
    process = subprocess.Popen(argv, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _box() -> Iterator[tuple[db.Database, dict[str, str], int]]:
    """A box with one run, to which deliveries are written."""
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder, valkey.running(Path(folder)) as redis_url:
        env = {"ORQO_DATA": f"{folder}/data", "REDIS_URL": redis_url, "ORQO_WORKERS": "1", "ORQO_LOG_LEVEL": "error"}
        config = Config.from_environ(env)
        database = db.Database.open(config.database_url)
        db.initialise(database)
        key = instance.establish(database, config, now=clock.now())
        with database.transaction() as connection:
            saved = apply.apply(connection, definition.parse(WORKFLOW), key=key, now=clock.now())
            row = workflows.get(connection, saved.name)
            new = runs.NewRun(workflow_id=row.id, version_id=row.version_id, origin="cli")
            run_id = runs.accept(connection, new, now=clock.now()).run_id
        yield database, env | {"PATH": os.environ["PATH"]}, run_id
        database.close()


@contextmanager
def _worker(env: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "worker.py"], cwd=PROJECT_DIR, env=env)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _write(database: db.Database, run_id: int, ports: Sequence[int]) -> None:
    """Commit one delivery for each port, all due now."""
    moment = clock.to_text(clock.now())
    with database.transaction() as connection:
        rows: list[dict[str, Any]] = [
            {
                "webhook_id": f"msg_{secrets.token_hex(12)}", "run_id": run_id, "channel": secrets.token_hex(8), "sequence": 1,
                "event": "run.completed", "url": json.dumps([f"http://127.0.0.1:{port}/done"]), "headers": "{}",
                "host": f"127.0.0.1:{port}", "guarded": 0, "body": BODY, "status": "pending", "attempts": 0, "retries": 0,
                "next_attempt_at": moment, "created_at": moment,
            }
            for port in ports
        ]  # fmt: skip
        connection.execute(insert(Delivery), rows)


def _delivered(database: db.Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM deliveries WHERE status = 'delivered'")).scalar_one())


def _drain_s(database: db.Database, count: int) -> float:
    """Wait until all are delivered; give the seconds from the first attempt to the last end."""
    until = time.monotonic() + TIMEOUT_S
    while _delivered(database) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{_delivered(database)} of {count} delivered")
        time.sleep(0.05)
    with database.read() as connection:
        first, last = connection.execute(text("SELECT (SELECT min(started_at) FROM attempts), max(finished_at) FROM deliveries")).one()
    return (clock.from_text(last) - clock.from_text(first)).total_seconds()


def _side_by_side(*, count: int, receivers: int, delay_s: float = 0.0, loops: int = PER_HOST_MAX) -> tuple[float, float]:
    """Deliveries a second to so many receivers, and posts a second of bare loops to them."""
    with _receiver(receivers, delay_s=delay_s) as ports, _box() as (database, env, run_id):
        wanted = [ports[index % receivers] for index in range(count)]
        _write(database, run_id, wanted)
        with _worker(env):
            ours = count / _drain_s(database, count)
        # As long as a single loop needs is not worth waiting for where each post takes 50 ms.
        bare = wanted[: count // 20] if delay_s and loops == 1 else wanted
        began = time.monotonic()
        with ThreadPoolExecutor(loops) as pool:
            list(pool.map(_posts, [bare[index::loops] for index in range(loops)]))
        return ours, len(bare) / (time.monotonic() - began)


def _posts(ports: Sequence[int]) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for port in ports:
            session.post(f"http://127.0.0.1:{port}/done", data=BODY, headers={"Content-Type": "application/json"}, timeout=5)


def _isolation(*, dead: int, waiting: int, others: int, each: int) -> float:
    """Give the p95 of the seconds from commit to the attempt's end at the others, beside `dead` ones with so many `waiting` for each."""
    with _receiver(others + dead, hanging=dead) as ports, _box() as (database, env, run_id):
        _write(database, run_id, ports[:dead] * waiting)
        with _worker(env):
            time.sleep(3)
            for _ in range(each):
                _write(database, run_id, ports[dead:])
                time.sleep(0.7)
            _drain_s(database, others * each)
        with database.read() as connection:
            rows = connection.execute(text("SELECT created_at, finished_at FROM deliveries WHERE status = 'delivered'")).all()
    took_s = sorted((clock.from_text(row.finished_at) - clock.from_text(row.created_at)).total_seconds() for row in rows)
    return took_s[int(len(took_s) * 0.95)]
