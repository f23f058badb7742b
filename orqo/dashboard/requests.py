"""The request log: what a workflow's triggers and /trigger received, why it came to nothing, and sending it once more.

Owns the search for why a signature did not fit, as people see it. What may be replayed is replays.py's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flask import Response, g, render_template, request
from sqlalchemy import Connection, Row

from orqo import clock, inbound, listings, replays, requestlog, triggers
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import common, done, etag_of, field, live_answer, page, plain, whole_number
from orqo.dashboard.shown import span
from orqo.dashboard.workflows import known
from orqo.errors import NotFound, Problem
from orqo.hooks import Gate
from orqo.inspection import CUT_BYTES, Cut
from orqo.models import Verdict
from orqo.site import check_room, site
from orqo.webhook import Options

UNKNOWN = "There is no such request: it never arrived, or is no longer kept (7 days, the newest 10,000)."
LIVE_MS = 3000
# Verdicts of /callback are not listed here.
VERDICTS = [str(each) for each in Verdict if each != Verdict.RECEIVED]
CURL_BODY_MAX = 16 * 1024
BODY_FILE = "request.body"


# ── the list on a workflow's tab ────────────────────────────────────────────────────────────────────────────────────


def requests_part(connection: Connection, workflow: Row[Any]) -> tuple[dict[str, str], int | None]:
    """Give the list of requests that the query asks for as a live part, and when to ask again; older pages do not change."""
    verdict, before = request.args.get("verdict", ""), whole_number("earlier")
    verdict = verdict if verdict in VERDICTS else ""
    found = listings.requests(connection, workflow_id=workflow.id, verdict=verdict, before=before)
    html = render_template("parts/requests.html", listed=found, workflow=workflow, verdict=verdict, before=before, **common())
    return {"requests": html}, None if before is not None else LIVE_MS


def live_requests(connection: Connection, workflow: Row[Any]) -> dict[str, Any]:
    """Give what the tab shows of the list: its parts, their state and when to ask again."""
    parts, next_ms = requests_part(connection, workflow)
    return {"parts": parts, "etag": etag_of(parts, next_ms), "next_ms": next_ms, "verdicts": VERDICTS}


@blueprint.get("/workflows/<name>/requests/live")
def workflow_requests_live(name: str) -> Response:
    """Answer a poll of the tab's list of requests."""
    with site().database.read() as connection:
        parts, next_ms = requests_part(connection, known(connection, name))
    return live_answer(parts, next_ms)


# ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/requests/<int:request_id>")
def kept_request(request_id: int) -> Response:
    """Show a request."""
    return _page(request_id)


@blueprint.get("/requests/<int:request_id>/body")
def kept_request_body(request_id: int) -> Response:
    """Give the bytes of a request's body as text."""
    with site().database.read() as connection:
        return plain(_known(connection, request_id).body, "body: it was not read, or is no longer kept")


@blueprint.post("/requests/<int:request_id>/replay")
def replay_request(request_id: int) -> Response:
    """Send a request through its webhook once more, with `anyway` also where its signature does not fit; shows the run."""
    anyway = field("anyway", most=1) == "1"
    try:
        check_room(site().config)
        if not 0 < request_id <= listings.LARGEST_ID:
            raise NotFound(UNKNOWN)
        outcome = replays.replay(_gate(), request_id, anyway=anyway, now=g.now)
    except NotFound as fault:
        raise NotFound(UNKNOWN) from fault
    except Problem as fault:
        return _page(request_id, fault=fault)
    if outcome.run_id is None:
        return done("kept_request", "replayed-to-nothing", request_id=request_id)
    site().bell.wake_workers()
    return done("run", "replayed-before" if outcome.verdict == Verdict.DUPLICATE else "replayed", run_id=outcome.run_id)


def _gate() -> Gate:
    here = site()
    return Gate(here.database, here.secrets, here.config.base_url)


def _known(connection: Connection, request_id: int) -> Row[Any]:
    row = requestlog.find(connection, request_id) if 0 < request_id <= listings.LARGEST_ID else None
    if row is None:
        raise NotFound(UNKNOWN)
    return row


def _page(request_id: int, *, fault: Problem | None = None) -> Response:
    with site().database.read() as connection:
        row = _known(connection, request_id)
        found = triggers.find_by_id(connection, row.trigger_id) if row.trigger_id is not None else None
        again = listings.replays_of(connection, request_id)
        token = listings.token_name(connection, row.token_id)
    # A browser asks for nothing on a 401 of this kind, but what failed is the form.
    code = 200 if fault is None else 422 if fault.status == 401 else fault.status
    values = {
        "row": row,
        "token": token,
        "again": again,
        "fault": fault,
        "headers": json.loads(row.headers),
        "query": json.loads(row.query),
        "body": None if row.body is None else _cut(row),
        "curl": _curl(row, found),
        "prospect": replays.prospect(_gate(), row, found, now=g.now) if row.verdict in replays.AGAIN else None,
        "signature": _signature(row, found),
    }
    return page("request.html", code=code, **values)


def _cut(row: Row[Any]) -> Cut:
    """Give the body as it came, JSON too: laid out anew it would not be what was signed."""
    data = bytes(row.body)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return Cut(data[:CUT_BYTES], len(data), "bytes")
    return Cut(data[:CUT_BYTES], len(data), "text")


@dataclass(frozen=True)
class Curl:
    """The command that sends a request again; `needs_body`: save the body beside it first. `unsigned`: it will be refused."""

    line: str
    needs_body: bool
    unsigned: bool


def _curl(row: Row[Any], found: Row[Any] | None) -> Curl:
    here = site()
    url = f"{here.config.base_url}/api/v1/{row.endpoint}"
    if row.endpoint == "hook":
        url = (triggers.url_of(found, here.key, here.config.base_url) if found is not None else None) or "$URL"
    large = len(row.body or b"") > CURL_BODY_MAX
    line = requestlog.as_curl(row, url, body_file=BODY_FILE if large else None)
    return Curl(line, large, found is not None and Options.from_stored(found.options).scheme is not None)


@dataclass(frozen=True)
class Signature:
    """What is known of a request's signature, by what its trigger asks now.

    `headers` and `secrets` say of each whether it was there, or is set; `signed` how long before its arrival it was made.
    """

    scheme: inbound.Scheme
    headers: dict[str, bool]
    secrets: dict[str, bool]
    signed: str | None = None
    is_late: bool = False


def _signature(row: Row[Any], found: Row[Any] | None) -> Signature | None:
    options = Options.from_stored(found.options) if found is not None else Options()
    if options.scheme is None or row.endpoint != "hook":
        return None
    given = requestlog.call_of(row).headers
    there = {name: name in given for name in options.scheme.headers}
    known_secrets = {name: bool(site().secrets.get(name)) for name in options.secrets}
    stamp = inbound.signed_at(options.scheme, given)
    if stamp is None:
        return Signature(options.scheme, there, known_secrets)
    # Any number of twelve digits may have been sent, which no datetime need hold.
    late_s = clock.from_text(row.received_at).timestamp() - stamp
    told = f"{span(abs(late_s) * 1000)} {'before' if late_s >= 0 else 'after'} it arrived"
    return Signature(options.scheme, there, known_secrets, told, abs(late_s) > inbound.TOLERANCE_S)
