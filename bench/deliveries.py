"""Callbacks: deliveries a second by the real dispatcher, beside a bare `requests` loop on the same receiver.

`python -m bench deliveries`: a fast receiver; one that takes 50 ms, 8 in flight; and 1 of 100 receivers dead with 10,000
deliveries waiting for it while others go on.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import insert, text

from orqo import apply, clock, db, definition, instance, runs, valkey, workflows
from orqo.config import PROJECT_DIR, Config
from orqo.models import Delivery

WORKFLOW = "name: told\nstages: [{name: one, stub: {}}]\n"
BODY = json.dumps({"type": "run.completed", "data": {"output": "x" * 400}}).encode()
TIMEOUT_S = 120


def main(arguments: list[str]) -> int:
    """Measure and print each figure with its baseline."""
    parser = argparse.ArgumentParser(prog="python -m bench deliveries", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args(arguments)
    fast = [_fast(1000) for _ in range(wanted.rounds)]
    ours, bare = statistics.median(a for a, _ in fast), statistics.median(b for _, b in fast)
    print(f"fast receiver      {ours:8,.0f}/s   bare requests loop {bare:8,.0f}/s   ratio {ours / bare:.2f}")
    slow = statistics.median(_slow(800) for _ in range(wanted.rounds))
    print(f"50 ms, 8 in flight {slow:8,.0f}/s   ideal                  160/s   ratio {slow / 160:.2f}")
    p50, p95, most = _isolation(waiting=10_000, others=99, each=10)
    print(f"1 of 100 dead, 10,000 waiting for it: commit to end of attempt at the others p50 {p50:.2f}, p95 {p95:.2f}, max {most:.2f} s")
    return int(p95 > 5)


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
        first, last = connection.execute(text("SELECT min(started_at), max(finished_at) FROM attempts, deliveries")).one()
    return (clock.from_text(last) - clock.from_text(first)).total_seconds()


def _fast(count: int) -> tuple[float, float]:
    """Deliveries a second to one fast receiver, and posts a second of a bare loop to it."""
    with _receiver(1) as ports, _box() as (database, env, run_id):
        _write(database, run_id, ports * count)
        with _worker(env):
            ours = count / _drain_s(database, count)
        session = requests.Session()
        session.trust_env = False
        began = time.monotonic()
        for _ in range(count):
            session.post(f"http://127.0.0.1:{ports[0]}/done", data=BODY, headers={"Content-Type": "application/json"}, timeout=5)
        return ours, count / (time.monotonic() - began)


def _slow(count: int) -> float:
    with _receiver(1, delay_s=0.05) as ports, _box() as (database, env, run_id):
        _write(database, run_id, ports * count)
        with _worker(env):
            return count / _drain_s(database, count)


def _isolation(*, waiting: int, others: int, each: int) -> tuple[float, float, float]:
    """Seconds from commit to the end of the attempt at receivers that live, while one hangs and many wait for it."""
    with _receiver(others + 1, hanging=1) as ports, _box() as (database, env, run_id):
        _write(database, run_id, ports[:1] * waiting)
        with _worker(env):
            time.sleep(3)
            for _ in range(each):
                _write(database, run_id, ports[1:])
                time.sleep(0.7)
            _drain_s(database, others * each)
        with database.read() as connection:
            rows = connection.execute(text("SELECT created_at, finished_at FROM deliveries WHERE status = 'delivered'")).all()
    took_s = sorted((clock.from_text(row.finished_at) - clock.from_text(row.created_at)).total_seconds() for row in rows)
    return took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.95)], took_s[-1]
