"""What SQLite's single writer and single machine never show: lost connections, locks, several machines at once."""

from __future__ import annotations

import base64
import gc
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from sqlalchemy import Connection, event, inspect, text

import postgresql
from inbox import inbox
from orqo import attempts, callbacks, clock, create_app, db, deliveries, flow, overview, retention, runs, schedules
from orqo.errors import Unavailable
from orqo.models import Base, RunStatus
from orqo.slots import Room
from support import Service, TestBox, free_port, running, wait_for

AT_ONCE = 4
pytestmark = pytest.mark.skipif(not postgresql.IS_WANTED, reason="it is about PostgreSQL alone: make test DB=postgresql")


def kill_connections(box: TestBox) -> int:
    """End every connection to the box's database but this one, as a restart of the server does; gives how many."""
    url = box.config.database_url.replace("postgresql+psycopg://", "postgresql://")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        return len(connection.execute(f"SELECT pg_terminate_backend(pid) {others}").fetchall())


def at_once(call: Callable[[db.Database], Any], url: str, count: int = AT_ONCE) -> list[Any]:
    """Call with a database object of each thread's own, as machines have, all at the same moment."""
    start = threading.Barrier(count)

    def one(_: int) -> Any:
        with ExitStack() as stack:
            database = db.Database.open(url)
            stack.callback(database.close)
            start.wait()
            return call(database)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# ── making it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_machines_that_initialise_at_once_make_one_database() -> None:
    with postgresql.bare_database() as url:
        made = at_once(db.initialise, url.replace("postgresql://", "postgresql+psycopg://"))

    assert sorted(made) == [False, False, False, True]


def test_half_a_schema_never_stays() -> None:
    with postgresql.bare_database() as url, psycopg.connect(url, autocommit=True) as connection:
        # The script stumbles over it in the middle.
        connection.execute("CREATE TABLE deliveries (mine INTEGER)")
        database = db.Database.open(url.replace("postgresql://", "postgresql+psycopg://"))

        with pytest.raises(Exception, match="already exists"):
            db.initialise(database)

        assert db.version_of(database) is None
        database.close()


@pytest.mark.parametrize("name", sorted(Base.metadata.tables))
def test_a_model_has_the_types_of_the_real_column(box: TestBox, name: str) -> None:
    with box.database.read() as connection:
        stored = {each["name"]: str(each["type"].compile(connection.dialect)) for each in inspect(connection).get_columns(name)}
        modelled = {each.name: each.type.compile(connection.dialect) for each in Base.metadata.tables[name].columns}

    assert stored == modelled


# ── a lost connection ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_lost_within_a_transaction_is_unavailable_and_the_next_one_works(box: TestBox) -> None:
    with pytest.raises(Unavailable, match="connection was lost"), box.database.transaction() as connection:
        connection.execute(text("UPDATE workflows SET enabled = 0"))
        kill_connections(box)
        connection.execute(text("UPDATE workflows SET enabled = 0"))

    assert box.rows("SELECT enabled FROM workflows")[0]["enabled"] == 1


def test_connections_lost_while_idle_are_not_noticed(box: TestBox) -> None:
    box.accept()
    assert kill_connections(box) > 0

    assert box.accept() > 0


def test_a_connection_that_comes_back_after_the_end_is_closed(box: TestBox) -> None:
    other = db.Database.open(box.config.database_url)

    with other.read():
        other.close()

    del other
    assert connections_left() == []


def test_an_application_that_cannot_be_made_keeps_no_connection(box: TestBox) -> None:
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))

    with pytest.raises(db.SchemaMismatch) as refused:
        create_app(box.config)

    assert "newer release" in str(refused.value)
    wait_for(lambda: is_alone(box), what="its connections are closed")


