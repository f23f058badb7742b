"""The control of one child process: started, fed, read within bounds, ended in time and gone with all that it started.

Owns the life of the process. Never knows workflows, stages or what the output means. The promise: when `run` returns,
no process that the command started is alive, within its deadline + 5 s: not one that left for a session of its own,
forked twice, ignores SIGTERM or holds the output open. What a command leaves in the background is killed at its end.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from orqo.stages import descendants
from orqo.stages.account import Account, start
from orqo.stages.descendants import become_subreaper

__all__ = ["CannotStart", "Command", "Ended", "Limits", "become_subreaper", "run"]

STDERR_MAX_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024
LOOK_S = 0.2  # between two looks at `cancelled`
GRACE_S = 2.0  # from SIGTERM to SIGKILL
GENTLE = ("timeout", "stopped")  # a lost lease and the end of the worker leave no time for a grace
# `tee` in a `>(tee log)` ends a moment after the command that it reads from: its last words are waited for.
LINGER_S = 0.1
UMASK = 0o022
KILL_S = 1.0  # for the kernel to carry out SIGKILL
BLIND_LOOK_S = 0.02  # between two looks at the child where the kernel has no pidfd


@dataclass(frozen=True)
class Command:
    """What to start: the arguments, the whole environment, the working folder, an open file to read and the user."""

    argv: list[bytes]
    env: Mapping[bytes, bytes]
    cwd: str
    stdin: int
    account: Account | None


@dataclass(frozen=True)
class Limits:
    """How far it may go: `deadline` is a value of `time.monotonic()`; `cancelled` gives None or why it must end now.

    The first `max_output_bytes` of stdout and the last 16 KiB of stderr are kept, all else is read and dropped.
    """

    deadline: float
    cancelled: Callable[[], str | None]
    max_output_bytes: int


@dataclass(frozen=True)
class Ended:
    """How a process ended: `why` is None (by itself), `timeout` or what `cancelled` said; `returncode` as subprocess gives it."""

    why: str | None
    returncode: int
    stdout: bytes
    truncated: bool
    stderr: bytes


class CannotStart(Exception):
    """The command did not become a process; `fault` is the system's reason, its `filename` the folder or the program."""

    def __init__(self, fault: OSError) -> None:
        super().__init__(str(fault))
        self.fault = fault


def run(command: Command, limits: Limits) -> Ended:
    """Run a command to its end and leave nothing of it behind; CannotStart where it cannot be started.

    Every other child of this process, started before, is left alone.
    """
    become_subreaper()
    others = descendants.existing()
    with ExitStack() as stack:
        child = _start(stack, command, max_output_bytes=limits.max_output_bytes)
        stack.callback(_end, child, others)
        why = _watch(child, others, limits)
        if why in GENTLE:
            descendants.terminate(descendants.remaining(others))
            _let_end(child, others, until=time.monotonic() + GRACE_S)
        elif why is None and descendants.remaining(others):
            child.read_until(time.monotonic() + LINGER_S)
        _end(child, others)
        child.read_rest()
        return child.ended(why)


