"""Accepting: durable runs a second and the latency of one, beside the service by hand and beside the disk's own limit.

`python -m bench accept [--rounds 3] [--seconds 3]`: 16 connections and one, workers away; then 16 with two workers flat out.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from bench import boxes, commits
from bench.report import Figure, table

WORKERS = 2
# Enough that two workers do not run dry before the accepts beside them end.
BACKLOG_S = 3.0


def main(arguments: list[str]) -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench accept", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    wanted = parser.parse_args(arguments)
    print(table(figures(wanted.rounds, seconds=wanted.seconds)))
    return 0


def figures(rounds: int, *, seconds: float = 3) -> list[Figure]:
    """Give figures 1 to 4, each the median of the rounds, ours and theirs in turn."""
    taken: dict[str, list[float]] = defaultdict(list)
    with boxes.ours() as ours, boxes.by_hand() as theirs:
        for _ in range(rounds):
            for name, service in (("ours", ours), ("theirs", theirs)):
                taken[f"{name} per s"].append(boxes.load(service, seconds=seconds)["per_s"])
                taken[f"{name} p50"].append(boxes.load(service, seconds=seconds, connections=1)["p50"])
            taken["bare"].append(boxes.load(theirs, seconds=seconds, path="/bare")["per_s"])
            taken["commits"].append(commits.per_second(seconds))
    for _ in range(rounds):
        beside = _beside_workers(seconds)
        for name in ("p50", "p99", "max"):
            taken[f"busy {name}"].append(beside[name])
    return _told({name: statistics.median(values) for name, values in taken.items()})


def _beside_workers(seconds: float) -> dict[str, float]:
    """Give latencies of accepts at 16 connections while two workers drain what came before."""
    with boxes.ours() as service:
        boxes.load(service, seconds=BACKLOG_S)
        service.env["ORQO_WORKERS"] = str(WORKERS)
        service.start_worker()
        boxes.wait_until(lambda: service.count("SELECT count(*) FROM runs WHERE status = 'completed'") > 0, what="a run completes")
        return boxes.load(service, seconds=seconds)


def _told(median: dict[str, float]) -> list[Figure]:
    ours, busy = median["ours per s"], "accept at 16 connections, workers flat out: "
    return [
        Figure("1", "accepts at 16 connections", ours, "/s", 3, ">=", median["theirs per s"], "by hand"),
        Figure("2", "accepts at 16 connections", ours, "/s", 0.5, ">=", median["commits"], "one writer's commits"),
        Figure("3", "accept p50 at one connection", median["ours p50"], "ms", 0.5, "<=", median["theirs p50"], "by hand"),
        Figure("4", busy + "p99", median["busy p99"], "ms", 4, "<=", median["busy p50"], "p50"),
        Figure("4", busy + "max", median["busy max"], "ms", 250, "<="),
        Figure("-", "bare Flask by gunicorn, nothing stored", ours, "/s", 0, ">=", median["bare"], "bare POST"),
    ]
