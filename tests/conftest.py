"""Fixtures: a real Valkey for the session, a fresh box for each test, the service's real processes."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orqo import clock, create_app, db, executor, instance, leases, outbound, valkey
from orqo.config import Config
from orqo.queue import Bell
from orqo.secretstore import SecretStore
from support import HELLO, Service, TestBox, free_port


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey of the session's own, on a unix socket."""
    with valkey.running(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@contextmanager
def fresh_settings(redis_url: str) -> Iterator[dict[str, str]]:
    """Give the environment of a fresh box, its folder where the stage user can enter: pytest's own is the tester's alone."""
    with tempfile.TemporaryDirectory(prefix="orqo-test-") as folder:
        Path(folder).chmod(0o711)
        data = Path(folder) / "data"
        yield {"ORQO_DATA": str(data), "REDIS_URL": redis_url, "ORQO_PORT": str(free_port()), "ORQO_WORKERS": "2"}


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
    (config.data / "orqo.db").touch(mode=0o600)
    (config.data / "orqo.db").write_bytes(empty_database())
    database = db.Database.open(config.database_url)
    key = instance.establish(database, config, now=clock.now())
    made = TestBox(config, database, key, Bell.of(config, key))
    made.apply(HELLO)
    yield made
    made.bell.close()
    database.close()


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


@pytest.fixture
def settings(redis_url: str) -> Iterator[dict[str, str]]:
    """The environment of a fresh box; tests change it before they ask for the box."""
    with fresh_settings(redis_url) as made:
        yield made


@pytest.fixture
def box(settings: dict[str, str]) -> Iterator[TestBox]:
    """A fresh box with the workflow hello."""
    with fresh_box(settings) as made:
        yield made


@pytest.fixture(scope="module")
def web(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The real web process alone, shared by a module's tests: what they accept stays pending."""
    log = tmp_path_factory.mktemp("web") / "service.log"
    with fresh_settings(redis_url) as settings, fresh_box(settings) as box, running(box, settings, log, "app") as made:
        yield made


@pytest.fixture
def worker(box: TestBox) -> executor.Worker:
    """The parts of a worker in this process; `executor.prepare` was called, so `executor.work()` works."""
    made = executor.Worker(
        box=box.box,
        config=box.config,
        bell=box.bell,
        client=outbound.Client(allowed_networks=box.config.allowed_networks),
        secrets=SecretStore.from_config(box.config),
        owner=leases.owner(),
        stopping=threading.Event(),
    )
    executor.prepare(made)
    return made


@pytest.fixture
def client(box: TestBox) -> Iterator[Any]:
    """Flask's test client of the real application."""
    app = create_app(box.config)
    with app.test_client() as made:
        yield made
    app.extensions["orqo"].database.close()
    app.extensions["orqo"].bell.close()


@pytest.fixture
def service(box: TestBox, settings: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """Web and worker as real processes, ready."""
    with running(box, settings, tmp_path / "service.log", "app", "worker") as made:
        yield made
