"""work(): the RQ job. Claims runs and drives their stages through runs.py.

Owns the worker process's side of a run: the lease's renewal, cancellation. Writes no table itself.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orqo import clock, crashpoints, facts, flow, masking, outbound, pauses, runs, stages
from orqo.config import Config
from orqo.definition import StageDefinition
from orqo.errors import Unavailable
from orqo.models import Reason, RunStatus
from orqo.queue import Bell
from orqo.secretstore import SecretStore

log = logging.getLogger(__name__)

RETURN_AFTER_S = 5.0
RENEW_EVERY_S = 2.0
RETRY_IN_PLACE_S = 1.0
RECORD_PATIENCE_S, RECORD_AGAIN_S = 120.0, 0.5
KINDS_WITH_FILES = ("command", "script")


@dataclass
class Worker:
    """What one worker process works with. `held` is the claim under way, which the renewing thread looks at."""

    box: runs.Box
    config: Config
    bell: Bell
    client: outbound.Client
    secrets: SecretStore
    owner: str
    stopping: threading.Event
    held: Held | None = None
    on_renew: Any = None


@dataclass
class Held:
    """A claim under way: when it began on the monotonic clock, and why its stage must end, once it must."""

    claim: runs.Claim
    since: float
    must_end: str | None = None
    stop_seen_at: float | None = None

    @property
    def elapsed_ms(self) -> int:
        """Give the milliseconds since the claim."""
        return round((time.monotonic() - self.since) * 1000)


_worker: Worker | None = None


def prepare(worker: Worker) -> None:
    """Give this process its parts, once, before RQ's loop begins: RQ calls work() by name and hands it nothing."""
    global _worker
    _worker = worker


def work() -> None:
    """Claim and execute runs until none is pending, or until some seconds have passed and RQ wants to look after itself."""
    worker = _worker
    if worker is None:
        raise RuntimeError("executor.prepare() was not called in this process")
    worker.bell.answered()
    until = time.monotonic() + RETURN_AFTER_S
    claim = _first(worker)
    while claim is not None:
        # A run that waits, or that somebody else has now, leaves its worker free for the others.
        claim = _drive(worker, claim, until=until) or (_first(worker) if time.monotonic() < until else None)
    if not worker.stopping.is_set() and time.monotonic() >= until:
        worker.bell.wake_workers()


def _first(worker: Worker) -> runs.Claim | None:
    """Claim a run, and wake one more worker where others wait."""
    if worker.stopping.is_set():
        return None
    claim = runs.claim(worker.box, owner=worker.owner, now=clock.now())
    if claim is not None:
        crashpoints.reach("claimed")
        with worker.box.database.read() as connection:
            if runs.any_pending(connection):
                worker.bell.wake_workers()
    return claim


def _drive(worker: Worker, claim: runs.Claim, *, until: float) -> runs.Claim | None:
    """Execute a claimed run as far as it goes; gives the next run's claim where there is one and time for it."""
    held = Held(claim, time.monotonic())
    worker.held = held
    try:
        return _stages(worker, held, until=until)
    except runs.LeaseLost:
        log.warning("step=lease run=%s status=lost", claim.run.id)
    except Unavailable as fault:
        # The lease runs out and the run is claimed again.
        log.error("step=record run=%s status=unavailable error=%s", claim.run.id, fault.detail)
    except Exception:
        log.exception("step=execute run=%s status=fault", claim.run.id)
        _fail(worker, held)
    finally:
        worker.held = None
    return None


def _fail(worker: Worker, held: Held) -> None:
    """End a run that our own bug keeps from going on, so that it does not go round for ever."""
    error = flow.RunError(Reason.FAULT, "The worker met a fault of its own; the log beside this time says which.", held.claim.stage.name)
    end = runs.StageEnd(error_reason=error.reason, error_detail=error.detail)
    verdict, output = flow.End(RunStatus.FAILED, error), runs.Output(None, None)
    try:
        runs.finish(worker.box, held.claim, end, verdict, output, elapsed_ms=held.elapsed_ms, next_owner=None, now=clock.now())
    except (runs.LeaseLost, Unavailable):
        log.error("step=finish run=%s status=unrecorded", held.claim.run.id)


def _stages(worker: Worker, held: Held, *, until: float) -> runs.Claim | None:
    """Execute stage after stage until the run ends, waits or is handed back."""
    while True:
        claim = held.claim
        if worker.stopping.is_set():
            runs.hand_back(worker.box, claim, elapsed_ms=held.elapsed_ms)
            log.info("step=hand-back run=%s stage=%s", claim.run.id, claim.stage.name)
            return None
        began = time.monotonic()
        result, roots = _execute(worker, held)
        if result is None:
            return None
        log.info(
            "step=stage run=%s stage=%s status=%s ms=%d",
            claim.run.id,
            claim.stage.name,
            "completed" if isinstance(result, stages.Completed) else result.reason,
            (time.monotonic() - began) * 1000,
        )
        following = _recorded(worker, held, result, roots, until=until)
        if following is None or following.run.id != claim.run.id:
            return following
        held.claim = following


