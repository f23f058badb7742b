"""The request log: each call that an endpoint received from whoever knew a token, with its verdict and why.

Owns the table requests: the only writer of it. Never knows a token: the path is not kept, and of a credential in a header
or the query only that it was there. Signatures are kept, hidden, so that a refused request can be verified again.
"""

from __future__ import annotations

import base64
import json
import logging
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Row, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from orqo import call, clock, jsontext
from orqo.call import Call
from orqo.db import Database
from orqo.errors import Problem, Unavailable
from orqo.inbound import Scheme
from orqo.models import Request, Trigger, Verdict, Workflow
from orqo.prepared import Prepared

log = logging.getLogger(__name__)

KEPT_MAX = 10_000
KEPT_DAYS = 7
REFUSED_BODIES_MAX = 100
TRIM_EVERY, TRIM_LIMIT = 32, 200
ROWS = cast(Table, Request.__table__)
WRITTEN = (
    *("endpoint", "received_at", "trigger_id", "token_id", "run_id", "status_code", "verdict", "reason", "method", "remote"),
    *("content_type", "size", "query", "headers", "hidden", "replay_of", "webhook_id", "event", "body"),
)
INSERT = Prepared(insert(ROWS).returning(ROWS.c.id), *WRITTEN)
# Of the oldest alone: whoever looks for all that are too old or too many reads the whole log.
NEWEST = select(func.max(ROWS.c.id)).scalar_subquery()
OLDEST = select(ROWS.c.id, ROWS.c.received_at).order_by(ROWS.c.id).limit(TRIM_LIMIT).subquery()
GONE = select(OLDEST.c.id).where((OLDEST.c.id <= NEWEST - KEPT_MAX) | (OLDEST.c.received_at < bindparam("too_old")))
TRIM = Prepared(delete(ROWS).where(ROWS.c.id.in_(GONE)), "too_old")
NOT_COPIED = ("host", "content-length", "connection", "accept-encoding", "transfer-encoding", "expect")
LISTED = (
    *("id", "endpoint", "received_at", "trigger_id", "token_id", "run_id", "status_code", "verdict", "reason"),
    *("method", "remote", "content_type", "size", "replay_of"),
)


@dataclass(frozen=True)
class Entry:
    """What is written of one request. `scheme` says which of its headers are secret besides the usual ones."""

    endpoint: str
    call: Call
    verdict: Verdict
    status_code: int
    reason: str | None = None
    trigger_id: int | None = None
    token_id: int | None = None
    run_id: int | None = None
    scheme: Scheme | None = None
    replay_of: int | None = None
    webhook_id: str | None = None
    event: str | None = None


def write(connection: Connection, entry: Entry, *, now: datetime) -> int:
    """Write a request within the caller's transaction and give its id; trims what is too old or too much, a little at a time."""
    made: int = INSERT.first(connection, _values(entry, now)).id
    if entry.verdict == Verdict.REFUSED:
        _drop_refused_bodies(connection, entry)
    if made % TRIM_EVERY == 0:
        _trim(connection, now)
    return made


def _values(entry: Entry, now: datetime) -> dict[str, Any]:
    given = entry.call
    return {
        "endpoint": entry.endpoint,
        "received_at": clock.to_text(now),
        "trigger_id": entry.trigger_id,
        "token_id": entry.token_id,
        "run_id": entry.run_id,
        "status_code": entry.status_code,
        "verdict": entry.verdict,
        "reason": call.clean(entry.reason)[:1000] if entry.reason else None,
        "method": call.clean(given.method)[:20],
        "remote": call.clean(given.remote)[:100],
        "content_type": call.clean(given.content_type)[:200],
        "size": None if given.body is None else len(given.body),
        "query": jsontext.dump(call.shown_query(given)),
        "headers": jsontext.dump(call.shown_headers(given, entry.scheme)),
        "hidden": jsontext.dump(call.hidden_headers(given, entry.scheme)) if entry.endpoint == "hook" else "{}",
        "replay_of": entry.replay_of,
        "webhook_id": entry.webhook_id,
        "event": entry.event,
        "body": given.body,
    }


def _drop_refused_bodies(connection: Connection, entry: Entry) -> None:
    """Keep the bodies of the newest refused requests of this trigger, or of this token, only."""
    same = ROWS.c.trigger_id == entry.trigger_id if entry.trigger_id is not None else ROWS.c.trigger_id.is_(None)
    token = ROWS.c.token_id == entry.token_id if entry.token_id is not None else ROWS.c.token_id.is_(None)
    older = select(ROWS.c.id).where(ROWS.c.verdict == Verdict.REFUSED, ROWS.c.body.is_not(None), same, token)
    older = older.order_by(ROWS.c.id.desc()).offset(REFUSED_BODIES_MAX).limit(TRIM_LIMIT)
    connection.execute(update(ROWS).where(ROWS.c.id.in_(older)).values(body=None))


def _trim(connection: Connection, now: datetime) -> None:
    TRIM.change(connection, {"too_old": clock.to_text(now - timedelta(days=KEPT_DAYS))})


