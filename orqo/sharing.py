"""One commit for what the threads of a process write at the same moment: the disk is asked once for all of them.

Owns who leads: the first thread to come executes what the others have brought meanwhile, commits, and only then does any of
them go on. What one of them does wrong is undone for it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from orqo.errors import Problem

T = TypeVar("T")
MOST = 64
Transaction = Callable[[], AbstractContextManager[Connection]]


class _Member:
    """One thread's part of a commit. `turn` is locked until that thread may go on: its part is done, or it is to lead."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.value: Any = None
        self.fault: BaseException | None = None
        self.turn = threading.Lock()
        self.turn.acquire()


class _Spoilt(Exception):
    """A part failed that has written, or in a way that may have ended the transaction of all."""


class Shared:
    """The shared commits of one database, which is SQLite: it counts what it changed. Thread-safe."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._lock = threading.Lock()
        self._waiting: list[_Member] = []
        self._is_led = False

    def run(self, work: Callable[[Connection], T]) -> T:
        """Give what `work` gives once it is committed, or raise what it raises; the commit is everybody's who came meanwhile.

        `work` may be called twice, the first time to no effect, and on another thread than its own.
        """
        mine = _Member(work)
        with self._lock:
            self._waiting.append(mine)
            leads, self._is_led = not self._is_led, True
        if not leads:
            mine.turn.acquire()
        if not mine.done:
            self._lead()
        if mine.fault is not None:
            raise mine.fault
        return cast(T, mine.value)

    def _lead(self) -> None:
        """Commit what has come, the own part among it, then let the first of those lead who came since."""
        with self._lock:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        try:
            self._commit(batch)
        finally:
            with self._lock:
                follower = self._waiting[0] if self._waiting else None
                self._is_led = follower is not None
            for member in batch:
                member.done = True
                member.turn.release()
            if follower is not None:
                follower.turn.release()

    def _commit(self, batch: Sequence[_Member]) -> None:
        try:
            with self._transaction() as connection:
                for member in batch:
                    self._act(connection, member, alone=len(batch) == 1)
        except _Spoilt:
            for member in batch:
                self._commit([member])
        except BaseException as fault:
            for member in batch:
                member.fault = member.fault or fault

    def _act(self, connection: Connection, member: _Member, *, alone: bool) -> None:
        """Do one part. A refusal that has written nothing leaves nothing to undo; a savepoint for each would cost two statements."""
        member.fault = None
        if alone:
            member.value = member.work(connection)
            return
        driver = cast(Any, connection.connection.dbapi_connection)
        before = driver.total_changes
        try:
            member.value = member.work(connection)
        except Exception as fault:
            if not isinstance(fault, Problem) or driver.total_changes != before or not driver.in_transaction:
                raise _Spoilt from fault
            member.fault = fault
