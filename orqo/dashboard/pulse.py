"""How the workers and Redis are, asked at most every two seconds whatever the number of pages that look."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime

from orqo.queue import Bell

FRESH_S = 2.0


@dataclass(frozen=True)
class Reading:
    """Whether Redis answers, and how many workers were heard of in the last minute."""

    redis_up: bool = False
    workers: int = 0


class Pulse:
    """The last reading. Thread-safe: one request asks Redis, the others take what is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = Reading()
        self._read_at = float("-inf")

    def reading(self, bell: Bell, *, now: datetime) -> Reading:
        """Give how Redis and the workers are, at most two seconds old; older while somebody else asks."""
        if time.monotonic() - self._read_at > FRESH_S and self._lock.acquire(blocking=self._read_at < 0):
            try:
                self._read(bell, now)
            finally:
                self._lock.release()
        return self._reading

    def _read(self, bell: Bell, now: datetime) -> None:
        # A Redis that does not answer costs its time-out once, not once more for the workers.
        up = bell.is_reachable()
        self._reading = Reading(up, len(bell.workers(now=now)) if up else 0)
        self._read_at = time.monotonic()
