"""`/api/v1/triggers`: what starts workflows from outside. The URL of a webhook is its credential: whoever may write sees it."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g
from sqlalchemy import Connection, Row

from orqo import callbacks, catalog, definition, schedules, triggers, webhook
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.callbacks import checked
from orqo.api.paging import body, listed, workflow_id_of, workflow_of
from orqo.api.site import reading, site
from orqo.errors import Conflict, Fault, Invalid, NotFound

OF_WEBHOOKS = frozenset({"webhook", "filter"})
OF_SCHEDULES = frozenset({"schedule", "timezone", "input"})


@resources.get("/triggers")
def list_triggers() -> Response:
    """List the triggers, without their URLs."""
    return listed(
        lambda connection, part, wanted: catalog.list_triggers(
            connection, part, workflow_id=workflow_id_of(connection, wanted.get("workflow"))
        )
    )


@resources.post("/triggers")
def create_trigger() -> Response:
    """Make a webhook for a workflow, whose URL the answer has, or a schedule, whose next times it has."""
    wanted = body()
    options = _options(wanted)
    with site().database.transaction() as connection:
        workflow = workflow_of(connection, wanted["workflow"])
        own = checked(connection, workflow, wanted.get("callbacks", []))
        made = triggers.create(
            connection, workflow_id=workflow.id, name=wanted["name"], key=site().key, origin="api", now=g.now, options=options
        )
        callbacks.configure(connection, workflow_id=workflow.id, trigger_id=made, wanted=own, origin="api", now=g.now)
        shown = _with_url(triggers.get(connection, made))
    return as_json(shown, 201, {"Location": f"/api/v1/triggers/{made}"})


def _options(wanted: dict[str, Any]) -> dict[str, Any]:
    """Give what a trigger is in the stored form, by the rules of a workflow file; Invalid also for a secret that is not set."""
    if "schedule" in wanted:
        return definition.parse_schedule(wanted["schedule"], zone=wanted.get("timezone"), value=wanted.get("input")).options
    options = definition.parse_trigger(wanted.get("name", "x"), webhook=wanted.get("webhook"), filter=wanted.get("filter")).options
    missing = [name for name in webhook.names_of_secrets(options) if not site().secrets.get(name)]
    if missing:
        detail = f"the secret {missing[0]} is not set: give the service ORQO_SECRET_{missing[0]}"
        raise Invalid(f"The webhook would refuse every request: {detail}.", errors=[Fault("/webhook", detail)])
    return options


@resources.get("/triggers/<id:trigger_id>")
def show_trigger(trigger_id: int) -> Response:
    """Give a trigger; its URL to whoever may write."""
    with reading() as connection:
        row = _known(connection, trigger_id)
    return as_json(_with_url(row) if holder().may("write") else _shown(row) | {"token": None, "url": None}, 200)


@resources.patch("/triggers/<id:trigger_id>")
def update_trigger(trigger_id: int) -> Response:
    """Change a trigger's name, callbacks, or what it is: what a webhook asks as a whole, of a schedule what is named."""
    with reading() as connection:
        _known(connection, trigger_id)
    wanted = body()
    with site().database.transaction() as connection:
        row = _known(connection, trigger_id)
        _check_kind(row, wanted)
        if "callbacks" in wanted:
            own = checked(connection, workflow_of(connection, row.workflow_id), wanted["callbacks"])
            callbacks.configure(connection, workflow_id=row.workflow_id, trigger_id=trigger_id, wanted=own, origin="api", now=g.now)
        if "name" in wanted:
            triggers.rename(connection, trigger_id, name=wanted["name"])
        if wanted.keys() & (OF_WEBHOOKS | OF_SCHEDULES):
            triggers.set_options(connection, trigger_id, options=_options(_kept(row) | wanted))
        return as_json(_with_url(_known(connection, trigger_id)), 200)


def _check_kind(row: Row[Any], wanted: dict[str, Any]) -> None:
    if wanted.keys() & (OF_WEBHOOKS if row.kind == "schedule" else OF_SCHEDULES):
        raise Conflict(f"Trigger {row.id} is a {row.kind} and stays one. Make another trigger.")


def _kept(row: Row[Any]) -> dict[str, Any]:
    """Give what a schedule is: of that, what is not named stays."""
    return {key: value for key, value in json.loads(row.options).items() if key in OF_SCHEDULES} if row.kind == "schedule" else {}


def _known(connection: Connection, trigger_id: int) -> Row[Any]:
    row = triggers.get(connection, trigger_id)
    if not holder().may_use(row.workflow_id):
        raise NotFound(f"There is no trigger {trigger_id}. List them with: trigger list")
    return row


def _with_url(row: Row[Any]) -> dict[str, Any]:
    token, url = triggers.token_of(row, site().key), triggers.url_of(row, site().key, site().config.base_url)
    return _shown(row) | {"token": token, "url": url}


def _shown(row: Row[Any]) -> dict[str, Any]:
    """Give a trigger; of a schedule the next five times, none while it is disabled."""
    if row.kind != "schedule":
        return triggers.shown(row)
    return triggers.shown(row) | {"next_times": schedules.next_times(row, now=g.now) if row.enabled else []}


@resources.post("/triggers/<id:trigger_id>/enable")
def enable_trigger(trigger_id: int) -> Response:
    """Let a trigger fire again."""
    return _set_enabled(trigger_id, enabled=True)


@resources.post("/triggers/<id:trigger_id>/disable")
def disable_trigger(trigger_id: int) -> Response:
    """Answer 409 to every call of a trigger."""
    return _set_enabled(trigger_id, enabled=False)


def _set_enabled(trigger_id: int, *, enabled: bool) -> Response:
    with site().database.transaction() as connection:
        _known(connection, trigger_id)
        triggers.set_enabled(connection, trigger_id, enabled=enabled)
        return as_json(_with_url(_known(connection, trigger_id)), 200)


@resources.post("/triggers/<id:trigger_id>/rotate")
def rotate_trigger(trigger_id: int) -> Response:
    """Give a trigger a new URL; the old one is unknown from now on."""
    with site().database.transaction() as connection:
        _known(connection, trigger_id)
        triggers.rotate(connection, trigger_id, key=site().key)
        return as_json(_with_url(_known(connection, trigger_id)), 200)


@resources.delete("/triggers/<id:trigger_id>")
def delete_trigger(trigger_id: int) -> Response:
    """Delete a trigger with its callbacks; its runs stay."""
    with site().database.transaction() as connection:
        _known(connection, trigger_id)
        callbacks.remove_those_of_trigger(connection, trigger_id, now=g.now)
        triggers.remove(connection, trigger_id)
    return Response(status=204)
