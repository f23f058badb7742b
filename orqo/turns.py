"""Whose turn it is to write to a SQLite file, among the processes of one box: who accepts goes before who works.

SQLite's own busy handler sleeps and is not fair: of several processes that commit flat out one may get nothing for seconds.
Owns two lock files beside the database. They only order the writers: what keeps the data whole is SQLite's own lock, so
whoever waited too long goes on without a turn, and a process that was frozen with one stops nobody.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

PATIENCE_S = 0.25
# So long a worker lets those pass who accept; then it stands in line with them, or they would starve it: of two processes that
# accept one always waits, and what they accept is one commit for many.
MODESTY_S = 0.001
PAUSE_S, PAUSE_MAX_S = 0.00005, 0.0001
# A turn that nobody used and nobody gave back is passed over for so long.
STUCK_S = 2.0
UNUSED_S = 0.005


class Turns:
    """The turns of one process at one database file. Thread-safe; a forked child opens files of its own.

    `first`: this process accepts. `take` gives a turn or, after a quarter of a second, none; `give_back` ends it.
    """

    def __init__(self, path: Path, *, first: bool) -> None:
        self._paths = path.with_name(path.name + ".turn"), path.with_name(path.name + ".first")
        self._first = first
        self._stuck_until = 0.0
        self._pid = -1
        self._files: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Wait for a turn; False where there is none in time: then SQLite decides who writes."""
        if self._pid != os.getpid():
            self._open()
        began = time.monotonic()
        if self._files is None or not self._lock.acquire(timeout=PATIENCE_S):
            return False
        if self._taken(*self._files, began):
            return True
        self._lock.release()
        return False

    def give_back(self) -> None:
        """End the turn that `take` gave."""
        for descriptor in self._files or ():
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._lock.release()

    def missed(self, *, waited_s: float) -> None:
        """Learn how long SQLite's lock was waited for without a turn: where it was free, the turn's holder is frozen."""
        if waited_s < UNUSED_S:
            self._stuck_until = time.monotonic() + STUCK_S

    def close(self) -> None:
        """Close the files; the next turn opens them anew."""
        files, self._files, pid, self._pid = self._files, None, self._pid, -1
        if pid == os.getpid():
            for descriptor in files or ():
                os.close(descriptor)

    def _open(self) -> None:
        """Open the files in this process: a lock that came over a fork would be its parent's too."""
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._files = os.open(self._paths[0], flags, 0o600), os.open(self._paths[1], flags, 0o600)
        except OSError:
            # A folder that cannot be written to: SQLite says so itself, or the database is only read.
            self._files = None
        self._pid = os.getpid()

    def _taken(self, turn: int, intent: int, began: float) -> bool:
        """Look again and again: a wait in the kernel could not be ended."""
        until = began + PATIENCE_S if began >= self._stuck_until else began
        pause_s = PAUSE_S
        while not self._tried(turn, intent, modest=time.monotonic() - began < MODESTY_S):
            if time.monotonic() >= until:
                fcntl.flock(intent, fcntl.LOCK_UN)
                return False
            time.sleep(pause_s)
            pause_s = PAUSE_S if self._first else min(pause_s * 2, PAUSE_MAX_S)
        return True

    def _tried(self, turn: int, intent: int, *, modest: bool) -> bool:
        """Try once. Who accepts shares `intent` from when it begins to wait; a worker goes only while nobody does."""
        if self._first:
            _locked(intent, fcntl.LOCK_SH)
            return _locked(turn, fcntl.LOCK_EX)
        free = _locked(intent, fcntl.LOCK_EX)
        taken = (free or not modest) and _locked(turn, fcntl.LOCK_EX)
        if free:
            fcntl.flock(intent, fcntl.LOCK_UN)
        return taken


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
