"""Runs: the list of all, and the page of one with its timeline, its stages and what they wait for, its deliveries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, g, render_template, request
from sqlalchemy import Connection, Row

from orqo import artifacts, call, inspection, listings, machines, workflows
from orqo.dashboard import drawings, shown
from orqo.dashboard.answers import LABELS
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import Refused, common, etag_of, live_answer, page, plain
from orqo.dashboard.triggers import runs_part
from orqo.definition import Definition
from orqo.errors import NotFound
from orqo.models import RunStatus, StageStatus, WaitStatus
from orqo.site import site

UNKNOWN = "There is no such run."
LIVE_MS, WAITING_MS, DELIVERING_MS = 1000, 2000, 2000
PARTS = ("head", "report", "timeline", "stages", "files", "deliveries")


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
    return run_page(run_id)


def run_page(run_id: int, refused: Refused | None = None) -> Response:
    """Show a run, with a report as it was typed where it was refused; then the page stands still."""
    with site().database.read() as connection:
        row = _known(connection, run_id)
        parts, next_ms = _parts(connection, row, refused)
        asked = listings.requests_of_run(connection, run_id)
    given = inspection.cut(row, "input", "json")
    curl = shown.trigger_line(site().config.base_url, row.workflow_id, given)
    values = {"run": row, "given": given, "curl": curl, "requests": asked, **_told(row)}
    code, next_ms = (refused.fault.status, None) if refused else (200, next_ms)
    return page("run.html", code=code, parts=parts, etag=etag_of(parts, next_ms), next_ms=next_ms, **values)


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
    query = {name: call.HIDDEN if call.is_secret(name) else value for name, value in facts.get("query", {}).items()}
    told = {"headers": facts.get("headers", {}), "query": query}
    return {"metadata": json.loads(row.metadata), "by": facts.get("by"), **told}


def _parts(connection: Connection, row: Row[Any], refused: Refused | None = None) -> tuple[dict[str, str], int | None]:
    """Give a run's live parts as HTML, and when to ask again; null once nothing will change."""
    stages = inspection.stages(connection, row.id)
    definition: Definition = site().box.definitions.of(connection, row.version_id)
    sent = inspection.deliveries_of(connection, row.id)
    waits = {each.stage_id: each for each in inspection.waits(connection, row.id)}
    children = inspection.children(connection, row.id)
    values = {
        "run": row,
        "stages": [_stage(each, waits, children) for each in stages],
        "specs": {stage.name: stage for stage in definition.stages},
        "resumable": _resumable(connection, row, stages),
        "asking": [_asking(each) for each in waits.values() if each.status == WaitStatus.OPEN and row.finished_at is None],
        "to_come": _to_come(definition, row, stages),
        "timeline": drawings.timeline(row, stages, g.now),
        "result": inspection.cut(row, "output", row.output_kind),
        "files": artifacts.list_all(site().config.data / "runs", row.id),
        "files_elsewhere": machines.elsewhere(connection, row.machine, site().config),
        "deliveries": sent,
        "again": inspection.repetitions(connection, row.id),
        "refused": refused,
        **common(),
    }
    parts = {name: render_template(f"parts/run_{name}.html", **values) for name in PARTS}
    return parts, _next_ms(row, sent)


def _stage(row: Row[Any], waits: Mapping[int, Row[Any]], children: Sequence[Row[Any]]) -> dict[str, Any]:
    """Give one execution with what it waits or waited for, and the runs that it started."""
    told = {name: json.loads(getattr(row, name)) if getattr(row, name) else None for name in ("response", "usage")}
    cuts = {"output": inspection.cut(row, "output", row.output_kind), "stderr": inspection.cut(row, "stderr", "text")}
    mine = [each for each in children if (each.parent_stage, each.parent_pass) == (row.name, row._mapping["pass"])]
    return dict(row._mapping) | cuts | told | {"row": row, "wait": waits.get(row.id), "children": mine}


def _asking(wait: Row[Any]) -> dict[str, Any]:
    """Give an open wait with the label and the text of each outcome."""
    choices = [(label, LABELS.get(label, label)) for label in json.loads(wait.outcomes)]
    return dict(wait._mapping) | {"choices": choices, "curl": shown.report_line(site().config.base_url, wait.run_id, wait.stage)}


def _resumable(connection: Connection, row: Row[Any], stages: list[Row[Any]]) -> set[int]:
    """Give the executions of an ended run, by sequence, from which it can be run again: the last one of each stage that there still is.

    The first one is not among them: from there it is the whole run.
    """
    workflow = workflows.find(connection, row.workflow_id) if row.finished_at else None
    if workflow is None or not workflow.enabled:
        return set()
    newest: Definition = site().box.definitions.of(connection, workflow.version_id)
    names = {stage.name for stage in newest.stages}
    last = {each.name: each for each in stages if each.name in names}.values()
    return {each.sequence for each in last if each.sequence > 1 and each.status != StageStatus.SKIPPED}


def _to_come(definition: Definition, row: Row[Any], stages: list[Row[Any]]) -> list[str]:
    """Name the stages that an unfinished run has not reached."""
    reached = {each.name for each in stages}
    return [stage.name for stage in definition.stages if stage.name not in reached] if drawings.unfinished(row.status) else []


def _next_ms(row: Row[Any], sent: list[dict[str, Any]]) -> int | None:
    if drawings.unfinished(row.status):
        return WAITING_MS if row.status == RunStatus.WAITING else LIVE_MS
    return DELIVERING_MS if any(each["status"] == "pending" for each in sent) else None


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
