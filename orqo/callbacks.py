"""Configured callbacks, and the recording of events for them in the outbox.

Owns the table callbacks and the bytes of an event. Never imports runs: a run comes in as data, within the transaction
that changed it. Sending is deliveries.py's.
"""

from __future__ import annotations

import json
import secrets as random_tokens
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, Table, bindparam, func, insert, or_, select, update

from orqo import clock, jsontext, lookup
from orqo.definition import CallbackDefinition
from orqo.errors import Conflict, NotFound
from orqo.models import Attempt, Callback, Delivery, DeliveryStatus
from orqo.outgoing import shown_template
from orqo.prepared import Prepared, Writing

OUTPUT_MAX_BYTES = 65536
REMOVED = "The callback was removed while it was paused."
FAILING_MAX = timedelta(days=5)
NOT_PAUSED = {"paused_at": None, "pause_reason": None, "failing_since": None}
EVENTS = ("completed", "failed", "stopped", "output", "waiting")
Listeners = Sequence[Row[Any]]
DELIVERIES = cast(Table, Delivery.__table__)
CONFIGURED = Prepared(
    select(Callback.__table__)
    .where(
        Callback.workflow_id == bindparam("workflow_id"),
        or_(Callback.trigger_id.is_(None), Callback.trigger_id == bindparam("trigger_id")),
        Callback.removed_at.is_(None),
    )
    .order_by(Callback.id)
)
NEWEST_SEQUENCE = Prepared(select(func.max(Delivery.sequence).label("newest")).where(Delivery.run_id == bindparam("run_id")))
STILL_PENDING = (Delivery.run_id == bindparam("run_id"), Delivery.status == DeliveryStatus.PENDING)
# Held until the new ones are committed: whoever records the end of these meanwhile would release none after them.
EARLIER_PENDING = Prepared(
    select(Delivery.channel)
    .where(Delivery.id.in_(select(func.max(Delivery.id)).where(*STILL_PENDING).group_by(Delivery.channel)), *STILL_PENDING)
    .order_by(Delivery.id)
    .with_for_update(read=True)
)
WRITE = Writing(insert(DELIVERIES))


@dataclass(frozen=True)
class Event:
    """Something that happened to a run. `run` is the run as GET shows it, plus `url`; `roots` are for templates.

    `wait` is what `waiting` tells besides: `message`, `link`, `deadline`.
    """

    name: str
    run: Mapping[str, Any]
    roots: Callable[[], Mapping[str, Any]]
    output: bytes | None
    output_kind: str | None
    stage: str | None = None
    wait: Mapping[str, Any] | None = None
    requested: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class _Target:
    """A callback that wants an event: its channel within the run and what to render."""

    channel: str
    callback_id: int | None
    url: str
    headers: Mapping[str, str]
    body: str | None
    secret: str | None
    guarded: bool
    paused: bool


def configure(
    connection: Connection, *, workflow_id: int, trigger_id: int | None, wanted: Sequence[CallbackDefinition], origin: str, now: datetime
) -> None:
    """Make the callbacks of one workflow or trigger that come from `origin` exactly the wanted ones.

    A callback whose URL stays keeps its row, and with it a pause and its deliveries.
    """
    owned = (Callback.workflow_id == workflow_id, Callback.trigger_id.is_not_distinct_from(trigger_id))
    rows = connection.execute(select(Callback.__table__).where(*owned, Callback.origin == origin, Callback.removed_at.is_(None))).all()
    kept: set[int] = set()
    for callback in wanted:
        same = next((row for row in rows if row.url == callback.url and row.id not in kept), None)
        if same:
            kept.add(same.id)
            connection.execute(update(Callback).where(Callback.id == same.id).values(_columns(callback)))
        else:
            add(connection, workflow_id=workflow_id, trigger_id=trigger_id, callback=callback, origin=origin, now=now)
    for row in rows:
        if row.id not in kept:
            _take_away(connection, row.id, now)


def add(
    connection: Connection, *, workflow_id: int, trigger_id: int | None, callback: CallbackDefinition, origin: str, now: datetime
) -> int:
    """Configure one more callback and give its id."""
    values = _columns(callback) | {
        "workflow_id": workflow_id,
        "trigger_id": trigger_id,
        "url": callback.url,
        "origin": origin,
        "created_at": clock.to_text(now),
    }
    return int(connection.execute(insert(Callback).values(values).returning(Callback.id)).scalar_one())


