"""`/api/v1/callback`: a report on a run, from whoever was given a token or from this box itself.

Owns the order of its checks. What is written is runs.py's and requestlog.py's.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, request
from sqlalchemy import Connection, Row

from orqo import clock, received, requestlog, runs, signing, tokens
from orqo.api import body as bodies
from orqo.api import reports
from orqo.api.answers import answering, as_json, call_of_request, received_answer, refusals_noted, wait_for_holder
from orqo.api.site import Site, check_room, holder_of, presented_token, require, site
from orqo.call import Call
from orqo.errors import Fault, Invalid, Problem, Unauthorized
from orqo.models import Verdict
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


def _refused(given: Call, token_id: int | None, fault: Problem, run_id: int | None = None) -> Entry:
    return Entry("callback", given, Verdict.REFUSED, fault.status, requestlog.refusal(fault), token_id=token_id, run_id=run_id)


def _reported(here: Site, token: str, now: datetime) -> Response:
    """Take a report that comes with a token: a wait's own, or an API token that says which run it means."""
    if tokens.API_TOKEN.fullmatch(token) and presented_token() is not None:
        return _reported_by_holder(here, now)
    with here.database.read() as connection:
        wait = runs.find_wait(connection, token)
    given = call_of_request(here, token=token)
    with refusals_noted(here, lambda fault: _refused(given, None, fault, wait.run_id), now=now):
        given = replace(given, body=bodies.read(request, here.config.body_max_bytes))
        wanted = reports.answer_of(_report(here, given.body or b""))
        with answering(here) as connection:
            wait = runs.find_wait(connection, token)
            return _taken(here, connection, wait, wanted, given, by="callback", now=now)


def _taken(
    here: Site,
    connection: Connection,
    wait: Row[Any],
    wanted: runs.Answer,
    given: Call,
    *,
    by: str,
    token_id: int | None = None,
    now: datetime,
) -> Response:
    """Answer a wait and log the request, in one commit."""
    answered = runs.answer(here.box, connection, wait, wanted, by=by, now=now)
    verdict = Verdict.DUPLICATE if answered.duplicate else Verdict.ACCEPTED
    requestlog.write(connection, Entry("callback", given, verdict, 200, token_id=token_id, run_id=answered.run_id), now=now)
    return received_answer(answered)


def _reported_by_holder(here: Site, now: datetime) -> Response:
    with here.database.read() as connection:
        holder = holder_of(connection, now=now)
    given = call_of_request(here)
    with refusals_noted(here, lambda fault: _refused(given, holder.id, fault), now=now):
        require(holder, "callback")
        given = replace(given, body=bodies.read(request, here.config.body_max_bytes))
        return _answered_by_holder(here, holder, given, now)


def _answered_by_holder(here: Site, holder: tokens.Holder, given: Call, now: datetime) -> Response:
    report = _report(here, given.body or b"")
    if "workflow_run_id" not in report:
        raise Invalid("The body does not fit.", errors=[Fault("/workflow_run_id", "is required with an API token")])
    wanted, by = reports.answer_of(report), f"API token {holder.name}"
    with answering(here) as connection:
        wait = wait_for_holder(connection, holder, int(report["workflow_run_id"]), report.get("stage"))
        return _taken(here, connection, wait, wanted, given, by=by, token_id=holder.id, now=now)


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
