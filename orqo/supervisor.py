"""Keeps programs running: starts again what dies, and stops them in their order and within their time.

Owns the table of running programs and the signals that ask to stop. Never knows what the programs are for.
"""

from __future__ import annotations

import math
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from orqo import processes
from orqo.processes import CannotStart, Process

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 5.0
# A process that was up this long has not failed to start.
SETTLED_S = 10.0
# A program that cannot even come up once is not going to by being started again.
FAILED_STARTS_MAX = 5
TICK_S = 0.05
# Each death is a signal, which ends the wait.
LOOK_S = 30.0
# Two signals of one Ctrl-C (the terminal's and make's) come closer together than two Ctrl-Cs.
HURRY_AFTER_S = 0.5


@dataclass(frozen=True)
class Program:
    """What to supervise: `main`, which a fork of this process calls, else the command line `argv`.

    `ready` is asked until it says yes once. A fork keeps `descriptors` of ours.

    On stopping, it gets SIGTERM, unless `end` asks it another way, and after `stop_timeout_s` SIGKILL; the next program's
    turn comes when it has ended, or after `head_start_s`. `orphan_signal` is what it gets when the supervisor is killed.
    """

    name: str
    argv: Sequence[str] = ()
    ready: Callable[[], bool] | None = None
    stop_timeout_s: float = 10.0
    head_start_s: float | None = None
    orphan_signal: signal.Signals = signal.SIGTERM
    main: Callable[[], int] | None = None
    descriptors: Sequence[int] = ()
    backoff_max_s: float = BACKOFF_MAX_S
    end: Callable[[], None] | None = None


