"""Soak: the whole service under a steady load for as long as is wanted, and what it uses at the end beside the beginning.

`python -m bench soak [--minutes 30] [--rate 10] [--postgresql]`, or `make soak MINUTES=30 [DB=postgresql]`: `serve` with callbacks
to a receiver of the measurement's own, and so few runs kept that all rows turn over each minute or two. Exit status 1 where
memory grows by over 5 % after the warm-up, the disk is not bounded, or anything was lost, refused or logged as an error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from bench import boxes, bulk, samples
from bench.steady import Load, Receiver
from orqo import clock, db, instance, overview, people, triggers, workflows
from orqo.config import PROJECT_DIR, Config

KEPT_RUNS = 300
WORKERS = 2
EVERY_S = 5.0
# Caches fill, and threads take their first memory: a fifth of the time, five minutes at most.
WARM_UP_SHARE, WARM_UP_MAX_S = 0.2, 300.0
RSS_GROWTH_MAX, DISK_GROWTH_MAX, SPARE_MB = 0.05, 0.10, 2.0
END_S = 120.0
ERRORS = re.compile(r"level=(ERROR|CRITICAL)|^Traceback", re.MULTILINE)
WORKFLOW = """
name: soak
callbacks: [{url: "[url]"}]
stages:
  - {name: pause, stub: {output: {ok: true}, delay: 20ms}}
  - name: write
    script: mkdir -p artifacts && head -c 20000 /dev/zero > artifacts/out && echo "${#ORQO_RUN_ID}"
"""


@dataclass
class Soaked:
    """What was seen: each sample's figures, in order, and what went wrong."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        """Keep a figure of this sample."""
        self.figures.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Running:
    """The service under load."""

    supervisor: int
    data: Path
    log: Path
    load: Load
    receiver: Receiver
    disk_mb: Callable[[], dict[str, float]]


