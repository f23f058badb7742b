"""What holding a body against openapi.yaml costs on top of parsing it: `python -m bench validation`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from orqo import description, jsontext
from orqo.api.validation import Validators

BODY = b'{"workflow_id": 42, "input": {"ref": "refs/heads/main", "commits": [{"id": 1}, {"id": 2}]}, "metadata": {"pr": 7}}'


def main(arguments: Sequence[str]) -> int:
    """Print the cost of a body and of a query, and of reading the description once."""
    parser = argparse.ArgumentParser(prog="python -m bench validation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000, help="how many checks are timed")
    rounds = parser.parse_args(arguments).rounds
    began = time.perf_counter()
    description.operations()
    read_ms = (time.perf_counter() - began) * 1000
    validators, value = Validators(), jsontext.parse(BODY)
    query = [("limit", "50"), ("status", "failed"), ("metadata[pr]", "7")]
    print(f"description, once in a process, beside the start   {read_ms:6.0f} ms")
    print(f"JSON of {len(BODY)} bytes parsed                       {_us(lambda: jsontext.parse(BODY), rounds):6.1f} µs")
    print(f"and held against the description                  {_us(lambda: validators.check('TriggerRequest', value), rounds):6.1f} µs")
    print(f"a query of three parameters                       {_us(lambda: validators.query('listRuns', query), rounds):6.1f} µs")
    return 0


def _us(act: Callable[[], Any], rounds: int) -> float:
    """Give the median of ten series, in microseconds a call."""
    act()
    series = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(rounds // 10):
            act()
        series.append((time.perf_counter() - began) / (rounds // 10) * 1e6)
    return statistics.median(series)
