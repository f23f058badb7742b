"""Chain: a stage starts a run of another workflow, once for each pass, and waits for its end or goes on.

Owns the columns parent_* and depth. The end of a child answers its parent in ending.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from orqo import crashpoints, workflows
from orqo.errors import Busy, Invalid
from orqo.runs.accepting import accept
from orqo.runs.state import RUNS, Box, Claim, NewRun, Parent
from orqo.runs.waiting import NewWait, current, lock, open_wait, pause_within

DEPTH_MAX = 10
BY_STAGE, BY_ROUTING = "stage", "routing"


@dataclass(frozen=True)
class Refused:
    """Why no child was started."""

    detail: str


def start_child(
    box: Box, claim: Claim, workflow: str, value: Any, *, timeout_s: float | None, elapsed_ms: int, now: datetime
) -> int | Refused:
    """Start the run that a stage is there for and, with a time, wait for it: one commit. Gives its id.

    LeaseLost where the lease is gone.
    """
    with box.database.transaction() as connection:
        run = lock(connection, claim)
        child = start(box, connection, run, claim.stage_row, workflow, value, via=BY_STAGE, now=now)
        crashpoints.reach("child-before-commit")
        if timeout_s is None or isinstance(child, Refused):
            return child
        row = current(connection, claim.stage_row.id)
        if row is None:
            row = open_wait(box, connection, claim, NewWait(timeout_s, child_id=child), now=now)
        pause_within(connection, claim, row, elapsed_ms=elapsed_ms, now=now)
    return child


def start(
    box: Box, connection: Connection, run: Row[Any], stage: Row[Any], workflow: str, value: Any, *, via: str, now: datetime
) -> int | Refused:
    """Accept a child of a run's stage execution within the caller's transaction, or find the one that it has; gives its id."""
    passed = stage._mapping["pass"]
    same = (RUNS.c.parent_id == run.id, RUNS.c.parent_stage == stage.name, RUNS.c.parent_pass == passed, RUNS.c.parent_via == via)
    known = connection.execute(select(RUNS.c.id).where(*same)).scalar()
    if known is not None:
        return int(known)
    if run.depth >= DEPTH_MAX:
        return Refused(f"Workflow {workflow} was not started: this run stands {DEPTH_MAX} workflows deep already, which is the limit.")
    found = workflows.find(connection, workflow)
    if found is None:
        return Refused(f"There is no workflow {workflow}.")
    if not found.enabled:
        return Refused(f"Workflow {workflow} is disabled.")
    parent = Parent(run.id, stage.name, passed, via, run.depth + 1)
    new = NewRun(found.id, found.version_id, "workflow", input=value, parent=parent)
    try:
        return accept(connection, new, now=now).run_id
    except (Busy, Invalid) as fault:
        return Refused(f"Workflow {workflow} was not started: {fault.detail}")
