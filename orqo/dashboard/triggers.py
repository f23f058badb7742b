"""A workflow's Runs & Triggers tab: its runs, Run now, its triggers: webhooks with their full URLs, and schedules."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

from flask import Response, g, render_template, request
from sqlalchemy import Connection, Row, select

from orqo import callbacks, clock, cron, listings, triggers
from orqo.dashboard import inputform, options, starting
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.drawings import unfinished
from orqo.dashboard.pages import Refused, common, done, etag_of, field, live_answer, page, whole_number
from orqo.dashboard.requests import live_requests
from orqo.dashboard.shown import as_json, trigger_line
from orqo.dashboard.workflows import SOURCE_MAX, known
from orqo.errors import NotFound, Problem
from orqo.inspection import Cut
from orqo.models import RunStatus, Trigger
from orqo.site import site
from orqo.webhook import Options

TRIGGERS_SHOWN = 100
BUSY_MS, CALM_MS = 1000, 5000


@blueprint.get("/workflows/<name>/runs")
def workflow_runs(name: str) -> Response:
    """Show the tab."""
    return tab(name)


@blueprint.get("/workflows/<name>/runs/live")
def workflow_runs_live(name: str) -> Response:
    """Answer a poll of the tab's list of runs."""
    with site().database.read() as connection:
        parts, next_ms, _ = runs_part(connection, known(connection, name))
    return live_answer(parts, next_ms)


def runs_part(connection: Connection, row: Row[Any] | None) -> tuple[dict[str, str], int | None, listings.Page]:
    """Give the list of runs that the query asks for as a live part; older pages do not change."""
    status = request.args.get("status", "")
    status = status if status in list(RunStatus) else ""
    before = whole_number("before")
    found = listings.runs(connection, workflow_id=row.id if row else None, status=status, before=before)
    html = render_template("parts/runs.html", listed=found, workflow=row, status=status, before=before, **common())
    if before is not None:
        return {"runs": html}, None, found
    return {"runs": html}, BUSY_MS if any(unfinished(each.status) for each in found.rows) else CALM_MS, found


def tab(name: str, refused: Refused | None = None) -> Response:
    """Show the tab, with a form as it was typed where it was refused."""
    with site().database.read() as connection:
        row = known(connection, name)
        parts, next_ms, found = runs_part(connection, row)
        shown = _triggers(connection, row.id)
        asked = live_requests(connection, row)
        form = _form(connection, row, refused)
    fault = refused.fault if refused else None
    told = {"fault": fault, "at": refused.at if refused else "", "typed": refused.typed if refused else {}, **form}
    return page(
        "workflow_runs.html", code=fault.status if fault else 200, tab="runs", workflow=row, parts=parts, etag=etag_of(parts, next_ms),
        next_ms=next_ms, live=request.query_string.decode("ascii", "ignore"), is_empty=not found.rows, triggers=shown, requests=asked,
        example=options.EXAMPLE, **told,
    )  # fmt: skip


def _form(connection: Connection, row: Row[Any], refused: Refused | None) -> dict[str, Any]:
    """Give Run now's fields, None where its input is typed as JSON; `other_faults` are those that belong to no field."""
    asked = starting.fields(connection, row)
    by_json = request.args.get("input") == "json" or (refused is not None and refused.at == "run" and refused.fields is None)
    sample = inputform.sample(asked)
    first_line = trigger_line(site().config.base_url, row.id, Cut(sample.encode(), len(sample.encode()), "json"))
    values: dict[str, Any] = {"has_form": asked is not None, "other_faults": [], "sample": sample, "first_line": first_line}
    values["fields"] = None if by_json else asked
    if refused is not None and refused.fields is not None:
        values["fields"], values["other_faults"] = inputform.with_faults(refused.fields, refused.fault.errors)
    return values


def _triggers(connection: Connection, workflow_id: int) -> list[dict[str, Any]]:
    """Give a workflow's triggers by name, each with what is told of a webhook or of a schedule."""
    query = select(Trigger.__table__).where(Trigger.workflow_id == workflow_id).order_by(Trigger.name).limit(TRIGGERS_SHOWN)
    rows = connection.execute(query).all()
    return [dict(row._mapping) | (_schedule(row) if row.kind == "schedule" else _webhook(connection, row)) for row in rows]


