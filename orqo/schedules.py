"""Schedules: triggers that fire by themselves, at the times that their cron expression says.

Owns the column next_fire_at. However many dispatchers look, a time fires once; of times that were missed the last one does.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from orqo import clock, crashpoints, cron, runs, triggers
from orqo.db import Database
from orqo.errors import Problem
from orqo.models import Trigger, Workflow

log = logging.getLogger(__name__)

DUE_LIMIT = 100
SHOWN = 5
ROWS = Trigger.__table__


def due(database: Database, *, now: datetime) -> list[Row[Any]]:
    """Give the schedules whose time has come, and those whose next time is still to be reckoned; a read."""
    mine = (Trigger.kind == "schedule", Trigger.enabled == 1, Workflow.deleted_at.is_(None))
    columns = (ROWS, Workflow.enabled.label("workflow_enabled"), Workflow.version_id)
    joined = select(*columns).join(Workflow, Workflow.id == Trigger.workflow_id).where(*mine)
    has_come = or_(Trigger.next_fire_at.is_(None), Trigger.next_fire_at <= clock.to_text(now))
    with database.read() as connection:
        return list(connection.execute(joined.where(has_come).order_by(Trigger.next_fire_at).limit(DUE_LIMIT)))


def fire(database: Database, row: Row[Any], *, now: datetime) -> int | None:
    """Move a schedule on to its next time and start its workflow, one commit; gives the run, None where there is none.

    None where another dispatcher was first, the workflow is disabled, or its input or concurrency lets no run begin.
    """
    with database.transaction() as connection:
        seen = Trigger.next_fire_at.is_not_distinct_from(row.next_fire_at)
        mine = update(Trigger).where(Trigger.id == row.id, Trigger.enabled == 1, Trigger.options == row.options, seen)
        if not connection.execute(mine.values(next_fire_at=triggers.next_fire(json.loads(row.options), now=now))).rowcount:
            return None
        if row.next_fire_at is None or not row.workflow_enabled:
            return None
        try:
            return _start(connection, row, now=now)
        except Problem as fault:
            log.warning("step=schedule trigger=%s status=not_started error=%s", row.id, fault.detail)
            return None


def _start(connection: Connection, row: Row[Any], *, now: datetime) -> int:
    new = runs.NewRun(
        workflow_id=row.workflow_id,
        version_id=row.version_id,
        origin="schedule",
        input=json.loads(row.options).get("input"),
        metadata={"scheduled_at": row.next_fire_at},
        trigger_id=row.id,
        trigger_facts={"name": row.name, "headers": {}, "query": {}},
    )
    run_id = runs.accept(connection, new, now=now).run_id
    crashpoints.reach("schedule-before-commit")
    return run_id


def next_times(row: Row[Any], *, now: datetime) -> list[dict[str, str]]:
    """Give the next times of a schedule, `{"at": UTC, "local": in its zone with the offset}` each."""
    stored = json.loads(row.options)
    found = cron.next_times(stored["schedule"], stored["timezone"], after=now, count=SHOWN)
    return [{"at": clock.to_text(each), "local": cron.local_text(each, stored["timezone"])} for each in found]
