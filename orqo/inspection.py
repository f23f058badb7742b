"""One run looked at closely: its row, its stages, its deliveries, each large thing cut to what a page can hold.

Reads only. What was cut is had whole, as bytes, by `whole`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, literal, select

from orqo import deliveries
from orqo.listings import LARGEST_ID, listed_runs
from orqo.models import Attempt, Delivery, Run, Stage, Wait, Workflow, WorkflowVersion

CUT_BYTES = 8192
# A value above this is not even read for its beginning: a run of many stages would read them all.
READ_MAX_BYTES = 1024 * 1024
STAGES_SHOWN = 200
DELIVERIES_SHOWN = 50
ATTEMPTS_SHOWN = 20
REPETITIONS_SHOWN = 10
RUNS, STAGES, WAITS = Run.__table__, Stage.__table__, Wait.__table__
STAGE_NOTES = ("usage", "note", "inherited")
COLUMNS = ("version_id", "metadata", "trigger_facts", "output_kind", "output_truncated", "running_ms", "rerun_of", "parent_via", "machine")


@dataclass(frozen=True)
class Cut:
    """The beginning of stored bytes. `size` counts them all; `kind` is json, text or bytes, None where there are none."""

    data: bytes | None
    size: int
    kind: str | None

    @property
    def whole(self) -> bool:
        """Tell whether nothing was left out."""
        return self.data is not None and len(self.data) == self.size


def _start_of(column: Any, name: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    size = func.length(column)
    start = case((size <= READ_MAX_BYTES, func.substr(column, 1, CUT_BYTES)), else_=literal(None))
    return start.label(f"{name}_start"), size.label(f"{name}_size")


def run(connection: Connection, run_id: int) -> Row[Any] | None:
    """Give a run as lists show it, with `version`, `metadata`, `trigger_facts`, what it came of, and the starts of input and output."""
    if not 0 < run_id <= LARGEST_ID:
        return None
    columns = [RUNS.c[name] for name in COLUMNS]
    query = listed_runs().add_columns(*columns, *_start_of(RUNS.c.input, "input"), *_start_of(RUNS.c.output, "output"))
    query = query.add_columns(WorkflowVersion.number.label("version")).join(WorkflowVersion, WorkflowVersion.id == RUNS.c.version_id)
    return connection.execute(query.where(RUNS.c.id == run_id)).one_or_none()


def cut(row: Row[Any], name: str, kind: str | None) -> Cut:
    """Give a row's column that was selected by its start."""
    start, size = getattr(row, f"{name}_start"), getattr(row, f"{name}_size")
    if size == 0:
        # The start of nothing is NULL in SQLite.
        start = b""
    data = start.encode() if isinstance(start, str) else None if start is None else bytes(start)
    # SQLite counts a text's characters.
    whole_text = isinstance(start, str) and len(start) == size
    return Cut(data, len(data) if whole_text and data is not None else size or 0, kind if size is not None else None)


def stages(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give the executions of a run's stages in order, at most 200, with the starts of output and stderr."""
    names = ("id", "sequence", "name", "kind", "pass", "status", "attempts", "failures", "outcome", "started_at", "finished_at")
    columns = (*names, "error_reason", "error_detail", "exit_code", "output_kind", "output_truncated", "response", *STAGE_NOTES)
    query = select(*(STAGES.c[name] for name in columns), *_start_of(STAGES.c.stderr, "stderr"), *_start_of(STAGES.c.output, "output"))
    return list(connection.execute(query.where(STAGES.c.run_id == run_id).order_by(STAGES.c.sequence).limit(STAGES_SHOWN)))


def waits(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give what a run's stages waited for and wait for, oldest first."""
    return list(connection.execute(select(WAITS).where(WAITS.c.run_id == run_id).order_by(WAITS.c.id.desc()).limit(STAGES_SHOWN)))[::-1]


def children(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give the runs that a run's stages started: id, status, `workflow`, and which execution of which stage it was."""
    columns = (RUNS.c.id, RUNS.c.status, RUNS.c.parent_stage, RUNS.c.parent_pass, RUNS.c.parent_via, Workflow.name.label("workflow"))
    mine = select(*columns).join(Workflow, Workflow.id == RUNS.c.workflow_id).where(RUNS.c.parent_id == run_id)
    return list(connection.execute(mine.order_by(RUNS.c.id).limit(STAGES_SHOWN)))


def repetitions(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give the runs that repeat a run, newest first: id and status."""
    mine = select(RUNS.c.id, RUNS.c.status).where(RUNS.c.rerun_of == run_id)
    return list(connection.execute(mine.order_by(RUNS.c.id.desc()).limit(REPETITIONS_SHOWN)))


def deliveries_of(connection: Connection, run_id: int) -> list[dict[str, Any]]:
    """Give a run's deliveries, oldest first, each with `shown_url` and its newest `tries`."""
    named = ("id", "event", "url", "status", "attempts", "next_attempt_at", "created_at", "finished_at", "channel")
    query = select(*(Delivery.__table__.c[name] for name in named)).where(Delivery.run_id == run_id)
    rows = connection.execute(query.order_by(Delivery.channel, Delivery.id).limit(DELIVERIES_SHOWN)).all()
    return [dict(row._mapping) | {"shown_url": deliveries.shown_url(row.url), "tries": attempts(connection, row.id)} for row in rows]


def attempts(connection: Connection, delivery_id: int) -> list[Row[Any]]:
    """Give the newest attempts of a delivery, newest first."""
    query = select(Attempt.__table__).where(Attempt.delivery_id == delivery_id)
    return list(connection.execute(query.order_by(Attempt.id.desc()).limit(ATTEMPTS_SHOWN)))


def output_kind(connection: Connection, run_id: int) -> str | None:
    """Give what a run's output is: text, json or bytes; None where there is none."""
    return connection.execute(select(RUNS.c.output_kind).where(RUNS.c.id == run_id)).scalar()


def whole(connection: Connection, run_id: int, *, column: str, sequence: int | None = None) -> bytes | None:
    """Give `input` or `output` of a run, or `output` or `stderr` of one of its stages, whole; None where there is none."""
    if not 0 < run_id <= LARGEST_ID or not (sequence is None or 0 < sequence <= LARGEST_ID):
        return None
    if sequence is None:
        query = select(RUNS.c[column]).where(RUNS.c.id == run_id)
    else:
        query = select(STAGES.c[column]).where(STAGES.c.run_id == run_id, STAGES.c.sequence == sequence)
    found = connection.execute(query).scalar()
    return found.encode() if isinstance(found, str) else found