def _webhook(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """Give the full `url`, null where a file pins the token, what it `asks`, and its `last` request."""
    asked = Options.from_stored(row.options)
    names = dict.fromkeys([*asked.secrets, *([asked.verify_token] if asked.verify_token else [])])
    return {
        "url": triggers.url_of(row, site().key, site().config.base_url),
        "asks": asked if asked != Options() else None,
        "secrets": {name: bool(site().secrets.get(name)) for name in names},
        "yaml": options.as_yaml(json.loads(row.options)),
        "last": listings.newest_request(connection, row.id),
    }


def _schedule(row: Row[Any]) -> dict[str, Any]:
    """Give the `schedule` and its zone, and the `next` five times."""
    told = json.loads(row.options)
    zone = told.get("timezone", cron.DEFAULT_ZONE)
    moments = cron.next_times(told["schedule"], zone, after=g.now) if row.enabled else []
    return {
        "schedule": told["schedule"],
        "timezone": zone,
        "input": told.get("input"),
        "stored": {"schedule": told["schedule"], "timezone": zone, "input": _typed_again(told.get("input"))},
        "next": [(clock.to_text(each), f"{each.astimezone(ZoneInfo(zone)):%a %d %b %Y, %H:%M}") for each in moments],
    }


def _typed_again(value: Any) -> str:
    """Give an input as somebody would type it: nothing for null."""
    return "" if value is None else as_json(value)


@blueprint.post("/workflows/<name>/run")
def run_now(name: str) -> Response:
    """Start a run with the input that was typed, in the fields of a form or as JSON, and show it."""
    typed = field("input", most=site().config.body_max_bytes)
    filled: list[inputform.Field] | None = None
    try:
        with site().database.transaction() as connection:
            row = known(connection, name)
            asked = starting.fields(connection, row) if field("by", most=10) == "form" else None
            filled = starting.filled(asked) if asked is not None else None
            value = inputform.value_of(filled) if filled is not None else starting.typed_input(typed)
            run_id = starting.start(connection, row, value)
    except NotFound:
        raise
    except Problem as fault:
        return tab(name, Refused(fault, "run", {"input": typed}, filled))
    starting.announce(run_id)
    return done("run", "started", run_id=run_id)


# ── triggers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.post("/workflows/<name>/triggers")
def create_trigger(name: str) -> Response:
    """Make a webhook trigger."""
    wanted = field("name", most=200).strip()
    try:
        with site().database.transaction() as connection:
            row = known(connection, name)
            triggers.create(connection, workflow_id=row.id, name=wanted, key=site().key, origin="dashboard", now=g.now)
    except NotFound:
        raise
    except Problem as fault:
        return tab(name, Refused(fault, "trigger", {"name": wanted}))
    return done("workflow_runs", "created", name=name, _anchor=f"trigger-{wanted}")


@blueprint.post("/triggers/<int:trigger_id>/switch")
def switch_trigger(trigger_id: int) -> Response:
    """Let a trigger fire, or not."""
    enabled = field("enabled", most=1) == "1"
    with site().database.transaction() as connection:
        row = known_trigger(connection, trigger_id)
        triggers.set_enabled(connection, trigger_id, enabled=enabled)
    told = ("continued", "paused") if row.kind == "schedule" else ("enabled", "disabled")
    return back_to(row, told[0] if enabled else told[1])


@blueprint.post("/triggers/<int:trigger_id>/options")
def set_trigger_options(trigger_id: int) -> Response:
    """Change what a webhook asks of its requests."""
    typed = field("options", most=SOURCE_MAX)
    with site().database.read() as connection:
        row = known_trigger(connection, trigger_id)
    if row.kind != "webhook":
        raise NotFound("There is no such webhook.")
    try:
        wanted = options.read(typed, site().secrets)
        with site().database.transaction() as connection:
            triggers.set_options(connection, trigger_id, options=wanted)
    except NotFound:
        raise
    except Problem as fault:
        return tab(row.workflow_name, Refused(fault, f"options-{trigger_id}", {"options": typed}))
    return back_to(row, "options")


@blueprint.post("/triggers/<int:trigger_id>/rotate")
def rotate_trigger(trigger_id: int) -> Response:
    """Give a trigger a new URL."""
    with site().database.transaction() as connection:
        row = known_trigger(connection, trigger_id)
        triggers.rotate(connection, trigger_id, key=site().key)
    return back_to(row, "rotated")


@blueprint.post("/triggers/<int:trigger_id>/delete")
def delete_trigger(trigger_id: int) -> Response:
    """Delete a trigger."""
    with site().database.transaction() as connection:
        row = known_trigger(connection, trigger_id)
        callbacks.remove_those_of_trigger(connection, trigger_id, now=g.now)
        triggers.remove(connection, trigger_id)
    return done("workflow_runs", "deleted", name=row.workflow_name)


def known_trigger(connection: Connection, trigger_id: int) -> Row[Any]:
    """Give a trigger's row; NotFound in the words of the pages."""
    if not 0 < trigger_id <= listings.LARGEST_ID:
        raise NotFound("There is no such trigger.")
    return triggers.get(connection, trigger_id)


def back_to(row: Row[Any], what: str) -> Response:
    """Send the browser back to a trigger on its tab."""
    return done("workflow_runs", what, name=row.workflow_name, _anchor=f"trigger-{row.name}")
