"""What tests are written with: a box in this process, the service as real processes, waiting without guessing.

Nothing of ours is replaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from ports import free_port as free_port
from sqlalchemy import inspect, text

import postgresql
from orqo import apply, clock, create_app, db, definition, instance, machines, runs, tokens, triggers, workflows
from orqo.config import PROJECT_DIR, Config
from orqo.models import Base
from orqo.queue import Bell

sqlite_only = pytest.mark.skipif(postgresql.IS_WANTED, reason="it is about SQLite alone")
REFUSE_ON_SQLITE = "SELECT RAISE(ABORT, 'planted')"
REFUSE_ON_POSTGRESQL = "RAISE integrity_constraint_violation"
HELLO = """
name: hello
stages:
  - name: greet
    stub: {output: {greeting: "Hello, ${input.name?}"}}
"""


@dataclass
class TestBox:
    """One box in this process: its settings, database and key, and short ways to what the tests arrange."""

    __test__ = False
    config: Config
    database: db.Database
    key: bytes
    bell: Bell

    @property
    def box(self) -> runs.Box:
        return runs.Box(self.database, workflows.Definitions(), self.config.base_url, self.key, machines.identity(self.config))

    def apply(self, source: str, folder: Path | None = None) -> workflows.Saved:
        """Apply a workflow file's text."""
        with self.database.transaction() as connection:
            return apply.apply(connection, definition.parse(source, folder=folder), key=self.key, now=clock.now())

    def token(self, *scopes: str, **options: Any) -> str:
        """Make an API token."""
        with self.database.transaction() as connection:
            return tokens.create(connection, name="test", scopes=scopes or ("admin",), now=clock.now(), **options)[1]

    def hook(self, workflow: str = "hello", name: str = "example") -> str:
        """Give the path of a webhook, made where it is absent."""
        with self.database.transaction() as connection:
            row = workflows.get(connection, workflow)
            known = [t for t in triggers.list_all(connection) if (t["workflow"], t["name"]) == (workflow, name)]
            options = {"workflow_id": row.id, "name": name, "key": self.key, "origin": "cli", "now": clock.now()}
            trigger_id = known[0]["id"] if known else triggers.create(connection, **options)
            return f"/api/v1/hooks/{triggers.token_of(triggers.get(connection, trigger_id), self.key)}"

    def accept(self, workflow: str = "hello", **changes: Any) -> int:
        """Accept a run and give its id."""
        with self.database.transaction() as connection:
            row = workflows.get(connection, workflow)
            new = runs.NewRun(**{"workflow_id": row.id, "version_id": row.version_id, "origin": "api"} | changes)
            return runs.accept(connection, new, now=clock.now()).run_id

    def run(self, run_id: int) -> dict[str, Any]:
        """Give a run as the API shows it."""
        with self.database.read() as connection:
            shown = runs.show(connection, run_id)
        assert shown is not None
        return shown

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        """Give what a query on the database finds."""
        with self.database.read() as connection:
            return list(connection.execute(text(query), parameters).mappings())

    def dump(self) -> str:
        """Give all that the database holds, for what must not be in it."""
        with self.database.read() as connection:
            tables = [connection.execute(text(f"SELECT * FROM {name}")) for name in inspect(connection).get_table_names()]
            return "\n".join(repr(tuple(row)) for table in tables for row in table)


