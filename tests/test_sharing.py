"""One commit for what several threads write at once, and whose turn it is among processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Connection, event, text

from orqo import clock, db, tokens
from orqo.config import PROJECT_DIR
from orqo.errors import Conflict, Unavailable
from support import Service, sqlite_only, wait_for

pytestmark = sqlite_only
THREADS = 8


@pytest.fixture
def database(tmp_path: Path) -> Any:
    made = db.Database.open(f"sqlite:///{tmp_path}/x.db", accepts=True)
    with made.transaction() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    yield made
    made.close()


def put(n: int, *, fails: type[Exception] | None = None) -> Callable[[Connection], int]:
    def work(connection: Connection) -> int:
        connection.execute(text("INSERT INTO t VALUES (:n)"), {"n": n})
        if fails is not None:
            raise fails("not this one")
        return n

    return work


def numbers(database: db.Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(text("SELECT n FROM t ORDER BY n")).scalars())


def together(database: db.Database, works: list[Callable[[Connection], int]]) -> list[Any]:
    """Bring all while the first to come holds the transaction open; gives each one's value or exception."""
    held, brought = threading.Event(), threading.Semaphore(0)

    def first(_connection: Connection) -> None:
        held.wait(10)

    def bring(work: Callable[[Connection], int]) -> Any:
        brought.release()
        try:
            return database.together(work)
        except Exception as fault:
            return fault

    with ThreadPoolExecutor(len(works) + 1) as pool:
        leading = pool.submit(database.together, first)
        wait_for(lambda: database._shared._is_led, what="somebody leads")
        results = [pool.submit(bring, work) for work in works]
        wait_for(lambda: len(database._shared._waiting) == len(works), what="all have come")
        held.set()
        leading.result()
        return [result.result() for result in results]


def test_what_comes_together_is_one_commit(database: db.Database) -> None:
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)

    values = together(database, [put(n) for n in range(THREADS)])

    assert len(commits) == 2
    assert values == list(range(THREADS)) and numbers(database) == values


def test_a_refusal_that_has_written_nothing_is_part_of_the_one_commit(database: db.Database) -> None:
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)

    def refuse(connection: Connection) -> int:
        raise Conflict(f"There are {connection.execute(text('SELECT count(*) FROM t')).scalar_one()} already.")

    values = together(database, [put(1), refuse, put(2)])

    assert len(commits) == 2
    assert isinstance(values[1], Conflict) and numbers(database) == [1, 2]


def test_a_refusal_that_ended_the_transaction_costs_the_others_nothing(database: db.Database) -> None:
    def spoil(connection: Connection) -> int:
        connection.connection.dbapi_connection.execute("ROLLBACK")  # type: ignore[union-attr]
        raise Conflict("as SQLite does where the disk is full")

    values = together(database, [put(1), spoil, put(2)])

    assert values[0] == 1 and isinstance(values[1], Exception) and values[2] == 2
    assert numbers(database) == [1, 2]


def test_a_refusal_is_undone_alone(database: db.Database) -> None:
    values = together(database, [put(1), put(2, fails=Conflict), put(3)])

    assert values[0] == 1 and isinstance(values[1], Conflict) and values[2] == 3
    assert numbers(database) == [1, 3]


def test_a_fault_of_ours_costs_the_others_nothing(database: db.Database) -> None:
    values = together(database, [put(1), put(1), put(2, fails=ZeroDivisionError), put(3)])

    assert sorted(value for value in values if isinstance(value, int)) == [1, 3]
    assert numbers(database) == [1, 3]


def test_a_commit_that_cannot_be_is_told_to_all(database: db.Database) -> None:
    def refuse(_connection: Connection) -> None:
        raise Unavailable("The disk is full.")

    event.listen(database.engine, "commit", refuse)

    values = together_quietly(database, [put(1), put(2)])

    assert [type(value) for value in values] == [Unavailable, Unavailable]
    event.remove(database.engine, "commit", refuse)
    assert numbers(database) == []


def together_quietly(database: db.Database, works: list[Callable[[Connection], int]]) -> list[Any]:
    def bring(work: Callable[[Connection], int]) -> Any:
        try:
            return database.together(work)
        except Exception as fault:
            return fault

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(bring, works))


# ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────────

HOLD = """
import sys, time
from pathlib import Path
from orqo.turns import Turns
turns = Turns(Path(sys.argv[1]), first=False)
assert turns.take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def frozen(tmp_path: Path) -> Any:
    """A process that has its turn and is frozen with it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, f"{tmp_path}/x.db"], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.communicate()


def test_a_frozen_holder_of_the_turn_stops_nobody(database: db.Database, frozen: Any) -> None:
    for n in range(5):
        assert database.together(put(n)) == n

    assert database._turns is not None and database._turns._stuck_until > time.monotonic()
    assert numbers(database) == list(range(5))


def test_a_killed_holder_leaves_its_turn(database: db.Database, frozen: Any) -> None:
    frozen.kill()
    frozen.wait()

    assert database._turns is not None and database._turns.take()
    database._turns.give_back()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_turns_of_its_own(database: db.Database) -> None:
    turns = database._turns
    assert turns is not None and turns.take()
    try:
        child = os.fork()
        if child == 0:
            os._exit(int(turns.take()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        turns.give_back()


def test_a_revoked_token_does_not_work_in_another_process(web: Service) -> None:
    box = web.box
    with box.database.transaction() as connection:
        token_id, token = tokens.create(connection, name="t", scopes=["trigger"], now=clock.now())
    call = {"url": web.url + "/api/v1/trigger", "json": {"workflow": "hello"}, "headers": {"Authorization": f"Bearer {token}"}}
    assert requests.post(**call, timeout=20).status_code == 201

    with box.database.transaction() as connection:
        tokens.revoke(connection, token_id, now=clock.now())

    assert requests.post(**call, timeout=20).status_code == 401
