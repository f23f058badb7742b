"""Executing: runs a second from a backlog, commands a second, and how soon a run ends on an idle box.

`python -m bench drain [--rounds 3]`: two workers, ours and the service by hand in turn; both have their code imported before
the first run comes. The rate of a backlog is counted between its first and its last end, so that starting up is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from urllib.request import Request, urlopen

from bench import boxes
from bench.report import Figure, table
from orqo import clock, db, runs, workflows
from orqo.config import PROJECT_DIR

WORKERS = 2
BACKLOG, BACKLOG_BY_HAND, COMMANDS = 3000, 120, 1200
TRUE = "name: stub\nstages: [{name: one, command: ['true']}]\n"
OFFERED, OFFERED_S = 0.8, 20.0
SINGLE, PAUSE_S = 60, 0.03
LEFT = "SELECT count(*) FROM runs WHERE finished_at IS NULL"
LEFT_BY_HAND = "SELECT count(*) FROM run WHERE status <> 'completed'"
# One of two processes that do nothing but what a command stage needs at the least.
SPAWN = """
import subprocess, sys, time
until, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < until:
    subprocess.run(["true"], capture_output=True, check=True)
    count += 1
print(count)
"""
ENQUEUE = """
import sys
from bench.handwritten.jobs import app
from bench.handwritten.models import Run, db
from bench.handwritten.web import queue
with app.app_context():
    made = [Run(workflow_id=1, input="{}") for _ in range(int(sys.argv[1]))]
    db.session.add_all(made)
    db.session.commit()
    for run in made:
        queue.enqueue("bench.handwritten.jobs.execute", run.id)
"""


def main(arguments: list[str]) -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench drain", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    print(table(figures(parser.parse_args(arguments).rounds)))
    return 0


def figures(rounds: int) -> list[Figure]:
    """Give figures 5 to 8, each the median of the rounds, ours and theirs in turn."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        taken["stubs"].append(_drained_per_s(boxes.STUB, BACKLOG))
        taken["stubs by hand"].append(_by_hand_per_s())
        taken["commands"].append(_drained_per_s(TRUE, COMMANDS))
        taken["spawns"].append(_spawned_per_s(seconds=3.0))
        taken["single"].append(_single_ms())
        taken["single by hand"].append(_single_by_hand_ms())
    median = {name: statistics.median(values) for name, values in taken.items()}
    accepted, completed = _at_a_rate(median["stubs"] * OFFERED)
    return [
        Figure("5", f"completed within 1 s of {OFFERED_S:g} s at 0.8 of figure 6", completed, "", 0.95, ">=", accepted, "accepted"),
        Figure("6", "stub runs from a backlog, 2 workers", median["stubs"], "/s", 50, ">=", median["stubs by hand"], "by hand, preloaded"),
        Figure("7", "`true` commands, 2 workers", median["commands"], "/s", 0.75, ">=", median["spawns"], "2 loops of subprocess.run"),
        Figure("8", "trigger to finished p50, idle box", median["single"], "ms", 3.5, "<="),
        Figure("8", "trigger to finished p50, idle box", median["single"], "ms", 0.2, "<=", median["single by hand"], "by hand, preloaded"),
    ]


# ── a backlog ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _drained_per_s(workflow: str, count: int) -> float:
    with boxes.ours(workflow=workflow, web=False) as service:
        _fill(service, count)
        service.env["ORQO_WORKERS"] = str(WORKERS)
        service.start_worker()
        boxes.wait_until(lambda: service.count(LEFT) == 0, what="the backlog is done", within_s=180, every_s=0.1)
        ends = _ends(service, "runs")
        if len(ends) < count:
            raise RuntimeError(f"only {len(ends)} of {count} runs completed")
        return _rate(ends)


def _fill(service: boxes.Running, count: int) -> None:
    """Accept runs without HTTP, in one commit."""
    database = db.Database.open(f"sqlite:///{service.database}")
    with database.transaction() as connection:
        row = workflows.get(connection, "stub")
        new = runs.NewRun(workflow_id=row.id, version_id=row.version_id, origin="api", input=boxes.INPUT)
        for _ in range(count):
            runs.accept(connection, new, now=clock.now())
    database.close()


def _by_hand_per_s() -> float:
    with boxes.by_hand(web=False) as service:
        argv = [sys.executable, "-c", ENQUEUE, str(BACKLOG_BY_HAND)]
        subprocess.run(argv, cwd=PROJECT_DIR, env=service.env, check=True)
        _start_by_hand(service)
        boxes.wait_until(lambda: service.count(LEFT_BY_HAND) == 0, what="the backlog is done", within_s=180, every_s=0.1)
        return _rate(_ends(service, "run"))


def _start_by_hand(service: boxes.Running) -> None:
    for number in range(WORKERS):
        service.start(f"worker{number}", [sys.executable, "-m", "bench.handwritten.worker", "--preload"])


def _rate(ends: list[float]) -> float:
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _ends(service: boxes.Running, runs_table: str) -> list[float]:
    """Give when each run ended, in seconds, the first first."""
    connection = db.sqlite_module().connect(service.database, timeout=30)
    try:
        rows = connection.execute(f"SELECT finished_at FROM {runs_table} WHERE status = 'completed' ORDER BY finished_at").fetchall()
    finally:
        connection.close()
    return [datetime.fromisoformat(text if text.endswith("Z") else f"{text}+00:00").timestamp() for (text,) in rows]


def _spawned_per_s(*, seconds: float) -> float:
    def loop(_: int) -> float:
        argv = [sys.executable, "-c", SPAWN, str(seconds)]
        return int(subprocess.run(argv, capture_output=True, check=True).stdout) / seconds

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(loop, range(WORKERS)))


# ── one run at a time, and a steady rate ────────────────────────────────────────────────────────────────────────────


def _single_ms() -> float:
    with boxes.ours(workers=WORKERS) as service:
        return _trigger_one_by_one(service, "runs")


def _single_by_hand_ms() -> float:
    with boxes.by_hand(workers=WORKERS) as service:
        return _trigger_one_by_one(service, "run")


def _trigger_one_by_one(service: boxes.Running, runs_table: str) -> float:
    """Give the median of the milliseconds from sending a request to the end of its run, as the database has it."""
    sent: list[float] = []
    unfinished = LEFT if runs_table == "runs" else LEFT_BY_HAND
    # The first few meet a service that is still getting ready.
    for number in range(-3, SINGLE):
        now = time.time()
        _trigger(service)
        if number >= 0:
            sent.append(now)
        boxes.wait_until(lambda: service.count(unfinished) == 0, what="its end")
        time.sleep(PAUSE_S)
    return statistics.median((end - start) * 1000 for start, end in zip(sent, _ends(service, runs_table)[3:], strict=True))


def _trigger(service: boxes.Running) -> None:
    headers = {"Content-Type": "application/json", **service.call["headers"]}
    asked = Request(f"http://127.0.0.1:{service.port}{service.call['path']}", json.dumps(service.call["body"]).encode(), headers)
    with urlopen(asked, timeout=10) as answer:
        answer.read()


def _at_a_rate(rate: float) -> tuple[int, int]:
    """Offer runs at a rate for a while; gives how many were accepted, and how many of them were done one second later."""
    with boxes.ours(workers=WORKERS) as service:
        told = boxes.load(service, seconds=OFFERED_S, rate=rate)
        time.sleep(1.0)
        completed = service.count("SELECT count(*) FROM runs WHERE status = 'completed'")
        accepted = told["statuses"].get("201", 0)
    return accepted, completed
