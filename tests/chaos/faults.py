"""Which fault comes when: a schedule that the seed decides, and the threads that carry it out."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from chaos.hosts import Host, Hosts
from chaos.receivers import Receivers
from chaos.watch import Watch
from chaos.world import World

KILLS_A_RUN, FREEZES_A_RUN, RESETS_A_RUN, LOCKS_A_RUN, VANISHES_A_RUN = 0.24, 0.024, 0.004, 0.004, 0.006
LONG_FREEZE_S = 33.0
# Of machines, where there are several; a long cut outlasts the leases.
POWERS_A_RUN, CUTS_A_RUN, LONG_CUTS_A_RUN = 0.01, 0.01, 0.002
LONG_CUT_S = 36.0
# What is killed: mostly workers, for they are many.
VICTIMS = ("web", "web", *("dispatcher",) * 5, *("child",) * 40)


@dataclass(frozen=True)
class Fault:
    """One fault: when, in seconds from the start, what, and a number that decides the details."""

    at_s: float
    kind: str
    detail: float


def schedule(seed: int, runs: int, within_s: float, *, hosts: int = 0) -> list[Fault]:
    """Give the faults for so many runs, in order of time; with `hosts` those of machines besides."""
    chance = random.Random(f"{seed} faults")
    rates = {"kill": KILLS_A_RUN, "freeze": FREEZES_A_RUN, "reset": RESETS_A_RUN, "lock": LOCKS_A_RUN, "vanish": VANISHES_A_RUN}
    wanted = [kind for kind, rate in rates.items() for _ in range(max(2, round(runs * rate)))]
    # A freeze that outlasts the lease: what fencing is for. As many as fit beside each other.
    wanted += ["long-freeze"] * max(1, round(runs * 0.002))
    if hosts:
        wanted += ["power"] * max(2, round(runs * POWERS_A_RUN)) + ["cut"] * max(2, round(runs * CUTS_A_RUN))
        wanted += ["long-cut"] * max(1, round(runs * LONG_CUTS_A_RUN))
    # At the moment when schedules fire: there is one in each minute.
    wanted += ["tick"] * int(within_s / 60)
    last_s = {"tick": max(0.0, within_s - 60)}
    faults = [Fault(chance.uniform(0, last_s.get(kind, within_s)), kind, chance.random()) for kind in wanted]
    return sorted(faults, key=lambda fault: fault.at_s)


@dataclass
class Storm:
    """Carries out a schedule; each fault that lasts has its own thread."""

    world: World
    receivers: Receivers
    watch: Watch
    faults: list[Fault]
    done: Counter[str] = field(default_factory=Counter)
    _one_reset: threading.Lock = field(default_factory=threading.Lock)
    _one_vanishing: threading.Lock = field(default_factory=threading.Lock)
    _choosing: threading.Lock = field(default_factory=threading.Lock)
    _in_trouble: set[str] = field(default_factory=set)

    def rage(self) -> None:
        """Return when all faults are over."""
        began = time.monotonic()
        lasting = []
        for fault in self.faults:
            time.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            if fault.kind == "kill":
                self._kill(fault)
            else:
                lasting.append(threading.Thread(target=getattr(self, "_" + fault.kind.replace("-", "_")), args=(fault,)))
                lasting[-1].start()
        for thread in lasting:
            thread.join()

    def _pick(self, kind: str, detail: float) -> int | None:
        # Nothing that is still on its way up is there to be chosen: then whatever runs is.
        pids = self.world.dispatcher() if kind == "dispatcher" else self.world.processes()[kind]
        pids = pids or self.world.processes()["child"]
        return sorted(pids)[int(detail * 7919) % len(pids)] if pids else None

    def _kill(self, fault: Fault) -> None:
        kind = VICTIMS[int(fault.detail * len(VICTIMS))]
        if (pid := self._pick(kind, fault.detail)) is None:
            time.sleep(1.0)
            pid = self._pick(kind, fault.detail)
        if pid is None:
            self.done["kill that found nobody"] += 1
            return
        self.watch.expect_takeover(pid)
        if self.world.kill(pid):
            self.done[f"kill -9 {kind}"] += 1

    def _freeze(self, fault: Fault) -> None:
        kind = ("child", "child", "child", "child", "child", "dispatcher", "dispatcher", "web")[int(fault.detail * 8)]
        pid = self._pick(kind, fault.detail)
        if pid is not None:
            self.done[f"SIGSTOP {kind}"] += 1
            self.world.freeze(pid, 0.2 + 3 * (fault.detail * 31 % 1))

    def _long_freeze(self, fault: Fault) -> None:
        # One that holds a run: else it is no test of the lease.
        for _ in range(200):
            pid = self.watch.any_owner()
            if pid is not None and pid in self.world.processes()["child"] and self._froze(pid):
                return
            time.sleep(0.02)

    def _froze(self, pid: int) -> bool:
        """Freeze a process beyond its lease, but not within a commit: nobody could write then, which is no test of it either."""
        self.world.signal(pid, signal.SIGSTOP)
        try:
            if not self.world.is_writable():
                return False
            self.done["SIGSTOP beyond the lease"] += 1
            self.watch.expect_loss(pid)
            time.sleep(LONG_FREEZE_S)
            return True
        finally:
            self.world.signal(pid, signal.SIGCONT)

    def _tick(self, fault: Fault) -> None:
        time.sleep(60 - time.time() % 60 + 0.6 * fault.detail)
        if (pid := self._pick("dispatcher", fault.detail)) is not None and self.world.kill(pid):
            self.done["kill -9 dispatcher as schedules fire"] += 1

    def _reset(self, fault: Fault) -> None:
        way = ("flushed", "killed", "replaced by an empty one", "frozen")[int(fault.detail * 4)]
        seconds = 0.2 + 3 * (fault.detail * 31 % 1)
        with self._one_reset:
            self.done[f"Valkey {way}"] += 1
            if way == "flushed":
                self.world.flush_valkey()
            elif way == "frozen":
                self.world.freeze_valkey(seconds)
            else:
                self.world.restart_valkey(down_s=seconds, empty=way != "killed")
            self.watch.expect_start()

    def _lock(self, fault: Fault) -> None:
        self.done["database locked"] += 1
        self.world.lock_database(0.5 + 3 * (fault.detail * 31 % 1))

    def _of_hosts(self, fault: Fault) -> tuple[Hosts, Host] | None:
        """Choose a machine that has no trouble yet."""
        assert isinstance(self.world, Hosts)
        with self._choosing:
            free = [host for host in self.world.hosts if host.name not in self._in_trouble]
            if not free:
                return None
            host = free[int(fault.detail * 7919) % len(free)]
            self._in_trouble.add(host.name)
        return self.world, host

    def _power(self, fault: Fault) -> None:
        if (chosen := self._of_hosts(fault)) is not None:
            world, host = chosen
            silently = fault.detail < 0.5
            self.done[f"power of a {host.name.split('-')[0]} machine{', silently' if silently else ''}"] += 1
            self._expect_losses(host)
            world.power_off(host, 0.5 + 12 * (fault.detail * 31 % 1), silently=silently)
            self._in_trouble.discard(host.name)

    def _cut(self, fault: Fault) -> None:
        self._cut_for(fault, 0.5 + 12 * (fault.detail * 31 % 1))

    def _long_cut(self, fault: Fault) -> None:
        self._cut_for(fault, LONG_CUT_S)

    def _cut_for(self, fault: Fault, seconds: float) -> None:
        if (chosen := self._of_hosts(fault)) is not None:
            world, host = chosen
            silently = fault.detail < 0.5
            how = f"{'silent' if silently else 'refused'}{' beyond the lease' if seconds >= LONG_CUT_S else ''}"
            self.done[f"network of a {host.name.split('-')[0]} machine, {how}"] += 1
            if seconds >= LONG_CUT_S:
                self._expect_losses(host)
            world.cut_off(host, seconds, silently=silently)
            self._in_trouble.discard(host.name)

    def _expect_losses(self, host: Host) -> None:
        for pid in host.pids():
            self.watch.expect_loss(pid)

    def _vanish(self, fault: Fault) -> None:
        with self._one_vanishing:
            self.done["receiver vanished"] += 1
            self.receivers.vanish("vanishing")
            time.sleep(0.5 + 3 * (fault.detail * 31 % 1))
            self.receivers.appear("vanishing")
