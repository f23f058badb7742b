"""Child processes: started so that they do not outlive us, and what dead ones leave behind found and ended.

Owns the starting of processes, by a program or as a fork of this one, and what the kernel tells about them. Never knows
what they are for. Source: prctl(2), proc(5).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Protocol

# From linux/prctl.h.
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class CannotStart(Exception):
    """The service, or a process of it, cannot be started; the text is one sentence for whoever tries."""


class Process(Protocol):
    """What is asked of a child, as subprocess.Popen answers it."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal's number where one killed it; None until `poll` or `wait` has seen its end."""

    def poll(self) -> int | None:
        """Look whether it has ended; give `returncode`."""

    def wait(self) -> int:
        """Wait for its end; give `returncode`."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def spawn(argv: Sequence[str], *, orphan_signal: signal.Signals, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own (a terminal's Ctrl-C does not reach it), that is signalled when we die."""
    parent = os.getpid()

    def before_exec() -> None:
        die_with_parent(orphan_signal)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before_exec)


class Forked:
    """A child that `fork` made."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Look whether it has ended."""
        return self._look(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end."""
        while (status := self._look(0)) is None:
            pass
        return status

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send(signal.SIGKILL)

    def _look(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _send(self, number: signal.Signals) -> None:
        # The number of a child that was waited for may be another process's by now.
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(
    main: Callable[[], int],
    *,
    name: str,
    orphan_signal: signal.Signals,
    env: Mapping[str, str] | None = None,
    outputs: tuple[int, int] | None = None,
    kept: Collection[int] = (),
) -> Forked:
    """Start a process as `spawn` does, that calls `main` in a copy of this one and ends with the status that it gives.

    For a process without threads alone: a copy has none of them, but the locks that they held. `outputs` are the descriptors
    that it has for stdout and stderr; of all others of ours it has those that are `kept`.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that came before the child has handlers of its own would be taken by ours, and lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(main, lambda: _begin(parent, name, orphan_signal, env, outputs, kept, mask))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Forked(pid)


def _become(main: Callable[[], int], begin: Callable[[], None]) -> NoReturn:
    """Be a child: never return to the parent's code."""
    status = 1
    try:
        begin()
        status = main()
    except SystemExit as end:
        status = _status_of(end)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _begin(
    parent: int,
    name: str,
    orphan_signal: signal.Signals,
    env: Mapping[str, str] | None,
    outputs: tuple[int, int] | None,
    kept: Collection[int],
    mask: set[int | signal.Signals],
) -> None:
    """Shed what is the parent's: its session, its descriptors, its handlers and its environment."""
    os.setsid()
    set_name(name)
    die_with_parent(orphan_signal)
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in enumerate(outputs or (), start=1):
        os.dup2(descriptor, number)
    signal.set_wakeup_fd(-1)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)
    for handled in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
        if callable(signal.getsignal(handled)):
            signal.signal(handled, signal.default_int_handler if handled == signal.SIGINT else signal.SIG_DFL)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _status_of(end: SystemExit) -> int:
    """Do with sys.exit()'s argument what the interpreter does."""
    if isinstance(end.code, int):
        return end.code
    if end.code is not None:
        print(end.code, file=sys.stderr)
    return 0 if end.code is None else 1


def set_name(name: str) -> None:
    """Have ps and top show a process that is no program of its own under this name: its first 15 bytes."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


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
