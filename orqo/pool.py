"""The worker's processes: a parent that forks RQ workers and the dispatcher, and starts again what ends.

Owns the assembly of a worker process. The parent has no threads and opens the database only to check it, before the
first fork: an engine must not cross one. Its children share the pages of what is imported here.
"""

from __future__ import annotations

import gc
import logging
import os
import pwd
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orqo import (
    clock,
    db,
    deliveries,
    dispatcher,
    executor,
    instance,
    leases,
    logs,
    machines,
    metrics,
    outbound,
    processes,
    queue,
    retention,
    runs,
)
from orqo.config import Config, ConfigError
from orqo.folder import Folder
from orqo.prepared import compile_all
from orqo.queue import Bell
from orqo.secretstore import SecretStore
from orqo.simulation import Rules, Sending
from orqo.stages import descendants, handover
from orqo.workflows import Definitions

log = logging.getLogger(__name__)

# The name that the workers and the dispatcher count under.
METRICS = "worker"
WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Each death is a signal, which ends the wait.
LOOK_S = 30.0
# Short: a fork costs little, and while all children wait no run goes on.
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 1.0
SETTLED_S = 10.0
KILL_AFTER_S = 1.0


@dataclass
class Child:
    """One kind of process to keep running: its name and what it does; `pid` 0 while it is down."""

    name: str
    main: Callable[[], None]
    pid: int = 0
    started: float = 0.0
    start_at: float = 0.0
    backoff_s: float = BACKOFF_FIRST_S


def main() -> int:
    """Run until SIGTERM or SIGINT; the environment is the configuration. Raises ConfigError, SchemaMismatch."""
    config = Config.from_environ()
    logs.install(config.log_level, config.log_format)
    key = begin(config)
    secrets = SecretStore.from_config(config)
    children = [Child(name, partial(work, config, key, secrets)) for name, work in kinds(config).items()]
    processes.adopt_orphans()
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    _supervise(children)
    _stop(children, config.stop_timeout_s + KILL_AFTER_S)
    return 0


def alone(name: str, key: bytes) -> int:
    """Be one of the processes that `kinds` names, for a parent that did `begin`; give the exit status."""
    config = Config.from_environ()
    logs.install(config.log_level, config.log_format)
    metrics.join(config.data, METRICS)
    kinds(config)[name](config, key, SecretStore.from_config(config))
    return 0


def kinds(config: Config) -> dict[str, Callable[[Config, bytes, SecretStore], None]]:
    """Give what there is a process for: the workers and the dispatcher, by name."""
    return {**{f"worker-{number}": _work for number in range(1, config.workers + 1)}, "dispatcher": _dispatch}


def begin(config: Config) -> bytes:
    """Do what precedes the first fork, and give the instance key: no engine is open afterwards. Raises as `main` does."""
    key = _checked_key(config)
    metrics.begin(config.data, METRICS)
    handover.remove_leftovers(config.data / "runs")
    return key


def _checked_key(config: Config) -> bytes:
    if os.geteuid() == 0 and config.stage_user not in {account.pw_name for account in pwd.getpwall()}:
        raise ConfigError([f"ORQO_STAGE_USER: there is no user {config.stage_user} here; name one that commands shall run as"])
    database = db.Database.open(config.database_url)
    try:
        db.check_version(database)
        compile_all(database.engine.dialect)
        key = instance.establish(database, config, now=clock.now())
        machines.seen(database, machines.established(config))
        return key
    finally:
        database.close()


def _supervise(children: list[Child]) -> None:
    """Keep the children running until a signal says to stop."""
    while True:
        for child in children:
            if not child.pid and time.monotonic() >= child.start_at:
                _fork(child)
        due = [child.start_at - time.monotonic() for child in children if not child.pid]
        received = signal.sigtimedwait(WATCHED, max(0.0, min([LOOK_S, *due])))
        if received is not None and received.si_signo != signal.SIGCHLD:
            return
        _reap(children)


