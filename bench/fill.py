"""A database with a past: runs, stages, deliveries and attempts written in bulk, as months of use would leave them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from orqo import clock, db

RUN = (
    "INSERT INTO runs (workflow_id, version_id, status, trigger_id, origin, created_at, started_at, finished_at, error_reason,"
    " error_detail, error_stage, output_kind, input, output) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
STAGE = (
    "INSERT INTO stages (run_id, sequence, name, kind, status, started_at, finished_at, error_reason, error_detail, exit_code, output_kind,"
    " output) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
)
DELIVERY = (
    "INSERT INTO deliveries (webhook_id, run_id, callback_id, channel, sequence, event, url, host, body, status, attempts, created_at,"
    " finished_at) VALUES (?,?,?,?,1,?,?,?,?,?,1,?,?)"
)
ATTEMPT = "INSERT INTO attempts (delivery_id, number, started_at, duration_ms, status_code, reason, detail) VALUES (?,1,?,?,?,?,?)"
REQUEST = (
    "INSERT INTO requests (endpoint, received_at, trigger_id, run_id, status_code, verdict, reason, method, size, webhook_id, event, body)"
    " VALUES (?,?,?,?,?,?,?,'POST',?,?,?,?)"
)
URL = json.dumps(["https://ci.example.com/done"])
CHUNK = 2000


def history(
    path: Path, workflow: dict[str, Any], *, runs: int, stages: int, now: datetime, over: timedelta, seed: int = 7, uneven: bool = False
) -> None:
    """Write `runs` finished runs of a workflow, each of `stages` stages, spread over the time before now.

    `workflow` is `{"id", "version_id", "trigger_id", "callback_id", "stages"}`. `uneven`: as people work, fewer at night.
    """
    connection = db.sqlite_module().connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-200000")
    chance = random.Random(seed)
    first_run, first_delivery = _next_id(connection, "runs"), _next_id(connection, "deliveries")
    moments = sorted(_moment(index, runs, over, now, chance, uneven) for index in range(runs))
    for start in range(0, runs, CHUNK):
        chunk = enumerate(moments[start : start + CHUNK], start)
        made = [_made(workflow, first_run + index, moment, stages, chance) for index, moment in chunk]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(RUN, (each["run"] for each in made))
        connection.executemany(STAGE, (row for each in made for row in each["stages"]))
        if workflow.get("callback_id"):
            connection.executemany(DELIVERY, (each["delivery"] for each in made))
            attempts = ((first_delivery + start + offset, *each["attempt"]) for offset, each in enumerate(made))
            connection.executemany(ATTEMPT, attempts)
        connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def requests(path: Path, trigger_id: int, *, count: int, now: datetime) -> None:
    """Write a full request log: calls of a webhook, and of /callback events and reports, some of which were refused."""
    body = json.dumps({"text": "x" * 2000}).encode()
    kinds = (
        ("hook", trigger_id, 201, "accepted", None, None),
        ("hook", trigger_id, 401, "refused", "its signature does not fit", None),
        ("callback", None, 200, "received", None, "run.completed"),
        ("callback", None, 200, "accepted", None, None),
        ("callback", None, 422, "refused", "The outcome must be one of good, bad.", None),
    )
    connection = db.sqlite_module().connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    for number in range(count):
        endpoint, trigger, code, verdict, reason, event = kinds[number % len(kinds)]
        moment = clock.to_text(now - timedelta(seconds=count - number))
        row = (endpoint, moment, trigger, number + 1, code, verdict, reason, len(body), f"msg_{number}" if event else None, event, body)
        connection.execute(REQUEST, row)
    connection.execute("COMMIT")
    connection.close()


def _next_id(connection: Any, table: str) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return (row[0] if row else 0) + 1


def _moment(index: int, runs: int, over: timedelta, now: datetime, chance: random.Random, uneven: bool) -> datetime:
    moment = now - over * (1 - index / runs)
    if uneven and (moment.hour < 6 or moment.hour > 20) and chance.random() < 0.8:
        moment += timedelta(hours=8) if moment + timedelta(hours=8) < now else -timedelta(hours=8)
    return moment


def _made(workflow: dict[str, Any], run_id: int, begun: datetime, stages: int, chance: random.Random) -> dict[str, Any]:
    """Give the rows of one run."""
    status = chance.choices(("completed", "failed", "stopped"), (93, 6, 1))[0]
    ended = begun + timedelta(milliseconds=chance.randint(200, 9000))
    times = clock.to_text(begun), clock.to_text(ended)
    failed = ("stage_failed", "The command ended with exit status 1.", workflow["stages"][-1]) if status == "failed" else (None,) * 3
    output = b'{"greeting":"Hello, world"}' if status == "completed" else None
    run = (workflow["id"], workflow["version_id"], status, workflow.get("trigger_id"), "webhook", times[0], *times, *failed)
    event = (f"msg_{run_id}", run_id, workflow.get("callback_id"), f"callback:{workflow.get('callback_id')}", f"run.{status}")
    return {
        "run": (*run, "json" if output else None, '{"name":"world"}', output),
        "stages": list(_stages(workflow, run_id, status, times, stages)),
        "delivery": (*event, URL, "ci.example.com:443", b"{}", chance.choice(("delivered",) * 60 + ("dead",)), times[1], times[1]),
        "attempt": (times[1], chance.randint(9, 300), 200, "delivered", ""),
    }


def _stages(workflow: dict[str, Any], run_id: int, status: str, times: tuple[str, str], stages: int) -> Iterator[tuple[Any, ...]]:
    for number in range(1, stages + 1):
        last = number == stages
        failed = ("stage_failed", "The command ended with exit status 1.", 1) if last and status == "failed" else (None, None, 0)
        name = workflow["stages"][(number - 1) % len(workflow["stages"])]
        yield (run_id, number, name, "command", status if last else "completed", *times, *failed, "text", b"a line of output\n" * 4)
