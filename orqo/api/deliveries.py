"""`/api/v1/deliveries`: the outbox, what came of each attempt, and once more."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Response, g
from sqlalchemy import Connection, Row

from orqo import callbacks, catalog, clock, deliveries, jsontext, runs
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.paging import body, listed
from orqo.api.site import reading, site
from orqo.errors import Fault, Invalid, NotFound


@resources.get("/deliveries")
def list_deliveries() -> Response:
    """List the deliveries, newest first."""
    return listed(
        lambda connection, part, wanted: catalog.list_deliveries(
            connection, part, status=wanted.get("status"), run_id=wanted.get("run"), callback_id=wanted.get("callback")
        )
    )


@resources.get("/deliveries/<id:delivery_id>")
def show_delivery(delivery_id: int) -> Response:
    """Give a delivery: its attempts as `history`, and the body that is sent."""
    with reading() as connection:
        row = _known(connection, delivery_id)
        history = deliveries.attempts_of(connection, delivery_id)
    sent = jsontext.value_of(row.body, "json") if row.body else None
    return as_json(deliveries.shown(row) | {"history": history, "body": sent}, 200)


def _known(connection: Connection, delivery_id: int) -> Row[Any]:
    row = deliveries.get(connection, delivery_id)
    workflow_id = runs.workflow_of(connection, row.run_id)
    if workflow_id is None or not holder().may_use(workflow_id):
        raise NotFound(f"There is no delivery {delivery_id}. List them with: delivery list")
    return row


@resources.post("/deliveries/<id:delivery_id>/redeliver")
def redeliver(delivery_id: int) -> Response:
    """Send a delivery once more: the same id and the same bytes."""
    with site().database.transaction() as connection:
        _known(connection, delivery_id)
        deliveries.redeliver(connection, delivery_id, now=g.now)
        shown = deliveries.shown(_known(connection, delivery_id))
    site().bell.notify()
    return as_json(shown, 200)


@resources.post("/deliveries/redeliver")
def redeliver_dead() -> Response:
    """Send the dead deliveries of a callback, of a time or of both once more: a batch of them, and whether there are more."""
    wanted = body()
    callback_id = wanted.get("callback")
    since, until = (_moment(name, wanted[name]) if name in wanted else None for name in ("since", "until"))
    with site().database.transaction() as connection:
        workflow_id = None if callback_id is None else callbacks.workflow_of(connection, callback_id)
        if callback_id is not None and (workflow_id is None or not holder().may_use(workflow_id)):
            raise NotFound(f"There is no callback {callback_id}. List them with: callback list")
        which: dict[str, Any] = {"callback_id": callback_id, "since": since, "until": until, "workflow_ids": holder().workflow_ids}
        ids = deliveries.redeliver_dead(connection, **which, now=g.now)
    site().bell.notify()
    return as_json({"ids": ids, "more": len(ids) == deliveries.REDELIVER_BATCH}, 200)


def _moment(name: str, text: str) -> datetime:
    try:
        return clock.any_moment(text)
    except ValueError as fault:
        detail = "must be a time such as 2026-01-31T08:00:00Z"
        raise Invalid(f"{name} {detail}.", errors=[Fault(f"/{name}", detail)]) from fault
