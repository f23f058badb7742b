"""Rows written inside the database itself, on either engine: a million runs with all that is theirs, in minutes.

What is unfinished (waiting, running, held, to be delivered) is as much in a small database as in a big one, and each page that
a filter gives is full in both, so that what is compared is the number of rows behind them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from orqo import clock, db
from orqo.db import Database

CHUNK = 100_000
DELIVERIES_PER_RUN = 3
REQUESTS = 10_000
UNFINISHED = 20
OLD_RUNS = 60
HEADERS = '{"host":"127.0.0.1","user-agent":"%s","accept-encoding":"gzip, deflate","accept":"*/*","content-length":"27"}' % ("x" * 80)
TABLES = ("runs", "stages", "waits", "deliveries", "attempts", "requests")


@dataclass(frozen=True)
class Names:
    """The ids that the rows name: the workflow that nearly all runs are of, one that only the oldest are of, and theirs."""

    workflow_id: int
    version_id: int
    old_workflow_id: int
    old_version_id: int
    trigger_ids: tuple[int, int]
    callback_ids: tuple[int, int, int]
    old_callback_id: int
    token_id: int


def fill(database: Database, names: Names, *, runs: int, over: timedelta, now: datetime) -> None:
    """Write so many runs, each with a stage and three deliveries, each of those with an attempt, evenly spread over the time before now."""
    begun = now - over
    values: dict[str, Any] = {
        "t0": begun.timestamp(), "step": over.total_seconds() / runs, "total": runs, "old": OLD_RUNS, "unfinished": UNFINISHED,
        "workflow": names.workflow_id, "version": names.version_id, "old_workflow": names.old_workflow_id,
        "old_version": names.old_version_id, "often": names.trigger_ids[0], "seldom": names.trigger_ids[1], "token": names.token_id,
        "first_callback": names.callback_ids[0], "old_callback": names.old_callback_id, "later": clock.to_text(now + timedelta(days=9)),
        "bytes": b'{"greeting":"Hello, world"}', "per_run": DELIVERIES_PER_RUN, "headers": HEADERS, "boot": _boot(database),
    }  # fmt: skip
    deliveries = runs * DELIVERIES_PER_RUN
    for statement, count in ((RUNS, runs), (STAGES, runs), (DELIVERIES, deliveries), (ATTEMPTS, deliveries), (REQUESTS_LOG, REQUESTS)):
        for first in range(1, count + 1, CHUNK):
            with database.transaction() as connection:
                _write(connection, statement, values, first=first, last=min(first + CHUNK - 1, count))
    with database.transaction() as connection:
        _write(connection, WAITS, values, first=1, last=UNFINISHED)
        for table in TABLES:
            highest = connection.execute(text(f"SELECT max(id) FROM {table}")).scalar_one()
            db.number_behind(connection, table, highest)
    settle(database)


def request_log(database: Database, *, trigger_id: int, token_id: int, over: timedelta, now: datetime) -> None:
    """Write as many requests as are kept, for a measurement that is not to see the log fill."""
    values = {
        "t0": (now - over).timestamp(), "step": over.total_seconds() / REQUESTS, "total": REQUESTS, "often": trigger_id, "token": token_id,
        "bytes": b'{"greeting":"Hello, world"}', "headers": HEADERS,
    }  # fmt: skip
    with database.transaction() as connection:
        _write(connection, REQUESTS_LOG, values, first=1, last=REQUESTS)
        db.number_behind(connection, "requests", REQUESTS)
    settle(database)


def _boot(database: Database) -> str:
    with database.read() as connection:
        return database.lease_clock(connection).boot


def settle(database: Database) -> None:
    """Leave the database as a service that has run for a while leaves it: the log folded in, PostgreSQL's statistics taken."""
    database.tidy(pages=0)
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))


def _write(connection: Connection, statement: str, values: Mapping[str, Any], *, first: int, last: int) -> None:
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        # The rows name each other rightly by how they are made; looking each up again would take most of the time.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
    engine = POSTGRESQL if postgresql else SQLITE
    sql = statement.replace("[from]", SERIES)
    for mark, expression in engine.items():
        sql = sql.replace(f"[{mark}]", expression)
    prepared = text(sql)
    wanted = {**values, "first": first, "last": last}
    connection.execute(prepared, {name: wanted[name] for name in prepared.compile().params})


