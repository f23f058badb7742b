"""Re-run: the same input on the workflow's newest version, whole or from a stage with the earlier outputs inherited.

Owns the columns rerun_of and inherited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from orqo import flow, workflows
from orqo.errors import Conflict, Fault, Invalid, NotFound
from orqo.models import RunStatus, StageStatus
from orqo.runs.accepting import accept
from orqo.runs.claiming import enter
from orqo.runs.ending import stage_rows
from orqo.runs.state import RUNS, STAGES, Box, NewRun

FILES_STAY = "Its output is inherited; what it left in the folder of run {id} is not."
# A copied execution is another row of another run, in an order of its own.
NOT_COPIED = ("id", "run_id", "sequence", "inherited")


def rerun(
    box: Box,
    connection: Connection,
    run_id: int,
    *,
    from_stage: str | None = None,
    origin: str,
    token_id: int | None = None,
    facts: Mapping[str, Any] | None = None,
    now: datetime,
) -> int:
    """Accept a run that repeats another within the caller's transaction and give its id; `facts` are added to its trigger's.

    It tells whom the first one told. Raises NotFound, Conflict where the workflow is gone or disabled or the run has not
    ended, Invalid where the stage cannot be gone on from, and what `accept` raises.
    """
    old = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none() if 0 < run_id < 2**63 else None
    if old is None:
        raise NotFound(f"There is no run {run_id}. List them with: run list")
    workflow = workflows.find(connection, old.workflow_id)
    if workflow is None:
        raise Conflict(f"The workflow of run {run_id} was deleted: it cannot be run again.")
    if not workflow.enabled:
        raise Conflict(f"Workflow {workflow.name} is disabled. Enable it, then run it again.")
    new = _new(old, workflow, origin, token_id, facts or {})
    if from_stage is None:
        return accept(connection, new, now=now).run_id
    inherited, stage = _earlier(box, connection, old, workflow.version_id, from_stage)
    made = accept(connection, new, now=now).run_id
    _inherit(connection, made, inherited, old)
    enter(connection, made, stage, inherited, StageStatus.PENDING, now)
    return made


def _new(old: Row[Any], workflow: Row[Any], origin: str, token_id: int | None, facts: Mapping[str, Any]) -> NewRun:
    known = {key: value for key, value in json.loads(old.trigger_facts).items() if key != "by"}
    return NewRun(
        workflow_id=workflow.id,
        version_id=workflow.version_id,
        origin=origin,
        input=json.loads(old.input),
        metadata=json.loads(old.metadata),
        trigger_id=old.trigger_id,
        token_id=token_id,
        trigger_facts={**known, **facts},
        callbacks=json.loads(old.callbacks),
        rerun_of=old.id,
    )


def _earlier(box: Box, connection: Connection, old: Row[Any], version_id: int, name: str) -> tuple[Sequence[Row[Any]], Any]:
    """Give the executions that stand before the last one of a stage, and the stage as the newest version has it."""
    if not RunStatus(old.status).terminal:
        raise Conflict(f"Run {old.id} has not ended: stop it first, or run the whole again.")
    stage = flow.stage_named(box.definitions.of(connection, version_id), name)
    if stage is None:
        raise _unusable(f"The newest version of the workflow has no stage {name}.")
    rows = stage_rows(connection, old.id)
    last = max((row.sequence for row in rows if row.name == name), default=None)
    if last is None:
        raise _unusable(f"Run {old.id} never reached stage {name}, so there is nothing to inherit.")
    return [row for row in rows if row.sequence < last and row.finished_at is not None], stage


def _unusable(detail: str) -> Invalid:
    return Invalid(detail, errors=[Fault("/from", detail)])


def _inherit(connection: Connection, run_id: int, rows: Sequence[Row[Any]], old: Row[Any]) -> None:
    copies = []
    left = {"note": FILES_STAY.format(id=old.id)} if old.machine else {}
    for number, row in enumerate(rows, 1):
        kept = {key: value for key, value in row._mapping.items() if key not in NOT_COPIED}
        noted = left if row.kind in flow.KINDS_WITH_FILES else {}
        copies.append(kept | {"run_id": run_id, "sequence": number, "inherited": 1} | noted)
    if copies:
        connection.execute(insert(STAGES), copies)
