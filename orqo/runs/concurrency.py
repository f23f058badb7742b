"""Concurrency: how many runs of one key are under way, and what a further one does.

Owns the columns concurrency_key, concurrency_limit and held. A run that must wait its turn is held, and the end of
another of its key lets the oldest go: what is claimed never has to look at its key, and nobody is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from orqo import clock, lookup, workflows
from orqo.errors import Busy, Fault, Invalid
from orqo.models import TERMINAL, RunStatus, Workflow
from orqo.runs.state import RUNS, NewRun

KEY_MAX = 1000


def admit(connection: Connection, new: NewRun, *, now: datetime) -> dict[str, Any]:
    """Decide how a new run stands to the others of its key; gives its columns, none where its workflow says nothing.

    `replace` asks the oldest to stop. Raises Busy with `skip`, Invalid where the key's look-up finds nothing.
    """
    rule = workflows.terms_of(connection, new.version_id).concurrency
    if rule is None:
        return {}
    key = _key(connection, rule["key"], new)
    _lock(connection, new.workflow_id)
    active = connection.execute(_unfinished(new.workflow_id, key)).all()
    going = sum(not row.held for row in active)
    if rule["when_busy"] == "skip" and going >= rule["limit"]:
        raise Busy(f"As many runs of the concurrency key {key[:100]!r} are under way as may be ({rule['limit']}).")
    if rule["when_busy"] == "replace":
        _replace(connection, active[: max(0, len(active) + 1 - rule["limit"])], now)
        going = sum(not row.held for row in active)
    return {"concurrency_key": key, "concurrency_limit": rule["limit"], "held": int(going >= rule["limit"])}


def _key(connection: Connection, template: str, new: NewRun) -> str:
    facts: Mapping[str, Any] = new.trigger_facts
    name = connection.execute(select(Workflow.name).where(Workflow.id == new.workflow_id)).scalar_one()
    roots = {
        "input": new.input,
        "trigger": {"name": facts.get("name"), "headers": facts.get("headers", {}), "query": facts.get("query", {})},
        "workflow": {"id": new.workflow_id, "name": name},
    }
    try:
        # A character that PostgreSQL's text cannot hold.
        return lookup.render_text(template, roots)[:KEY_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")
    except lookup.LookupFailed as fault:
        detail = f"has no {fault.path}, which the workflow's concurrency.key looks up"
        raise Invalid(f"The input does not fit: {fault.detail} (concurrency.key).", errors=[Fault("/input", detail)]) from fault


def _lock(connection: Connection, workflow_id: int) -> None:
    """Let only one at a time count the runs of a workflow; SQLite has one writer anyway."""
    connection.execute(select(Workflow.id).where(Workflow.id == workflow_id).with_for_update())


def _unfinished(workflow_id: int, key: str) -> Any:
    mine = (RUNS.c.workflow_id == workflow_id, RUNS.c.concurrency_key == key, RUNS.c.finished_at.is_(None))
    return select(RUNS.c.id, RUNS.c.status, RUNS.c.held, RUNS.c.concurrency_limit).where(*mine).order_by(RUNS.c.id)


def _replace(connection: Connection, older: Any, now: datetime) -> None:
    """Ask runs to stop: a worker does it, or the claim of one that no worker has."""
    ids = [row.id for row in older]
    asked = {"stop_requested_at": func.coalesce(RUNS.c.stop_requested_at, clock.to_text(now)), "held": 0}
    connection.execute(update(RUNS).where(RUNS.c.id.in_(ids), RUNS.c.status.not_in(TERMINAL)).values(asked))
    waiting = (RUNS.c.id.in_(ids), RUNS.c.status == RunStatus.WAITING)
    connection.execute(update(RUNS).where(*waiting).values(status=RunStatus.PENDING, wake_at=None))


def let_go(connection: Connection, run: Row[Any]) -> None:
    """Let the oldest that the end of this run makes room for go, within the transaction that ends it."""
    if run.concurrency_key is None:
        return
    _lock(connection, run.workflow_id)
    active = connection.execute(_unfinished(run.workflow_id, run.concurrency_key)).all()
    going = sum(not row.held for row in active)
    for row in active:
        if row.held and going < row.concurrency_limit:
            connection.execute(update(RUNS).where(RUNS.c.id == row.id).values(held=0))
            going += 1