def _columns(callback: CallbackDefinition) -> dict[str, Any]:
    return {
        "events": " ".join(callback.events),
        "body": jsontext.dump(callback.json) if callback.has_json else None,
        "headers": jsontext.dump(dict(callback.headers)),
        "secret": callback.secret,
        "guarded": int(callback.guarded),
    }


def listeners(connection: Connection, workflow_id: int, trigger_id: int | None) -> Listeners:
    """Give the callbacks that the events of one workflow's runs go to, its own and those of the trigger that started them."""
    return CONFIGURED.all(connection, {"workflow_id": workflow_id, "trigger_id": trigger_id})


def is_wanted(to: Listeners, requested: Sequence[Mapping[str, Any]], event: str) -> bool:
    """Tell whether any callback, configured or of the request, wants this event."""
    return any(event in row.events.split() for row in to) or any(event in callback["events"] for callback in requested)


def record(connection: Connection, event: Event, to: Listeners, *, now: datetime) -> int:
    """Write one delivery for each callback that wants this event; gives how many can be sent now.

    Part of the caller's transaction: the event is recorded if and only if the change that it tells is.
    """
    targets = list(_targets(event, to))
    if not targets:
        return 0
    sequence = _next_sequence(connection, event.run["id"])
    busy = {row.channel for row in EARLIER_PENDING.all(connection, {"run_id": event.run["id"]})}
    written = [_write(connection, event, target, first=target.channel not in busy, sequence=sequence, now=now) for target in targets]
    return sum(written)


def _targets(event: Event, to: Listeners) -> Iterator[_Target]:
    """Give the callbacks of the workflow, of the trigger and of the request that name this event."""
    for row in to:
        if event.name in row.events.split():
            yield _configured(row)
    for number, callback in enumerate(event.requested):
        if event.name in callback["events"]:
            yield _Target(f"request:{number}", None, _literal(callback["url"]), {}, None, None, guarded=True, paused=False)


def _literal(text: str) -> str:
    """Keep a text of a request's from being read as a template."""
    return text.replace("${", "$${")


def _configured(row: Row[Any]) -> _Target:
    return _Target(
        channel=f"callback:{row.id}",
        callback_id=row.id,
        url=row.url,
        headers=json.loads(row.headers),
        body=row.body,
        secret=row.secret,
        guarded=bool(row.guarded),
        paused=row.paused_at is not None,
    )


def _next_sequence(connection: Connection, run_id: int) -> int:
    return int(NEWEST_SEQUENCE.first(connection, {"run_id": run_id}).newest or 0) + 1


def _write(connection: Connection, event: Event, target: _Target, *, first: bool, sequence: int, now: datetime) -> bool:
    """Write one delivery; tells whether it can be sent now, not after an earlier one or a pause."""
    moment = clock.to_text(now)
    sendable = first and not target.paused
    values = {
        "webhook_id": f"msg_{random_tokens.token_urlsafe(18)}",
        "run_id": event.run["id"],
        "callback_id": target.callback_id,
        "channel": target.channel,
        "sequence": sequence,
        "event": f"run.{event.name}",
        "secret": target.secret,
        "guarded": int(target.guarded),
        "status": DeliveryStatus.PENDING,
        "next_attempt_at": moment if sendable else None,
        "created_at": moment,
    }
    try:
        rendered = _rendered(event, target, sequence=sequence, now=now)
    except (lookup.LookupFailed, ValueError) as fault:
        _write_dead(connection, values, target, fault, moment)
        return False
    WRITE.change(connection, values | rendered)
    return sendable


def _write_dead(connection: Connection, values: dict[str, Any], target: _Target, fault: Exception, moment: str) -> None:
    """Keep an event whose callback cannot be rendered, so that it is seen; the run itself is not to suffer from it."""
    dead = {"url": jsontext.dump([target.url]), "host": "", "body": b"", "status": DeliveryStatus.DEAD, "attempts": 1}
    done = {"next_attempt_at": None, "finished_at": moment}
    delivery_id = connection.execute(insert(Delivery).values(values | dead | done).returning(Delivery.id)).scalar_one()
    attempt = {"delivery_id": delivery_id, "number": 1, "started_at": moment, "duration_ms": 0}
    connection.execute(insert(Attempt).values(attempt | {"reason": "lookup_failed", "detail": str(fault)}))