def note(database: Database, entry: Entry, *, now: datetime) -> None:
    """Write a request that started nothing, in a commit of its own; what cannot be written costs the log and not the answer."""
    try:
        with database.transaction() as connection:
            write(connection, entry, now=now)
    except (Unavailable, SQLAlchemyError) as fault:
        log.warning("step=request status=unlogged trigger=%s error=%s", entry.trigger_id, type(fault).__name__)


def refusal(fault: Problem) -> str:
    """Give why a request was refused, as its owner may read it: what the answer said and what it kept back."""
    places = "".join(f" {each.pointer}: {each.detail}." for each in fault.errors[:3] if each.detail not in fault.detail)
    return fault.for_owner or fault.detail + places


# ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_all(
    connection: Connection,
    *,
    endpoint: str | None = None,
    verdict: str | None = None,
    workflow_id: int | None = None,
    trigger_id: int | None = None,
    run_id: int | None = None,
    before: int | None = None,
    workflow_ids: Collection[int] | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Give requests without headers and bodies, newest first, each with the names of its `workflow` and `trigger`.

    With `workflow_ids` only those to webhooks of these workflows.
    """
    query = _with_names(*(ROWS.c[name] for name in LISTED))
    wanted = {"endpoint": endpoint, "verdict": verdict, "trigger_id": trigger_id, "run_id": run_id}
    query = query.where(*(ROWS.c[name] == value for name, value in wanted.items() if value is not None))
    if workflow_id is not None:
        query = query.where(Trigger.workflow_id == workflow_id)
    if workflow_ids is not None:
        query = query.where(Trigger.workflow_id.in_(sorted(workflow_ids)))
    if before is not None:
        query = query.where(ROWS.c.id < before)
    return [dict(row._mapping) for row in connection.execute(query.order_by(ROWS.c.id.desc()).limit(limit))]


def run_of_replay(connection: Connection, request_id: int) -> int | None:
    """Give the run that a replay of this request started, None where none did."""
    started = select(Request.run_id).where(Request.replay_of == request_id, Request.run_id.is_not(None))
    return connection.execute(started.order_by(Request.id).limit(1)).scalar()


def find(connection: Connection, request_id: int) -> Row[Any] | None:
    """Give a request's whole row with the names of its `workflow` and `trigger`, None where there is none."""
    return connection.execute(_with_names(*ROWS.c).where(ROWS.c.id == request_id)).one_or_none()


def _with_names(*columns: Any) -> Any:
    named = (Trigger.name.label("trigger"), Workflow.id.label("workflow_id"), Workflow.name.label("workflow"))
    joined = select(*columns, *named).select_from(ROWS).outerjoin(Trigger, Trigger.id == ROWS.c.trigger_id)
    return joined.outerjoin(Workflow, Workflow.id == Trigger.workflow_id)


def shown(row: Row[Any]) -> dict[str, Any]:
    """Give the JSON of a request: what lists have, `query`, `headers`, and the body as text, or `{"base64"}`, null where it is not kept."""
    told = {name: getattr(row, name) for name in (*LISTED, "workflow_id", "workflow", "trigger", "event")}
    return told | {"query": json.loads(row.query), "headers": json.loads(row.headers), "body": _body(row.body)}


def _body(body: bytes | None) -> Any:
    if body is None:
        return None
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode("ascii")}


def call_of(row: Row[Any]) -> Call:
    """Give a kept request as it came, signature headers included; what was a credential is gone."""
    headers = {name: value for name, value in json.loads(row.headers).items() if value != call.HIDDEN} | json.loads(row.hidden)
    query = [(name, value) for name, value in json.loads(row.query)]
    return Call(method=row.method, headers=headers, query=query, remote=row.remote, body=row.body)


def as_curl(row: Row[Any], url: str = "$URL", *, body_file: str | None = None) -> str:
    """Give a command that sends the request once more, without what was a credential or a signature.

    `url` is put in as it is, quoted where it is not the variable. An API token is the variable ORQO_API_TOKEN. The body is
    read from `body_file` where there is one.
    """
    headers: Mapping[str, str] = json.loads(row.headers)
    query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in json.loads(row.query) if value != call.HIDDEN)
    where = url + (f"?{query}" if query else "")
    words = ["curl", "-X", shlex.quote(row.method), f'"{where}"' if url == "$URL" else shlex.quote(where)]
    if row.endpoint != "hook" and "authorization" in headers:
        words += ["-H", '"Authorization: Bearer $ORQO_API_TOKEN"']
    for name, value in headers.items():
        # Of -H @name curl reads a file.
        if value != call.HIDDEN and name not in NOT_COPIED and not name.startswith("@"):
            words += ["-H", shlex.quote(f"{name}: {value}" if value else f"{name};")]
    if not row.body:
        return " ".join(words)
    if "content-type" not in headers:
        words += ["-H", "Content-Type:"]
    if body_file is not None:
        return " ".join([*words, "--data-binary", shlex.quote(f"@{body_file}")])
    text = _body(row.body)
    if isinstance(text, str) and text.isprintable():
        return " ".join([*words, "--data-raw", shlex.quote(text)])
    encoded = base64.b64encode(row.body).decode("ascii")
    return f"printf %s {encoded} | base64 -d | {' '.join(words)} --data-binary @-"


def _quoted(text: str) -> str:
    return quote(text, safe="")
