"""The two services that are measured, each as real processes on a fresh database and a Valkey of its own: ours, and by hand."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orqo import apply, clock, db, definition, instance, serve, tokens, valkey
from orqo.config import PROJECT_DIR, Config

STUB = "name: stub\nstages: [{name: one, stub: {}}]\n"
INPUT = {"ref": "refs/heads/main", "commits": [{"id": 1}, {"id": 2}]}
BY_HAND_TOKEN = "a token by hand"
START_TIMEOUT_S = 30


@dataclass
class Running:
    """A service that runs: where it listens, how a run is started there, its database file and its processes."""

    port: int
    call: Mapping[str, Any]
    env: dict[str, str]
    database: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, argv: Sequence[str]) -> None:
        """Start one more process of the service, quietly."""
        shown = None if os.environ.get("BENCH_SHOW") else subprocess.DEVNULL
        self.processes[name] = subprocess.Popen(
            argv,
            cwd=PROJECT_DIR,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=shown,
        )

    def start_worker(self) -> None:
        """Start our background process, with ORQO_WORKERS of the environment."""
        self.start("worker", [sys.executable, "worker.py"])

    def stop(self, name: str) -> None:
        """Stop one process and wait for its end."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(timeout=30)

    def count(self, query: str) -> int:
        """Give the number that a query on the database finds."""
        connection = db.sqlite_module().connect(self.database, timeout=30)
        try:
            return int(connection.execute(query).fetchone()[0])
        finally:
            connection.close()


def load(
    running: Running, *, connections: int = 16, seconds: float = 5, rate: float = 0, good: int = 201, **changes: Any
) -> dict[str, Any]:
    """Start runs as quickly as the service takes them, or at a rate; gives what bench/load.py prints.

    Raises where anything but 201 (or `good`) and 503 was answered: a figure of refusals would be none.
    """
    options = ["--connections", str(connections), "--seconds", str(seconds), "--rate", str(rate), "--good", str(good)]
    argv = [sys.executable, "-m", "bench.load", str(running.port), *options]
    given = json.dumps({**running.call, **changes})
    told: dict[str, Any] = json.loads(subprocess.run(argv, cwd=PROJECT_DIR, input=given, text=True, capture_output=True, check=True).stdout)
    if set(told["statuses"]) - {str(good), "503"}:
        raise RuntimeError(f"not all were answered with {good}: {told['statuses']}")
    return told


def wait_until(condition: Any, *, what: str, within_s: float = START_TIMEOUT_S, every_s: float = 0.02) -> None:
    """Return as soon as the condition is true; TimeoutError after the time."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {within_s} s: {what}")
        time.sleep(every_s)


@contextmanager
def ours(*, workers: int = 0, workflow: str = STUB, web: bool = True, **settings: str) -> Iterator[Running]:
    """Run our service as `make run` has it, with one workflow; without workers only its web process."""
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder, valkey.running(Path(folder)) as redis_url:
        # The stage user passes through.
        Path(folder).chmod(0o711)
        port = free_port()
        given = {"ORQO_DATA": f"{folder}/data", "REDIS_URL": redis_url, "ORQO_PORT": str(port), "ORQO_WORKERS": str(workers or 1)}
        env = given | settings
        config = Config.from_environ(env)
        call = prepared(config, workflow)
        # On PostgreSQL there is no file; who measures that opens it by its URL.
        database = config.database_path or Path()
        running = Running(port, call, env | {"PATH": os.environ["PATH"], "HOME": folder}, database)
        with _stopping(running):
            if web:
                running.start("web", [sys.executable, "-m", "bench.web"])
                # The port is listened on before a web process is there to answer.
                wait_until(lambda: serve.is_up(config), what="our web process answers")
            if workers:
                running.start_worker()
            yield running


@contextmanager
def fresh_postgresql() -> Iterator[str]:
    """Give the URL of an empty database on a server of its own, the one that the tests have too."""
    sys.path.append(str(PROJECT_DIR / "tests"))
    import postgresql

    with postgresql.bare_database() as fresh:
        yield fresh


def prepared(config: Config, workflow: str) -> dict[str, Any]:
    """Set up a data folder with one workflow and a token; gives how a run is started there: path, headers and body."""
    serve.make_data_folder(config.data)
    database = db.Database.open(config.database_url)
    db.initialise(database)
    key = instance.establish(database, config, now=clock.now())
    with database.transaction() as connection:
        saved = apply.apply(connection, definition.parse(workflow), key=key, now=clock.now())
        _, token = tokens.create(connection, name="bench", now=clock.now())
    database.close()
    body = {"workflow_id": saved.id, "input": INPUT}
    return {"path": "/api/v1/trigger", "headers": {"Authorization": f"Bearer {token}"}, "body": body}


@contextmanager
def by_hand(*, workers: int = 0, preload: bool = True, web: bool = True) -> Iterator[Running]:
    """Run the service by hand: gunicorn with two processes of eight threads, and RQ workers that fork for each job."""
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder, valkey.running(Path(folder)) as redis_url:
        port, database = free_port(), Path(folder) / "by-hand.db"
        env = {"DATABASE_URL": f"sqlite:///{database}", "REDIS_URL": redis_url, "PATH": os.environ["PATH"], "HOME": folder}
        subprocess.run([sys.executable, "-c", _MAKE_TABLES], cwd=PROJECT_DIR, env=env, check=True)
        call = {"path": "/trigger", "headers": {"Authorization": f"Bearer {BY_HAND_TOKEN}"}, "body": {"workflow_id": 1, "input": INPUT}}
        running = Running(port, call, env, database)
        with _stopping(running):
            if web:
                running.start("web", gunicorn(port))
                wait_until(lambda: _listens(port), what="gunicorn listens")
            for number in range(workers):
                argv = [sys.executable, "-m", "bench.handwritten.worker", *(["--preload"] if preload else [])]
                running.start(f"worker{number}", argv)
            yield running


def gunicorn(port: int) -> list[str]:
    """Give the command that serves the web half by hand."""
    options = ["--workers", "2", "--threads", "8", "--log-level", "error"]
    return [sys.executable, "-m", "gunicorn", *options, "--bind", f"127.0.0.1:{port}", "bench.handwritten.web:app"]


_MAKE_TABLES = f"""
from bench.handwritten.models import Token, Workflow, create_app, db
with create_app().app_context():
    db.create_all()
    db.session.add_all([Token(digest="{hashlib.sha256(BY_HAND_TOKEN.encode()).hexdigest()}"), Workflow(name="stub")])
    db.session.commit()
"""


@contextmanager
def _stopping(running: Running) -> Iterator[None]:
    try:
        yield
    finally:
        for name in list(running.processes):
            running.stop(name)


def answers(running: Running, *, good: int) -> bool:
    """Tell whether one request is answered as wanted."""
    try:
        return bool(load(running, connections=1, seconds=0.05, good=good)["count"])
    except (subprocess.CalledProcessError, RuntimeError):
        return False


def free_port() -> int:
    """Give a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
