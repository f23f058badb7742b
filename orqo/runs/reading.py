"""Runs as they are shown."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from orqo import facts
from orqo.models import RunStatus, Workflow
from orqo.runs.ending import stage_rows
from orqo.runs.state import RUNS
from orqo.workflows import LARGEST_ID


def show(connection: Connection, run_id: int) -> dict[str, Any] | None:
    """Give a run as `GET /api/v1/runs/<id>` does, with its stages in order; None where there is none."""
    row = connection.execute(_with_workflow().where(RUNS.c.id == run_id)).one_or_none() if 0 < run_id <= LARGEST_ID else None
    if row is None:
        return None
    return facts.run_shape(row, row.workflow) | {"stages": [facts.stage_shape(stage) for stage in stage_rows(connection, run_id)]}


def status_of(connection: Connection, run_id: int) -> RunStatus | None:
    """Give where a run stands, None where there is none."""
    status = connection.execute(select(RUNS.c.status).where(RUNS.c.id == run_id)).scalar() if 0 < run_id <= LARGEST_ID else None
    return RunStatus(status) if status else None


def workflow_of(connection: Connection, run_id: int) -> int | None:
    """Give the id of a run's workflow, None where there is no such run."""
    return connection.execute(select(RUNS.c.workflow_id).where(RUNS.c.id == run_id)).scalar() if 0 < run_id <= LARGEST_ID else None


def list_all(connection: Connection, *, status: str | None = None, workflow_id: int | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Give runs as lists show them, newest first."""
    query = _with_workflow().order_by(RUNS.c.id.desc()).limit(limit)
    if status:
        query = query.where(RUNS.c.status == status)
    if workflow_id is not None:
        query = query.where(RUNS.c.workflow_id == workflow_id)
    return [facts.run_shape(row, row.workflow) for row in connection.execute(query)]


def _with_workflow() -> Any:
    return select(RUNS, Workflow.name.label("workflow")).join(Workflow, Workflow.id == RUNS.c.workflow_id)
