"""What is done soon, and once for a burst."""

from __future__ import annotations

import os
import threading

import pytest

from orqo.ringing import Soon
from support import wait_for


def test_a_burst_is_answered_once_more_after_it_and_not_each_time() -> None:
    done: list[int] = []
    entered, goes_on = threading.Event(), threading.Event()

    def act() -> bool:
        done.append(1)
        entered.set()
        goes_on.wait(10)
        return True

    soon = Soon(act, name="test")
    soon.ask()
    assert entered.wait(10)
    for _ in range(1000):
        soon.ask()
    goes_on.set()

    wait_for(lambda: len(done) == 2, what="it was done for all who asked meanwhile")
    assert not soon._asked.wait(0.05) and len(done) == 2


def test_a_fault_does_not_end_it() -> None:
    done: list[int] = []

    def act() -> bool:
        done.append(1)
        if len(done) == 1:
            raise ZeroDivisionError
        return True

    soon = Soon(act, name="test")
    soon.ask()
    wait_for(lambda: len(done) == 1)
    soon.ask()

    wait_for(lambda: len(done) == 2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_server_has_a_thread_of_its_own() -> None:
    done = threading.Event()

    def act() -> bool:
        done.set()
        return True

    soon = Soon(act, name="test")
    soon.ask()
    assert done.wait(10)
    done.clear()

    child = os.fork()
    if child == 0:
        soon.ask()
        os._exit(0 if done.wait(10) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
