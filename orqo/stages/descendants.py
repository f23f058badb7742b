"""The processes below this one: found, signalled and reaped, whatever session or group they fled to.

Owns the reading of /proc. Never starts a process. It needs `become_subreaper`: then a process whose parent died
becomes our child instead of init's, so that everything a stage started stays below us. Source: prctl(2), proc(5).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

PR_SET_CHILD_SUBREAPER = 36
PAUSE_S = 0.005

log = logging.getLogger(__name__)
_subreaper_pid = 0


@dataclass(frozen=True)
class Process:
    """One process as /proc shows it."""

    pid: int
    parent: int
    group: int
    is_zombie: bool


def become_subreaper() -> None:
    """Let orphans below this process become its children. A forked child does not inherit that and has to ask again."""
    global _subreaper_pid
    if _subreaper_pid == os.getpid():
        return
    if hasattr(os, "pidfd_open") and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("step=subreaper status=refused errno=%d", ctypes.get_errno())
    _subreaper_pid = os.getpid()


def existing() -> frozenset[int]:
    """Name the processes below this one: one system call where there are none, as in a worker between two stages."""
    return frozenset(process.pid for process in _below(frozenset())) if _has_children() else frozenset()


def remaining(others: frozenset[int]) -> list[Process]:
    """Give the living processes below this one that neither are among `others` nor stand below one of them."""
    return [process for process in _below(others) if not process.is_zombie] if _has_children() else []


def terminate(processes: Iterable[Process]) -> None:
    """Ask processes to end."""
    _signal_groups(processes, signal.SIGTERM)


def kill(others: frozenset[int], *, within_s: float) -> bool:
    """Kill and reap everything below this process but `others`; say whether nothing is left."""
    give_up = time.monotonic() + within_s
    while _has_children() and (found := list(_below(others))):
        _signal_groups(found, signal.SIGKILL)
        _reap(found)
        if time.monotonic() > give_up:
            log.error("step=kill status=left pids=%s", ",".join(str(process.pid) for process in found))
            return False
        time.sleep(PAUSE_S if all(process.is_zombie for process in found) else 0)
    return True


def reap_orphans(others: frozenset[int]) -> None:
    """Take the exit status of children that ended, up to the first one that is among `others`."""
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid not in others:
            os.waitpid(found.si_pid, os.WNOHANG)


def _reap(processes: Iterable[Process]) -> None:
    """Take the exit status of those that ended and are our own children."""
    for process in processes:
        if process.is_zombie and process.parent == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _signal_groups(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal whole groups: the kernel does that in one step, so that a member that forks all the time cannot slip away.

    A stage's child begins its own session and no group reaches out of its session, so none of these is ours; should one
    be, its members are signalled one by one.
    """
    own_group = os.getpgrp()
    living = [process for process in processes if not process.is_zombie]
    for target in {process.pid if process.group == own_group else -process.group for process in living}:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(target, number)


def _has_children() -> bool:
    # A child's orphans are handed to us before its own end can be seen, so "no children" is "nothing below us".
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _below(others: frozenset[int]) -> Iterator[Process]:
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for process in _all():
        children[process.parent].append(process)
    waiting = [os.getpid()]
    while waiting:
        for process in children[waiting.pop()]:
            if process.pid not in others:
                waiting.append(process.pid)
                yield process


def _all() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := _read(name)):
            yield process


def _read(pid: str) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(4096)
    except OSError:
        return None
    # The name in parentheses is the program's own choice and may hold spaces and parentheses.
    state, parent, group = stat[stat.rindex(b")") + 2 :].split(maxsplit=3)[:3]
    return Process(int(pid), int(parent), int(group), state in b"ZX")
