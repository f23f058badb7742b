"""Answer: what a waiting stage waited for comes in, and the run goes on.

Owns the answer of a wait and the rules of DESIGN §1 for it: the same once more changes nothing, another is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from orqo import callbacks, clock, jsontext, tokens
from orqo.errors import Conflict, Fault, Gone, Invalid, NotFound
from orqo.models import RunStatus, WaitStatus
from orqo.runs.ending import stage_rows, tell
from orqo.runs.state import RUNS, STAGES, WAITS, Box, Output

ANSWERABLE = ("approval", "wait")
ERROR_MAX, NAME_MAX = 2000, 100
UNKNOWN = "There is no wait with this token: it was mistyped, or its run is gone."


@dataclass(frozen=True)
class Answer:
    """A report: `completed`, `failed` or `stopped` ends the wait, `output` is progress."""

    status: str
    output: Any = None
    outcome: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Answered:
    """What became of an answer; `told` is how many deliveries can be sent now."""

    run_id: int
    duplicate: bool = False
    told: int = 0


def find_wait(connection: Connection, token: str) -> Row[Any]:
    """Give the wait that a token answers, with its run's `run_status` and `workflow_id`; NotFound where there is none."""
    found = None
    if tokens.WEBHOOK_TOKEN.fullmatch(token):
        found = connection.execute(_with_run().where(WAITS.c.token_hash == tokens.digest(token))).one_or_none()
    if found is None:
        raise NotFound(UNKNOWN)
    return found


def wait_of(connection: Connection, run_id: int, stage: str | None = None) -> Row[Any]:
    """Give the wait of a run that an answer is for: the open one, else the newest.

    NotFound without such a run, Gone where it has ended without ever having waited so, Conflict where it does not wait.
    """
    run = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none() if 0 < run_id < 2**63 else None
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    mine = _with_run().where(WAITS.c.run_id == run_id, WAITS.c.kind.in_(ANSWERABLE))
    if stage is not None:
        mine = mine.where(WAITS.c.stage == stage)
    found = connection.execute(mine.order_by(WAITS.c.used, WAITS.c.id.desc()).limit(1)).one_or_none()
    if found is not None:
        return found
    if RunStatus(run.status).terminal:
        raise Gone(f"Run {run_id} has ended: it is {run.status}.")
    raise Conflict(f"Run {run_id} waits for no report" + (f" at stage {stage}." if stage else "."))


def open_waits(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Give what somebody may answer within a run now."""
    mine = (WAITS.c.run_id == run_id, WAITS.c.status == WaitStatus.OPEN, WAITS.c.kind.in_(ANSWERABLE))
    return list(connection.execute(select(WAITS).where(*mine).order_by(WAITS.c.id)))


def _with_run() -> Any:
    columns = (WAITS, RUNS.c.status.label("run_status"), RUNS.c.workflow_id)
    return select(*columns).join(RUNS, RUNS.c.id == WAITS.c.run_id)


def answer(box: Box, connection: Connection, wait: Row[Any], given: Answer, *, by: str, now: datetime) -> Answered:
    """Take an answer for a wait within the caller's transaction, which must wake the workers once it is committed.

    `by` is who answers, for the record. Raises Conflict where another answer was first, Gone where the run has ended,
    Invalid where the outcome is none of the stage's.
    """
    if given.status == "output" and wait.status == WaitStatus.OPEN:
        return _progress(box, connection, wait, given, now=now)
    text = jsontext.dump(asdict(given))
    if wait.status == WaitStatus.ANSWERED and wait.answer == text:
        return Answered(wait.run_id, duplicate=True)
    _check_open(wait)
    _check_outcome(wait, given)
    answered = {"status": WaitStatus.ANSWERED, "answer": text, "answered_at": clock.to_text(now), "answered_by": by[:NAME_MAX]}
    still_open = (WAITS.c.id == wait.id, WAITS.c.status == WaitStatus.OPEN)
    if not connection.execute(update(WAITS).where(*still_open).values(answered)).rowcount:
        return answer(box, connection, _again(connection, wait), given, by=by, now=now)
    # A worker that still holds the run finds the answer when it lets go.
    waiting = (RUNS.c.id == wait.run_id, RUNS.c.status == RunStatus.WAITING)
    connection.execute(update(RUNS).where(*waiting).values(status=RunStatus.PENDING, wake_at=None))
    return Answered(wait.run_id)


def _again(connection: Connection, wait: Row[Any]) -> Row[Any]:
    return connection.execute(_with_run().where(WAITS.c.id == wait.id)).one()


def _check_open(wait: Row[Any]) -> None:
    if wait.status == WaitStatus.OPEN and not RunStatus(wait.run_status).terminal:
        return
    if RunStatus(wait.run_status).terminal:
        raise Gone(f"Run {wait.run_id} has ended: it is {wait.run_status}.")
    why = {WaitStatus.ANSWERED: "was answered otherwise already", WaitStatus.TIMED_OUT: "was not answered in time"}
    raise Conflict(f"Stage {wait.stage} of run {wait.run_id} {why.get(WaitStatus(wait.status), 'no longer waits')}.")


def _check_outcome(wait: Row[Any], given: Answer) -> None:
    """Refuse a label that the stage does not list, while whoever answers can still say another."""
    listed = jsontext.parse(wait.outcomes.encode())
    if given.status != "completed" or not listed or given.outcome in listed:
        return
    if given.outcome is None and wait.kind != "approval":
        return
    detail = f"must be one of {', '.join(listed)}"
    raise Invalid(f"The outcome {detail}.", errors=[Fault("/outcome", detail)])


def _progress(box: Box, connection: Connection, wait: Row[Any], given: Answer, *, now: datetime) -> Answered:
    """Keep what a waiting stage has given so far, and tell it."""
    is_text = isinstance(given.output, str)
    data = (given.output if is_text else jsontext.dump(given.output)).encode()
    output = Output(data, "text" if is_text else "json")
    shown = {"output": output.data, "output_kind": output.kind}
    connection.execute(update(STAGES).where(STAGES.c.id == wait.stage_id, STAGES.c.finished_at.is_(None)).values(shown))
    run = connection.execute(select(RUNS).where(RUNS.c.id == wait.run_id)).one()
    if RunStatus(run.status).terminal:
        raise Gone(f"Run {wait.run_id} has ended: it is {run.status}.")
    definition = box.definitions.of(connection, run.version_id)
    stages = stage_rows(connection, run.id)
    to = callbacks.listeners(connection, run.workflow_id, run.trigger_id)
    told = tell(box, connection, "output", run, definition, {}, output, stages, to, stage=wait.stage, now=now)
    return Answered(wait.run_id, told=told)