def _rendered(event: Event, target: _Target, *, sequence: int, now: datetime) -> dict[str, Any]:
    """Render what is frozen: body wholly; URL and headers but for secrets, which are filled in when sent."""
    mark = random_tokens.token_hex(16)
    roots = {**event.roots(), "secrets": _Marks(mark)}
    url = _segments(lookup.render_url(target.url, roots), mark)
    headers = {name: _segments(lookup.render_text(text, roots), mark) for name, text in target.headers.items()}
    if target.body is None:
        body = event_body(event, sequence=sequence, now=now)
    else:
        body = jsontext.dump(lookup.render(json.loads(target.body), {**roots, "secrets": {}})).encode()
    return {"url": jsontext.dump(url), "headers": jsontext.dump(headers), "host": _host(url), "body": body}


def rendered(event: Event, callback: Row[Any], *, now: datetime) -> dict[str, Any]:
    """Render an event for one configured callback as `record` does, and write nothing: url, headers, host, body, secret, guarded.

    Raises LookupFailed where a template of the callback's reads what the event does not have.
    """
    target = _configured(callback)
    return _rendered(event, target, sequence=1, now=now) | {"secret": target.secret, "guarded": target.guarded}


class _Marks(dict[str, str]):
    """Stands for the secrets while a template is rendered: each look-up gives a mark that payload cannot contain."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = mark

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __getitem__(self, name: str) -> str:
        return f"{self._mark}{name}{self._mark}"

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def _segments(text: str, mark: str) -> list[Any]:
    """Split a rendered text at its marks: texts and `{"secret": NAME}` in turn."""
    parts: list[Any] = text.split(mark)
    return [{"secret": part} if index % 2 else part for index, part in enumerate(parts)]


def _host(segments: list[Any]) -> str:
    """Give what bounds the concurrency: host and port, or the secret's name where that is what holds them."""
    start = segments[0]
    if "/" in start.partition("://")[2] or len(segments) == 1:
        parts = urlsplit(start)
        # No host has such a character, and PostgreSQL's text cannot hold it; sending says what is wrong with the URL.
        name = (parts.hostname or "").replace("\0", "\N{REPLACEMENT CHARACTER}")
        return f"{name}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    return f"secrets.{segments[1]['secret']}"


def event_body(event: Event, *, sequence: int, now: datetime) -> bytes:
    """Give the bytes of an event as DESIGN §1 describes it, in the form of Standard Webhooks."""
    run = event.run
    told = ("workflow_id", "workflow", "error", "metadata", "trigger_id", "created_at", "started_at", "finished_at", "url")
    data = {key: run[key] for key in told} | {"stage": event.stage, "sequence": sequence}
    if event.output is not None and len(event.output) > OUTPUT_MAX_BYTES:
        data |= {"output": None, "output_truncated": True}
    else:
        data["output"] = jsontext.value_of(event.output, event.output_kind)
    if event.wait is not None:
        data |= {key: event.wait[key] for key in ("message", "link", "deadline")}
    body = {
        "type": f"run.{event.name}",
        "timestamp": clock.to_text(now),
        "workflow_run_id": run["id"],
        "status": run["status"],
        "data": data,
    }
    return jsontext.dump(body).encode()


