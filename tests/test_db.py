"""The database: made whole or not at all, as schema.sql says, no update lost, nobody kept waiting without an answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from orqo import db
from orqo.config import PROJECT_DIR
from orqo.errors import Unavailable
from orqo.models import Base
from orqo.prepared import Prepared

INITIALISE = "import sys; from orqo import db; print(db.initialise(db.Database.open(sys.argv[1])))"


def opened(path: Path, **options: Any) -> db.Database:
    return db.Database.open(f"sqlite:///{path}", **options)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[db.Database]:
    """A database with its tables."""
    made = opened(tmp_path / "orqo.db", busy_timeout_ms=300)
    assert db.initialise(made)
    yield made
    made.close()


@pytest.fixture
def counter(database: db.Database) -> db.Database:
    """The same with a table of one number."""
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO counter (n) VALUES (0)"))
    return database


def count(database: db.Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT n FROM counter")).scalar_one())


# ── the shape ───────────────────────────────────────────────────────────────────────────────────────────────────────


def spelled(column_type: Any) -> str:
    """Give the word of schema.sql for a type of the models."""
    word = column_type.compile(sqlite.dialect())
    return {"BLOB": "BYTEA", "DOUBLE": "DOUBLE PRECISION"}.get(word, word)


def test_models_and_schema_name_the_same_tables(database: db.Database) -> None:
    with database.read() as connection:
        stored = {name for name in inspect(connection).get_table_names() if not name.startswith("sqlite_")}

    assert stored == set(Base.metadata.tables)


@pytest.mark.parametrize("name", sorted(Base.metadata.tables))
def test_a_model_has_the_columns_types_and_keys_of_the_real_table(database: db.Database, name: str) -> None:
    table = Base.metadata.tables[name]
    with database.read() as connection:
        stored = list(connection.execute(text(f"SELECT * FROM pragma_table_info('{name}')")).mappings())
        foreign = inspect(connection).get_foreign_keys(name)
        unique = {tuple(each["column_names"]) for each in inspect(connection).get_unique_constraints(name)}

    assert {row["name"]: row["type"] for row in stored} == {each.name: spelled(each.type) for each in table.columns}
    # SQLite does not say NOT NULL of a key that it numbers itself.
    assert {row["name"] for row in stored if row["notnull"] or row["pk"]} == {each.name for each in table.columns if not each.nullable}
    if name != "schema_version":
        assert {row["name"] for row in stored if row["pk"]} == {each.name for each in table.primary_key}
    assert foreign_keys_of(foreign) == {(key.parent.name, key.target_fullname, key.ondelete) for key in table.foreign_keys}
    # A UNIQUE over several columns is the schema's own; no model uses it.
    assert {columns for columns in unique if len(columns) == 1} == {(each.name,) for each in table.columns if each.unique}


def foreign_keys_of(found: list[Any]) -> set[tuple[str, str, str | None]]:
    return {
        (each["constrained_columns"][0], f"{each['referred_table']}.{each['referred_columns'][0]}", each["options"].get("ondelete"))
        for each in found
    }


def test_ids_that_were_told_are_never_given_again(database: db.Database) -> None:
    script = (PROJECT_DIR / "schema.sql").read_text(encoding="utf-8")

    assert "id INTEGER PRIMARY KEY," not in script
    with database.read() as connection:
        numbered = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'runs'")).scalar_one()
    assert db.SQLITE_IDENTITY in numbered


def test_foreign_keys_that_are_looked_up_have_an_index(database: db.Database) -> None:
    with database.read() as connection:
        reflected = inspect(connection)
        bare = [
            f"{name}.{column}"
            for name in ("runs", "stages", "deliveries", "attempts", "callbacks", "triggers", "workflow_versions", "idempotency_keys")
            for column in (key["constrained_columns"][0] for key in reflected.get_foreign_keys(name))
            if column not in leading_columns(reflected, name)
        ]

    # A run's workflow is found by a longer index that begins with it; nothing deletes workflows.
    assert bare == []


def leading_columns(reflected: Any, name: str) -> set[str | None]:
    indexed = {each["column_names"][0] for each in reflected.get_indexes(name)}
    unique = {each["column_names"][0] for each in reflected.get_unique_constraints(name)}
    return indexed | unique


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("auto_vacuum", 2), ("busy_timeout", 300)]
)
def test_each_connection_is_durable_and_strict(database: db.Database, pragma: str, value: Any) -> None:
    for use in (database.transaction, database.read):
        with use() as connection:
            assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == value


def test_a_waiting_web_server_gives_up_before_a_worker_does() -> None:
    assert (db.WEB_BUSY_TIMEOUT_MS, db.WORKER_BUSY_TIMEOUT_MS) == (2500, 5000)


# ── transactions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_that_read_then_write_lose_no_update(tmp_path: Path) -> None:
    database = opened(tmp_path / "orqo.db")
    db.initialise(database)
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO counter (n) VALUES (0)"))

    def increment() -> None:
        for _ in range(25):
            with database.transaction() as connection:
                n = connection.execute(text("SELECT n FROM counter")).scalar_one()
                connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert count(database) == 100
    database.close()


def test_a_reader_neither_waits_for_a_writer_nor_sees_what_it_has_not_committed(counter: db.Database) -> None:
    with counter.transaction() as connection:
        connection.execute(text("UPDATE counter SET n = 7"))
        began = time.monotonic()

        seen = count(counter)

        assert time.monotonic() - began < 0.2
        assert seen == 0
    assert count(counter) == 7


def test_a_read_is_one_snapshot(counter: db.Database) -> None:
    with counter.read() as reading:
        first = reading.execute(text("SELECT n FROM counter")).scalar_one()
        with counter.transaction() as connection:
            connection.execute(text("UPDATE counter SET n = 9"))

        assert reading.execute(text("SELECT n FROM counter")).scalar_one() == first


def test_a_failed_use_case_leaves_nothing(counter: db.Database) -> None:
    with pytest.raises(ZeroDivisionError), counter.transaction() as connection:
        connection.execute(text("UPDATE counter SET n = 5"))
        raise ZeroDivisionError

    assert count(counter) == 0


def test_a_busy_database_is_unavailable_after_its_time_and_not_before(counter: db.Database) -> None:
    with counter.transaction():
        began = time.monotonic()
        with pytest.raises(Unavailable) as told, counter.transaction():
            pass
        waited_s = time.monotonic() - began

    assert 0.25 < waited_s < 2
    assert "database is locked" in told.value.detail
    assert told.value.headers["Retry-After"]


def test_a_wrong_statement_is_our_fault_and_not_told_as_a_busy_database(counter: db.Database) -> None:
    with pytest.raises(OperationalError, match="no such table"), counter.transaction() as connection:
        connection.execute(text("UPDATE nowhere SET secret = 1"))


def test_what_is_told_of_a_fault_holds_no_sql_and_no_values(counter: db.Database) -> None:
    other = db.Database.open(str(counter.engine.url), busy_timeout_ms=1)
    with counter.transaction(), pytest.raises(Unavailable) as told, other.read() as connection:
        connection.execute(text("UPDATE counter SET n = :value"), {"value": "hunter2"})
    other.close()

    assert "database is locked" in told.value.detail
    assert "hunter2" not in told.value.detail
    assert "UPDATE" not in told.value.detail


def test_a_folder_that_cannot_hold_the_file_is_unavailable(tmp_path: Path) -> None:
    database = opened(tmp_path / "absent" / "orqo.db")

    with pytest.raises(Unavailable, match="unable to open database file"), database.transaction():
        pass
    database.close()


# ── making and upgrading ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_look_up_after_one_that_failed_has_a_connection_that_works(counter: db.Database) -> None:
    wrong, right = Prepared(text("SELECT n FROM nowhere")), Prepared(text("SELECT count(*) AS found FROM counter"))
    for _ in range(3):
        with pytest.raises(OperationalError):
            counter.look(wrong, {})

        assert counter.look(right, {}).found == 1


def test_initialising_twice_makes_once_and_keeps_the_data(counter: db.Database) -> None:
    with counter.transaction() as connection:
        connection.execute(text("UPDATE counter SET n = 3"))

    assert db.initialise(counter) is False
    assert count(counter) == 3


def test_the_file_is_the_services_alone(database: db.Database, tmp_path: Path) -> None:
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("orqo.db*")}["orqo.db"] == "0o600"


def test_half_a_schema_never_stays(tmp_path: Path) -> None:
    database = opened(tmp_path / "orqo.db")
    with database.transaction() as connection:
        # The script stumbles over it in the middle.
        connection.execute(text("CREATE TABLE deliveries (mine INTEGER)"))

    with pytest.raises(OperationalError, match="already exists"):
        db.initialise(database)

    with database.read() as connection:
        assert inspect(connection).get_table_names() == ["deliveries"]
    assert db.version_of(database) is None
    database.close()


def test_two_processes_that_initialise_at_once_make_one_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/orqo.db"
    start = [sys.executable, "-c", INITIALISE, url]
    processes = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT_DIR) for _ in range(3)]
    ended = [process.communicate(timeout=30) for process in processes]

    assert sorted(out.decode().strip() for out, _ in ended) == ["False", "False", "True"], ended
    database = db.Database.open(url)
    db.check_version(database)
    database.close()


def test_a_missing_database_names_the_command_that_makes_it(tmp_path: Path) -> None:
    database = opened(tmp_path / "orqo.db")

    with pytest.raises(db.SchemaMismatch, match="db init"):
        db.check_version(database)

    assert not (tmp_path / "orqo.db").exists()
    database.close()


@pytest.mark.parametrize(("version", "told"), [(0, "db upgrade"), (99, "install the newer release")], ids=["older", "newer"])
def test_another_version_is_refused_with_what_mends_it(database: db.Database, version: int, told: str) -> None:
    with database.transaction() as connection:
        connection.execute(text("UPDATE schema_version SET version = :version"), {"version": version})

    with pytest.raises(db.SchemaMismatch, match=told):
        db.check_version(database)


def test_upgrading_what_is_up_to_date_does_nothing(database: db.Database) -> None:
    assert db.upgrade(database) == []
    db.check_version(database)


def test_upgrading_nothing_names_the_command_that_makes_it(tmp_path: Path) -> None:
    database = opened(tmp_path / "orqo.db")

    with pytest.raises(db.SchemaMismatch, match="db init"):
        db.upgrade(database)
    database.close()


def test_lease_seconds_never_go_back_and_name_the_boot(database: db.Database) -> None:
    with database.read() as connection:
        first, second = database.lease_clock(connection), database.lease_clock(connection)

    assert first.boot == second.boot != ""
    assert first.seconds <= second.seconds


def test_a_missing_driver_of_postgresql_is_told_with_what_installs_it() -> None:
    script = "import sys; sys.modules['psycopg'] = None; from orqo import db; db.Database.open('postgresql+psycopg://u@h/d')"

    ended = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True)

    assert ended.returncode == 1
    assert "sh setup.sh requirements-postgresql.txt" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("damage", ["another file", "pages lost"])
def test_a_damaged_file_is_told_as_one_and_how_to_mend_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "orqo.db"
    made = opened(path)
    db.initialise(made)
    made.close()
    whole = path.read_bytes()
    path.write_bytes(b"these are my notes, " * 2000 if damage == "another file" else whole[:4096] + b"\xff" * (len(whole) - 4096))
    found = opened(path)

    with pytest.raises(Unavailable, match=r"The database file is damaged .* db restore FILE"), found.read() as connection:
        connection.execute(text("SELECT * FROM runs"))

    found.close()
