"""Callback deliveries, sent and to be sent; and Received: what arrived at this box's own /api/v1/callback."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g, request
from sqlalchemy import Connection, Row

from orqo import deliveries, inspection, listings
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field, page, plain, whole_number
from orqo.errors import NotFound
from orqo.inspection import CUT_BYTES, Cut
from orqo.models import DeliveryStatus
from orqo.received import CALLBACK_PATH
from orqo.site import site


@blueprint.get("/deliveries")
def delivery_list() -> Response:
    """List the deliveries, newest first."""
    status = request.args.get("status", "")
    status = status if status in list(DeliveryStatus) else ""
    with site().database.read() as connection:
        found = listings.deliveries(connection, status=status, before=whole_number("before"))
    return page("deliveries.html", listed=found, status=status, statuses=list(DeliveryStatus), before=whole_number("before"))


@blueprint.get("/deliveries/<int:delivery_id>")
def delivery(delivery_id: int) -> Response:
    """Show a delivery with its attempts."""
    with site().database.read() as connection:
        row = _known(connection, delivery_id)
        tries = inspection.attempts(connection, delivery_id)
    shown_url = deliveries.shown_url(row.url)
    return page("delivery.html", delivery=row, shown_url=shown_url, tries=tries, body=_cut(row.body), names=sorted(json.loads(row.headers)))


def _cut(body: bytes) -> Cut:
    return Cut(body[:CUT_BYTES], len(body), "json")


def _known(connection: Connection, delivery_id: int) -> Row[Any]:
    if not 0 < delivery_id <= listings.LARGEST_ID:
        raise NotFound("There is no such delivery.")
    return deliveries.get(connection, delivery_id)


@blueprint.get("/deliveries/<int:delivery_id>/body")
def delivery_body(delivery_id: int) -> Response:
    """Give the bytes that a delivery sends as text."""
    with site().database.read() as connection:
        return plain(_known(connection, delivery_id).body, "delivery")


@blueprint.post("/deliveries/<int:delivery_id>/redeliver")
def redeliver(delivery_id: int) -> Response:
    """Send a delivery once more, and go back to where the button was."""
    with site().database.transaction() as connection:
        row = _known(connection, delivery_id)
        deliveries.redeliver(connection, delivery_id, now=g.now)
    site().bell.notify()
    if field("back", most=10) == "run":
        return done("run", "redelivered", run_id=row.run_id, _anchor="deliveries")
    return done("delivery", "redelivered", delivery_id=delivery_id)


# ── received ────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/received")
def received_list() -> Response:
    """List what this box's own callback endpoint kept."""
    with site().database.read() as connection:
        found = listings.received(connection, before=whole_number("before"))
    return page(
        "received_list.html", tab="events", listed=found, before=whole_number("before"), callback_url=site().config.base_url + CALLBACK_PATH
    )


@blueprint.get("/received/<int:request_id>")
def received(request_id: int) -> Response:
    """Show one received event."""
    with site().database.read() as connection:
        row = _event(connection, request_id)
    return page("received.html", event=row, body=_cut(row.body), headers=json.loads(row.headers))


@blueprint.get("/received/<int:request_id>/body")
def received_body(request_id: int) -> Response:
    """Give the bytes of a received event as text."""
    with site().database.read() as connection:
        return plain(_event(connection, request_id).body, "event")


def _event(connection: Connection, request_id: int) -> Row[Any]:
    row = listings.received_one(connection, request_id)
    if row is None:
        raise NotFound("There is no such event: it never arrived, or was older than what is kept.")
    return row
