"""`/api/v1/callback`: a report on a run, from whoever was given a token or from this box itself.

Owns the order of its checks. What is written is runs.py's and requestlog.py's.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, request

from orqo import clock, received, requestlog, runs, signing, tokens
from orqo.api import body as bodies
from orqo.api.answers import as_json, call_of_request, refusals_noted
from orqo.api.site import Site, check_room, holder_of, presented_token, require, site
from orqo.call import Call
from orqo.errors import Conflict, Fault, Gone, Invalid, NotFound, Problem, Unauthorized
from orqo.models import RunStatus, Verdict
from orqo.requestlog import Entry

log = logging.getLogger(__name__)
blueprint = Blueprint("callback", __name__, url_prefix="/api/v1")


@blueprint.post("/callback")
def callback() -> Response:
    """Take a report on a run: with a wait token, an API token of scope `callback`, or this box's own signature."""
    here, now = site(), clock.now()
    token = presented_token() or request.args.get("token")
    if token is not None:
        return _reported(here, token, now)
    raw = bodies.read(request, here.config.body_max_bytes)
    _check_signature(here, raw, now)
    given = replace(call_of_request(here), body=raw)
    with refusals_noted(here, lambda fault: _refused(given, None, fault), now=now):
        return _kept(here, given, now)


def _refused(given: Call, token_id: int | None, fault: Problem) -> Entry:
    return Entry("callback", given, Verdict.REFUSED, fault.status, requestlog.refusal(fault), token_id=token_id)


def _reported(here: Site, token: str, now: datetime) -> Response:
    """Answer a report that comes with a token. No stage of this release waits, so none can be answered."""
    if not tokens.API_TOKEN.fullmatch(token) or presented_token() is None:
        raise NotFound("There is no wait with this token: it was mistyped, or its run is gone.")
    with here.database.read() as connection:
        holder = holder_of(connection, now=now)
    given = call_of_request(here)
    with refusals_noted(here, lambda fault: _refused(given, holder.id, fault), now=now):
        require(holder, "callback")
        given = replace(given, body=bodies.read(request, here.config.body_max_bytes))
        return _answer(here, holder, _report(here, given.body or b""))


def _answer(here: Site, holder: tokens.Holder, report: dict[str, Any]) -> Response:
    if "workflow_run_id" not in report:
        raise Invalid("The body does not fit.", errors=[Fault("/workflow_run_id", "is required with an API token")])
    run_id = int(report["workflow_run_id"])
    with here.database.read() as connection:
        run = runs.show(connection, run_id)
    # A run of a workflow that the token may not use is none to it.
    if run is None or not holder.may_use(run["workflow_id"]):
        raise NotFound(f"There is no run {run_id}.")
    if RunStatus(run["status"]).terminal:
        raise Gone(f"Run {run_id} has ended: it is {run['status']}.")
    raise Conflict(f"Run {run_id} waits for no report.")


def _report(here: Site, raw: bytes) -> dict[str, Any]:
    report = bodies.parse_json(raw)
    here.validators.check("CallbackReport", report)
    return report  # type: ignore[no-any-return]


def _check_signature(here: Site, raw: bytes, now: datetime) -> None:
    """Raise Unauthorized unless the request is signed as this box signs callbacks to itself."""
    secrets = [signing.secret_bytes(signing.derived_secret(here.key, url)) for url in received.own_urls(here.config)]
    try:
        signing.verify_standard(secrets, dict(request.headers.items()), raw, now=int(now.timestamp()))
    except signing.SignatureInvalid as fault:
        here.counts["callback_unsigned"] += 1
        log.info("step=callback status=refused count=%d", here.counts["callback_unsigned"])
        raise Unauthorized(
            "Send a wait token, an API token of scope callback, or sign the body as this box does (Standard Webhooks).",
            headers={"WWW-Authenticate": 'Bearer realm="orqo"'},
        ) from fault


def _kept(here: Site, given: Call, now: datetime) -> Response:
    """Keep a signed event among the received requests; the same webhook-id again changes nothing."""
    report = _report(here, given.body or b"")
    if "workflow_run_id" not in report:
        raise Invalid("The body does not fit.", errors=[Fault("/workflow_run_id", "is required in an event")])
    check_room(here.config)
    run_id, name = int(report["workflow_run_id"]), report.get("type", report.get("status", ""))
    with here.database.transaction() as connection:
        duplicate = not received.keep(connection, given, run_id=run_id, event=name, now=now)
    log.info("step=callback run=%s status=%s", run_id, "duplicate" if duplicate else "received")
    answer: dict[str, Any] = {"workflow_run_id": run_id, "status": "received"}
    return as_json(answer | {"duplicate": True} if duplicate else answer, 200)
