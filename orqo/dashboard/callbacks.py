"""A workflow's Callbacks tab: destinations and their events, pauses, signing secrets on demand, the last deliveries."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from flask import Response, g, request
from sqlalchemy import Connection, Row, select

from orqo import callbacks, deliveries, listings, lookup, signing
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field, page
from orqo.dashboard.workflows import known
from orqo.errors import Fault, Invalid, NotFound, Problem
from orqo.models import Callback, Trigger, Workflow
from orqo.outbound import shown_template
from orqo.site import site

CALLBACKS_SHOWN = 100


@blueprint.get("/workflows/<name>/callbacks")
def workflow_callbacks(name: str) -> Response:
    """Show the tab."""
    return _tab(name)


def _tab(name: str, *, fault: Problem | None = None, secret: dict[str, Any] | None = None) -> Response:
    with site().database.read() as connection:
        row = known(connection, name)
        shown = _configured(connection, row.id)
        dead = deliveries.with_dead(connection, [each["id"] for each in shown])
        sent = listings.newest_deliveries(connection, [each["id"] for each in shown])
        triggers = connection.execute(
            select(Trigger.id, Trigger.name).where(Trigger.workflow_id == row.id).order_by(Trigger.name).limit(CALLBACKS_SHOWN)
        ).all()
    return page(
        "workflow_callbacks.html", code=fault.status if fault else 200, tab="callbacks", workflow=row, callbacks=shown, dead=dead,
        deliveries=sent, triggers=triggers, events=callbacks.EVENTS, fault=fault, secret=secret,
    )  # fmt: skip


def _configured(connection: Connection, workflow_id: int) -> list[dict[str, Any]]:
    query = select(Callback.__table__, Trigger.name.label("trigger")).outerjoin(Trigger, Trigger.id == Callback.trigger_id)
    mine = query.where(Callback.workflow_id == workflow_id, Callback.removed_at.is_(None)).order_by(Callback.id).limit(CALLBACKS_SHOWN)
    return [dict(row._mapping) | {"shown_url": _shown(row.url)} for row in connection.execute(mine)]


def _shown(url: str) -> str:
    """Give a configured URL for people: as it stands where it is a template, else without user info and query."""
    return shown_template(url)


@blueprint.post("/workflows/<name>/callbacks")
def add_callback(name: str) -> Response:
    """Configure one more destination."""
    try:
        wanted = callbacks.definition(_checked(field("url", most=2000).strip()), _events())
        with site().database.transaction() as connection:
            row = known(connection, name)
            trigger_id = _trigger_id(connection, row.id, field("trigger", most=20))
            callbacks.add(connection, workflow_id=row.id, trigger_id=trigger_id, callback=wanted, origin="dashboard", now=g.now)
    except NotFound:
        raise
    except Problem as fault:
        return _tab(name, fault=fault)
    return done("workflow_callbacks", "created", name=name)


def _checked(url: str) -> str:
    """Give a URL as it was typed, taken literally; Invalid where nothing could be sent there."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        usable = False
    if not usable or "${" in url:
        detail = "must be an http or https URL with a host; look-ups such as ${run.id} are for workflow files"
        raise Invalid(f"The callback cannot be made: the URL {detail}.", errors=[Fault("/url", detail)])
    return url


def _events() -> list[str]:
    chosen = [name for name in callbacks.EVENTS if name in request.form.getlist("events")]
    if not chosen:
        raise Invalid("The callback cannot be made: choose at least one event.", errors=[Fault("/events", "choose at least one")])
    return chosen


def _trigger_id(connection: Connection, workflow_id: int, text: str) -> int | None:
    if not text:
        return None
    ids = connection.execute(select(Trigger.id).where(Trigger.workflow_id == workflow_id)).scalars()
    return next((each for each in ids if str(each) == text), None)


@blueprint.post("/callbacks/<int:callback_id>/remove")
def remove_callback(callback_id: int) -> Response:
    """Take a destination away that was configured here; one of a file is taken away in the file."""
    with site().database.transaction() as connection:
        name, _ = _named(connection, callback_id)
        callbacks.remove(connection, callback_id, now=g.now)
    return done("workflow_callbacks", "removed", name=name)


@blueprint.post("/callbacks/<int:callback_id>/resume")
def resume_callback(callback_id: int) -> Response:
    """Let a paused destination have its deliveries."""
    with site().database.transaction() as connection:
        name, _ = _named(connection, callback_id)
        callbacks.resume(connection, callback_id, now=g.now)
    site().bell.notify()
    return done("workflow_callbacks", "resumed", name=name)


@blueprint.post("/callbacks/<int:callback_id>/redeliver")
def redeliver_dead(callback_id: int) -> Response:
    """Send dead deliveries of a destination once more: a batch of them, the oldest first."""
    with site().database.transaction() as connection:
        name, _ = _named(connection, callback_id)
        deliveries.redeliver_dead(connection, callback_id=callback_id, now=g.now)
    site().bell.notify()
    return done("workflow_callbacks", "redelivered", name=name)


@blueprint.post("/callbacks/<int:callback_id>/secret")
def callback_secret(callback_id: int) -> Response:
    """Show what a receiver checks signatures with: on demand, and by POST so that no history holds it."""
    with site().database.read() as connection:
        name, row = _named(connection, callback_id)
    return _tab(name, secret={"id": row.id, "name": row.secret, "text": None if row.secret else _derived(row.url)})


def _derived(url: str) -> str | None:
    """Give the derived secret of a literal URL, None where the URL is known only when it is sent to."""
    if any(True for _ in lookup.references(url)):
        return None
    return signing.derived_secret(site().key, lookup.render_url(url, {}))


def _named(connection: Connection, callback_id: int) -> tuple[str, Row[Any]]:
    """Give the name of a callback's workflow, and its row."""
    if not 0 < callback_id <= listings.LARGEST_ID:
        raise NotFound("There is no such callback.")
    row = callbacks.get(connection, callback_id)
    name = select(Workflow.name).where(Workflow.id == row.workflow_id, Workflow.deleted_at.is_(None))
    found = connection.execute(name).scalar()
    if found is None:
        raise NotFound("There is no such callback.")
    return found, row