# What the engines spell differently: the moments of the i-th run and some seconds later, as our text.
SQLITE = {
    "begun": "strftime('%Y-%m-%dT%H:%M:%fZ', :t0 + s.run * :step, 'unixepoch')",
    "ended": "strftime('%Y-%m-%dT%H:%M:%fZ', :t0 + s.run * :step + s.run % 9, 'unixepoch')",
}
_MOMENT = "to_char(to_timestamp({}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24\\:MI\\:SS.MS\"Z\"')"
POSTGRESQL = {
    "begun": _MOMENT.format("CAST(:t0 AS DOUBLE PRECISION) + s.run * CAST(:step AS DOUBLE PRECISION)"),
    "ended": _MOMENT.format("CAST(:t0 AS DOUBLE PRECISION) + s.run * CAST(:step AS DOUBLE PRECISION) + s.run % 9"),
}
SERIES = """
FROM (
    WITH RECURSIVE n(i) AS (SELECT CAST(:first AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < CAST(:last AS BIGINT))
    SELECT i, {run} AS run FROM n
) AS s
"""
# The newest are those that are unfinished: waiting, running elsewhere, held.
STATUS = """
CASE WHEN s.run > :total - :unfinished THEN 'waiting' WHEN s.run > :total - 2 * :unfinished THEN 'running'
     WHEN s.run > :total - 3 * :unfinished THEN 'pending'
     WHEN s.run % 12 = 0 THEN 'failed' WHEN s.run % 12 = 1 THEN 'stopped' ELSE 'completed' END
"""
ENDED = "s.run <= :total - 3 * :unfinished"
FAILED = f"({ENDED} AND s.run % 12 = 0)"
RUNNING = "(s.run <= :total - :unfinished AND s.run > :total - 2 * :unfinished)"
HELD = "(s.run <= :total - 2 * :unfinished AND s.run > :total - 3 * :unfinished)"
RUNS = f"""
INSERT INTO runs (id, workflow_id, version_id, status, trigger_id, token_id, origin, concurrency_key, concurrency_limit, held, created_at,
    started_at, finished_at, wake_at, lease_owner, lease_boot, lease_until, error_reason, error_detail, error_stage, output_kind,
    metadata, input, output)
SELECT s.i, CASE WHEN s.run <= :old THEN :old_workflow ELSE :workflow END, CASE WHEN s.run <= :old THEN :old_version ELSE :version END,
    {STATUS}, CASE WHEN s.run % 3 = 0 THEN :often WHEN s.run <= 2 * :old THEN :seldom END, CASE WHEN s.run % 3 = 1 THEN :token END,
    CASE WHEN s.run % 3 = 1 THEN 'api' ELSE 'webhook' END,
    CASE WHEN {HELD} THEN 'one' END, CASE WHEN {HELD} THEN 1 END, CASE WHEN {HELD} THEN 1 ELSE 0 END, [begun],
    CASE WHEN {HELD} THEN NULL ELSE [begun] END, CASE WHEN {ENDED} THEN [ended] END,
    CASE WHEN s.run > :total - :unfinished THEN :later END,
    CASE WHEN {RUNNING} THEN 'elsewhere' END, CASE WHEN {RUNNING} THEN :boot END, CASE WHEN {RUNNING} THEN 1e12 END,
    CASE WHEN {FAILED} THEN 'stage_failed' END, CASE WHEN {FAILED} THEN 'The command ended with exit status 1.' END,
    CASE WHEN {FAILED} THEN 'one' END, CASE WHEN {ENDED} THEN 'json' END,
    CASE WHEN s.run % 10 = 3 THEN '{{"team":"blue"}}' ELSE '{{}}' END, '{{"name":"world"}}', CASE WHEN {ENDED} THEN :bytes END
{SERIES.format(run="i")}
"""
STAGES = f"""
INSERT INTO stages (id, run_id, sequence, name, kind, status, started_at, finished_at, output_kind, output)
SELECT s.i, s.run, 1, 'one', 'stub', CASE WHEN {HELD} THEN 'pending' ELSE {STATUS} END, [begun], CASE WHEN {ENDED} THEN [ended] END, 'json',
    :bytes
{SERIES.format(run="i")}
"""
DELIVERY_RUN = "(i + :per_run - 1) / :per_run"
DELIVERIES = f"""
INSERT INTO deliveries (id, webhook_id, run_id, callback_id, channel, sequence, event, url, host, body, status, attempts, next_attempt_at,
    created_at, finished_at)
SELECT s.i, 'msg_' || CAST(s.i AS TEXT), s.run, CASE WHEN s.run <= :old THEN :old_callback ELSE :first_callback + s.i % :per_run END,
    'callback:' || CAST(s.i % :per_run AS TEXT), 1, 'run.completed', '["https://ci.example.com/done"]', 'ci.example.com:443', :bytes,
    CASE WHEN s.run > :total - :unfinished THEN 'pending' WHEN s.i % 16 = 0 THEN 'dead' ELSE 'delivered' END, 1,
    CASE WHEN s.run > :total - :unfinished THEN :later END, [ended], CASE WHEN s.run > :total - :unfinished THEN NULL ELSE [ended] END
{SERIES.format(run=DELIVERY_RUN)}
"""
ATTEMPTS = f"""
INSERT INTO attempts (id, delivery_id, number, started_at, duration_ms, status_code, reason, detail)
SELECT s.i, s.i, 1, [ended], 9, 200, 'delivered', ''
{SERIES.format(run=DELIVERY_RUN)}
"""
WAITS = f"""
INSERT INTO waits (id, run_id, stage_id, stage, kind, status, deadline_at, created_at)
SELECT s.i, s.run, s.run, 'one', 'approval', 'open', :later, [begun]
{SERIES.format(run=":total - i + 1")}
"""
# As many as are kept, whatever the size: the table has a bound of its own.
REQUESTS_LOG = f"""
INSERT INTO requests (id, endpoint, received_at, trigger_id, token_id, run_id, status_code, verdict, reason, method, size, headers,
    webhook_id, event, body)
SELECT s.i, CASE s.i % 4 WHEN 0 THEN 'callback' WHEN 1 THEN 'trigger' ELSE 'hook' END, [begun],
    CASE WHEN s.i % 4 >= 2 THEN :often END, CASE WHEN s.i % 4 = 1 THEN :token END, s.run,
    CASE WHEN s.i % 40 = 3 THEN 401 ELSE 201 END,
    CASE WHEN s.i % 40 = 3 THEN 'refused' WHEN s.i % 4 = 0 THEN 'received' ELSE 'accepted' END,
    CASE WHEN s.i % 40 = 3 THEN 'its signature does not fit' END, 'POST', 27, :headers,
    CASE WHEN s.i % 8 = 0 THEN 'msg_' || CAST(s.i AS TEXT) END,
    CASE WHEN s.i % 8 = 0 THEN 'run.completed' END, CASE WHEN s.i % 40 = 3 THEN NULL ELSE :bytes END
{SERIES.format(run=":total - i % 500")}
"""