def _recorded(
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


# ── one stage ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _execute(worker: Worker, held: Held) -> tuple[stages.Completed | stages.Failed | None, dict[str, Any]]:
    """Execute the claim's stage; gives its result, None where the run waits now, and the roots that it saw."""
    claim = held.claim
    changes = {"status": RunStatus.RUNNING, "error_reason": None}
    roots = facts.roots(claim.run, claim.history, workflow=claim.definition.name, base_url=worker.box.base_url, changes=changes)
    run_dir = make_run_dir(worker.config, claim.run.id, claim.stage)
    roots["run"]["dir"] = str(run_dir)
    roots["stage"] = {"name": claim.stage.name, "pass": claim.stage_row._mapping["pass"], "attempt": claim.stage_row.attempts}
    left_s = claim.definition.timeout_s - (claim.run.running_ms + held.elapsed_ms) / 1000
    timeout_s = left_s if claim.stage.timeout_s is None else min(left_s, claim.stage.timeout_s)
    context = stages.Context(
        stage=claim.stage,
        roots={**roots, "secrets": worker.secrets},
        run_id=claim.run.id,
        workflow=claim.definition.name,
        run_dir=run_dir,
        base_dir=Path(claim.definition.folder) if claim.definition.folder else None,
        deadline=time.monotonic() + timeout_s,
        cancelled=lambda: _why_end(worker, held),
        stage_user=worker.config.stage_user,
        client=worker.client,
        resumed=stages.Resumed(**vars(claim.ended)) if claim.ended else None,
        models=stages.ModelServer(worker.config.llm_base_url, worker.config.llm_api_key),
    )
    crashpoints.reach("stage-started")
    result = stages.execute(context)
    crashpoints.reach("effect-done")
    if isinstance(result, stages.Wait | stages.Child):
        return pauses.settle(worker.box, worker.bell, context, claim, result, elapsed_ms=lambda: held.elapsed_ms), roots
    return result, roots


def _why_end(worker: Worker, held: Held) -> str | None:
    """Give why the stage must end now: it was stopped, its lease is lost, or the worker is told to end."""
    if held.must_end is None and worker.stopping.is_set():
        held.stop_seen_at = held.stop_seen_at or time.monotonic()
        # Commands are given their time even where repeating does no harm: most are done within it.
        stage = held.claim.stage
        at_once = flow.repeatable(stage) and stage.kind not in KINDS_WITH_FILES
        patience_s = 0.0 if at_once else worker.config.stop_timeout_s
        if time.monotonic() - held.stop_seen_at >= patience_s:
            return "shutdown"
    return held.must_end


def make_run_dir(config: Config, run_id: int, stage: StageDefinition) -> Path:
    """Give the run's own folder, which its stages share; made where this stage can write to it."""
    path = config.data / "runs" / str(run_id)
    if stage.kind in KINDS_WITH_FILES:
        for folder in (path.parent, path):
            folder.mkdir(exist_ok=True)
            if not folder.stat().st_mode & stat.S_IXOTH:
                # The service's umask keeps others out; the stage user passes through.
                folder.chmod(0o711)
    return path


def _record(worker: Worker, held: Held, result: stages.Completed | stages.Failed, roots: dict[str, Any], *, until: float) -> runs.Claim | None:
    """Record a stage's result and what follows from it; gives the claim to go on with, None where there is none."""
    claim = held.claim
    end = masking.stage_end(worker.secrets, result)
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
        return runs.record(
            worker.box, claim, end, step.stage, skipped=skipped, go_on=go_on, elapsed_ms=held.elapsed_ms, now=clock.now()
        )
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
    why = _why_end(worker, held)
    if why == "lease_lost":
        raise runs.LeaseLost
    if why == "shutdown" and flow.repeatable(claim.stage):
        runs.hand_back(worker.box, claim, elapsed_ms=held.elapsed_ms)
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


# ── the lease ───────────────────────────────────────────────────────────────────────────────────────────────────────


def start_renewing(worker: Worker) -> threading.Thread:
    """Start the thread that renews the lease of a long stage and sees a stop request; ends with the process."""
    thread = threading.Thread(target=_renew_for_ever, args=(worker,), name="lease", daemon=True)
    thread.start()
    return thread


def _renew_for_ever(worker: Worker) -> None:
    while True:
        time.sleep(RENEW_EVERY_S)
        held = worker.held
        if held is not None and held.elapsed_ms > RENEW_EVERY_S * 1000:
            _renew(worker, held)
            if worker.on_renew:
                worker.on_renew()


def _renew(worker: Worker, held: Held) -> None:
    try:
        if runs.renew(worker.box, held.claim, elapsed_ms=held.elapsed_ms):
            held.must_end = held.must_end or "stopped"
    except runs.LeaseLost:
        # The stage may have ended this moment, and the claim with it: only the claim still held is lost.
        if worker.held is held:
            held.must_end = "lease_lost"
    except Unavailable as fault:
        log.warning("step=renew run=%s status=unavailable error=%s", held.claim.run.id, fault.detail)
    except Exception:
        log.exception("step=renew run=%s status=fault", held.claim.run.id)