def list_all(connection: Connection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Give the configured callbacks, newest last; secrets by name only."""
    rows = connection.execute(select(Callback.__table__).where(Callback.removed_at.is_(None)).order_by(Callback.id).limit(limit))
    return [shown(row) for row in rows]


def shown(row: Row[Any]) -> dict[str, Any]:
    """Give the JSON of a configured callback; its secret by name only."""
    return {
        "id": row.id,
        "workflow_id": row.workflow_id,
        "trigger_id": row.trigger_id,
        "url": shown_template(row.url),
        "events": row.events.split(),
        "secret": row.secret,
        "paused_at": row.paused_at,
        "pause_reason": row.pause_reason,
    }


def to_url(connection: Connection, url: str, *, limit: int = 1000) -> list[Row[Any]]:
    """Give the configured callbacks whose URL is exactly this one."""
    same = (Callback.url == url, Callback.removed_at.is_(None))
    return list(connection.execute(select(Callback.__table__).where(*same).order_by(Callback.id).limit(limit)))


def get(connection: Connection, callback_id: int) -> Row[Any]:
    """Give a configured callback's row; NotFound where there is none."""
    row = connection.execute(select(Callback.__table__).where(Callback.id == callback_id, Callback.removed_at.is_(None))).one_or_none()
    if row is None:
        raise NotFound(f"There is no callback {callback_id}. List them with: callback list")
    return row


def workflow_of(connection: Connection, callback_id: int) -> int | None:
    """Give the workflow of a callback, of one that is configured no more too; None where there never was one."""
    return connection.execute(select(Callback.workflow_id).where(Callback.id == callback_id)).scalar()


def remove(connection: Connection, callback_id: int, *, now: datetime) -> None:
    """Take a callback away; its deliveries stay. NotFound where there is none, Conflict where a file configures it."""
    if get(connection, callback_id).origin == "file":
        raise Conflict(f"Callback {callback_id} is configured in the workflow's file: take it out there and apply the file.")
    _take_away(connection, callback_id, now)


def remove_those_of_trigger(connection: Connection, trigger_id: int, *, now: datetime) -> None:
    """Take away the callbacks of a trigger that is about to be deleted."""
    mine = select(Callback.id).where(Callback.trigger_id == trigger_id, Callback.removed_at.is_(None))
    for callback_id in list(connection.execute(mine).scalars()):
        _take_away(connection, callback_id, now)


def _take_away(connection: Connection, callback_id: int, now: datetime) -> None:
    """Configure a callback no more. What it still has to send is sent; what a pause held is dead, and can be redelivered."""
    moment = clock.to_text(now)
    connection.execute(update(Callback).where(Callback.id == callback_id).values(removed_at=moment))
    if connection.execute(select(Callback.paused_at).where(Callback.id == callback_id)).scalar() is None:
        return
    held = (Delivery.callback_id == callback_id, Delivery.status == DeliveryStatus.PENDING, Delivery.lease_owner.is_(None))
    rows = connection.execute(select(Delivery.id, Delivery.attempts).where(*held)).all()
    for row in rows:
        attempt = {"delivery_id": row.id, "number": row.attempts, "started_at": moment, "duration_ms": 0}
        connection.execute(insert(Attempt).values(attempt | {"reason": "removed", "detail": REMOVED}))
    ended = {"status": DeliveryStatus.DEAD, "next_attempt_at": None, "finished_at": moment}
    connection.execute(update(Delivery).where(Delivery.id.in_([row.id for row in rows])).values(ended))
    # Those of them that are sent again find no pause any more.
    connection.execute(update(Callback).where(Callback.id == callback_id).values(NOT_PAUSED))


def pause(connection: Connection, callback_id: int, *, reason: str, now: datetime) -> None:
    """Hold all deliveries of a callback until it is resumed."""
    unpaused = update(Callback).where(Callback.id == callback_id, Callback.paused_at.is_(None))
    connection.execute(unpaused.values(paused_at=clock.to_text(now), pause_reason=reason))
    held = (Delivery.callback_id == callback_id, Delivery.status == DeliveryStatus.PENDING)
    connection.execute(update(Delivery).where(*held).values(next_attempt_at=None))


def note_attempt(connection: Connection, callback_id: int, *, delivered: bool, now: datetime) -> None:
    """Remember since when a callback has only failed; five days of nothing but failures pause it."""
    same = Callback.id == callback_id
    if delivered:
        connection.execute(update(Callback).where(same, Callback.failing_since.is_not(None)).values(failing_since=None))
        return
    connection.execute(update(Callback).where(same, Callback.failing_since.is_(None)).values(failing_since=clock.to_text(now)))
    since = connection.execute(select(Callback.failing_since).where(same)).scalar()
    if since and since <= clock.to_text(now - FAILING_MAX):
        pause(connection, callback_id, reason=f"Every attempt since {since} failed.", now=now)


def resume(connection: Connection, callback_id: int, *, now: datetime) -> None:
    """Let the deliveries of a paused callback go on: the earliest of each run at once. NotFound where there is none."""
    get(connection, callback_id)
    connection.execute(update(Callback).where(Callback.id == callback_id).values(NOT_PAUSED))
    pending = (Delivery.callback_id == callback_id, Delivery.status == DeliveryStatus.PENDING)
    heads = select(func.min(Delivery.id)).where(*pending).group_by(Delivery.run_id, Delivery.channel)
    connection.execute(update(Delivery).where(Delivery.id.in_(heads)).values(next_attempt_at=clock.to_text(now)))


def requested(url: str, events: Sequence[str] = ("completed", "failed", "stopped")) -> dict[str, Any]:
    """Give the entry of `runs.callbacks` for one callback of a request."""
    return {"url": url, "events": list(events)}


def definition(url: str, events: Sequence[str]) -> CallbackDefinition:
    """Give a callback as an operator writes it on a command line: our own event, derived secret."""
    return CallbackDefinition(url=url, events=tuple(events), guarded=lookup.influences_host(url))