def connections_left() -> list[warnings.WarningMessage]:
    """Give what the driver tells of connections that nobody closed and nobody can reach any more."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    return told


def test_no_201_is_lost_while_connections_are_killed(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}
    answers: list[requests.Response] = []
    stop = threading.Event()

    def call(service: Service) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                answers.append(session.post(f"{service.url}/api/v1/trigger", json={"workflow": "hello"}, headers=headers, timeout=10))

    with running(box, settings, tmp_path / "service.log", "app", "worker") as service, ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, service) for _ in range(3)]
        for _ in range(5):
            time.sleep(0.2)
            kill_connections(box)
        stop.set()
        for caller in callers:
            caller.result()
        given = {answer.json()["workflow_run_id"] for answer in answers if answer.status_code == 201}
        wait_for(lambda: box.rows("SELECT count(*) AS n FROM runs WHERE finished_at IS NULL")[0]["n"] == 0, within_s=60)

    ended = {row["id"]: row["status"] for row in box.rows("SELECT id, status FROM runs")}
    assert given and {ended.get(run_id) for run_id in given} == {"completed"}
    assert {answer.status_code for answer in answers} <= {201, 503}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)


def test_what_a_command_did_is_recorded_over_a_lost_connection(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    box.apply("name: once\nstages: [{name: one, script: 'sleep 1; echo done'}]\n")
    with running(box, settings, tmp_path / "service.log", "app", "worker"):
        run_id = box.accept("once")
        wait_for(lambda: box.run(run_id)["status"] == "running")
        until = time.monotonic() + 2
        while time.monotonic() < until and box.run(run_id)["status"] == "running":
            kill_connections(box)
            time.sleep(0.05)
        wait_for(lambda: box.run(run_id)["finished_at"])

    assert [(stage["attempts"], stage["output"]) for stage in box.run(run_id)["stages"]] == [(1, "done")]


def test_what_waits_too_long_for_a_lock_is_unavailable(box: TestBox) -> None:
    impatient = db.Database.open(box.config.database_url, busy_timeout_ms=100)
    lock = text("SELECT id FROM workflows FOR UPDATE")

    with box.database.transaction() as connection:
        connection.execute(lock)
        with pytest.raises(Unavailable), impatient.transaction() as waiting:
            waiting.execute(lock)
    impatient.close()


def test_of_two_that_wait_for_each_other_one_is_told_to_try_again(box: TestBox) -> None:
    box.apply("name: other\nstages: [{name: one, stub: {}}]\n")
    first, second = (row["id"] for row in box.rows("SELECT id FROM workflows ORDER BY id"))
    both_hold = threading.Barrier(2)
    lock = text("SELECT id FROM workflows WHERE id = :id FOR UPDATE")

    def take(order: tuple[int, int]) -> str:
        try:
            with box.database.transaction() as connection:
                connection.execute(lock, {"id": order[0]})
                both_hold.wait()
                connection.execute(lock, {"id": order[1]})
        except Unavailable:
            return "unavailable"
        return "done"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take, [(first, second), (second, first)])) == ["done", "unavailable"]


# ── several at once ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_run_is_claimed_once(box: TestBox) -> None:
    accepted = {box.accept() for _ in range(20)}

    def claim_all(database: db.Database) -> list[int]:
        own = runs.Box(database, box.box.definitions, box.config.base_url, box.key)
        claims = iter(lambda: runs.claim(own, owner="other/boot/1/1", now=clock.now()), None)
        return [claim.run.id for claim in claims]

    claimed = [run_id for mine in at_once(claim_all, box.config.database_url) for run_id in mine]

    assert sorted(claimed) == sorted(accepted)


def test_each_delivery_is_claimed_once(box: TestBox) -> None:
    box.apply("name: told\ncallbacks: [{url: 'http://127.0.0.1:1/x'}]\nstages: [{name: one, stub: {}}]\n")
    for _ in range(20):
        runs.stop(box.box, box.accept("told"), now=clock.now())

    def claim(database: db.Database) -> list[int]:
        due = deliveries.claim_due(database, owner="x", room=Room(slots=20, guarded=20, ahead=0, per_host=20), now=clock.now())
        return [row.id for row in due]

    claimed = [delivery_id for mine in at_once(claim, box.config.database_url) for delivery_id in mine]

    assert len(claimed) == len(set(claimed)) == 20


def test_a_callback_follows_one_that_is_recorded_while_it_is_written(box: TestBox) -> None:
    box.apply("name: told\ncallbacks: [{url: 'http://127.0.0.1:1/x', events: [output, completed]}]\nstages: [{name: one, stub: {}}]\n")
    run_id = box.accept("told")
    claim = runs.claim(box.box, owner="x", now=clock.now())
    assert claim is not None
    # Of two deliveries in order the first can be sent; the second is written while the first one's end is recorded.
    with box.database.transaction() as connection:
        first = callbacks.record(connection, told(claim, "output"), box_listeners(connection, claim), now=clock.now())
    sent = deliveries.claim_due(box.database, owner="x", room=Room(slots=9, guarded=9, ahead=0, per_host=9), now=clock.now())
    assert first == len(sent) == 1
    outcome = deliveries.Outcome(clock.now(), 1, 204, "delivered", "")

    with ThreadPoolExecutor(1) as pool:
        with box.database.transaction() as connection:
            callbacks.record(connection, told(claim, "completed"), box_listeners(connection, claim), now=clock.now())
            recording = pool.submit(attempts.record_attempt, box.database, sent[0], outcome, owner="x", schedule_s=(1.0,), now=clock.now())
            # As long as it takes where nothing keeps it back.
            wait([recording], timeout=0.5)
        recording.result()

    rows = box.rows("SELECT status, next_attempt_at FROM deliveries WHERE run_id = :id ORDER BY id", id=run_id)
    assert [row["status"] for row in rows] == ["delivered", "pending"]
    assert rows[1]["next_attempt_at"] is not None, "nobody would ever send it"


def box_listeners(connection: Connection, claim: runs.Claim) -> callbacks.Listeners:
    return callbacks.listeners(connection, claim.run.workflow_id, claim.run.trigger_id)


def told(claim: runs.Claim, name: str) -> callbacks.Event:
    names = ("id", "workflow_id", "status", "trigger_id", "created_at", "started_at", "finished_at")
    shown = {key: claim.run._mapping[key] for key in names}
    run = shown | {"workflow": "told", "error": None, "metadata": {}, "url": "http://127.0.0.1:1"}
    return callbacks.Event(name=name, run=run, roots=dict, output=None, output_kind=None, stage="one", wait=None, requested=())


def test_a_schedule_fires_once_from_several_dispatchers(box: TestBox) -> None:
    box.apply("name: timed\ntriggers: [{name: tick, schedule: '* * * * *'}]\nstages: [{name: one, stub: {}}]\n")
    later = clock.now() + timedelta(minutes=2)

    def fire(database: db.Database) -> list[int | None]:
        return [schedules.fire(database, row, now=later) for row in schedules.due(database, now=later)]

    fired = [run_id for mine in at_once(fire, box.config.database_url) for run_id in mine if run_id is not None]

    assert len(fired) == 1
    assert len(box.rows("SELECT id FROM runs")) == 1


def test_a_concurrency_limit_holds_for_calls_of_several_machines(box: TestBox) -> None:
    box.apply("name: alone\nconcurrency: {key: all, limit: 1}\nstages: [{name: one, stub: {}}]\n")
    row = box.rows("SELECT id, version_id FROM workflows WHERE name = 'alone'")[0]

    def accept(database: db.Database) -> None:
        for _ in range(5):
            with database.transaction() as connection:
                runs.accept(connection, runs.NewRun(workflow_id=row["id"], version_id=row["version_id"], origin="api"), now=clock.now())

    at_once(accept, box.config.database_url)

    assert box.rows("SELECT count(*) AS n FROM runs WHERE held = 0") == [{"n": 1}]
    assert box.rows("SELECT count(*) AS n FROM runs") == [{"n": 5 * AT_ONCE}]


def test_runs_and_their_callbacks_pass_through_two_machines(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    other = {"ORQO_PORT": str(free_port()), "ORQO_DATA": str(tmp_path / "other"), "ORQO_KEY": base64.b64encode(box.key).decode()}
    Path(other["ORQO_DATA"]).mkdir()
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}
    with inbox() as done, ExitStack() as stack:
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{delay: 50ms}}}}]\n")
        one = stack.enter_context(running(box, settings, tmp_path / "one.log", "app", "worker"))
        two = stack.enter_context(running(box, settings | other, tmp_path / "two.log", "app", "worker"))
        for service in (one, two) * 10:
            answer = requests.post(f"{service.url}/api/v1/trigger", json={"workflow": "told"}, headers=headers, timeout=10)
            assert answer.status_code == 201
        wait_for(lambda: len(done.arrived) >= 20, within_s=30)

    assert sorted(arrived.json["workflow_run_id"] for arrived in done.arrived) == [
        row["id"] for row in box.rows("SELECT id FROM runs ORDER BY id")
    ]


# ── many rows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_for_any_parameter_reads_no_whole_table(box: TestBox) -> None:
    """After five executions the server may keep one plan for all values, which passes over an index with a condition."""
    box.apply("name: told\ncallbacks: [{url: 'http://127.0.0.1:1/x'}]\nstages: [{name: one, stub: {}}]\n")
    runs.stop(box.box, box.accept("told"), now=clock.now())
    with box.database.transaction() as connection:
        for table, changed in (("runs", {}), ("deliveries", {"webhook_id": "'msg_' || i", "run_id": "i", "status": "'dead'"})):
            columns = [column.name for column in Base.metadata.tables[table].columns if column.name != "id"]
            values = ", ".join(changed.get(name, name) for name in columns)
            many = f"SELECT {values} FROM {table}, generate_series(1, 20000) AS i"
            connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) {many}"))
        connection.execute(text("ANALYZE"))
    box.database.engine.dispose()
    event.listen(box.database.engine, "connect", for_any_parameter)
    wait_for(lambda: is_alone(box), what="what was counted so far is told")
    whole = "SELECT sum(seq_scan) AS n FROM pg_stat_user_tables WHERE relname IN ('runs', 'deliveries')"
    before = box.rows(whole)[0]["n"]

    _a_life(box)
    box.database.engine.dispose()

    wait_for(lambda: is_alone(box), what="what was counted is told")
    assert box.rows(whole)[0]["n"] == before


def is_alone(box: TestBox) -> bool:
    """Tell whether no other connection is open: each tells its counts before it ends."""
    return box.rows("SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()") == [{"n": 1}]


def for_any_parameter(connection: Any, _record: object) -> None:
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.commit()


def _a_life(box: TestBox) -> None:
    """Accept, claim, finish, deliver and sweep; look at Home and for what is kept no longer."""
    box.accept("told")
    claim = runs.claim(box.box, owner="x", now=clock.now())
    assert claim is not None
    end, output = runs.StageEnd(output=b"1", output_kind="json"), runs.Output(b"1", "json")
    runs.finish(box.box, claim, end, flow.End(RunStatus.COMPLETED), output, elapsed_ms=1, next_owner="x", now=clock.now())
    now = clock.now()
    due = deliveries.claim_due(box.database, owner="x", room=Room(slots=20, guarded=20, ahead=0, per_host=20), now=now)
    with box.database.transaction() as connection:
        sent = [(row, deliveries.Outcome(now, 5, 200, "delivered", "")) for row in due]
        attempts.record(connection, sent, owner="x", schedule_s=(5.0,), now=now)
    runs.sweep(box.box, stale_s=2.0, now=now)
    deliveries.sweep(box.database)
    retention.prune(box.database, retention.Limits(days=30, runs=1_000_000), box.config.data / "runs", now=now)
    with box.database.read() as connection:
        overview.present(connection, now=now)
        overview.deliveries_due(connection)
        runs.list_all(connection)
        runs.list_all(connection, status="waiting")
        deliveries.list_all(connection, status="pending")
