"""Lists as the pages show them: newest first, keyset pages, each from an index and bounded.

Reads only. A page costs the same whatever the tables hold: no count, no offset, and no column that may be large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, or_, select

from orqo import newest
from orqo.deliveries import shown_url
from orqo.models import ApiToken, Delivery, DeliveryStatus, Request, Run, Trigger, Workflow, WorkflowVersion

PAGE_ROWS = 25
RECENT_ROWS = 12
LARGEST_ID = 2**63 - 1
RUNS = Run.__table__
LISTED = (
    *(RUNS.c[name] for name in ("id", "workflow_id", "status", "origin", "trigger_id", "token_id", "created_at", "started_at")),
    *(RUNS.c[name] for name in ("finished_at", "wake_at", "stop_requested_at", "error_reason", "error_detail", "error_stage")),
    *(RUNS.c[name] for name in ("held", "parent_id", "parent_stage")),
)

LISTED_DELIVERIES = tuple(
    Delivery.__table__.c[name]
    for name in ("id", "run_id", "callback_id", "event", "url", "status", "attempts", "next_attempt_at", "created_at", "finished_at")
)

REQUESTS = Request.__table__
LISTED_REQUESTS = tuple(
    REQUESTS.c[name]
    for name in ("id", "endpoint", "received_at", "trigger_id", "run_id", "status_code", "verdict", "reason", "method", "size", "replay_of")
)
EVENTS = (Request.endpoint == "callback", Request.webhook_id.is_not(None))


@dataclass(frozen=True)
class Page:
    """One page of a list; `older` is the key that the next page begins before, None at the end."""

    rows: list[Any]
    older: int | None


def runs(connection: Connection, *, workflow_id: int | None = None, status: str | None = None, before: int | None = None) -> Page:
    """Give runs with `workflow`, `trigger` and `token` (names, null where there is none)."""
    query = listed_runs()
    if workflow_id is not None:
        query = query.where(RUNS.c.workflow_id == workflow_id)
    if status:
        query = query.where(RUNS.c.status == status)
    return _page(connection, query, RUNS.c.id, before)


def listed_runs() -> Select[Any]:
    """Give the query of runs as lists show them, without a condition, an order or a limit."""
    names = (Workflow.name.label("workflow"), Trigger.name.label("trigger"), ApiToken.name.label("token"))
    joined = select(*LISTED, *names).join(Workflow, Workflow.id == RUNS.c.workflow_id)
    return joined.outerjoin(Trigger, Trigger.id == RUNS.c.trigger_id).outerjoin(ApiToken, ApiToken.id == RUNS.c.token_id)


def deliveries(connection: Connection, *, status: str | None = None, before: int | None = None) -> Page:
    """Give deliveries with `shown_url`, without their bodies."""
    query = select(*LISTED_DELIVERIES)
    if status:
        query = query.where(Delivery.status == status)
    page = _page(connection, query, Delivery.__table__.c.id, before)
    return Page([_delivery(row) for row in page.rows], page.older)


def newest_deliveries(connection: Connection, callback_ids: list[int]) -> list[dict[str, Any]]:
    """Give the newest deliveries of some callbacks, as `deliveries` does."""
    if not callback_ids:
        return []
    ranges = [and_(Delivery.callback_id == each, Delivery.status == status) for each in callback_ids for status in DeliveryStatus]
    rows = newest.rows(connection, select(*LISTED_DELIVERIES), Delivery.__table__.c.id, ranges, limit=RECENT_ROWS)
    return [_delivery(row) for row in rows]


def _delivery(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping) | {"shown_url": shown_url(row.url)}


def requests(connection: Connection, *, workflow_id: int, verdict: str | None = None, before: int | None = None) -> Page:
    """Give what a workflow's triggers and /trigger received, with `trigger` and `token` (names). The table holds 10,000 at most.

    A call of /trigger that started no run belongs to no workflow: each of them lists it.
    """
    mine = or_(Trigger.workflow_id == workflow_id, RUNS.c.workflow_id == workflow_id)
    nobodys = and_(REQUESTS.c.endpoint == "trigger", REQUESTS.c.run_id.is_(None))
    query = _listed_requests().outerjoin(RUNS, RUNS.c.id == REQUESTS.c.run_id).where(REQUESTS.c.endpoint != "callback", or_(mine, nobodys))
    if verdict:
        query = query.where(REQUESTS.c.verdict == verdict)
    return _page(connection, query, REQUESTS.c.id, before)


def _listed_requests() -> Select[Any]:
    named = select(*LISTED_REQUESTS, Trigger.name.label("trigger"), ApiToken.name.label("token")).select_from(REQUESTS)
    return named.outerjoin(Trigger, Trigger.id == REQUESTS.c.trigger_id).outerjoin(ApiToken, ApiToken.id == REQUESTS.c.token_id)


def requests_of_run(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give the requests that started a run or found it again, oldest first."""
    mine = _listed_requests().where(REQUESTS.c.run_id == run_id, REQUESTS.c.endpoint != "callback")
    return list(connection.execute(mine.order_by(REQUESTS.c.id).limit(RECENT_ROWS)))


