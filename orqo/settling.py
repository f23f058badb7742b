"""What a stage came to, recorded together with what follows from it: another attempt, the next stage, the run's end.

Owns the order of deciding, masking, recording and telling. What follows is decided in flow.py, what is written in runs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from orqo import clock, crashpoints, flow, masking, runs, stages
from orqo.config import Config
from orqo.errors import Unavailable
from orqo.held import Held, Worker, why_end
from orqo.models import Reason, RunStatus

log = logging.getLogger(__name__)

RETRY_IN_PLACE_S = 1.0
RECORD_PATIENCE_S, RECORD_AGAIN_S = 120.0, 0.5


def record(
    worker: Worker, held: Held, result: stages.Completed | stages.Failed, roots: dict[str, Any], *, until: float
) -> runs.Claim | None:
    """Record a result, patiently: what a command did must not be forgotten because the database was busy for a while.

    As long as nobody has taken the run over, recording late is as good as recording at once.
    """
    give_up = time.monotonic() + RECORD_PATIENCE_S
    while True:
        try:
            return _record(worker, held, result, roots, until=until)
        except Unavailable as fault:
            if time.monotonic() >= give_up:
                raise
            log.warning("step=record run=%s status=again error=%s", held.claim.run.id, fault.detail)
            time.sleep(RECORD_AGAIN_S)


def _record(
    worker: Worker, held: Held, result: stages.Completed | stages.Failed, roots: dict[str, Any], *, until: float
) -> runs.Claim | None:
    """Record a stage's result and what follows from it; gives the claim to go on with, None where there is none."""
    claim = held.claim
    end = masking.stage_end(worker.secrets, result)
    if claim.stage.kind in flow.KINDS_WITH_FILES:
        end = dataclasses.replace(end, has_files=_has_files(worker.config, claim.run.id))
    if isinstance(result, stages.Failed) and result.reason == "cancelled":
        _record_cancelled(worker, held, end)
        return None
    failure = None
    if isinstance(result, stages.Failed):
        failure = flow.Failure(result.reason, end.error_detail or "", result.retryable, result.retry_after_s)
    step = _within_time(held, _next(claim, end, failure), failure)
    if isinstance(step, flow.Retry):
        return _record_retry(worker, held, end, step)
    known = runs.result.known(roots, claim.stage.name, end) if _is_looked_at(claim, step) else roots
    skipped, step = flow.past_skipped(claim.definition, step, known)
    end = dataclasses.replace(end, note=" ".join(filter(None, (end.note, step.note))) or None)
    if isinstance(step, flow.Enter):
        go_on = not worker.stopping.is_set()
        return runs.record(worker.box, claim, end, step.stage, skipped=skipped, go_on=go_on, elapsed_ms=held.elapsed_ms, now=clock.now())
    return _finish(worker, held, end, step, runs.result.passed_over(known, skipped), skipped=skipped, until=until)


def _next(claim: runs.Claim, end: runs.StageEnd, failure: flow.Failure | None) -> flow.Step:
    """Decide what follows the attempt that ended."""
    entered = [*(row.name for row in claim.history), claim.stage.name]
    return flow.after(
        claim.definition,
        claim.stage,
        failure,
        outcome=end.outcome,
        failures=claim.stage_row.failures + 1,
        reentries=flow.reentries(claim.definition, entered),
    )


def _is_looked_at(claim: runs.Claim, step: flow.Enter | flow.End) -> bool:
    """Tell whether a `when` or the workflow's `output` may see the stage that ended: reading a large output takes its time."""
    return step.stage.when is not None if isinstance(step, flow.Enter) else claim.definition.has_output


def _within_time(held: Held, step: flow.Step, failure: flow.Failure | None) -> flow.Step:
    """End a run whose own time is over, whatever its stages would do next."""
    claim = held.claim
    used_s = (claim.run.running_ms + held.elapsed_ms) / 1000
    over = used_s >= claim.definition.timeout_s
    if not over or (isinstance(step, flow.End) and failure is None):
        return step
    detail = f"The run did not end within its timeout of {claim.definition.timeout_s:g} s; waits are not counted."
    return flow.End(RunStatus.FAILED, flow.RunError(Reason.TIMEOUT, detail, claim.stage.name))


