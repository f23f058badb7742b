"""Fixtures: a real Valkey for the session, a fresh box for each test, the service's real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orqo import executor, leases, outbound, valkey
from orqo.secretstore import SecretStore
from support import Service, TestBox, application, fresh_box, fresh_settings, running


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey of the session's own, on a unix socket."""
    with valkey.running(tmp_path_factory.mktemp("valkey")) as url:
        yield url


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
    with application(box.config) as app, app.test_client() as made:
        yield made


@pytest.fixture
def service(box: TestBox, settings: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """Web and worker as real processes, ready."""
    with running(box, settings, tmp_path / "service.log", "app", "worker") as made:
        yield made