class _Child:
    """A started process and what it has written so far."""

    def __init__(self, popen: subprocess.Popen[bytes], *, stdout_fd: int, stderr_fd: int, max_output_bytes: int) -> None:
        self.popen = popen
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.truncated = False
        self.open_fds = {stdout_fd, stderr_fd}
        self._stdout_fd = stdout_fd
        self._max_output_bytes = max_output_bytes
        self._poll = select.poll()
        for fd in self.open_fds:
            self._poll.register(fd, select.POLLIN)
        # The end of the process wakes the poll where the kernel can do that (Linux 5.3).
        self.pidfd: int | None = None
        with suppress(AttributeError, OSError):
            self.pidfd = os.pidfd_open(popen.pid)
            self._poll.register(self.pidfd, select.POLLIN)

    def read(self, within_s: float) -> bool:
        """Wait for output or the end of the process, read what is there; say whether there was anything."""
        is_blind = self.pidfd is None and self.popen.returncode is None
        ready = self._poll.poll(max(min(within_s, BLIND_LOOK_S) if is_blind else within_s, 0) * 1000)
        for fd, _ in ready:
            if fd == self.pidfd:
                self.popen.poll()
                self._poll.unregister(fd)
            else:
                self._keep(fd, os.read(fd, CHUNK_BYTES))
        if is_blind:
            self.popen.poll()
        return bool(ready)

    def read_until(self, until: float) -> None:
        """Read till nobody can write any more, or until then."""
        while self.open_fds and (left_s := until - time.monotonic()) > 0:
            self.read(left_s)

    def read_rest(self) -> None:
        """Read what stands in the pipes; the limit is for a process that even SIGKILL does not end."""
        until = time.monotonic() + LINGER_S
        while self.open_fds and self.read(0) and time.monotonic() < until:
            pass

    def ended(self, why: str | None) -> Ended:
        """Give how it ended; a process that even SIGKILL did not end counts as killed."""
        returncode = -signal.SIGKILL if self.popen.returncode is None else self.popen.returncode
        return Ended(why, returncode, bytes(self.stdout), self.truncated, bytes(self.stderr[-STDERR_MAX_BYTES:]))

    def _keep(self, fd: int, data: bytes) -> None:
        if not data:
            self._poll.unregister(fd)
            self.open_fds.discard(fd)
        elif fd == self._stdout_fd:
            room = self._max_output_bytes - len(self.stdout)
            self.stdout += data[:room]
            self.truncated = self.truncated or len(data) > room
        else:
            self.stderr += data
            del self.stderr[: -4 * STDERR_MAX_BYTES]


def _start(stack: ExitStack, command: Command, *, max_output_bytes: int) -> _Child:
    stdout_fd, child_stdout = _pipe(stack, command.account)
    stderr_fd, child_stderr = _pipe(stack, command.account)
    # The service's own files are private by its umask; what a command writes is as a login shell would leave it.
    options = {"env": command.env, "cwd": command.cwd, "close_fds": True, "start_new_session": True, "umask": UMASK}
    try:
        popen = start(command.account, command.argv, stdin=command.stdin, stdout=child_stdout, stderr=child_stderr, **options)
    except OSError as fault:
        raise CannotStart(fault) from fault
    finally:
        os.close(child_stdout)
        os.close(child_stderr)
    child = _Child(popen, stdout_fd=stdout_fd, stderr_fd=stderr_fd, max_output_bytes=max_output_bytes)
    if child.pidfd is not None:
        stack.callback(os.close, child.pidfd)
    return child


def _pipe(stack: ExitStack, account: Account | None) -> tuple[int, int]:
    """Make a pipe whose reading end the stack closes; the stage's user owns it, or `echo >/dev/stderr` is refused to it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, reading)
    if account is not None:
        os.fchown(reading, account.uid, account.gid)
    return reading, writing


def _watch(child: _Child, others: frozenset[int], limits: Limits) -> str | None:
    """Read till the process ends, its time is over or it is cancelled; give why it must end, None where it did."""
    next_look = time.monotonic() + LOOK_S
    while child.popen.returncode is None:
        now = time.monotonic()
        if now >= limits.deadline:
            return "timeout"
        if now >= next_look:
            if why := limits.cancelled():
                return why
            # Orphans that ended meanwhile would fill the process table of a command that forks for hours.
            descendants.reap_orphans(others | {child.popen.pid})
            next_look = now + LOOK_S
        child.read(min(next_look, limits.deadline) - now)
    return None


def _let_end(child: _Child, others: frozenset[int], *, until: float) -> None:
    while time.monotonic() < until and (child.popen.returncode is None or descendants.remaining(others)):
        child.read(BLIND_LOOK_S)


def _end(child: _Child, others: frozenset[int]) -> None:
    """Kill the process and everything below it; nothing to do, and cheap, where all have ended."""
    if child.popen.returncode is None:
        child.popen.kill()
        with suppress(subprocess.TimeoutExpired):
            child.popen.wait(KILL_S)
    descendants.kill(others, within_s=KILL_S)
