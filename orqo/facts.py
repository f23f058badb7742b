"""Rows as data: the JSON of a run that API, CLI and events share, and the roots that `${…}` looks things up in.

Owns these two shapes. Never reads the database: rows come in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Row

from orqo import jsontext
from orqo.lookup import Partial, Unreadable
from orqo.models import StageStatus

SKIPPED = "the stage {stage} was skipped, for its `when` did not hold"
CUT = "the output of stage {stage} was cut at its max_output; raise max_output of that stage (at most 4MiB)"


def run_url(base_url: str, run_id: int) -> str:
    """Give the page of a run, for people."""
    return f"{base_url}/runs/{run_id}"


def error_of(row: Row[Any]) -> dict[str, Any] | None:
    """Give `{"reason", "detail", "stage"}` of a run or a stage execution, null where it has none."""
    if row.error_reason is None:
        return None
    stage = row.error_stage if hasattr(row, "error_stage") else row.name
    return {"reason": row.error_reason, "detail": row.error_detail, "stage": stage}


def run_shape(row: Row[Any], workflow: str) -> dict[str, Any]:
    """Give a run as lists show it: everything but its stages; `rerun_of` only where it repeats another."""
    told = run_summary(row, workflow)
    large = {"input": json.loads(row.input), "output": jsontext.value_of(row.output, row.output_kind)}
    first = ("id", "workflow_id", "workflow", "status")
    return {key: told[key] for key in first} | large | told


def run_summary(row: Row[Any], workflow: str) -> dict[str, Any]:
    """Give a run without what may be large: input, output, stages."""
    return {
        "id": row.id,
        "workflow_id": row.workflow_id,
        "workflow": workflow,
        "status": row.status,
        "error": error_of(row),
        "metadata": json.loads(row.metadata),
        "trigger_id": row.trigger_id,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        **({"rerun_of": row.rerun_of} if row.rerun_of is not None else {}),
    }


def wait_told(row: Row[Any], token: str | None, base_url: str) -> dict[str, Any]:
    """Give what the event `waiting` tells of a wait: `link` is where a person decides an approval, else where a report is sent."""
    path = "answer/" if row.kind == "approval" else "api/v1/callback?token="
    link = f"{base_url}/{path}{token}" if token else None
    return {"stage": row.stage, "message": row.message, "link": link, "deadline": row.deadline_at}


def stage_shape(row: Row[Any]) -> dict[str, Any]:
    """Give one execution of a stage as `GET /api/v1/runs/<id>` shows it; `usage`, `note` and `inherited` only where so."""
    return {
        "name": row.name,
        "kind": row.kind,
        "pass": row._mapping["pass"],
        "status": row.status,
        "attempts": row.attempts,
        "output": jsontext.value_of(row.output, row.output_kind),
        "outcome": row.outcome,
        "error": error_of(row),
        "exit_code": row.exit_code,
        "stderr": None if row.stderr is None else row.stderr.decode("utf-8", errors="replace"),
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        **({"usage": json.loads(row.usage)} if row.usage else {}),
        **({"note": row.note} if row.note else {}),
        **({"inherited": True} if row.inherited else {}),
    }


def roots(run: Row[Any], stages: Iterable[Row[Any]], *, workflow: str, base_url: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give the look-up roots of DESIGN §9, but for secrets: `changes` are columns of the run that are about to change."""
    shown = dict(run._mapping) | dict(changes)
    error = None if shown["error_reason"] is None else {key: shown[f"error_{key}"] for key in ("reason", "detail", "stage")}
    told = {
        "id": run.id,
        "url": run_url(base_url, run.id),
        "workflow": workflow,
        "status": shown["status"],
        "error": error,
        "created_at": run.created_at,
    }
    facts = json.loads(run.trigger_facts)
    trigger = {"name": facts.get("name"), "headers": facts.get("headers", {}), "query": facts.get("query", {})}
    return {
        "input": json.loads(run.input),
        "stages": stage_roots(stages),
        "trigger": trigger,
        "run": told,
        "workflow": {"id": run.workflow_id, "name": workflow},
    }


def stage_roots(stages: Iterable[Row[Any]]) -> dict[str, dict[str, Any]]:
    """Give what `${stages.<name>…}` finds: of each finished stage, its latest execution."""
    return {row.name: stage_root(row) for row in stages if row.finished_at is not None}


def stage_root(row: Row[Any]) -> dict[str, Any]:
    """Give the look-ups of one execution; an output that was cut fails every look-up that reaches it."""
    if row.status == StageStatus.SKIPPED:
        return skipped_root(row.name)
    return {
        "output": Unreadable(CUT.format(stage=row.name)) if row.output_truncated else jsontext.value_of(row.output, row.output_kind),
        "outcome": row.outcome,
        "status": row.status,
        "error": error_of(row),
        "response": json.loads(row.response) if row.response else None,
    }


def skipped_root(name: str) -> dict[str, Any]:
    """Give the look-ups of a stage that was skipped: it has a status and nothing else, least of all an output."""
    return Partial({"outcome": None, "status": "skipped", "error": None, "response": None}, SKIPPED.format(stage=name))
