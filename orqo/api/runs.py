"""`/api/v1/runs`: what was started and what came of it. What can be done with a run is in actions.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Response
from sqlalchemy import Connection

from orqo import catalog, clock, inspection, runs
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.paging import listed, workflow_id_of
from orqo.api.site import reading
from orqo.errors import Malformed, NotFound

TYPES = {"text": "text/plain; charset=utf-8", "json": "application/json", "bytes": "application/octet-stream"}


@resources.get("/runs")
def list_runs() -> Response:
    """List runs, newest first, without what may be large."""
    return listed(_page)


def _page(connection: Connection, part: catalog.Part, wanted: dict[str, Any]) -> catalog.Page:
    workflow_id = workflow_id_of(connection, wanted.get("workflow"))
    return catalog.list_runs(
        connection,
        part,
        workflow_id=workflow_id,
        status=wanted.get("status"),
        trigger_id=wanted.get("trigger"),
        metadata=wanted.get("metadata"),
        since=_moment(wanted["since"]) if "since" in wanted else None,
    )


def _moment(text: str) -> datetime:
    try:
        # A + that was not escaped arrives as a space.
        return clock.any_moment(text.replace(" ", "+"))
    except ValueError as fault:
        raise Malformed("The parameter since must be a time such as 2026-01-31T08:00:00Z.") from fault


@resources.get("/runs/<id:run_id>")
def show_run(run_id: int) -> Response:
    """Give a run with its stages."""
    with reading() as connection:
        usable_run(connection, run_id)
        return as_json(runs.show(connection, run_id), 200)


@resources.get("/runs/<id:run_id>/output")
def show_run_output(run_id: int) -> Response:
    """Give a run's output as the bytes that it is."""
    with reading() as connection:
        usable_run(connection, run_id)
        kind = inspection.output_kind(connection, run_id)
        data = inspection.whole(connection, run_id, column="output") if kind else None
    if data is None or kind is None:
        raise NotFound(f"Run {run_id} has no output, or none yet.")
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
    return Response(data, content_type=TYPES[kind], headers=headers)


def usable_run(connection: Connection, run_id: int) -> None:
    """Raise NotFound unless there is this run, of a workflow that the token may use."""
    workflow_id = runs.workflow_of(connection, run_id)
    if workflow_id is None or not holder().may_use(workflow_id):
        raise NotFound(f"There is no run {run_id} that this token may use.")