def replays_of(connection: Connection, request_id: int) -> list[Row[Any]]:
    """Give the replays of a request, oldest first."""
    return list(connection.execute(_listed_requests().where(REQUESTS.c.replay_of == request_id).order_by(REQUESTS.c.id).limit(RECENT_ROWS)))


def token_name(connection: Connection, token_id: int | None) -> str | None:
    """Give the name of an API token, None where it is gone."""
    return connection.execute(select(ApiToken.name).where(ApiToken.id == token_id)).scalar()


def newest_request(connection: Connection, trigger_id: int) -> Row[Any] | None:
    """Give the last request that a trigger received, None where there was none."""
    mine = _listed_requests().where(REQUESTS.c.trigger_id == trigger_id)
    return connection.execute(mine.order_by(REQUESTS.c.id.desc()).limit(1)).one_or_none()


def reports(connection: Connection, *, verdict: str | None = None, before: int | None = None) -> Page:
    """Give the calls of /callback that reported on a run or meant to, with `token` (a name). The table holds 10,000 at most."""
    query = _listed_requests().where(REQUESTS.c.endpoint == "callback", REQUESTS.c.webhook_id.is_(None))
    if verdict:
        query = query.where(REQUESTS.c.verdict == verdict)
    return _page(connection, query, REQUESTS.c.id, before)


def received(connection: Connection, *, before: int | None = None) -> Page:
    """Give the received events without their bodies. The table holds other requests too, 10,000 at most."""
    columns = (Request.id, Request.webhook_id, Request.run_id, Request.event, Request.received_at)
    query = select(*columns).where(*EVENTS)
    return _page(connection, query, Request.__table__.c.id, before)


def received_one(connection: Connection, request_id: int) -> Row[Any] | None:
    """Give one received event, None where there is none."""
    if not 0 < request_id <= LARGEST_ID:
        return None
    return connection.execute(select(Request.__table__).where(Request.id == request_id, *EVENTS)).one_or_none()


def workflows(connection: Connection, *, after: str = "") -> tuple[list[dict[str, Any]], str | None]:
    """Give workflows by name, each with its `recent` runs, newest first, and the name that the next page begins after."""
    columns = (Workflow.id, Workflow.name, Workflow.enabled, Workflow.updated_at, WorkflowVersion.number.label("version"))
    query = select(*columns).join(WorkflowVersion, WorkflowVersion.id == Workflow.version_id).where(Workflow.deleted_at.is_(None))
    rows = connection.execute(query.where(Workflow.name > after).order_by(Workflow.name).limit(PAGE_ROWS + 1)).all()
    shown = [dict(row._mapping) | {"recent": recent(connection, row.id)} for row in rows[:PAGE_ROWS]]
    return shown, rows[PAGE_ROWS - 1].name if len(rows) > PAGE_ROWS else None


def recent(connection: Connection, workflow_id: int) -> list[Row[Any]]:
    """Give the newest runs of a workflow: id, status, times."""
    columns = (RUNS.c.id, RUNS.c.status, RUNS.c.created_at, RUNS.c.finished_at)
    newest = select(*columns).where(RUNS.c.workflow_id == workflow_id).order_by(RUNS.c.id.desc()).limit(RECENT_ROWS)
    return list(connection.execute(newest))


def _page(connection: Connection, query: Any, key: Any, before: int | None) -> Page:
    if before is not None:
        query = query.where(key < before)
    rows = list(connection.execute(query.order_by(key.desc()).limit(PAGE_ROWS + 1)))
    return Page(rows[:PAGE_ROWS], rows[PAGE_ROWS - 1].id if len(rows) > PAGE_ROWS else None)