def _record_cancelled(worker: Worker, held: Held, end: runs.StageEnd) -> None:
    """Record a stage that was ended from outside: stopped, or cut off by the worker's own end."""
    claim = held.claim
    why = why_end(worker, held)
    if why == "lease_lost":
        raise runs.LeaseLost
    if why == "shutdown" and flow.repeatable(claim.stage):
        runs.hand_back(worker.box, claim, began=True, elapsed_ms=held.elapsed_ms)
        return
    interrupted = flow.End(RunStatus.FAILED, flow.interrupted(claim.stage.name))
    verdict = interrupted if why == "shutdown" else flow.End(RunStatus.STOPPED)
    _finish(worker, held, end, verdict, {}, until=0.0)


def _record_retry(worker: Worker, held: Held, end: runs.StageEnd, step: flow.Retry) -> runs.Claim | None:
    """Wait a moment in place; a longer wait lets the worker go."""
    log.info("step=retry run=%s stage=%s delay_s=%s", held.claim.run.id, held.claim.stage.name, step.after_s)
    if step.after_s > RETRY_IN_PLACE_S:
        runs.record_failure(worker.box, held.claim, end, wait_s=step.after_s, elapsed_ms=held.elapsed_ms, now=clock.now())
        return None
    again = runs.record_failure(worker.box, held.claim, end, wait_s=None, elapsed_ms=held.elapsed_ms, now=clock.now())
    worker.stopping.wait(step.after_s)
    return again


def _finish(
    worker: Worker,
    held: Held,
    end: runs.StageEnd,
    verdict: flow.End,
    roots: dict[str, Any],
    *,
    skipped: Sequence[flow.Skipped] = (),
    until: float,
) -> runs.Claim | None:
    """Finish the run, claim the next in the same commit, and tell the dispatcher what it can send."""
    claim = held.claim
    verdict, output = _output(worker, claim, end, verdict, roots)
    go_on = time.monotonic() < until and not worker.stopping.is_set()
    told, following = _finished(worker, held, end, verdict, output, skipped=skipped, go_on=go_on)
    crashpoints.reach("finished")
    if told:
        worker.bell.notify()
    if claim.run.awaited:
        worker.bell.ended(claim.run.id)
    log.info("step=finish run=%s status=%s ms=%d", claim.run.id, verdict.status, held.elapsed_ms)
    _forget_empty_dir(worker.config, claim.run.id)
    return following


def _finished(
    worker: Worker,
    held: Held,
    end: runs.StageEnd,
    verdict: flow.End,
    output: runs.Output,
    *,
    skipped: Sequence[flow.Skipped],
    go_on: bool,
) -> tuple[int, runs.Claim | None]:
    """Finish the run and claim the next; where claiming meets a fault, finish the run all the same."""
    claim, now, finish = held.claim, clock.now(), partial(runs.finish, skipped=skipped, elapsed_ms=held.elapsed_ms)
    try:
        return finish(worker.box, claim, end, verdict, output, next_owner=worker.owner if go_on else None, now=now)
    except (runs.LeaseLost, Unavailable):
        raise
    except Exception:
        log.exception("step=finish run=%s status=fault", claim.run.id)
        return finish(worker.box, claim, end, verdict, output, next_owner=None, now=now)


def _has_files(config: Config, run_id: int) -> bool:
    """Tell whether a run's folder holds anything."""
    try:
        with os.scandir(config.data / "runs" / str(run_id)) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False
    except OSError:
        # A stage closed its folder even to the service: whatever it is for, it lies here.
        return True


def _forget_empty_dir(config: Config, run_id: int) -> None:
    """Remove a run's folder where no stage left anything in it."""
    try:
        os.rmdir(config.data / "runs" / str(run_id))
    except OSError:
        # Not empty: it is kept with the run.
        return


def _output(
    worker: Worker, claim: runs.Claim, end: runs.StageEnd, verdict: flow.End, roots: dict[str, Any]
) -> tuple[flow.End, runs.Output]:
    """Give a run's output: what the file's `output` says, else the last executed stage's."""
    last = runs.Output(end.output, end.output_kind, end.truncated)
    if verdict.status != RunStatus.COMPLETED or not claim.definition.has_output:
        return verdict, last
    return runs.result.of(verdict, claim.definition.output, roots, last)
