"""Lists as the API gives them: newest first, filtered, a page at a time, within the workflows that a token may use.

Reads only. Each page costs the same whatever the tables hold: keys instead of offsets, no counts, and no column that may
be large.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, false, select

from orqo import callbacks, clock, deliveries, facts, newest, requestlog, tokens, triggers
from orqo.models import ApiToken, Callback, Delivery, DeliveryStatus, Run, RunStatus, Trigger, Workflow, WorkflowVersion

RUNS = Run.__table__
SUMMARY = tuple(
    RUNS.c[name]
    for name in (
        *("id", "workflow_id", "status", "metadata", "trigger_id", "created_at", "started_at", "finished_at"),
        *("error_reason", "error_detail", "error_stage", "rerun_of"),
    )
)
# Metadata has no index, nor has a delivery's workflow: so many rows are looked at for one page, and the next page goes on there.
EXAMINED_MAX = 2500
BATCH = 500
# A run is given its time before it is committed: two may be committed in the other order.
STRAGGLERS = timedelta(minutes=2)
EARLIEST = datetime.min.replace(tzinfo=UTC) + STRAGGLERS


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


def _rows(connection: Connection, query: Any, key: Any, part: Part, ranges: Sequence[Any] = ()) -> tuple[list[Row[Any]], int | None]:
    """Give one page of a query and the key that the next begins before; `ranges` as `newest.rows` takes them."""
    if part.before is not None:
        query = query.where(key < part.before)
    rows = newest.rows(connection, query, key, ranges, limit=part.limit + 1)
    return rows[: part.limit], rows[part.limit - 1].id if len(rows) > part.limit else None


def _within(part: Part, workflow_id: Any) -> list[Any]:
    """Give the condition that a token's limits set, none where it has none."""
    return [] if part.workflow_ids is None else [workflow_id.in_(sorted(part.workflow_ids))]


def workflows(connection: Connection, part: Part) -> Page:
    """Give workflows as `workflow list` does."""
    columns = (Workflow.id, Workflow.name, WorkflowVersion.number.label("version"), Workflow.enabled, Workflow.updated_at)
    query = select(*columns).join(WorkflowVersion, WorkflowVersion.id == Workflow.version_id).where(Workflow.deleted_at.is_(None))
    rows, older = _rows(connection, query.where(*_within(part, Workflow.id)), Workflow.id, part)
    return Page([dict(row._mapping) | {"enabled": bool(row.enabled)} for row in rows], older)


def list_triggers(connection: Connection, part: Part, *, workflow_id: int | None = None) -> Page:
    """Give triggers without their tokens."""
    query = select(Trigger.__table__, Workflow.name.label("workflow_name")).join(Workflow, Workflow.id == Trigger.workflow_id)
    query = query.where(Workflow.deleted_at.is_(None))
    if workflow_id is not None:
        query = query.where(Trigger.workflow_id == workflow_id)
    rows, older = _rows(connection, query.where(*_within(part, Trigger.workflow_id)), Trigger.id, part)
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
    rows, older = _rows(connection, query.where(*_within(part, Callback.workflow_id)), Callback.id, part)
    return Page([callbacks.shown(row) for row in rows], older)


def list_deliveries(
    connection: Connection, part: Part, *, status: str | None = None, run_id: int | None = None, callback_id: int | None = None
) -> Page:
    """Give deliveries without their bodies.

    With a token that is limited to workflows, and neither run nor callback named, a page may hold fewer than there are, and
    even none: the next one goes on where this one stopped looking.
    """
    columns = [column for column in Delivery.__table__.c if column.name not in ("body", "headers")]
    query = select(*columns)
    wanted = {Delivery.run_id: run_id, Delivery.callback_id: callback_id}
    named = [column == value for column, value in wanted.items() if value is not None]
    # A callback's deliveries lie by status in their index.
    statuses = [status] if status else list(DeliveryStatus) if callback_id is not None and run_id is None else []
    ranges = [and_(*named, Delivery.status == each) for each in statuses] or named
    if part.workflow_ids is None:
        rows, older = _rows(connection, query, Delivery.id, part, ranges)
        return Page([deliveries.shown(row) for row in rows], older)
    query = query.add_columns(Run.workflow_id).join(Run, Run.id == Delivery.run_id)
    usable = part.workflow_ids
    return _examined(
        lambda some: _rows(connection, query, Delivery.id, some, ranges), part, lambda row: row.workflow_id in usable, deliveries.shown
    )


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
    if trigger_id is not None and not _is_of(connection, trigger_id, part, workflow_id):
        return Page([], None)
    query = select(*SUMMARY, Workflow.name.label("workflow")).join(Workflow, Workflow.id == RUNS.c.workflow_id)
    if since is not None:
        first = first_since(connection, max(since, EARLIEST) - STRAGGLERS)
        query = query.where(RUNS.c.id >= first, RUNS.c.created_at >= clock.to_text(since))
    ranges = _ranges(part, workflow_id, status, trigger_id)
    if not metadata:
        rows, older = _rows(connection, query, RUNS.c.id, part, ranges)
        return Page([facts.run_summary(row, row.workflow) for row in rows], older)
    return _examined(
        lambda some: _rows(connection, query, RUNS.c.id, some, ranges),
        part,
        lambda row: _fits(json.loads(row.metadata), metadata),
        lambda row: facts.run_summary(row, row.workflow),
    )


def _is_of(connection: Connection, trigger_id: int, part: Part, workflow_id: int | None) -> bool:
    """Tell whether a trigger is of a workflow that is asked for and may be used: all its runs are of that one."""
    found = connection.execute(select(Trigger.workflow_id).where(Trigger.id == trigger_id)).scalar()
    return found is not None and workflow_id in (None, found) and (part.workflow_ids is None or found in part.workflow_ids)


def _ranges(part: Part, workflow_id: int | None, status: str | None, trigger_id: int | None) -> list[Any]:
    """Give the ranges of an index that hold the runs asked for: a trigger's lie by status in theirs."""
    if trigger_id is not None:
        statuses = [status] if status else list(RunStatus)
        return [and_(RUNS.c.trigger_id == trigger_id, RUNS.c.status == each) for each in statuses]
    workflow_ids = [workflow_id] if workflow_id is not None else sorted(part.workflow_ids or ())
    of_status = [RUNS.c.status == status] if status else []
    if part.workflow_ids is None and workflow_id is None:
        return of_status
    return [and_(RUNS.c.workflow_id == each, *of_status) for each in workflow_ids] or [false()]


def _examined(
    find: Callable[[Part], tuple[list[Row[Any]], int | None]],
    part: Part,
    fits: Callable[[Row[Any]], bool],
    shown: Callable[[Row[Any]], dict[str, Any]],
) -> Page:
    """Give the rows that fit where no index tells: so many are looked at for one page."""
    found: list[dict[str, Any]] = []
    before, examined = part.before, 0
    while examined < EXAMINED_MAX:
        rows, older = find(Part(BATCH, before, part.workflow_ids))
        for row in filter(fits, rows):
            found.append(shown(row))
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
    """Give the smallest id of a run that may have been created since then."""
    return newest.first_since(connection, clock.to_text(since))
