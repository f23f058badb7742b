"""Schedules on a workflow's Runs & Triggers tab: made and changed. Pausing and deleting is as of any trigger."""

from __future__ import annotations

from typing import Any

from flask import Response, g
from sqlalchemy import Connection

from orqo import definition, triggers, workflows
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import Refused, done, field
from orqo.dashboard.starting import typed_input
from orqo.dashboard.triggers import back_to, known_trigger, tab
from orqo.dashboard.workflows import known
from orqo.errors import NotFound, Problem
from orqo.site import site

FIELDS = {"name": 200, "schedule": 500, "timezone": 200}


@blueprint.post("/workflows/<name>/schedules")
def create_schedule(name: str) -> Response:
    """Make a schedule."""
    typed = _typed()
    wanted = typed["name"].strip()
    try:
        with site().database.transaction() as connection:
            row = known(connection, name)
            asked = _asked(connection, row.version_id, typed)
            triggers.create(connection, workflow_id=row.id, name=wanted, key=site().key, origin="dashboard", now=g.now, options=asked)
    except NotFound:
        raise
    except Problem as fault:
        return tab(name, Refused(fault, "schedule", typed))
    return done("workflow_runs", "created", name=name, _anchor=f"trigger-{wanted}")


@blueprint.post("/triggers/<int:trigger_id>/schedule")
def set_schedule(trigger_id: int) -> Response:
    """Change when a schedule fires and with what."""
    typed = _typed()
    with site().database.read() as connection:
        row = known_trigger(connection, trigger_id)
    if row.kind != "schedule":
        raise NotFound("There is no such schedule.")
    try:
        with site().database.transaction() as connection:
            asked = _asked(connection, known(connection, row.workflow_name).version_id, typed)
            triggers.set_options(connection, trigger_id, options=asked)
    except NotFound:
        raise
    except Problem as fault:
        return tab(row.workflow_name, Refused(fault, f"schedule-{trigger_id}", typed))
    return back_to(row, "rescheduled")


def _typed() -> dict[str, str]:
    return {name: field(name, most=most) for name, most in FIELDS.items()} | {"input": field("input", most=site().config.body_max_bytes)}


def _asked(connection: Connection, version_id: int, typed: dict[str, str]) -> dict[str, Any]:
    """Give the stored form of a schedule; Invalid where it could never fire, or its input would start no run."""
    value = typed_input(typed["input"])
    options = definition.parse_schedule(typed["schedule"].strip(), zone=typed["timezone"].strip() or None, value=value).options
    workflows.check_input(connection, version_id, value)
    return dict(options)
