"""Lists as the API gives them: newest first, filtered, a page at a time, within the workflows that a token may use.

Reads only. Each page costs the same whatever the tables hold: keys instead of offsets, no counts, and no column that may
be large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, select

from orqo import callbacks, clock, deliveries, facts, requestlog, tokens, triggers
from orqo.models import ApiToken, Callback, Delivery, Run, Trigger, Workflow, WorkflowVersion

RUNS = Run.__table__
SUMMARY = tuple(
    RUNS.c[name]
    for name in (
        *("id", "workflow_id", "status", "metadata", "trigger_id", "created_at", "started_at", "finished_at"),
        *("error_reason", "error_detail", "error_stage", "rerun_of"),
    )
)
# Metadata has no index: so many runs are looked at for one page, and the next page goes on there.
EXAMINED_MAX = 5000
BATCH = 500
# A run is given its time before it is committed: two may be committed in the other order.
STRAGGLERS = timedelta(minutes=2)


@dataclass(frozen=True)
class Part:
    """Which part of a list: at most `limit` before the key `before`, within `workflow_ids` (None: all)."""

    limit: int
    before: int | None = None
    workflow_ids: frozenset[int] | None = None


@dataclass(frozen=True)
class Page:
    """One page; `older` is the key that the next one begins before, None at the end."""

    items: list[dict[str, Any]]
    older: int | None


def _rows(connection: Connection, query: Any, key: Any, part: Part, workflow_id: Any = None) -> tuple[list[Row[Any]], int | None]:
    if part.before is not None:
        query = query.where(key < part.before)
    if part.workflow_ids is not None and workflow_id is not None:
        query = query.where(workflow_id.in_(sorted(part.workflow_ids)))
    rows = list(connection.execute(query.order_by(key.desc()).limit(part.limit + 1)))
    return rows[: part.limit], rows[part.limit - 1].id if len(rows) > part.limit else None


def workflows(connection: Connection, part: Part) -> Page:
    """Give workflows as `workflow list` does."""
    columns = (Workflow.id, Workflow.name, WorkflowVersion.number.label("version"), Workflow.enabled, Workflow.updated_at)
    query = select(*columns).join(WorkflowVersion, WorkflowVersion.id == Workflow.version_id).where(Workflow.deleted_at.is_(None))
    rows, older = _rows(connection, query, Workflow.id, part, Workflow.id)
    return Page([dict(row._mapping) | {"enabled": bool(row.enabled)} for row in rows], older)


def list_triggers(connection: Connection, part: Part, *, workflow_id: int | None = None) -> Page:
    """Give triggers without their tokens."""
    query = select(Trigger.__table__, Workflow.name.label("workflow_name")).join(Workflow, Workflow.id == Trigger.workflow_id)
    query = query.where(Workflow.deleted_at.is_(None))
    if workflow_id is not None:
        query = query.where(Trigger.workflow_id == workflow_id)
    rows, older = _rows(connection, query, Trigger.id, part, Trigger.workflow_id)
    return Page([triggers.shown(row) for row in rows], older)


def list_tokens(connection: Connection, part: Part) -> Page:
    """Give API tokens without the tokens themselves."""
    rows, older = _rows(connection, select(ApiToken.__table__), ApiToken.id, part)
    return Page([tokens.shown(row) for row in rows], older)


def list_callbacks(connection: Connection, part: Part, *, workflow_id: int | None = None) -> Page:
    """Give the configured callbacks of workflows that there are; secrets by name only."""
    query = select(Callback.__table__).join(Workflow, Workflow.id == Callback.workflow_id)
    query = query.where(Callback.removed_at.is_(None), Workflow.deleted_at.is_(None))
    if workflow_id is not None:
        query = query.where(Callback.workflow_id == workflow_id)
    rows, older = _rows(connection, query, Callback.id, part, Callback.workflow_id)
    return Page([callbacks.shown(row) for row in rows], older)


def list_deliveries(
    connection: Connection, part: Part, *, status: str | None = None, run_id: int | None = None, callback_id: int | None = None
) -> Page:
    """Give deliveries without their bodies."""
    columns = [column for column in Delivery.__table__.c if column.name not in ("body", "headers")]
    query = select(*columns)
    if part.workflow_ids is not None:
        query = query.join(Run, Run.id == Delivery.run_id)
    wanted = {Delivery.status: status, Delivery.run_id: run_id, Delivery.callback_id: callback_id}
    query = query.where(*(column == value for column, value in wanted.items() if value is not None))
    rows, older = _rows(connection, query, Delivery.id, part, Run.workflow_id)
    return Page([deliveries.shown(row) for row in rows], older)


def list_requests(connection: Connection, part: Part, **wanted: Any) -> Page:
    """Give received requests; `wanted` are the filters of `requestlog.list_all`."""
    rows = requestlog.list_all(connection, before=part.before, limit=part.limit + 1, workflow_ids=part.workflow_ids, **wanted)
    return Page(rows[: part.limit], rows[part.limit - 1]["id"] if len(rows) > part.limit else None)


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_runs(
    connection: Connection,
    part: Part,
    *,
    workflow_id: int | None = None,
    status: str | None = None,
    trigger_id: int | None = None,
    metadata: Mapping[str, str] | None = None,
    since: datetime | None = None,
) -> Page:
    """Give runs without input, output and stages.

    With `metadata` a page may hold fewer than there are, and even none: the next one goes on where this one stopped looking.
    """
    query = select(*SUMMARY, Workflow.name.label("workflow")).join(Workflow, Workflow.id == RUNS.c.workflow_id)
    wanted = {"workflow_id": workflow_id, "status": status, "trigger_id": trigger_id}
    query = query.where(*(RUNS.c[name] == value for name, value in wanted.items() if value is not None))
    if since is not None:
        query = query.where(RUNS.c.id >= first_since(connection, since - STRAGGLERS), RUNS.c.created_at >= clock.to_text(since))
    if not metadata:
        rows, older = _rows(connection, query, RUNS.c.id, part, RUNS.c.workflow_id)
        return Page([facts.run_summary(row, row.workflow) for row in rows], older)
    return _with_metadata(connection, query, part, metadata)


def _with_metadata(connection: Connection, query: Any, part: Part, metadata: Mapping[str, str]) -> Page:
    found: list[dict[str, Any]] = []
    before, examined = part.before, 0
    while examined < EXAMINED_MAX:
        rows, older = _rows(connection, query, RUNS.c.id, Part(BATCH, before, part.workflow_ids), RUNS.c.workflow_id)
        for row in rows:
            if _fits(json.loads(row.metadata), metadata):
                found.append(facts.run_summary(row, row.workflow))
                if len(found) == part.limit:
                    return Page(found, row.id)
        if older is None:
            return Page(found, None)
        before, examined = older, examined + len(rows)
    return Page(found, before)


def _fits(kept: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Tell whether each wanted member is there; what is no text is compared as it stands in JSON."""
    return all(key in kept and (kept[key] == value or _as_text(kept[key]) == value) for key, value in wanted.items())


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def first_since(connection: Connection, since: datetime) -> int:
    """Give the smallest id of a run that may have been created since then. Times have no index; ids are as old as they are small."""
    moment = clock.to_text(since)
    low, high = 1, (connection.execute(select(func.max(RUNS.c.id))).scalar() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        query = select(RUNS.c.created_at).where(RUNS.c.id >= middle).order_by(RUNS.c.id).limit(1)
        found = connection.execute(query).scalar()
        low, high = (middle + 1, high) if found is not None and found < moment else (low, middle)
    return low
