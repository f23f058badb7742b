"""The three endpoints of ORQO's API: trigger, hooks, callback.

Owns the order of their checks and the form of their answers. What is written is runs.py's and requests.py's.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, jsonify, request
from sqlalchemy import Connection, Row

from orqo import callbacks, clock, jsontext, received, runs, signing, tokens, triggers, workflows
from orqo.api import body as bodies
from orqo.api.site import Site, check_room, holder_with, presented_token, site
from orqo.errors import Conflict, Fault, Gone, Invalid, Malformed, NotFound, Unauthorized, UnsupportedMedia

log = logging.getLogger(__name__)
blueprint = Blueprint("endpoints", __name__, url_prefix="/api/v1")

KEY_MAX_CHARACTERS = 255
METADATA_MAX_BYTES = 16384
# Headers that a workflow may see; what could be a credential or a signature is not among them.
TOLD_HEADERS = ("content-type", "user-agent")
TOLD_PREFIXES = ("x-github-", "x-gitlab-", "x-gitea-", "x-event-", "x-request-", "x-slack-retry-", "x-shopify-topic")


@blueprint.post("/trigger")
def trigger() -> Response:
    """Start a workflow for the holder of an API token of scope `trigger`; 201 once the run is durable."""
    here, now = site(), clock.now()
    with here.database.read() as connection:
        holder = holder_with(connection, "trigger", now=now)
    raw = bodies.read(request, here.config.body_max_bytes)
    if not bodies.is_json(request.headers.get("Content-Type", "")):
        raise UnsupportedMedia("Send JSON: Content-Type: application/json.")
    wanted = bodies.parse_json(raw)
    here.validators.check("StrictTriggerRequest" if here.config.strict else "TriggerRequest", wanted)
    requested = _requested(here, wanted)
    check_room(here.config)
    replay = _replay(f"token:{holder.id}", raw)
    with here.database.transaction() as connection:
        workflow = _startable(connection, wanted, holder)
        new = runs.NewRun(
            workflow_id=workflow.id,
            version_id=workflow.version_id,
            origin="api",
            input=wanted.get("input"),
            metadata=wanted.get("metadata", {}),
            token_id=holder.id,
            callbacks=requested,
            replay=replay,
        )
        accepted = runs.accept(connection, new, now=now)
        tokens.mark_used(connection, holder, now=now)
    return _started(here, accepted)


def _startable(connection: Connection, wanted: dict[str, Any], holder: tokens.Holder) -> Row[Any]:
    """Give the workflow that a request names; NotFound also where the token may not use it, Conflict where it is disabled."""
    reference = int(wanted["workflow_id"]) if "workflow_id" in wanted else wanted["workflow"]
    workflow = workflows.find(connection, reference)
    if workflow is None or not holder.may_use(workflow.id):
        raise NotFound(f"There is no workflow {reference} that this token may start.")
    if "workflow" in wanted and wanted["workflow"] != workflow.name:
        raise Invalid("workflow_id and workflow name different workflows: send one.", errors=[Fault("/workflow", "is another workflow's name")])
    if not workflow.enabled:
        raise Conflict(f"Workflow {workflow.name} is disabled. Enable it, then send this again.")
    return workflow


def _requested(here: Site, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the request's own callback; Invalid where its URL or the metadata cannot be used."""
    if len(jsontext.dump(wanted.get("metadata", {})).encode()) > METADATA_MAX_BYTES:
        raise Invalid("metadata is too large.", errors=[Fault("/metadata", f"must have at most {METADATA_MAX_BYTES} bytes as JSON")])
    url = wanted.get("callback_url")
    if url is None:
        return []
    if not _is_http_url(url):
        raise Invalid("callback_url cannot be used.", errors=[Fault("/callback_url", "must be an http or https URL with a host")])
    return [callbacks.requested(url)]


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False