def main(arguments: list[str]) -> int:
    """Soak and report; exit status 1 where anything is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--postgresql", action="store_true")
    wanted = parser.parse_args(arguments)
    warm_up_s = min(WARM_UP_MAX_S, wanted.minutes * 60 * WARM_UP_SHARE)
    print(f"{wanted.minutes:g} minutes, {wanted.rate:g} calls a second, {KEPT_RUNS} runs kept; the first {warm_up_s:.0f} s do not count")
    with _running(wanted) as running:
        soaked = _soak(running, wanted.minutes * 60, warm_up_s)
        _end(running, soaked)
    report(soaked)
    print("\n".join(["", *soaked.faults]) if soaked.faults else "\nno error")
    return int(bool(soaked.faults))


# ── the service ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _running(wanted: argparse.Namespace) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orqo-soak-")))
        folder.chmod(0o711)
        receiver = Receiver()
        stack.callback(receiver.close)
        given = {"ORQO_DATA": f"{folder}/data", "ORQO_PORT": str(boxes.free_port()), "ORQO_WORKERS": str(WORKERS), "ORQO_EXAMPLE": "0"}
        given |= {
            "ORQO_KEEP_RUNS": str(KEPT_RUNS),
            "DATABASE_URL": stack.enter_context(boxes.fresh_postgresql()) if wanted.postgresql else "",
        }
        given = {name: value for name, value in given.items() if value}
        config = Config.from_environ(given)
        load, database = _prepared(config, receiver.url, wanted.rate)
        stack.callback(database.close)
        log = folder / "log"
        env = given | {"PATH": os.environ["PATH"], "HOME": str(folder)}
        supervisor = stack.enter_context(_served(env, log))
        boxes.wait_until(lambda: _is_ready(load.base), what=f"the service is ready; {log}", every_s=0.2)
        disk_mb = _disk(config.data, database)
        yield Running(supervisor, config.data, log, load, receiver, disk_mb)


@contextlib.contextmanager
def _served(env: dict[str, str], log: Path) -> Iterator[int]:
    with log.open("wb") as into:
        service = subprocess.Popen([sys.executable, "-m", "orqo", "serve"], cwd=PROJECT_DIR, env=env, stdout=into, stderr=into)
    try:
        yield service.pid
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)


def _prepared(config: Config, url: str, rate: float) -> tuple[Load, db.Database]:
    """Set up the data folder with one workflow that starts by token and by webhook, and a request log that is full already."""
    call = boxes.prepared(config, WORKFLOW.replace("[url]", url))
    database = db.Database.open(config.database_url)
    now = clock.now()
    key = instance.checked_key(database, config)
    with database.transaction() as connection:
        row = workflows.get(connection, "soak")
        trigger_id = triggers.create(connection, workflow_id=row.id, name="hook", key=key, origin="cli", now=now)
        hook = triggers.url_of(triggers.get(connection, trigger_id), key, "")
        link = people.make_link(connection, now=now)
    session = people.sign_in_by_link(database, link, None, agent="soak", now=now)
    bulk.request_log(database, trigger_id=trigger_id, token_id=1, over=timedelta(hours=1), now=now)
    starts = [call, {"path": hook, "headers": {}, "body": boxes.INPUT}]
    return Load(f"http://127.0.0.1:{config.port}", starts, call["headers"], session, rate), database


def _is_ready(base: str) -> bool:
    try:
        return requests.get(f"{base}/readyz", timeout=2).status_code == 200
    except requests.ConnectionError:
        return False


def _disk(data: Path, database: db.Database) -> Callable[[], dict[str, float]]:
    """Give a function that tells what takes how much of the disk: the database with its log, run folders, everything else."""

    def sizes_mb() -> dict[str, float]:
        files_mb = {entry.name: samples.folder_mb(entry) for entry in data.iterdir()}
        with database.read() as connection:
            held = overview.database_bytes(database, connection) / 1e6
        runs_mb = files_mb.pop("runs", 0.0)
        rest_mb = sum(size for name, size in files_mb.items() if not name.startswith("orqo.db"))
        return {"database": held, "run folders": runs_mb, "the rest of the data folder": rest_mb}

    return sizes_mb


# ── the time ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _soak(running: Running, seconds: float, warm_up_s: float) -> Soaked:
    """Load the service and take a sample every few seconds, from the end of the warm-up on."""
    soaked = Soaked()
    began = time.monotonic()
    names = {pid: samples.name_of(pid) for pid in samples.processes(running.supervisor)}
    running.load.start()
    while (elapsed := time.monotonic() - began) < seconds:
        time.sleep(EVERY_S)
        taken = running.load.latencies()
        if elapsed >= warm_up_s:
            _sample(running, soaked, names, taken)
    running.load.stop()
    return soaked


def _sample(running: Running, soaked: Soaked, names: dict[int, str], taken: list[float]) -> None:
    used = {pid: each for pid, each in samples.processes(running.supervisor).items() if pid in names}
    if used.keys() != names.keys():
        soaked.faults.append(f"a process has ended: {[names[pid] for pid in names if pid not in used]}")
    for pid, each in used.items():
        soaked.note(f"RSS MB {names[pid]} ({pid})", each.rss_mb)
    soaked.note("RSS MB of all", sum(each.rss_mb for each in used.values()))
    soaked.note("PSS MB of all", sum(each.pss_mb for each in used.values()))
    soaked.note("descriptors of all", sum(each.descriptors for each in used.values()))
    for name, size in running.disk_mb().items():
        soaked.note(f"disk MB {name}", size)
    if taken:
        soaked.note("p50 ms", taken[len(taken) // 2])
        soaked.note("p99 ms", taken[int(len(taken) * 0.99)])


def _end(running: Running, soaked: Soaked) -> None:
    """Wait until all that was accepted has told its end, and note what did not go as it should."""
    load, receiver = running.load, running.receiver
    with contextlib.suppress(TimeoutError):
        boxes.wait_until(lambda: not set(load.accepted) - set(receiver.completed), what="callbacks", within_s=END_S, every_s=0.5)
    missing = sorted(set(load.accepted) - set(receiver.completed))
    again = sum(receiver.completed.values()) - len(receiver.completed)
    print(f"{len(load.accepted)} runs accepted, {len(receiver.completed)} told that they are completed, {again} of them twice")
    soaked.faults += [f"{count} of {name}" for name, count in load.faults.items()]
    soaked.faults += [f"{count} events {name}" for name, count in receiver.others.items()]
    if missing:
        statuses = [_status(load, run_id) for run_id in missing[:20]]
        soaked.faults.append(f"{len(missing)} callbacks are missing, of runs that are {sorted(set(statuses))}: {missing[:20]}")
    logged = [line for line in running.log.read_text(errors="replace").splitlines() if ERRORS.search(line)]
    soaked.faults += [f"{len(logged)} log lines tell of errors, such as: {logged[0]}"] if logged else []


def _status(load: Load, run_id: int) -> Any:
    answer = requests.get(f"{load.base}/api/v1/runs/{run_id}", headers=dict(load.headers), timeout=20)
    return answer.json().get("status", answer.status_code)


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────


def report(soaked: Soaked) -> None:
    """Print each figure's first quarter beside its last, and note what grew that must not."""
    print(f"\n{'medians; of the disk the most of each half':<50}{'first quarter':>14}{'last quarter':>14}{'growth':>10}")
    for name, values in soaked.figures.items():
        first, last = _beside(name, values)
        growth = last / first - 1 if first else 0.0
        print(f"{name:<50}{first:>14.1f}{last:>14.1f}{growth:>+10.1%}")
        limit = RSS_GROWTH_MAX if name.startswith("RSS") else DISK_GROWTH_MAX if name.startswith("disk") else None
        # Of a small process a few pages are many per cent; the sum is held to the limit as it is.
        spare_mb = 0.0 if name == "RSS MB of all" else SPARE_MB
        if limit is not None and growth > limit and last - first > spare_mb:
            soaked.faults.append(f"{name} grew by {growth:.1%}; {limit:.0%} is the most")


def _beside(name: str, values: list[float]) -> tuple[float, float]:
    """Give the medians of the first and the last quarter; what fills and is emptied in turn is told by its peaks."""
    if name.startswith("disk"):
        half = max(1, len(values) // 2)
        return max(values[:half]), max(values[-half:])
    quarter = max(1, len(values) // 4)
    return statistics.median(values[:quarter]), statistics.median(values[-quarter:])