class Signals:
    """Signals as things to wait for: nothing runs in a handler."""

    def __init__(self, *numbers: int) -> None:
        self._reader, writer = socket.socketpair()
        self._reader.setblocking(False)
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._ignore)

    def wait(self, timeout_s: float) -> bytes:
        """Give the numbers of the signals that arrived, one byte each, as soon as there is one."""
        select.select([self._reader], [], [], max(0.0, timeout_s))
        try:
            return self._reader.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Stop listening for signals; a later one would be written into whatever file has the descriptor then."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """Stand in as the handler: the kernel writes the number to the socket."""


@dataclass
class _Child:
    program: Program
    process: Process | None = None
    started_at: float = 0.0
    start_due: float = 0.0
    backoff_s: float = BACKOFF_FIRST_S
    # Whether it ever was: a program that comes up once is started again for ever.
    ready: bool = False
    failed_starts: int = 0
    kill_due: float = math.inf

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Supervisor:
    """Keeps programs running until told to stop. `say` takes one line about what happens."""

    env: Mapping[str, str]
    say: Callable[[str], None]
    _children: list[_Child] = field(default_factory=list)
    _foreign: set[int] = field(default_factory=processes.children)
    _stop_began: float | None = None

    def __post_init__(self) -> None:
        processes.adopt_orphans()
        # nohup has us ignore SIGHUP, and means it.
        hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        self._signals = Signals(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *hangup)

    def add(self, program: Program) -> Process:
        """Start a program and keep it running; those added last stop first."""
        child = _Child(program, ready=program.ready is None)
        self._children.append(child)
        return self._start(child)

    def add_all(self, programs: Sequence[Program]) -> None:
        """Start programs and keep them running; those named first start first, and stop first."""
        added = [_Child(program, ready=program.ready is None) for program in programs]
        self._children += reversed(added)
        for child in added:
            self._start(child)

    def start_again(self, program: Program) -> Process:
        """Kill a program if it still runs, and start it."""
        child = next(child for child in self._children if child.program is program)
        if child.process:
            child.process.kill()
            child.process.wait()
        return self._start(child)

    def supervise(self, on_ready: Callable[[], None]) -> None:
        """Start again what dies, until a signal asks to stop; call `on_ready` once everything that says so is ready.

        CannotStart when a program fails at every start.
        """
        told = False
        while not self.stop_asked(LOOK_S if told else TICK_S):
            for child in self._children:
                self._look_after(child)
            if not told and all(child.ready for child in self._children):
                told = True
                on_ready()

    def stop_asked(self, timeout_s: float) -> bool:
        """Wait for something to happen; say whether it was a signal to stop."""
        due = [child.start_due - time.monotonic() for child in self._children if child.process is None]
        numbers = self._signals.wait(min([timeout_s, *due]))
        processes.reap_strays(self._ours())
        return any(number != signal.SIGCHLD for number in numbers)

    def _start(self, child: _Child) -> Process:
        child.process = process = self._started(child.program)
        child.started_at = time.monotonic()
        return process

    def _started(self, program: Program) -> Process:
        if program.main is None:
            return processes.spawn(program.argv, orphan_signal=program.orphan_signal, env=self.env)
        return processes.fork(
            program.main,
            name=f"orqo-{program.name}",
            orphan_signal=program.orphan_signal,
            env=self.env,
            kept=program.descriptors,
        )

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_due:
                self._start(child)
        elif child.process.poll() is not None:
            self._bury(child, child.process.returncode or 0, now)
        elif not child.ready and child.program.ready is not None:
            child.ready = child.program.ready()

    def _bury(self, child: _Child, status: int, now: float) -> None:
        """Note a death, end what the dead left behind, and set when it starts again."""
        child.process = None
        processes.end_strays(self._ours())
        settled = now - child.started_at >= SETTLED_S
        child.backoff_s = BACKOFF_FIRST_S if settled else child.backoff_s
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        # Only a program that ends by itself before it was ever ready is one that cannot start.
        child.failed_starts += status > 0 and not child.ready
        if child.failed_starts >= FAILED_STARTS_MAX:
            raise CannotStart(f"{child.program.name} {how} at each of {FAILED_STARTS_MAX} starts; what it wrote above says why.")
        self.say(f"{child.program.name} {how}; it is started again in {child.backoff_s:.1f} s")
        child.start_due = now + child.backoff_s
        child.backoff_s = min(2 * child.backoff_s, child.program.backoff_max_s)

    def stop(self) -> None:
        """End everything, each program in its turn and within its time; a second Ctrl-C ends everything at once."""
        began = turn_due = time.monotonic()
        waiting = [child for child in reversed(self._children) if child.running]
        asked: list[_Child] = []
        while waiting or any(child.running for child in asked):
            now = time.monotonic()
            while waiting and (now >= turn_due or not any(child.running for child in asked)):
                asked.append(waiting.pop(0))
                turn_due = now + _ask_to_end(asked[-1], now)
            self._kill_overdue(asked, now)
            if signal.SIGINT in self._signals.wait(TICK_S) and time.monotonic() - began > HURRY_AFTER_S:
                self.kill()
        processes.end_strays(self._ours())

    def _kill_overdue(self, asked: list[_Child], now: float) -> None:
        for child in asked:
            if child.process and child.running and now >= child.kill_due:
                self.say(f"{child.program.name} did not end in time and is killed")
                child.process.kill()
                child.kill_due = math.inf

    def kill(self) -> None:
        """End everything now."""
        for child in self._children:
            if child.process and child.running:
                child.process.kill()
                child.process.wait()
        processes.end_strays(self._ours())

    def close(self) -> None:
        """Kill what still runs and stop listening for signals."""
        self.kill()
        self._signals.close()

    def _ours(self) -> set[int]:
        return self._foreign | {child.process.pid for child in self._children if child.process}


def _ask_to_end(child: _Child, now: float) -> float:
    """Ask a program to end; give the seconds until the next one's turn."""
    if child.program.end is not None:
        child.program.end()
    elif child.process:
        child.process.terminate()
    child.kill_due = now + child.program.stop_timeout_s
    head_start_s = child.program.head_start_s
    return math.inf if head_start_s is None else head_start_s