@dataclass
class Service:
    """The real processes: web and worker, each started, killed and looked at by name."""

    __test__ = False
    box: TestBox
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    log: Path = Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.env['ORQO_PORT']}"

    def start(self, name: str) -> None:
        """Start `app` or `worker`."""
        with self.log.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(PROJECT_DIR / f"{name}.py")], env=self.env, stdout=log, stderr=log, cwd=self.log.parent
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """Signal a process and wait for its end; gives its exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=20)

    def wait_ready(self, *, path: str = "/readyz", within_s: float = 20) -> None:
        """Wait until the service says that it is ready."""
        wait_for(lambda: self._answers(path), within_s=within_s, what=f"{path}; log: {self.log}")

    def _answers(self, path: str) -> bool:
        try:
            return requests.get(self.url + path, timeout=2).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False


def plant(box: TestBox, change: str, sql: str | None = None) -> None:
    """Let the database do a statement after each such change (`INSERT ON runs`); without one it refuses the change."""
    with box.database.transaction() as connection:
        if box.database.is_sqlite:
            connection.exec_driver_sql(f"CREATE TRIGGER planted AFTER {change} BEGIN {sql or REFUSE_ON_SQLITE}; END")
            return
        body = f"BEGIN {sql or REFUSE_ON_POSTGRESQL}; RETURN NULL; END"
        connection.exec_driver_sql(f"CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
        connection.exec_driver_sql(f"CREATE TRIGGER planted AFTER {change} FOR EACH ROW EXECUTE FUNCTION planted()")


@contextmanager
def locked(box: TestBox) -> Iterator[None]:
    """Keep all others from writing; they may read."""
    with box.database.transaction() as connection:
        if not box.database.is_sqlite:
            connection.execute(text(f"LOCK TABLE {', '.join(Base.metadata.tables)} IN EXCLUSIVE MODE"))
        yield


def lease_seconds(box: TestBox) -> float:
    """Read the clock of leases."""
    with box.database.read() as connection:
        return box.database.lease_clock(connection).seconds


def wait_for(condition: Callable[[], Any], *, within_s: float = 10.0, what: str = "the condition") -> Any:
    """Give the condition's value as soon as it is true; fail the test after the time."""
    until = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return value


@contextmanager
def fresh_settings(redis_url: str) -> Iterator[dict[str, str]]:
    """Give the environment of a fresh box, its folder where the stage user can enter: pytest's own is the tester's alone."""
    with tempfile.TemporaryDirectory(prefix="orqo-test-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o711)
        data = Path(folder) / "data"
        settings = {"ORQO_DATA": str(data), "REDIS_URL": redis_url, "ORQO_PORT": str(free_port()), "ORQO_WORKERS": "2"}
        if postgresql.IS_WANTED:
            settings["DATABASE_URL"] = stack.enter_context(postgresql.fresh_database())
        yield settings


@cache
def empty_database() -> bytes:
    """Give the file that `db.initialise` makes: copying it is ten times as quick, and most tests want one."""
    with tempfile.TemporaryDirectory() as folder:
        database = db.Database.open(f"sqlite:///{folder}/orqo.db")
        db.initialise(database)
        # Closing the last connection empties the write-ahead log into the file.
        database.close()
        return Path(folder, "orqo.db").read_bytes()


@contextmanager
def fresh_box(settings: dict[str, str]) -> Iterator[TestBox]:
    """Give a box that was just made, with the workflow hello."""
    config = Config.from_environ(settings)
    config.data.mkdir(mode=0o711, exist_ok=True)
    if config.database_path:
        config.database_path.touch(mode=0o600)
        config.database_path.write_bytes(empty_database())
    database = db.Database.open(config.database_url)
    key = instance.establish(database, config, now=clock.now())
    machines.established(config)
    made = TestBox(config, database, key, Bell.of(config, key))
    made.apply(HELLO)
    yield made
    made.bell.close()
    database.close()


@contextmanager
def application(config: Config) -> Iterator[Flask]:
    """Give the real web application; its connections are closed whatever becomes of the test."""
    app = create_app(config)
    try:
        yield app
    finally:
        app.extensions["orqo"].database.close()
        app.extensions["orqo"].bell.close()


@contextmanager
def running(box: TestBox, settings: dict[str, str], log: Path, *names: str) -> Iterator[Service]:
    """Give the service with these of its processes running."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}
    made = Service(box, env, log=log)
    for name in names:
        made.start(name)
    try:
        made.wait_ready(path="/readyz" if "worker" in names else "/healthz")
        yield made
    finally:
        for name in list(made.processes):
            made.processes[name].send_signal(signal.SIGCONT)
            made.stop(name)
