"""Who holds a lease: a name that no other process ever has, and whether its bearer is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orqo import leases
from orqo.config import PROJECT_DIR
from support import wait_for

NAME_AND_WAIT = "from orqo import leases; print(leases.owner(), flush=True); input()"


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process and the name that it gives itself."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", NAME_AND_WAIT], cwd=PROJECT_DIR, **pipes)  # type: ignore[call-overload]
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_process_that_lives_is_not_gone(other: tuple[subprocess.Popen[str], str]) -> None:
    assert not leases.is_gone(leases.owner())
    assert not leases.is_gone(other[1])


def test_a_killed_process_is_gone_even_before_its_parent_has_noticed(other: tuple[subprocess.Popen[str], str]) -> None:
    process, name = other

    process.send_signal(signal.SIGKILL)

    # A zombie: its parent, this process, has not waited for it.
    wait_for(lambda: leases.is_gone(name), within_s=5)
    process.wait()
    assert leases.is_gone(name)


def test_a_stopped_process_is_not_gone(other: tuple[subprocess.Popen[str], str]) -> None:
    process, name = other

    process.send_signal(signal.SIGSTOP)

    assert not leases.is_gone(name)


def test_another_process_with_the_same_number_is_another_bearer() -> None:
    boot, namespace, pid, _ = leases.owner().split("/")

    assert leases.is_gone(f"{boot}/{namespace}/{pid}/1")


@pytest.mark.parametrize("change", [{0: "another-boot"}, {1: "pid:[1]"}], ids=["another boot", "another container"])
def test_of_processes_that_cannot_be_seen_nothing_is_claimed(change: dict[int, str]) -> None:
    parts = leases.owner().split("/")
    parts[2] = "999999999"

    assert leases.is_gone("/".join(parts))
    assert not leases.is_gone("/".join(change.get(index, part) for index, part in enumerate(parts)))


@pytest.mark.parametrize("name", ["", "x", "a/b/c/d/e", f"a/b/{os.getpid()}"], ids=["empty", "word", "too-many", "too-few"])
def test_a_name_that_is_none_is_left_to_the_lease_s_time(name: str) -> None:
    assert not leases.is_gone(name)
