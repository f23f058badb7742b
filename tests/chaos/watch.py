"""A look at the file while the service works: ends that do not stay, and how long recovery takes. Reads only."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from chaos.database import Gone
from chaos.world import World

EVERY_S = 0.1
CROWDED = (
    "SELECT workflow_id, concurrency_key, concurrency_limit, count(*) FROM runs WHERE concurrency_key IS NOT NULL"
    " AND finished_at IS NULL AND started_at IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) > concurrency_limit"
)


@dataclass
class Watch:
    """Polls the runs. `ends` is each run's end as first seen; `left` those that changed afterwards; `crowded` the concurrency
    keys of which more runs had begun than may be under way.

    Of a killed worker's runs, `freed_s` is the time until they were pending again, `takeovers_s` until one went on, which
    includes what stood before it in the queue; `losses_s` is the latter for a worker that froze for longer than its lease.
    `restarts_s` is the time from Redis' return until a pending run started.
    """

    world: World
    ends: dict[int, tuple[str, str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    freed_s: list[float] = field(default_factory=list)
    takeovers_s: list[float] = field(default_factory=list)
    losses_s: list[float] = field(default_factory=list)
    crowded: set[str] = field(default_factory=set)
    restarts_s: list[float] = field(default_factory=list)
    _running: dict[int, tuple[int, int]] = field(default_factory=dict)
    _lost: dict[tuple[int, int], tuple[float, list[float]]] = field(default_factory=dict)
    _held: dict[tuple[int, int], float] = field(default_factory=dict)
    _waiting: dict[int, float] = field(default_factory=dict)
    _newest: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._loop)
        thread.start()
        return thread

    def stop(self) -> None:
        self._over.set()

    def _loop(self) -> None:
        connection = self.world.connect()
        while not self._over.wait(EVERY_S):
            try:
                self._look(connection)
            except Gone:
                connection.rollback()
        connection.close()

    def _look(self, connection: Any) -> None:
        now = time.monotonic()
        # One snapshot for both: else a run that ends in between would seem to be alive after its end.
        connection.execute("BEGIN")
        alive = connection.execute("SELECT id, status, fence, lease_owner FROM runs WHERE finished_at IS NULL").fetchall()
        ended = connection.execute("SELECT id, status, finished_at FROM runs WHERE finished_at >= ? LIMIT 5000", (self._newest,)).fetchall()
        crowded = connection.execute(CROWDED).fetchall()
        connection.execute("COMMIT")
        self.crowded |= {f"workflow {workflow}, key {key}: {count} of {limit}" for workflow, key, limit, count in crowded}
        with self._lock:
            for run_id, status, finished_at in ended:
                known = self.ends.setdefault(run_id, (status, finished_at))
                if known != (status, finished_at):
                    self.left.append(f"run {run_id} was {known} and is {(status, finished_at)}")
                self._newest = max(self._newest, finished_at)
            for run_id, status, *_ in alive:
                if run_id in self.ends:
                    self.left.append(f"run {run_id} was {self.ends[run_id]} and is {status}")
            self._running = {row[0]: (row[2], int(row[3].split("/")[2])) for row in alive if row[1] == "running"}
            self._settle({row[0]: (row[1], row[2]) for row in alive}, now)

    def _settle(self, alive: dict[int, tuple[str, int]], now: float) -> None:
        for (run_id, fence), since in list(self._held.items()):
            if alive.get(run_id, ("ended", -1)) != ("running", fence):
                self.freed_s.append(now - since)
                del self._held[run_id, fence]
        for (run_id, fence), (since, times) in list(self._lost.items()):
            if alive.get(run_id, ("ended", -1)) not in (("running", fence), ("pending", fence)):
                times.append(now - since)
                del self._lost[run_id, fence]
        started = [since for run_id, since in self._waiting.items() if alive.get(run_id, ("ended", 0))[0] != "pending"]
        if started:
            self.restarts_s.append(now - min(started))
            self._waiting = {}

    def expect_takeover(self, pid: int) -> None:
        """Note which runs a process holds that is about to be killed: another has to claim them."""
        with self._lock:
            for run_id, (fence, owner) in self._running.items():
                if owner == pid:
                    self._lost.setdefault((run_id, fence), (time.monotonic(), self.takeovers_s))
                    self._held.setdefault((run_id, fence), time.monotonic())

    def expect_loss(self, pid: int) -> None:
        """Note which runs a process holds that is about to be frozen for longer than its leases."""
        with self._lock:
            for run_id, (fence, owner) in self._running.items():
                if owner == pid:
                    self._lost.setdefault((run_id, fence), (time.monotonic(), self.losses_s))

    def expect_start(self) -> None:
        """Note which runs are pending now that Redis is back: they have to start."""
        connection = self.world.connect()
        pending = [row[0] for row in connection.execute("SELECT id FROM runs WHERE status = 'pending' AND held = 0")]
        connection.close()
        with self._lock:
            for run_id in pending:
                self._waiting.setdefault(run_id, time.monotonic())

    def any_owner(self) -> int | None:
        """Give a process that holds a run now."""
        with self._lock:
            return next((owner for _, owner in self._running.values()), None)
