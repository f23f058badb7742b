"""Runs: the list of all, and the page of one with its timeline, stages, deliveries, Stop and Run again."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g, render_template, request
from sqlalchemy import Connection, Row

from orqo import inspection, runs, workflows
from orqo.dashboard import drawings, shown, starting
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import common, done, etag_of, live_answer, page, plain
from orqo.dashboard.triggers import runs_part
from orqo.definition import Definition
from orqo.errors import NotFound
from orqo.models import RunStatus
from orqo.site import site

UNKNOWN = "There is no such run."
LIVE_MS, WAITING_MS, DELIVERING_MS = 1000, 2000, 2000


@blueprint.get("/runs")
def run_list() -> Response:
    """List the runs of all workflows."""
    with site().database.read() as connection:
        parts, next_ms, found = runs_part(connection, None)
    live = request.query_string.decode("ascii", "ignore")
    return page("runs.html", parts=parts, etag=etag_of(parts, next_ms), next_ms=next_ms, live=live, is_empty=not found.rows)


@blueprint.get("/runs/live")
def run_list_live() -> Response:
    """Answer a poll of the list."""
    with site().database.read() as connection:
        parts, next_ms, _ = runs_part(connection, None)
    return live_answer(parts, next_ms)


# ── one run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/runs/<int:run_id>")
def run(run_id: int) -> Response:
    """Show a run."""
    with site().database.read() as connection:
        row = _known(connection, run_id)
        parts, next_ms = _parts(connection, row)
    given = inspection.cut(row, "input", "json")
    curl = shown.trigger_line(site().config.base_url, row.workflow_id, given)
    return page("run.html", run=row, parts=parts, etag=etag_of(parts, next_ms), next_ms=next_ms, given=given, curl=curl, **_told(row))


@blueprint.get("/runs/<int:run_id>/live")
def run_live(run_id: int) -> Response:
    """Answer a poll of a run's page."""
    with site().database.read() as connection:
        parts, next_ms = _parts(connection, _known(connection, run_id))
    return live_answer(parts, next_ms)


def _known(connection: Connection, run_id: int) -> Row[Any]:
    row = inspection.run(connection, run_id)
    if row is None:
        raise NotFound(UNKNOWN)
    return row


def _told(row: Row[Any]) -> dict[str, Any]:
    """Give what the caller and the trigger said."""
    facts = json.loads(row.trigger_facts)
    told = {"headers": facts.get("headers", {}), "query": facts.get("query", {})}
    return {"metadata": json.loads(row.metadata), "by": facts.get("by"), **told}


def _parts(connection: Connection, row: Row[Any]) -> tuple[dict[str, str], int | None]:
    """Give a run's live parts as HTML, and when to ask again; null once nothing will change."""
    stages = inspection.stages(connection, row.id)
    definition: Definition = site().box.definitions.of(connection, row.version_id)
    sent = inspection.deliveries_of(connection, row.id)
    values = {
        "run": row,
        "stages": [_stage(each) for each in stages],
        "specs": {stage.name: stage for stage in definition.stages},
        "to_come": _to_come(definition, row, stages),
        "timeline": drawings.timeline(row, stages, g.now),
        "result": inspection.cut(row, "output", row.output_kind),
        "deliveries": sent,
        **common(),
    }
    parts = {name: render_template(f"parts/run_{name}.html", **values) for name in ("head", "timeline", "stages", "deliveries")}
    return parts, _next_ms(row, sent)


def _stage(row: Row[Any]) -> dict[str, Any]:
    response = json.loads(row.response) if row.response else None
    cuts = {"output": inspection.cut(row, "output", row.output_kind), "stderr": inspection.cut(row, "stderr", "text")}
    return dict(row._mapping) | cuts | {"row": row, "response": response}


def _to_come(definition: Definition, row: Row[Any], stages: list[Row[Any]]) -> list[str]:
    """Name the stages that an unfinished run has not reached."""
    reached = {each.name for each in stages}
    return [stage.name for stage in definition.stages if stage.name not in reached] if drawings.unfinished(row.status) else []


def _next_ms(row: Row[Any], sent: list[dict[str, Any]]) -> int | None:
    if drawings.unfinished(row.status):
        return WAITING_MS if row.status == RunStatus.WAITING else LIVE_MS
    return DELIVERING_MS if any(each["status"] == "pending" for each in sent) else None


# ── what can be done ────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.post("/runs/<int:run_id>/stop")
def stop_run(run_id: int) -> Response:
    """Stop a run."""
    _exists(run_id)
    status = runs.stop(site().box, run_id, now=g.now)
    site().bell.notify()
    return done("run", "stopping" if status == RunStatus.RUNNING else "stopped", run_id=run_id)


@blueprint.post("/runs/<int:run_id>/again")
def run_again(run_id: int) -> Response:
    """Start the workflow's newest version with the same input and metadata, and show that run."""
    _exists(run_id)
    with site().database.transaction() as connection:
        old = runs.show(connection, run_id)
        if old is None:
            raise NotFound(UNKNOWN)
        workflow = workflows.find(connection, old["workflow_id"])
        if workflow is None:
            raise NotFound("The workflow of this run was deleted: it cannot be run again.")
        new_id = starting.start(connection, workflow, old["input"], metadata=old["metadata"])
    starting.announce(new_id)
    return done("run", "started", run_id=new_id)


def _exists(run_id: int) -> None:
    with site().database.read() as connection:
        if runs.status_of(connection, run_id) is None:
            raise NotFound(UNKNOWN)


# ── as bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/runs/<int:run_id>/input")
def run_input(run_id: int) -> Response:
    """Give a run's input as text."""
    return _plain(run_id, "input")


@blueprint.get("/runs/<int:run_id>/output")
def run_output(run_id: int) -> Response:
    """Give a run's output as text."""
    return _plain(run_id, "output")


@blueprint.get("/runs/<int:run_id>/stages/<int:sequence>/output")
def stage_output(run_id: int, sequence: int) -> Response:
    """Give the output of a stage's execution as text."""
    return _plain(run_id, "output", sequence)


@blueprint.get("/runs/<int:run_id>/stages/<int:sequence>/stderr")
def stage_stderr(run_id: int, sequence: int) -> Response:
    """Give the standard error of a stage's execution as text."""
    return _plain(run_id, "stderr", sequence)


def _plain(run_id: int, column: str, sequence: int | None = None) -> Response:
    with site().database.read() as connection:
        return plain(inspection.whole(connection, run_id, column=column, sequence=sequence), column)
