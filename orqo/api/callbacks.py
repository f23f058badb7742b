"""`/api/v1/callbacks`: where events go, and whether they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, g
from sqlalchemy import Connection, Row

from orqo import callbacks, catalog, definition, jsontext, trial, triggers, workflows
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.paging import body, listed, workflow_id_of, workflow_of
from orqo.api.site import reading, site
from orqo.definition import CallbackDefinition
from orqo.errors import Fault, Invalid, NotFound

BY_HAND = "Paused by hand."
OF_A_CALLBACK = ("url", "events", "json", "headers", "secret")


@resources.get("/callbacks")
def list_callbacks() -> Response:
    """List the callbacks of workflows and triggers; secrets by name only."""
    return listed(
        lambda connection, part, wanted: catalog.list_callbacks(
            connection, part, workflow_id=workflow_id_of(connection, wanted.get("workflow"))
        )
    )


@resources.post("/callbacks")
def create_callback() -> Response:
    """Configure one more destination of a workflow, or of one of its triggers."""
    wanted = body()
    with site().database.transaction() as connection:
        workflow = workflow_of(connection, wanted["workflow"])
        trigger_id = wanted.get("trigger_id")
        if trigger_id is not None and triggers.get(connection, trigger_id).workflow_id != workflow.id:
            raise Invalid("The trigger is another workflow's.", errors=[Fault("/trigger_id", f"is no trigger of {workflow.name}")])
        own = checked(connection, workflow, [{key: wanted[key] for key in OF_A_CALLBACK if key in wanted}], alone=True)[0]
        made = callbacks.add(connection, workflow_id=workflow.id, trigger_id=trigger_id, callback=own, origin="api", now=g.now)
        return as_json(callbacks.shown(callbacks.get(connection, made)), 201, {"Location": f"/api/v1/callbacks/{made}"})


def checked(
    connection: Connection, workflow: Row[Any], wanted: Sequence[dict[str, Any]], *, alone: bool = False
) -> list[CallbackDefinition]:
    """Give callbacks as they are configured; Invalid where a file of this workflow could not say the same.

    One that is `alone` is the body itself, not a member of the body's `callbacks`.
    """
    if not wanted:
        return []
    of = workflows.definition_of(connection, workflow.version_id)
    stages = [{"name": stage.name, "stub": None} for stage in of.stages]
    try:
        # JSON is YAML: the file's own rules, not a second set of them.
        parsed = definition.parse(jsontext.dump({"name": of.name, "callbacks": list(wanted), "stages": stages}))
    except Invalid as fault:
        own = ("/callbacks/0", "callbacks[0].") if alone else ("", "")
        errors = [Fault(each.pointer.removeprefix(own[0]), each.detail.replace(own[1], "")) for each in fault.errors]
        raise Invalid("; ".join(each.detail for each in errors[:5]), errors=errors) from fault
    return list(parsed.callbacks)


@resources.get("/callbacks/<id:callback_id>")
def show_callback(callback_id: int) -> Response:
    """Give a configured callback."""
    with reading() as connection:
        return as_json(callbacks.shown(_known(connection, callback_id)), 200)


def _known(connection: Connection, callback_id: int) -> Row[Any]:
    row = callbacks.get(connection, callback_id)
    if not holder().may_use(row.workflow_id):
        raise NotFound(f"There is no callback {callback_id}. List them with: callback list")
    return row


@resources.post("/callbacks/<id:callback_id>/test")
def test_callback(callback_id: int) -> Response:
    """Send a signed event of type run.test now and say what came of it."""
    with reading() as connection:
        _known(connection, callback_id)
    here = site()
    outcome = trial.send(trial.Ground(here.config, here.database, here.key), callback_id, now=g.now)
    return as_json(trial.told(callback_id, outcome), 200)


@resources.post("/callbacks/<id:callback_id>/pause")
def pause_callback(callback_id: int) -> Response:
    """Hold the deliveries of a callback until it is resumed."""
    with site().database.transaction() as connection:
        _known(connection, callback_id)
        callbacks.pause(connection, callback_id, reason=BY_HAND, now=g.now)
        return as_json(callbacks.shown(_known(connection, callback_id)), 200)


@resources.post("/callbacks/<id:callback_id>/resume")
def resume_callback(callback_id: int) -> Response:
    """Let the deliveries of a paused callback go on."""
    with site().database.transaction() as connection:
        _known(connection, callback_id)
        callbacks.resume(connection, callback_id, now=g.now)
        shown = callbacks.shown(_known(connection, callback_id))
    site().bell.notify()
    return as_json(shown, 200)


@resources.delete("/callbacks/<id:callback_id>")
def delete_callback(callback_id: int) -> Response:
    """Take a callback away; its deliveries stay."""
    with site().database.transaction() as connection:
        _known(connection, callback_id)
        callbacks.remove(connection, callback_id, now=g.now)
    return Response(status=204)
