"""Idle: what the whole service holds in memory, how soon it answers after a start, and how often it wakes for nothing.

`python -m bench idle [--rounds 3]`: the service as `make run` starts it, on a data folder that was set up before. Memory is the
sum of PSS: pages that several share are counted once. Of the supervisor, which the goal does not name, it is told beside.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from bench import boxes
from bench.report import Figure, table
from orqo.config import PROJECT_DIR, Config

WORKERS = 2
# The default where there are two processors.
WEB_PROCESSES = 2
# The supervisor, Valkey, two workers and the dispatcher; web's are more.
PROCESSES = 5
LOOK_S = 0.005
# So long nothing is asked before memory is read, and so long wake-ups are counted.
SETTLE_S, COUNTED_S = 4.0, 10.0


@dataclass(frozen=True)
class Process:
    """One process of the service: its number, its command and its share of memory."""

    pid: int
    name: str
    pss_mb: float


def main(arguments: list[str]) -> int:
    """Measure and print the figures, then each process of one idle service."""
    parser = argparse.ArgumentParser(prog="python -m bench idle", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    print(table(figures(parser.parse_args(arguments).rounds)))
    with _service(WEB_PROCESSES) as (supervisor, _):
        time.sleep(SETTLE_S)
        for process, wakes in _wakes(_processes(supervisor, WEB_PROCESSES)):
            print(f"{process.name:24} {process.pss_mb:6.1f} MB {wakes:6.1f} wake-ups/s")
    return 0


def figures(rounds: int) -> list[Figure]:
    """Give figure 10 and the wake-ups of the process that wakes most, each the median of the rounds."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with _service(1) as (supervisor, _):
            time.sleep(SETTLE_S)
            taken["of one"].append(sum(process.pss_mb for process in _processes(supervisor, 1) if process.pid != supervisor))
        with _service(WEB_PROCESSES) as (supervisor, start_s):
            time.sleep(SETTLE_S)
            found = _processes(supervisor, WEB_PROCESSES)
            taken["start"].append(start_s)
            taken["all"].append(sum(process.pss_mb for process in found))
            taken["named"].append(sum(process.pss_mb for process in found if process.pid != supervisor))
            taken["wakes"].append(max(wakes for process, wakes in _wakes(found) if "valkey" not in process.name))
    median = {name: statistics.median(values) for name, values in taken.items()}
    return [
        Figure("10", "idle memory of 2 web, 2 workers, dispatcher and Valkey (PSS)", median["named"], "MB", 120, "<="),
        Figure("10", "the same with one web process (ORQO_WEB_PROCESSES=1)", median["of one"], "MB", 120, "<="),
        Figure("-", "the first with their supervisor", median["all"], "MB", 120, "<="),
        Figure("10", "start to first 201, set up before", median["start"], "s", 1, "<="),
        Figure("-", "wake-ups of the idle process of ours that wakes most", median["wakes"], "/s", 1, "<="),
    ]


@contextmanager
def _service(web: int) -> Iterator[tuple[int, float]]:
    """Run the whole service; gives its supervisor's process id and the seconds from its start to the first 201."""
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder:
        Path(folder).chmod(0o711)
        port = boxes.free_port()
        given = {"ORQO_DATA": f"{folder}/data", "ORQO_PORT": str(port), "ORQO_WORKERS": str(WORKERS), "ORQO_EXAMPLE": "0"}
        call = boxes.prepared(Config.from_environ(given), boxes.STUB)
        env = given | {"ORQO_WEB_PROCESSES": str(web)} | {"PATH": os.environ["PATH"], "HOME": folder}
        # The first start makes what later ones find, compiled modules among it.
        with _started(env, port, call):
            pass
        with _started(env, port, call) as (supervisor, start_s):
            yield supervisor, start_s


@contextmanager
def _started(env: dict[str, str], port: int, call: dict[str, Any]) -> Iterator[tuple[int, float]]:
    began = time.monotonic()
    service = subprocess.Popen(
        [sys.executable, "-m", "orqo", "serve"], cwd=PROJECT_DIR, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        boxes.wait_until(lambda: _accepts(port, call), what="the first 201", every_s=LOOK_S)
        yield service.pid, time.monotonic() - began
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=30)


def _accepts(port: int, call: dict[str, Any]) -> bool:
    headers = {"Content-Type": "application/json", **call["headers"]}
    asked = Request(f"http://127.0.0.1:{port}{call['path']}", json.dumps(call["body"]).encode(), headers)
    try:
        with urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 201)
    except (URLError, ConnectionError):
        return False


# ── what the kernel says of processes ───────────────────────────────────────────────────────────────────────────────


def _processes(supervisor: int, web: int) -> list[Process]:
    """Give a process and all below it."""
    found = [supervisor]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    if len(found) != PROCESSES + web:
        raise RuntimeError(f"the service has {len(found)} processes, not {PROCESSES + web}")
    return [Process(pid, _name(pid), _pss_mb(pid)) for pid in found]


def _name(pid: int) -> str:
    """Give what ps shows: our forks have names of their own."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _wakes(processes: list[Process]) -> list[tuple[Process, float]]:
    """Give how often each process woke in a second, by its threads' voluntary context switches."""
    before = [_switches(process.pid) for process in processes]
    time.sleep(COUNTED_S)
    return [(process, (_switches(process.pid) - first) / COUNTED_S) for process, first in zip(processes, before, strict=True)]


def _switches(pid: int) -> int:
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may have ended since it was listed.
        with suppress(FileNotFoundError):
            lines = (task / "status").read_text().splitlines()
            count += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return count
