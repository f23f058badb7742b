"""Upgrading: a box that an earlier release filled has the shape of a new one afterwards and keeps every row, on both engines.

tests/schemas/ holds schema.sql as each earlier version was released. The data is made by this release: a migration adds what is
new, so an earlier release wrote the same columns, less those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Connection, inspect, text

import postgresql
from orqo import clock, db, runs
from orqo.models import Base
from support import Service, TestBox, fresh_settings, running, wait_for

SCHEMAS = {int(path.stem): path for path in sorted(Path(__file__).with_name("schemas").glob("*.sql"))}
INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index'",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
}
FLOW = """
name: told
callbacks: [{url: 'http://127.0.0.1:1/x'}]
triggers: [{name: hook, webhook: {}}, {name: nightly, schedule: '15 2 * * *'}]
stages: [{name: one, stub: {}}]
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/orqo.db"
        return
    with postgresql.bare_database() as made:
        yield made.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def database(url: str) -> Iterator[db.Database]:
    made = db.Database.open(url)
    yield made
    made.close()


def of_version(database: db.Database, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a database as an earlier release made it."""
    monkeypatch.setattr(db, "SCHEMA_FILE", SCHEMAS[version])
    db.initialise(database)
    monkeypatch.undo()
    assert db.version_of(database) == version


def shape(connection: Connection) -> dict[str, Any]:
    """Give what a database has: columns with their types, and indexes with their conditions."""
    seen = inspect(connection)
    columns = {
        table: {(each["name"], str(each["type"]), each["nullable"]) for each in seen.get_columns(table)} for table in seen.get_table_names()
    }
    return {"columns": columns, "indexes": {tuple(row) for row in connection.execute(text(INDEXES[connection.dialect.name]))}}


def fill(source: TestBox) -> None:
    """Leave something in the tables that every release has."""
    source.apply(FLOW)
    source.token("read")
    runs.stop(source.box, source.accept("told"), now=clock.now())
    source.accept("told")


def copy_rows(source: db.Database, target: db.Database) -> dict[str, list[Any]]:
    """Put the rows of one database into another of an earlier version, and give what is there then."""
    with source.read() as reading, target.transaction() as writing:
        there = inspect(writing)
        for table in Base.metadata.sorted_tables:
            if table.name == "schema_version" or not there.has_table(table.name):
                continue
            names = {each["name"] for each in there.get_columns(table.name)}
            rows = [{name: value for name, value in row.items() if name in names} for row in reading.execute(table.select()).mappings()]
            if rows:
                columns = sorted(rows[0])
                values = ", ".join(f":{name}" for name in columns)
                quoted = ", ".join(f'"{name}"' for name in columns)
                writing.execute(text(f"INSERT INTO {table.name} ({quoted}) VALUES ({values})"), rows)
        return rows_of(writing)


def rows_of(connection: Connection) -> dict[str, list[Any]]:
    tables = sorted(set(inspect(connection).get_table_names()) - {"schema_version"})
    return {name: [dict(row) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1")).mappings()] for name in tables}


@pytest.mark.parametrize("version", SCHEMAS)
def test_an_upgraded_database_has_the_shape_of_a_new_one_and_every_row(
    box: TestBox, database: db.Database, version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_version(database, version, monkeypatch)
    fill(box)
    before = copy_rows(box.database, database)

    done = db.upgrade(database)

    assert done == list(range(version + 1, db.SCHEMA_VERSION + 1))
    db.check_version(database)
    assert len(before["runs"]) == 2 and len(before["deliveries"]) == 1
    with database.read() as connection:
        after, upgraded = rows_of(connection), shape(connection)
    kept = {name: [{key: row[key] for key in old} for row, old in zip(after[name], rows, strict=True)] for name, rows in before.items()}
    assert kept == before
    assert upgraded == new_shape(database, tmp_path)


def new_shape(like: db.Database, tmp_path: Path) -> dict[str, Any]:
    """Give the shape of a database that this release makes, on the same engine."""
    with ExitStack() as stack:
        if like.is_sqlite:
            url = f"sqlite:///{tmp_path}/new.db"
        else:
            url = stack.enter_context(postgresql.fresh_database()).replace("postgresql://", "postgresql+psycopg://")
        made = db.Database.open(url)
        stack.callback(made.close)
        db.initialise(made)
        with made.read() as connection:
            return shape(connection)


@pytest.mark.parametrize("version", SCHEMAS)
def test_until_it_is_upgraded_nothing_of_this_release_touches_it(
    database: db.Database, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_version(database, version, monkeypatch)

    with pytest.raises(db.SchemaMismatch, match="db upgrade"):
        db.check_version(database)


def test_every_earlier_version_is_kept_here() -> None:
    assert list(SCHEMAS) == list(range(1, db.SCHEMA_VERSION))


# ── what runs while it happens ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, redis_url: str) -> Iterator[dict[str, str]]:
    """The environment of a fresh box, on each engine."""
    with fresh_settings(redis_url) as made, ExitStack() as stack:
        made.pop("DATABASE_URL", None)
        if request.param == "postgresql":
            made["DATABASE_URL"] = stack.enter_context(postgresql.fresh_database())
        yield made


def be_of_version(box: TestBox, version: int) -> None:
    """Let the database be as another release left it."""
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE schema_version SET version = :version"), {"version": version})


def test_nothing_is_claimed_from_a_database_that_a_newer_release_upgraded(box: TestBox) -> None:
    run_id = box.accept()
    be_of_version(box, db.SCHEMA_VERSION + 1)

    claim = runs.claim(box.box, owner="x", now=clock.now())

    assert (claim, box.run(run_id)["status"]) == (None, "pending")


def test_what_runs_while_the_database_is_upgraded_ends_its_runs_and_begins_none(
    box: TestBox, settings: dict[str, str], tmp_path: Path
) -> None:
    box.apply("name: slow\nstages: [{name: one, script: 'sleep 2; echo done'}, {name: two, script: 'echo $ORQO_STAGE'}]\n")
    log = tmp_path / "service.log"
    with running(box, settings, log, "app", "worker") as service:
        under_way = box.accept("slow")
        wait_for(lambda: box.run(under_way)["status"] == "running")
        be_of_version(box, db.SCHEMA_VERSION + 1)
        later = box.accept()
        wait_for(lambda: "status=outdated" in log.read_text(), within_s=20)
        wait_for(lambda: box.run(under_way)["finished_at"], within_s=20)

        unready = requests.get(f"{service.url}/readyz", timeout=5)

        assert (unready.status_code, "install the newer release" in unready.json()["detail"]) == (503, True)
        assert "install the newer release" in log.read_text()
        assert box.rows("SELECT status, claims FROM runs WHERE id = :id", id=later) == [{"status": "pending", "claims": 0}]
        be_of_version(box, db.SCHEMA_VERSION)
        wait_for(lambda: box.run(later)["status"] == "completed", within_s=30)

    assert [(stage["attempts"], stage["output"]) for stage in box.run(under_way)["stages"]] == [(1, "done"), (1, "two")]
    assert "status=fault" not in log.read_text()


def test_a_worker_of_an_earlier_release_refuses_to_start_on_an_upgraded_database(
    box: TestBox, settings: dict[str, str], tmp_path: Path
) -> None:
    be_of_version(box, db.SCHEMA_VERSION + 1)
    service = Service(box, {"PATH": os.environ["PATH"], **settings}, log=tmp_path / "service.log")
    for name in ("app", "worker"):
        service.start(name)

    ended = {name: process.wait(timeout=30) for name, process in service.processes.items()}

    assert ended == {"app": 1, "worker": 1}
    assert service.log.read_text().count("install the newer release") == 2
