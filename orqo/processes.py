"""Child processes: started so that they do not outlive us, and what dead ones leave behind found and ended.

Owns the starting of processes and what the kernel tells about them. Never knows what they are for. Source: prctl(2), proc(5).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# From linux/prctl.h.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class CannotStart(Exception):
    """The service, or a process of it, cannot be started; the text is one sentence for whoever tries."""


def spawn(argv: Sequence[str], *, orphan_signal: signal.Signals, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own (a terminal's Ctrl-C does not reach it), that is signalled when we die."""
    parent = os.getpid()

    def before_exec() -> None:
        die_with_parent(orphan_signal)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before_exec)


def die_with_parent(orphan_signal: signal.Signals) -> None:
    """Have the kernel signal this process when its parent dies; a parent that is dead already has to be looked for."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)


def adopt_orphans() -> None:
    """Make the kernel hand us the children of dead children, instead of process 1."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """List our direct children, zombies included; empty where there is no /proc."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold anything, parentheses too.
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == os.getpid():
            found.add(int(entry.parent.name))
    return found


def end_strays(ours: set[int]) -> None:
    """Kill our children that are not `ours`, and the children that their deaths hand us, level by level."""
    until = time.monotonic() + 1.0
    while (strays := children() - ours) and time.monotonic() < until:
        for pid in strays:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass
        time.sleep(0.005)


def reap_strays(ours: set[int]) -> None:
    """Let the adopted dead go: they stay zombies until their new parent, which we are, has waited for them."""
    while dead := _dead_child():
        if dead in ours:
            return
        os.waitpid(dead, 0)


def _dead_child() -> int | None:
    """Name a child that has ended, without waiting for it: its Popen shall learn the exit status."""
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return dead.si_pid if dead else None