def _replay(scope: str, raw: bytes) -> runs.Replay | None:
    """Give what makes this call the same as an earlier one, from its Idempotency-Key; Malformed where that is unusable."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= KEY_MAX_CHARACTERS or not key.isascii() or not key.isprintable():
        raise Malformed(f"Idempotency-Key must have 1 to {KEY_MAX_CHARACTERS} printable ASCII characters.")
    return runs.Replay(scope, f"key:{key}", hashlib.sha256(raw).hexdigest())


def _started(here: Site, accepted: runs.Accepted) -> Response:
    """Answer an accepted call. The run is committed: only now may anybody be told."""
    if not accepted.duplicate:
        here.bell.wake_workers()
    log.info("step=accept run=%s status=%s", accepted.run_id, "duplicate" if accepted.duplicate else "pending")
    answer: dict[str, Any] = {"workflow_run_id": accepted.run_id, "status": "started"}
    headers = {} if here.config.strict else {"Location": f"/api/v1/runs/{accepted.run_id}"}
    if accepted.duplicate:
        return _json({**answer, "duplicate": True}, 200, {**headers, "Idempotent-Replayed": "true"})
    return _json(answer, 201, headers)


def _json(value: dict[str, Any], status: int, headers: dict[str, str] | None = None) -> Response:
    response = jsonify(value)
    response.status_code = status
    response.headers.update(headers or {})
    return response


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.post("/hooks/", defaults={"token": ""})
@blueprint.post("/hooks/<path:token>")
def hook(token: str) -> Response:
    """Start the workflow of the trigger that the URL's token belongs to; the body becomes the run's input."""
    here, now = site(), clock.now()
    with here.database.read() as connection:
        found = triggers.find(connection, token)
    if found is None:
        raise NotFound(triggers.UNKNOWN)
    if not found.enabled:
        raise Conflict("This webhook is disabled. Enable it in the workflow's Runs & Triggers tab.")
    raw = bodies.read(request, here.config.body_max_bytes)
    given = bodies.to_input(raw, request.headers.get("Content-Type", ""))
    if not found.workflow_enabled:
        raise Invalid(f"The workflow {found.workflow_name} is disabled: it cannot be started.")
    check_room(here.config)
    new = runs.NewRun(
        workflow_id=found.workflow_id,
        version_id=found.version_id,
        origin="webhook",
        input=given,
        trigger_id=found.id,
        trigger_facts={"name": found.name, "headers": _told_headers(), "query": _told_query()},
        replay=_replay(f"trigger:{found.id}", raw),
    )
    with here.database.transaction() as connection:
        accepted = runs.accept(connection, new, now=now)
    return _started(here, accepted)


def _told_headers() -> dict[str, str]:
    """Give the request's headers that a workflow may see, lower-case."""
    headers = {name.lower(): _clean(value) for name, value in request.headers.items()}
    told = {name: value for name, value in headers.items() if name in TOLD_HEADERS or name.startswith(TOLD_PREFIXES)}
    return {name: value for name, value in told.items() if "signature" not in name and "token" not in name}


def _told_query() -> dict[str, str]:
    return {_clean(name): _clean(value) for name, value in request.args.items()}


def _clean(text: str) -> str:
    """Give text that JSON in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


# ── callback ────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.post("/callback")
def callback() -> Response:
    """Take a report on a run: with a wait token, an API token of scope `callback`, or this box's own signature."""
    here, now = site(), clock.now()
    token = presented_token() or request.args.get("token")
    if token is not None:
        return _reported(here, token, now)
    raw = bodies.read(request, here.config.body_max_bytes)
    _check_signature(here, raw, now)
    return _kept(here, raw, now)


def _reported(here: Site, token: str, now: datetime) -> Response:
    """Answer a report that comes with a token. No stage of this release waits, so none can be answered."""
    if not tokens.API_TOKEN.fullmatch(token) or presented_token() is None:
        raise NotFound("There is no wait with this token: it was mistyped, or its run is gone.")
    with here.database.read() as connection:
        holder_with(connection, "callback", now=now)
    report = _report(here, bodies.read(request, here.config.body_max_bytes))
    if "workflow_run_id" not in report:
        raise Invalid("The body does not fit.", errors=[Fault("/workflow_run_id", "is required with an API token")])
    run_id = int(report["workflow_run_id"])
    with here.database.read() as connection:
        status = runs.status_of(connection, run_id)
    if status is None:
        raise NotFound(f"There is no run {run_id}.")
    if status.terminal:
        raise Gone(f"Run {run_id} has ended: it is {status}.")
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


def _kept(here: Site, raw: bytes, now: datetime) -> Response:
    """Keep a signed event among the received requests; the same webhook-id again changes nothing."""
    report = _report(here, raw)
    if "workflow_run_id" not in report:
        raise Invalid("The body does not fit.", errors=[Fault("/workflow_run_id", "is required in an event")])
    check_room(here.config)
    told = {"content-type": request.headers.get("Content-Type", ""), "user-agent": request.headers.get("User-Agent", "")}
    event = received.Event(
        webhook_id=request.headers["webhook-id"],
        run_id=int(report["workflow_run_id"]),
        name=report.get("type", report.get("status", "")),
        headers={name: _clean(value) for name, value in told.items()},
        body=raw,
    )
    with here.database.transaction() as connection:
        duplicate = not received.keep(connection, event, now=now)
    log.info("step=callback run=%s status=%s", event.run_id, "duplicate" if duplicate else "received")
    answer: dict[str, Any] = {"workflow_run_id": event.run_id, "status": "received"}
    return _json(answer | {"duplicate": True} if duplicate else answer, 200)
