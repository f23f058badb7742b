"""Room at receivers: which claimed deliveries are in flight, which wait in memory for a slot, how many more may be claimed.

Owns the bounds in all, per host and for guarded deliveries, and what is known of each host's pace. Never touches the
database, never sends; thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from orqo import clock

IN_FLIGHT_MAX = 96
# From so many in flight on, no host gets more than it would as a stranger: what is left is for those that have none.
CROWDED = 72
PER_HOST_MAX = 8
# A host that never answered, or not for long: a receiver that hangs from the start costs this much and no more.
STRANGER_MAX = 2
# Deliveries whose host a request names: whoever may start runs can name many hosts.
GUARDED_MAX = 48
# Claimed ahead is what a host is expected to take within this time, so that a freed slot waits for no commit.
AHEAD_S = 0.5
AHEAD_PER_HOST_MAX = 64
AHEAD_MAX = 256
# What waited longer is handed back: with the 15 s of an attempt its lease of 45 s might end under way.
WAIT_MAX_S = 20.0
SLOW_MS = 5000
SLOW_FOR_S = 300.0
HOSTS_KNOWN_MAX = 1024

Delivery = Row[Any]
Key = tuple[str, bool]


@dataclass
class Room:
    """How much may be claimed: slots in all and of guarded ones, places ahead, and both by host; strangers get `per_host`."""

    slots: int
    guarded: int
    ahead: int
    per_host: int
    hosts: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def full(self) -> list[str]:
        """The hosts for which nothing can be claimed."""
        return sorted(host for host, (slots, ahead) in self.hosts.items() if slots <= 0 and min(ahead, self.ahead) <= 0)

    def take(self, host: str, *, guarded: bool) -> bool:
        """Take the room of one delivery; tells whether there was any."""
        slots, ahead = self.hosts.get(host, (self.per_host, 0))
        if slots > 0 and self.slots > 0 and (self.guarded > 0 or not guarded):
            self.slots, self.guarded, self.hosts[host] = self.slots - 1, self.guarded - guarded, (slots - 1, ahead)
            return True
        if ahead > 0 and self.ahead > 0:
            self.ahead, self.hosts[host] = self.ahead - 1, (slots, ahead - 1)
            return True
        return False


class Slots:
    """The claimed deliveries of one dispatcher. Each is waiting, in flight or landed until `settle` or `forget` lets it go.

    `seconds` reads a clock that goes on while the machine sleeps, as that of the leases does.
    """

    def __init__(self, seconds: Callable[[], float] = clock.boot_seconds) -> None:
        self._lock = threading.Lock()
        self._seconds = seconds
        self._held: set[int] = set()
        self._flying: Counter[str] = Counter()
        self._guarded = 0
        self._waiting: dict[Key, deque[tuple[float, Delivery]]] = {}
        self._back: list[int] = []
        self._pace_s: dict[str, float] = {}
        self._slow_until: dict[str, float] = {}
        self._closed = False

    @property
    def held(self) -> int:
        """How many deliveries are claimed and neither recorded nor handed back."""
        return len(self._held)

    @property
    def in_flight(self) -> int:
        """How many are being sent."""
        return self._flying.total()

    @property
    def waiting(self) -> bool:
        """Tell whether any waits in memory."""
        return bool(self._waiting)

    def room(self) -> Room:
        """Give what may be claimed now; nothing once closed."""
        with self._lock:
            now_s = self._seconds()
            self._slow_until = {host: until for host, until in self._slow_until.items() if until > now_s}
            waiting: Counter[str] = Counter()
            for (host, _), rows in self._waiting.items():
                waiting[host] += len(rows)
            known = {*self._flying, *waiting, *self._slow_until, *self._pace_s}
            hosts = {host: (self._most(host) - self._flying[host], self._most_ahead(host) - waiting[host]) for host in known}
            slots = 0 if self._closed else IN_FLIGHT_MAX - self._flying.total()
            return Room(slots, GUARDED_MAX - self._guarded, AHEAD_MAX - waiting.total(), STRANGER_MAX, hosts)

    def add(self, rows: Iterable[Delivery]) -> list[Delivery]:
        """Take in what was claimed and give what is to be sent now, that which waited before included."""
        with self._lock:
            now_s = self._seconds()
            for row in rows:
                # Claimed twice is what a process finds that stood still for longer than its leases: it has it already.
                if row.id not in self._held:
                    self._held.add(row.id)
                    self._waiting.setdefault(_key(row), deque()).append((now_s, row))
            return [started for key in list(self._waiting) for started in self._started(key)]

    def land(self, row: Delivery, *, duration_ms: int, answered: bool, delivered: bool, gone: bool) -> Delivery | None:
        """End one delivery's flight and give the next for the same slot, None where none waits that may have it."""
        with self._lock:
            self._note_pace(row.host, duration_ms, answered=answered, delivered=delivered)
            if gone:
                self._put_back(lambda each: each.callback_id is not None and each.callback_id == row.callback_id)
            self._flying[row.host] -= 1
            self._guarded -= bool(row.guarded)
            if not self._flying[row.host]:
                del self._flying[row.host]
            key = _key(row)
            following = self._next(key) if self._may_start(key) else None
            if following is not None:
                self._begin(following)
            return following

    def drop(self, callback_ids: Collection[int]) -> None:
        """Have what waits for these callbacks handed back: they were paused."""
        with self._lock:
            self._put_back(lambda each: each.callback_id in callback_ids)

    def close(self) -> None:
        """Have all that waits handed back and begin nothing more."""
        with self._lock:
            self._closed = True
            self._put_back(lambda _: True)

    def returned(self) -> list[int]:
        """Give the ids of what is to be handed back unsent: their leases are to be released, then they are forgotten."""
        with self._lock:
            return list(self._back)

    def forget(self, ids: Collection[int]) -> None:
        """Let go of what was handed back."""
        with self._lock:
            self._back = [each for each in self._back if each not in ids]
            self._held.difference_update(ids)

    def settle(self, ids: Iterable[int]) -> None:
        """Let go of what landed and is recorded."""
        with self._lock:
            self._held.difference_update(ids)

    def _most(self, host: str) -> int:
        if host in self._slow_until:
            return 1
        return PER_HOST_MAX if host in self._pace_s and self._flying.total() < CROWDED else STRANGER_MAX

    def _most_ahead(self, host: str) -> int:
        pace_s = None if host in self._slow_until else self._pace_s.get(host)
        return 0 if pace_s is None else min(AHEAD_PER_HOST_MAX, int(AHEAD_S * PER_HOST_MAX / max(pace_s, 0.001)))

    def _may_start(self, key: Key) -> bool:
        host, guarded = key
        if self._closed or self._flying.total() >= IN_FLIGHT_MAX or (guarded and self._guarded >= GUARDED_MAX):
            return False
        return self._flying[host] < self._most(host)

    def _started(self, key: Key) -> Iterator[Delivery]:
        """Begin what waits for a host as far as there are slots."""
        while self._may_start(key) and (row := self._next(key)) is not None:
            self._begin(row)
            yield row

    def _begin(self, row: Delivery) -> None:
        self._flying[row.host] += 1
        self._guarded += bool(row.guarded)

    def _next(self, key: Key) -> Delivery | None:
        """Take the first of those that wait; what waited too long is put back."""
        rows = self._waiting.get(key, deque())
        found: Delivery | None = None
        while rows and found is None:
            since_s, row = rows.popleft()
            if self._seconds() - since_s > WAIT_MAX_S:
                self._back.append(row.id)
            else:
                found = row
        if not rows:
            self._waiting.pop(key, None)
        return found

    def _put_back(self, wanted: Any) -> None:
        for key, rows in list(self._waiting.items()):
            self._back += [row.id for _, row in rows if wanted(row)]
            self._waiting[key] = deque(each for each in rows if not wanted(each[1]))
            if not self._waiting[key]:
                del self._waiting[key]

    def _note_pace(self, host: str, duration_ms: int, *, answered: bool, delivered: bool) -> None:
        """Remember how quick a host is, or that it is slow: then it gets one at a time, and what waits for it goes back."""
        if delivered:
            self._slow_until.pop(host, None)
        if answered:
            before_s = self._pace_s.pop(host, duration_ms / 1000)
            self._pace_s[host] = (before_s + duration_ms / 1000) / 2
            if len(self._pace_s) > HOSTS_KNOWN_MAX:
                del self._pace_s[next(iter(self._pace_s))]
        elif duration_ms >= SLOW_MS:
            self._pace_s.pop(host, None)
            self._slow_until[host] = self._seconds() + SLOW_FOR_S
            self._put_back(lambda each: each.host == host)


def _key(row: Delivery) -> Key:
    return row.host, bool(row.guarded)
