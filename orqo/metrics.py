"""What is counted for /metrics: by each process into files of its own, put together when somebody reads.

Owns the names of the metrics and their files. prometheus-client is an optional requirement: without it nothing is counted.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event

from orqo.db import Database

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
HOW_TO_INSTALL = "Metrics want the package prometheus-client: sh setup.sh requirements-metrics.txt, then start the service again."
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
# What is not committed goes with its connection object: one that was lost has nothing to be asked any more.
_noted: WeakKeyDictionary[Connection, list[tuple[str, str]]] = WeakKeyDictionary()
log = logging.getLogger(__name__)


def are_available() -> bool:
    """Tell whether the package that writes them is installed."""
    return importlib.util.find_spec("prometheus_client") is not None


def load() -> None:
    """Import the package, where it is there, for processes that are forked from this one and then `begin`."""
    if not are_available():
        return
    # Whether it counts into files is settled at its import; into which, when the first count is made.
    given = os.environ.setdefault(FOLDER_VARIABLE, os.devnull)
    importlib.import_module("prometheus_client")
    if given == os.devnull:
        del os.environ[FOLDER_VARIABLE]


def begin(data: Path, name: str) -> None:
    """Count from now on in this process and in those that it forks: once, before the first fork of those and, without `load`, the
    first import of the package.

    The counts begin at nothing: what an earlier process of this name left is removed once that has ended. Where the folder
    cannot be written nothing is counted; whether the service can work there is not decided here.
    """
    if not are_available() or not data.is_dir():
        return
    folder = data / "metrics"
    for old in folder.glob(f"{name}-*"):
        if not Path(f"/proc/{old.name.rpartition('-')[2]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    mine = folder / f"{name}-{os.getpid()}"
    shutil.rmtree(mine, ignore_errors=True)
    try:
        mine.mkdir(parents=True, mode=0o700)
    except OSError as fault:
        log.warning("step=metrics status=off error=%s", fault.strerror)
        return
    os.environ[FOLDER_VARIABLE] = str(mine)


def join(data: Path, name: str) -> None:
    """Count into the files of our parent, which began under this name: the counts then outlive this process."""
    folder = data / "metrics" / f"{name}-{os.getppid()}"
    if folder.is_dir():
        os.environ[FOLDER_VARIABLE] = str(folder)


@cache
def _meters() -> dict[str, Any]:
    if FOLDER_VARIABLE not in os.environ:
        return {}
    from prometheus_client import CollectorRegistry, Counter, Histogram

    here: dict[str, Any] = {"registry": CollectorRegistry()}
    return {
        "runs": Counter("orqo_runs_ended", "Runs that ended", ["workflow", "status"], **here),
        "stages": Histogram("orqo_stage_seconds", "Executions of stages", ["workflow", "kind", "status"], buckets=SECONDS, **here),
        "attempts": Counter("orqo_delivery_attempts", "Attempts of deliveries and what followed", ["status", "reason"], **here),
        "lag": Histogram("orqo_delivery_lag_seconds", "From due to sent", buckets=SECONDS, **here),
        "leases": Counter("orqo_leases_lost", "Claims that a worker lost", ["seen_by"], **here),
        "requests": Counter("orqo_http_requests", "Answers", ["route", "method", "status"], **here),
        "answers": Histogram("orqo_http_seconds", "Time to the answer", ["route"], buckets=SECONDS, **here),
    }


def watch(database: Database) -> None:
    """Count what `ended` notes of this database's transactions, each once it is committed."""
    if not _meters():
        return

    @event.listens_for(database.engine, "commit")
    def on_commit(connection: Connection) -> None:
        for workflow, status in _noted.pop(connection, ()):
            _meters()["runs"].labels(workflow, status).inc()


def ended(connection: Connection, workflow: str, status: str) -> None:
    """Note the end of a run, to be counted when it is committed."""
    if _meters():
        _noted.setdefault(connection, []).append((workflow, status))


def stage(workflow: str, kind: str, status: str, *, seconds: float) -> None:
    """Count one execution of a stage."""
    if meters := _meters():
        meters["stages"].labels(workflow, kind, status).observe(seconds)


def attempt(status: str, reason: str, *, lag_s: float | None) -> None:
    """Count one attempt of a delivery; `lag_s` is how much later than due it was sent, told of first attempts."""
    if meters := _meters():
        meters["attempts"].labels(status, reason).inc()
        if lag_s is not None:
            meters["lag"].observe(max(0.0, lag_s))


def leases_lost(seen_by: str, count: int = 1) -> None:
    """Count claims that were lost: as the worker noticed, or as the sweep took them back."""
    if meters := _meters():
        meters["leases"].labels(seen_by).inc(count)


def answered(route: str, method: str, status: int, *, seconds: float) -> None:
    """Count one HTTP request."""
    if meters := _meters():
        meters["requests"].labels(route, method, str(status)).inc()
        meters["answers"].labels(route).observe(seconds)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Collected:
    """What all processes of a data folder counted, and the figures of now."""

    def __init__(self, data: Path, now: Iterable[Metric]) -> None:
        self._data, self._now = data, now

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.multiprocess import MultiProcessCollector

        yield from self._now
        files = [str(path) for path in sorted(self._data.glob("metrics/*/*.db"))]
        yield from MultiProcessCollector.merge(files)


def text(data: Path, figures: dict[str, tuple[str, dict[tuple[str, ...], float]]]) -> bytes:
    """Give everything in Prometheus' text format.

    `figures` holds the gauges of now: name → (help, {label values: value}); a label is called `state`, and there is none where
    the key is empty.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily

    gauges = []
    for name, (meaning, values) in figures.items():
        gauge = GaugeMetricFamily(name, meaning, labels=["state"] if any(values) else None)
        for labels, value in values.items():
            gauge.add_metric(list(labels), value)
        gauges.append(gauge)
    registry = CollectorRegistry()
    registry.register(_Collected(data, gauges))
    return generate_latest(registry)
