"""`/api/v1/trigger`: start a workflow with an API token.

Owns the order of its checks. What is written is runs.py's and requestlog.py's.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, request
from sqlalchemy import Connection, Row

from orqo import call, callbacks, clock, hooks, jsontext, requestlog, runs, simulation, tokens, workflows
from orqo.api import body as bodies
from orqo.api import patience
from orqo.api.answers import METADATA_MAX_BYTES, call_of_request, refusals_noted, started
from orqo.api.site import Site, check_room, look_up_holder, require, site
from orqo.call import Call
from orqo.errors import Conflict, Fault, Invalid, NotFound, UnsupportedMedia
from orqo.models import Verdict
from orqo.requestlog import Entry
from orqo.tokens import Holder

blueprint = Blueprint("endpoints", __name__, url_prefix="/api/v1")


@blueprint.post("/trigger")
def trigger() -> Response:
    """Start a workflow for the holder of an API token of scope `trigger`; 201 once the run is durable."""
    here, now = site(), clock.now()
    holder = look_up_holder(here, now=now)
    given = call_of_request(here)
    with refusals_noted(here, lambda fault: _entry(given, holder, Verdict.REFUSED, fault.status, requestlog.refusal(fault)), now=now):
        require(holder, "trigger")
        given = replace(given, body=bodies.read(request, here.config.body_max_bytes))
        accepted = _accepted(here, holder, given, now)
    # Who may not read runs gets none this way either.
    wait_s = patience.wanted_s(here, given.headers) if holder.may("read") else 0
    return started(here, accepted.run_id, duplicate=accepted.duplicate, wait_s=wait_s)


def _entry(given: Call, holder: Holder, verdict: Verdict, status_code: int, reason: str | None = None, run_id: int | None = None) -> Entry:
    return Entry("trigger", given, verdict, status_code, reason, token_id=holder.id, run_id=run_id)


def _accepted(here: Site, holder: Holder, given: Call, now: datetime) -> runs.Accepted:
    """Check what was asked for and write the run, with the request's row of the log, in one commit."""
    raw = given.body or b""
    if not bodies.is_json(given.content_type):
        raise UnsupportedMedia("Send JSON: Content-Type: application/json.")
    wanted = bodies.parse_json(raw)
    here.validators.check("StrictTriggerRequest" if here.config.strict else "TriggerRequest", wanted)
    requested = _requested(wanted)
    check_room(here.config)
    # ORQO's own API is not known to have such a key, so a strict box passes it over as it does any unknown header.
    key = None if here.config.strict else given.headers.get("idempotency-key")
    replay = hooks.keyed(f"token:{holder.id}", key, raw) if key is not None else None
    same = _simulated(here, here.simulation, wanted, holder) if here.simulation else None
    if same is not None:
        requestlog.note(here.database, _entry(given, holder, Verdict.DUPLICATE, 200, run_id=same), now=now)
        return runs.Accepted(same, duplicate=True)

    def write(connection: Connection) -> runs.Accepted:
        known = replay is not None and runs.earlier(connection, replay, now=now) is not None
        workflow = _startable(connection, wanted, holder, known=known)
        new = runs.NewRun(
            workflow_id=workflow.id,
            version_id=workflow.version_id,
            origin="api",
            input=wanted.get("input"),
            metadata=wanted.get("metadata", {}),
            token_id=holder.id,
            callbacks=requested,
            replay=replay,
            awaited=call.wait_s(given.headers) > 0,
        )
        accepted = runs.accept(connection, new, now=now)
        tokens.mark_used(connection, holder, now=now)
        verdict, status_code = (Verdict.DUPLICATE, 200) if accepted.duplicate else (Verdict.ACCEPTED, 201)
        requestlog.write(connection, _entry(given, holder, verdict, status_code, run_id=accepted.run_id), now=now)
        return accepted

    return here.database.together(write)


def _simulated(here: Site, rules: simulation.Rules, wanted: dict[str, Any], holder: Holder) -> int | None:
    """Do to a start what its workflow's simulate: says; gives the run to answer with as a duplicate, where that is what it says."""
    with here.database.read() as connection:
        workflow = _startable(connection, wanted, holder, known=False)
    return rules.before_start(workflow.version_id, {"input": wanted.get("input"), "trigger": {}})


def _startable(connection: Connection, wanted: dict[str, Any], holder: Holder, *, known: bool) -> Row[Any]:
    """Give the workflow that a request names; NotFound also where the token may not use it, Conflict where it is disabled.

    A call whose answer is `known` gets it again, whatever has become of the workflow.
    """
    reference = int(wanted["workflow_id"]) if "workflow_id" in wanted else wanted["workflow"]
    workflow = workflows.find(connection, reference)
    if workflow is None or not holder.may_use(workflow.id):
        raise NotFound(f"There is no workflow {reference} that this token may start.")
    if "workflow" in wanted and wanted["workflow"] != workflow.name:
        fault = Fault("/workflow", "is another workflow's name")
        raise Invalid("workflow_id and workflow name different workflows: send one.", errors=[fault])
    if not workflow.enabled and not known:
        raise Conflict(f"Workflow {workflow.name} is disabled. Enable it, then send this again.")
    return workflow


def _requested(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the request's own callbacks; Invalid where a URL or the metadata cannot be used."""
    if len(jsontext.dump(wanted.get("metadata", {})).encode()) > METADATA_MAX_BYTES:
        raise Invalid("metadata is too large.", errors=[Fault("/metadata", f"must have at most {METADATA_MAX_BYTES} bytes as JSON")])
    told = [("/callback_url", {"url": wanted["callback_url"]})] if "callback_url" in wanted else []
    told += [(f"/callbacks/{number}/url", each) for number, each in enumerate(wanted.get("callbacks", ()))]
    faults = [Fault(pointer, "must be an http or https URL with a host") for pointer, each in told if not _is_http_url(each["url"])]
    if faults:
        raise Invalid(f"{faults[0].pointer[1:]} cannot be used.", errors=faults)
    return [callbacks.requested(**each) for _, each in told]


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False
