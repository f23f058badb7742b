"""Bind: a run whose folder holds files goes on where they lie; where that machine does not come back, it fails and says so.

The binding itself, the column machine, is written with the end of each stage that may leave files (recording.py).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, exists, select, update

from orqo import clock, flow, machines
from orqo.models import Machine, Reason, RunStatus
from orqo.runs.ending import end, stage_rows
from orqo.runs.state import RUNS, Box, Output

MACHINE_LOST_AFTER_S = 3600.0
STRANDED_LIMIT = 200


def stranded(box: Box, connection: Connection, *, lost_after_s: float) -> list[Row[Any]]:
    """Give the pending runs bound to a machine that was not seen for so long; on SQLite, which has one, to any but this one."""
    bound = (RUNS.c.status == RunStatus.PENDING, RUNS.c.held == 0, RUNS.c.machine > "", RUNS.c.machine != box.machine)
    query = select(RUNS).where(*bound).order_by(RUNS.c.id).limit(STRANDED_LIMIT)
    if not box.database.is_sqlite:
        since = machines.present(box.database, connection) - timedelta(seconds=lost_after_s)
        query = query.where(~exists().where(Machine.id == RUNS.c.machine, Machine.seen_at >= clock.to_text(since)))
    return list(connection.execute(query))


def give_up(box: Box, connection: Connection, run: Row[Any], *, lost_after_s: float, now: datetime) -> None:
    """Fail a run whose files are out of reach; nothing where it was claimed meanwhile, for then its machine is back."""
    still = (RUNS.c.id == run.id, RUNS.c.status == RunStatus.PENDING, RUNS.c.machine == run.machine)
    if not connection.execute(update(RUNS).where(*still).values(machine=run.machine)).rowcount:
        return
    definition = box.definitions.of(connection, run.version_id)
    stages = stage_rows(connection, run.id)
    error = flow.RunError(Reason.FILES_LOST, _sentence(box, connection, run, lost_after_s), stages[-1].name if stages else None)
    end(box, connection, run, definition, RunStatus.FAILED, error, Output(None, None), now=now)


def _sentence(box: Box, connection: Connection, run: Row[Any], lost_after_s: float) -> str:
    where = f"The files that earlier stages left lie on {machines.told(connection, run.machine)}, and the run could go on there alone."
    if box.database.is_sqlite:
        return f"{where} This data folder is another one: was the database restored without it?"
    return f"{where} It was not seen for {lost_after_s:g} s (ORQO_MACHINE_LOST_AFTER)."
