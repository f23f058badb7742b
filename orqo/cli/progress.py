"""`run tail`: a run's progress as it happens, seen in the database alone.

Owns what counts as news of a run and how it is told. Never changes anything: to stop looking stops nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, select

from orqo import clock
from orqo.cli import output
from orqo.cli.opening import Opened
from orqo.errors import NotFound
from orqo.models import Run, RunStatus, Stage, StageStatus, Workflow

POLL_S = 0.2
PATIENCE_S = 5.0
RUN_COLUMNS = ("id", "status", "created_at", "started_at", "finished_at", "wake_at", "error_reason", "error_detail", "error_stage")
STAGE_COLUMNS = (
    *("sequence", "name", "status", "attempts", "failures", "outcome"),
    *("error_reason", "error_detail", "started_at", "finished_at", "note", "usage"),
)


@dataclass
class Patience:
    """Says once, on stderr, that a run has waited long for a worker: perhaps there is none."""

    began: float = field(default_factory=time.monotonic)
    over: bool = False

    def seen(self, box: Opened, run_id: int, status: str) -> None:
        """Note where a run stands now."""
        if status != RunStatus.PENDING:
            self.over = True
        if not self.over and time.monotonic() - self.began > PATIENCE_S:
            self.over = True
            output.note(f"run {run_id} still waits for a worker; whether there is one says: {box.hint('doctor')}")


@dataclass(frozen=True)
class News:
    """Something that happened: when, to which stage (None: to the run), what, and more about it."""

    at: str
    event: str
    text: str
    stage: str | None = None


def follow(box: Opened, run_id: int, *, as_json: bool) -> str:
    """Print what has happened in a run and what happens, until it ends; gives its last status. NotFound where there is none."""
    teller, patience = Teller(), Patience()
    while True:
        with box.database.read() as connection:
            run, stages = _read(connection, run_id)
        for news in teller.news(run, stages):
            _print(run_id, news, as_json=as_json)
        if RunStatus(run.status).terminal:
            return str(run.status)
        patience.seen(box, run_id, run.status)
        time.sleep(POLL_S)


def _read(connection: Connection, run_id: int) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """Read what is told of a run in one snapshot, without the outputs, which may be large."""
    run_columns = (Run.__table__.c[name] for name in RUN_COLUMNS)
    query = select(*run_columns, Workflow.name.label("workflow")).join(Workflow, Workflow.id == Run.workflow_id)
    run: Any = connection.execute(query.where(Run.id == run_id)).one_or_none()
    if run is None:
        raise NotFound(f"There is no run {run_id}. List them with: run list")
    stage_columns = (Stage.__table__.c[name] for name in STAGE_COLUMNS)
    stages: Any = connection.execute(select(*stage_columns).where(Stage.run_id == run_id).order_by(Stage.sequence)).all()
    return run, stages


def _print(run_id: int, news: News, *, as_json: bool) -> None:
    if as_json:
        output.as_json_line({"at": news.at, "workflow_run_id": run_id, "stage": news.stage, "event": news.event, "detail": news.text})
        return
    who = f"run {run_id}" if news.stage is None else f"  {news.stage}"
    output.say(f"{news.at[11:23]}  {who} {news.text}")


@dataclass
class Teller:
    """Finds what is new between two readings of a run."""

    told: set[tuple[Any, ...]] = field(default_factory=set)
    failures: dict[int, int] = field(default_factory=dict)

    def news(self, run: Row[Any], stages: Sequence[Row[Any]]) -> Iterator[News]:
        """Give what has not been told yet, in the order in which it happened."""
        if self._first("accepted"):
            yield News(run.created_at, "accepted", f"of {run.workflow} is accepted")
        if run.started_at and self._first("started"):
            yield News(run.started_at, "started", "begins")
        for stage in stages:
            yield from self._of_stage(run, stage)
        if run.finished_at and self._first("ended"):
            yield News(run.finished_at, str(run.status), _ending(run))

    def _first(self, *what: Any) -> bool:
        new = what not in self.told
        self.told.add(what)
        return new

    def _of_stage(self, run: Row[Any], stage: Row[Any]) -> Iterator[News]:
        if stage.attempts and self._first("stage", stage.sequence):
            yield News(stage.started_at, "started", "begins", stage.name)
        if stage.finished_at:
            if self._first("stage ended", stage.sequence):
                yield News(stage.finished_at, str(stage.status), _stage_ending(stage), stage.name)
        elif stage.failures > self.failures.get(stage.sequence, 0):
            self.failures[stage.sequence] = stage.failures
            when = f" at {run.wake_at[11:23]}" if run.wake_at and run.status == RunStatus.WAITING else ""
            text = f"failed, attempt {stage.failures}, tried again{when}: {stage.error_reason}: {stage.error_detail}"
            yield News(clock.to_text(clock.now()), "retry", text, stage.name)


def _stage_ending(stage: Row[Any]) -> str:
    took = output.took(stage.started_at, stage.finished_at)
    attempts = f", {stage.attempts} attempts" if stage.attempts > 1 else ""
    outcome = f", outcome {stage.outcome}" if stage.outcome else ""
    tokens = json.loads(stage.usage or "{}").get("total_tokens")
    used = f", {tokens} tokens" if tokens else ""
    why = f": {stage.error_reason}: {stage.error_detail}" if stage.error_reason else f": {stage.note}" if stage.note else ""
    lasted = "" if stage.status == StageStatus.SKIPPED else f" in {took}"
    return f"{stage.status}{lasted}{attempts}{outcome}{used}{why}"


def _ending(run: Row[Any]) -> str:
    told = {key: getattr(run, f"error_{key}") for key in ("reason", "detail", "stage")}
    why = f": {output.error(told)}" if run.error_reason else ""
    took = output.took(run.started_at, run.finished_at)
    return f"{run.status}{f' in {took}' if took else ''}{why}"
