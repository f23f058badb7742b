"""Found: all that one run of chaos recorded, read once from the file, and the violations of each class."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from chaos.load import Load
from chaos.receivers import Receivers
from chaos.watch import Watch
from chaos.workflows import BY_NAME, Flow
from chaos.world import World

CLASSES = (
    "lost 201", "refused", "run not terminal", "two terminals", "terminal state left", "key with two runs",
    "finished stage executed again", "non-idempotent stage executed twice", "stage executed twice without a fault",
    "stage went another way than its outcome", "wait answered with two outcomes", "wait ended late or not at all",
    "child started twice or not at all", "parent ended before its child", "concurrency limit exceeded", "run stopped by nobody",
    "schedule fired twice, late or not at all", "file lost or another's",
    "callback missing", "callback before its state", "callback out of order", "callback with another id or bytes",
    "callback contradicts the row", "callback with a wrong signature", "recovery too slow", "fault of our own in the log",
)  # fmt: skip
TERMINAL = ("completed", "failed", "stopped")
REASONS_BY_FAULTS = ("interrupted", "worker_lost")


@dataclass
class Found:
    """`ticking` is the time, in Unix seconds, from when to when the schedules were on."""

    world: World
    load: Load
    receivers: Receivers
    watch: Watch
    secrets: dict[str, str]
    ticking: tuple[float, float]
    violations: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in CLASSES})
    runs: dict[int, Any] = field(default_factory=dict)
    stages: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    children: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    schedules: list[int] = field(default_factory=list)
    deliveries: list[Any] = field(default_factory=list)
    traces: dict[int, list[tuple[float, str, int]]] = field(default_factory=lambda: defaultdict(list))

    def no(self, name: str, sentence: str) -> None:
        self.violations[name].append(sentence)

    def flow(self, run_id: int) -> Flow:
        return BY_NAME[self.runs[run_id]["workflow"]]

    @property
    def quiet(self) -> set[int]:
        """The runs of the time after all faults."""
        return {run_id for call in self.load.calls if call.quiet for run_id in call.run_ids}

    @property
    def queued_s(self) -> list[float]:
        """How long runs stood in the queue before their first claim, but for those that had to wait their turn."""
        runs = (row for row in self.runs.values() if row["started_at"] and not row["concurrency_key"])
        return [seconds(row["started_at"]) - seconds(row["created_at"]) for row in runs]

    def outcome(self, run_id: int) -> str | None:
        """Give the outcome of the stage that decides a run's way."""
        named = self.flow(run_id).decides
        return next((stage["outcome"] for stage in self.stages[run_id] if stage["name"] == named), None)

    def excused(self, run_id: int) -> bool:
        """Tell whether a fault may have made a run fail: its own worker's, or that of the child which it waited for."""
        row = self.runs[run_id]
        if row["status"] != "failed" or run_id in self.quiet:
            return False
        by_child = row["error_reason"] == "stage_failed" and any(self.excused(child["id"]) for child in self.children[run_id])
        return row["error_reason"] in REASONS_BY_FAULTS or by_child

    def read(self) -> None:
        """Read the file's rows and the traces that executions left outside."""
        connection = self.world.connect()
        query = "SELECT r.*, w.name AS workflow FROM runs r JOIN workflows w ON w.id = r.workflow_id ORDER BY r.id"
        self.runs = {row["id"]: row for row in connection.execute(query)}
        for row in self.runs.values():
            self.children[row["parent_id"]].append(row)
        for table, rows in (("stages", self.stages), ("waits", self.waits)):
            for row in connection.execute(f"SELECT * FROM {table} ORDER BY run_id, id"):
                rows[row["run_id"]].append(row)
        self.schedules = [row[0] for row in connection.execute("SELECT id FROM triggers WHERE kind = 'schedule'")]
        self.deliveries = list(connection.execute("SELECT * FROM deliveries"))
        connection.close()
        for run, stage, at, worker in self._effects():
            self.traces[run].append((at, stage, worker))

    def _effects(self) -> Iterator[tuple[int, str, float, int]]:
        """Give (run, stage, began, worker) of each execution that left a trace outside."""
        for line in (self.world.folder / "effects").read_text().splitlines():
            what, run, stage, worker, at = line.split()
            if what == "start":
                yield int(run), stage, float(at), int(worker)
        for of_run, name, when in self.receivers.effects:
            yield int(of_run), name, when, 0


def seconds(text: str) -> float:
    """Give a time of the database in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def call_of(row: Any) -> int | None:
    """Give the number of the call that a run says it is of; None of a run that nobody called."""
    return json.loads(row["input"])["call"] if row["origin"] in ("api", "webhook") else None
