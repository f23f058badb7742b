"""`db copy`: a box moves from SQLite to PostgreSQL and nobody outside notices: URLs, tokens, waits and callbacks stay valid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import postgresql
from inbox import inbox
from orqo import clock, copying, db, instance
from orqo.config import PROJECT_DIR, Config, ConfigError
from orqo.models import Base
from orqo.queue import Bell
from support import Service, TestBox, free_port, fresh_box, running, wait_for

FLOW = """
name: asks
callbacks: [{url: 'URL', events: [completed, waiting]}]
stages:
  - {name: ask, wait: {timeout: 1h}, outcomes: [yes, no]}
"""


@pytest.fixture
def sqlite_box(redis_url: str, tmp_path: Path) -> Iterator[TestBox]:
    """A box on SQLite, whatever the tests' other boxes are on."""
    tmp_path.chmod(0o711)
    settings = {"ORQO_DATA": str(tmp_path / "data"), "REDIS_URL": redis_url, "ORQO_PORT": str(free_port()), "ORQO_WORKERS": "1"}
    with fresh_box(settings) as made:
        yield made


@pytest.fixture
def target() -> Iterator[str]:
    with postgresql.bare_database() as url:
        yield url


def cli(box: TestBox, target: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "ORQO_DATA": str(box.config.data), "DATABASE_URL": target}
    return subprocess.run([sys.executable, "-m", "orqo", *words], cwd=PROJECT_DIR, env=env, capture_output=True, text=True, check=False)


def post(service: Service, path: str, body: Any, token: str | None = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(service.url + path, json=body, headers=headers, timeout=10)


def moved(box: TestBox, target: str) -> TestBox:
    """Open the box on its new database: the same folder, the same key."""
    settings = {"ORQO_DATA": str(box.config.data), "REDIS_URL": box.bell.url, "ORQO_PORT": str(box.config.port), "DATABASE_URL": target}
    config = Config.from_environ(settings)
    database = db.Database.open(config.database_url)
    key = instance.establish(database, config, now=clock.now())
    return TestBox(config, database, key, Bell.of(config, key))


def test_a_box_that_moved_goes_on_where_it_was(sqlite_box: TestBox, target: str, tmp_path: Path) -> None:
    box = sqlite_box
    with inbox() as done:
        box.apply(FLOW.replace("URL", done.url()))
        hook, token = box.hook("asks"), box.token("trigger", "read")
        settings = {"ORQO_DATA": str(box.config.data), "REDIS_URL": box.bell.url, "ORQO_PORT": str(box.config.port), "ORQO_WORKERS": "1"}
        with running(box, settings, tmp_path / "before.log", "app", "worker"):
            asked = box.accept("asks")
            wait_for(lambda: box.run(asked)["status"] == "waiting" and len(done.arrived) == 1)
        # Accepted while no worker runs: the callback of the answer is still to come.
        pending = box.accept("asks", input={"text": "\0 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")})
        before = {name: box.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in Base.metadata.tables}

        copied = cli(box, target, "db", "copy", box.config.database_url, "-", "--json")

        assert copied.returncode == 0, copied.stderr
        there = moved(box, target)
        assert {name: there.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in Base.metadata.tables} == before
        reply_to = done.arrived[0].json["data"]["link"].split("token=")[1]
        with running(there, settings | {"DATABASE_URL": target}, tmp_path / "after.log", "app", "worker") as service:
            wait_for(lambda: there.run(pending)["status"] == "waiting")
            assert post(service, "/api/v1/trigger", {"workflow": "asks"}, token).status_code == 201
            assert post(service, hook, {}).json()["workflow_run_id"] > pending
            assert post(service, "/api/v1/callback", {"status": "completed", "outcome": "yes"}, reply_to).status_code == 200
            wait_for(lambda: there.run(asked)["status"] == "completed")
            wait_for(lambda: [r.json["workflow_run_id"] for r in done.arrived if r.json["type"] == "run.completed"] == [asked])
        there.bell.close()
        there.database.close()


def test_ids_go_on_behind_those_that_were_ever_given(sqlite_box: TestBox, target: str) -> None:
    gone = sqlite_box.accept()
    with sqlite_box.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM runs")

    copying.copy(sqlite_box.config.database_url, target, say=lambda *_: None)

    there = moved(sqlite_box, target)
    assert there.accept() == gone + 1
    there.bell.close()
    there.database.close()


def test_the_copy_has_the_statistics_that_its_plans_are_made_by(sqlite_box: TestBox, target: str) -> None:
    ids = [sqlite_box.accept() for _ in range(20)]

    copying.copy(sqlite_box.config.database_url, target, say=lambda *_: None)

    there = moved(sqlite_box, target)
    assert there.rows("SELECT reltuples FROM pg_class WHERE oid = CAST('runs' AS regclass)") == [{"reltuples": len(ids)}]
    there.bell.close()
    there.database.close()


def test_a_target_that_holds_rows_is_refused(sqlite_box: TestBox, target: str) -> None:
    copying.copy(sqlite_box.config.database_url, target, say=lambda *_: None)

    with pytest.raises(ConfigError, match="needs an empty database"):
        copying.copy(sqlite_box.config.database_url, target, say=lambda *_: None)


def test_what_cannot_be_copied_leaves_the_target_empty(sqlite_box: TestBox, target: str) -> None:
    with sqlite_box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE workflows SET name = 'a' || char(0) || 'b'")

    ended = cli(sqlite_box, target, "db", "copy", sqlite_box.config.database_url, "-")

    assert ended.returncode == 1
    assert "workflows" in ended.stderr and "Traceback" not in ended.stderr
    database = db.Database.open(target.replace("postgresql://", "postgresql+psycopg://"))
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM api_tokens").scalar() == 0
    database.close()


def test_only_this_direction_is_offered(sqlite_box: TestBox, target: str) -> None:
    ended = cli(sqlite_box, target, "db", "copy", target, sqlite_box.config.database_url)

    assert ended.returncode == 1 and "db copy goes from SQLite to PostgreSQL" in ended.stderr