def _fork(child: Child) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(child, parent)
    child.pid, child.started = pid, time.monotonic()


def _become(child: Child, parent: int) -> None:
    """Be a child: never return to the parent's code."""
    status = 1
    try:
        processes.set_name(f"orqo-{child.name}")
        processes.die_with_parent(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() == parent:
            child.main()
            status = 0
    except Exception:
        log.exception("step=process name=%s status=fault", child.name)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reap(children: list[Child], *, stopping: bool = False) -> None:
    """Take note of what has ended; what a dead worker's stage left behind is ended too."""
    known = {child.pid: child for child in children if child.pid}
    died = False
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid in known:
            _note_end(known[pid], os.waitstatus_to_exitcode(status), stopping=stopping)
            died = True
    if died:
        processes.end_strays({child.pid for child in children})


def _note_end(child: Child, code: int, *, stopping: bool) -> None:
    lived_s = time.monotonic() - child.started
    child.backoff_s = BACKOFF_FIRST_S if lived_s > SETTLED_S else min(child.backoff_s * 2, BACKOFF_MAX_S)
    child.pid, child.start_at = 0, time.monotonic() + child.backoff_s
    if not stopping:
        log.warning("step=process name=%s status=ended code=%d again_s=%s", child.name, code, child.backoff_s)


def _stop(children: list[Child], within_s: float) -> None:
    """Tell all to stop, wait, and kill what is left."""
    for child in children:
        if child.pid:
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + within_s
    while any(child.pid for child in children) and time.monotonic() < until:
        signal.sigtimedwait(WATCHED, 0.1)
        _reap(children, stopping=True)
    for child in children:
        if child.pid:
            log.warning("step=process name=%s status=killed", child.name)
            os.kill(child.pid, signal.SIGKILL)
    processes.end_strays(set())


# ── the children ────────────────────────────────────────────────────────────────────────────────────────────────────


def _work(config: Config, key: bytes, secrets: SecretStore) -> None:
    """Be an RQ worker."""
    descendants.become_subreaper()
    bell, stopping = Bell.of(config, key, machines.identity(config)), threading.Event()
    worker = executor.Worker(
        box=_box(config, key),
        config=config,
        bell=bell,
        client=_client(config),
        secrets=secrets,
        owner=leases.owner(),
        stopping=stopping,
        wake_ups=bell.wake_ups(stopping),
    )
    executor.prepare(worker)
    executor.start_renewing(worker)

    def on_start(rq_worker: queue.Worker) -> None:
        worker.on_renew = lambda: queue.beat(rq_worker)

    name = f"{socket.gethostname()}-{os.getpid()}"
    queue.run_worker(bell, name=name, stopping=stopping, wake_ups=worker.wake_ups, on_start=on_start)


def _dispatch(config: Config, key: bytes, secrets: SecretStore) -> None:
    """Be the dispatcher."""
    stopping, box = threading.Event(), _box(config, key)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    dispatcher.loop(
        dispatcher.Dispatcher(
            box=box,
            bell=Bell.of(config, key, machines.identity(config)),
            sender=deliveries.Sender(_client(config), secrets, key),
            schedule_s=config.callback_retries_s,
            owner=leases.owner(),
            stopping=stopping,
            keep=retention.Limits(config.keep_days, config.keep_runs),
            runs_dir=config.data / "runs",
            machine_lost_after_s=config.machine_lost_after_s,
            simulation=Sending(Rules(box.database)) if config.simulate else None,
            folder=Folder(box.database, config.workflows, key=key, secrets=secrets) if config.workflows else None,
        )
    )


def _box(config: Config, key: bytes) -> runs.Box:
    database = db.Database.open(config.database_url)
    metrics.watch(database)
    return runs.Box(database, Definitions(), config.base_url, key, machines.identity(config))


def _client(config: Config) -> outbound.Client:
    return outbound.Client(allowed_networks=config.allowed_networks, ca_bundle=config.ca_bundle)
