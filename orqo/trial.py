"""A callback tried out: one signed event of type run.test, sent at once and kept nowhere.

Owns the event that tells of a run that there is not. A test is not among the deliveries.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Connection, Row

from orqo import callbacks, clock, deliveries, facts, lookup, outbound, workflows
from orqo.config import Config
from orqo.db import Database
from orqo.errors import Conflict
from orqo.secretstore import SecretStore

# The largest number that every reader of JSON reads exactly.
RUN_ID = 2**53 - 1
SAID = "This is a test: no run has ended."


@dataclass(frozen=True)
class Ground:
    """What a test needs of this box."""

    config: Config
    database: Database
    key: bytes


def send(ground: Ground, callback_id: int, *, now: datetime) -> deliveries.Outcome:
    """Send the test and give what came of it. NotFound; Conflict where the callback reads what only a real run has."""
    with ground.database.read() as connection:
        callback = callbacks.get(connection, callback_id)
        event = _event(connection, ground.config.base_url, callback, now)
    delivery = _delivery(event, callback, now)
    client = outbound.Client(allowed_networks=ground.config.allowed_networks, ca_bundle=ground.config.ca_bundle)
    try:
        return deliveries.send(delivery, deliveries.Sender(client, SecretStore.from_config(ground.config), ground.key), now=now)
    finally:
        client.close()


def told(callback_id: int, outcome: deliveries.Outcome) -> dict[str, Any]:
    """Give the JSON of what came of a test."""
    names = ("status_code", "reason", "detail", "duration_ms", "excerpt")
    return {"id": callback_id, "delivered": outcome.delivered} | {name: getattr(outcome, name) for name in names}


def _event(connection: Connection, base_url: str, callback: Row[Any], now: datetime) -> callbacks.Event:
    """Give an event with everything that a real one has."""
    workflow = workflows.get(connection, callback.workflow_id)
    moment = clock.to_text(now)
    known = {"id": RUN_ID, "status": "completed", "error": None, "created_at": moment}
    run = known | {"workflow_id": workflow.id, "workflow": workflow.name, "metadata": {}, "trigger_id": callback.trigger_id}
    run |= {"started_at": moment, "finished_at": moment, "url": facts.run_url(base_url, RUN_ID)}
    roots: dict[str, Any] = {
        "input": None,
        "stages": {},
        "trigger": {"name": None, "headers": {}, "query": {}},
        "run": known | {"workflow": workflow.name, "url": run["url"]},
        "workflow": {"id": workflow.id, "name": workflow.name},
    }
    return callbacks.Event(name="test", run=run, roots=lambda: roots, output=SAID.encode(), output_kind="text")


def _delivery(event: callbacks.Event, callback: Row[Any], now: datetime) -> Row[Any]:
    try:
        rendered = callbacks.rendered(event, callback, now=now)
    except (lookup.LookupFailed, ValueError) as fault:
        why = f"the callback reads what only a real run has: {fault}"
        raise Conflict(f"Callback {callback.id} cannot be tested alone: {why}") from fault
    # As `deliveries.send` takes it, and never a row.
    return cast("Row[Any]", SimpleNamespace(**rendered, webhook_id=f"msg_test_{secrets.token_urlsafe(16)}"))
