"""`/api/v1/requests`: what the endpoints received and why it came to nothing, and once more."""

from __future__ import annotations

from typing import Any

from flask import Response, g
from sqlalchemy import Connection, Row

from orqo import catalog, replays, requestlog
from orqo.api.access import holder, resources
from orqo.api.answers import as_json, started
from orqo.api.paging import body, listed, usable, workflow_id_of
from orqo.api.site import check_room, reading, require, site
from orqo.errors import Invalid
from orqo.hooks import Gate, SignatureRefused
from orqo.models import Verdict


@resources.get("/requests")
def list_requests() -> Response:
    """List the received requests, newest first; a token that is limited to workflows sees those to their webhooks."""
    return listed(_page)


def _page(connection: Connection, part: catalog.Part, wanted: dict[str, Any]) -> catalog.Page:
    workflow_id = workflow_id_of(connection, wanted.get("workflow"))
    filters = {"endpoint": wanted.get("endpoint"), "verdict": wanted.get("verdict")}
    ids = {"trigger_id": wanted.get("trigger"), "run_id": wanted.get("run"), "workflow_id": workflow_id}
    return catalog.list_requests(connection, part, **filters, **ids)


@resources.get("/requests/<id:request_id>")
def show_request(request_id: int) -> Response:
    """Give a request with its headers and, while it is kept, its body."""
    with reading() as connection:
        return as_json(requestlog.shown(_known(connection, request_id)), 200)


def _known(connection: Connection, request_id: int) -> Row[Any]:
    row = requestlog.find(connection, request_id)
    return usable(row, row.workflow_id if row is not None else None, f"request {request_id}")


@resources.post("/requests/<id:request_id>/replay")
def replay_request(request_id: int) -> Response:
    """Send a refused or ignored request through its webhook once more; `anyway`, an admin's word, without its signature."""
    anyway = bool(body().get("anyway", False))
    if anyway:
        require(holder(), "admin")
    here = site()
    with reading() as connection:
        _known(connection, request_id)
    check_room(here.config)
    gate = Gate(here.database, here.secrets, here.config.base_url)
    try:
        outcome = replays.replay(gate, request_id, anyway=anyway, now=g.now)
    except SignatureRefused as fault:
        # 401 would say that the caller's own token does not do.
        raise Invalid(f"The signature does not fit: {fault.for_owner}.") from fault
    if outcome.run_id is None:
        return as_json({"status": "ignored", "reason": outcome.reason or "a handshake starts no run"}, 200)
    return started(here, outcome.run_id, duplicate=outcome.verdict == Verdict.DUPLICATE)
