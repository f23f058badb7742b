"""work(): the RQ job. Claims runs and drives their stages; what they come to is recorded by settling.py.

Owns what a stage is given. Writes no table itself.
"""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path
from typing import Any

from orqo import clock, crashpoints, facts, flow, metrics, pauses, runs, settling, stages
from orqo.config import Config
from orqo.definition import StageDefinition
from orqo.errors import Unavailable
from orqo.held import Held, Worker, why_end
from orqo.models import Reason, RunStatus
from orqo.renewing import start_renewing

__all__ = ["Held", "Worker", "make_run_dir", "prepare", "start_renewing", "work"]

log = logging.getLogger(__name__)

RETURN_AFTER_S = 15.0
FILES_GONE = "The files that earlier stages left are gone: the run's folder in ORQO_DATA was removed, or the folder is another one."

_worker: Worker | None = None


def prepare(worker: Worker) -> None:
    """Give this process its parts, once, before RQ's loop begins: RQ calls work() by name and hands it nothing."""
    global _worker
    _worker = worker


def work() -> None:
    """Claim and execute runs, and wait for more, until some seconds have passed and RQ wants to look after itself."""
    worker = _worker
    if worker is None:
        raise RuntimeError("executor.prepare() was not called in this process")
    worker.bell.answered()
    until = time.monotonic() + RETURN_AFTER_S
    _drain(worker, until=until, told=False)
    while worker.wake_ups is not None and worker.wake_ups.wait(until):
        _drain(worker, until=until, told=True)
    if not worker.stopping.is_set() and time.monotonic() >= until:
        worker.bell.wake_workers()


def _drain(worker: Worker, *, until: float, told: bool) -> None:
    """Claim and execute runs until none is pending, or until then."""
    claim = _first(worker, told=told)
    while claim is not None:
        # A run that waits, or that somebody else has now, leaves its worker free for the others.
        claim = drive(worker, claim, until=until) or (_first(worker) if time.monotonic() < until else None)


def _first(worker: Worker, *, told: bool = False) -> runs.Claim | None:
    """Claim a run, and wake one more worker where others wait."""
    if worker.stopping.is_set():
        return None
    claim = runs.claim(worker.box, owner=worker.owner, now=clock.now(), told=told)
    if claim is not None:
        crashpoints.reach("claimed")
        if claim.others:
            worker.bell.wake_workers()
        if claim.others_here:
            worker.bell.wake_here()
    return claim


def drive(worker: Worker, claim: runs.Claim, *, until: float) -> runs.Claim | None:
    """Execute a claimed run as far as it goes; gives the next run's claim where there is one and time for it.

    `until` is a value of `time.monotonic()`, after which no other run is claimed.
    """
    held = Held(claim, time.monotonic())
    worker.held = held
    try:
        return _stages(worker, held, until=until)
    except runs.LeaseLost:
        log.warning("step=lease run=%s status=lost", claim.run.id)
        metrics.leases_lost("worker")
    except Unavailable as fault:
        # The lease runs out and the run is claimed again.
        log.error("step=record run=%s status=unavailable error=%s", claim.run.id, fault.detail)
    except Exception:
        log.exception("step=execute run=%s status=fault", claim.run.id)
        _fail(worker, held, Reason.FAULT, "The worker met a fault of its own; the log beside this time says which.")
    finally:
        worker.held = None
    return None


def _fail(worker: Worker, held: Held, reason: Reason, detail: str) -> None:
    """End a run that no stage can go on with, so that it does not go round for ever."""
    error = flow.RunError(reason, detail, held.claim.stage.name)
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
            runs.hand_back(worker.box, claim, began=False, elapsed_ms=held.elapsed_ms)
            log.info("step=hand-back run=%s stage=%s", claim.run.id, claim.stage.name)
            return None
        if _are_files_gone(worker.config, held):
            _fail(worker, held, Reason.FILES_LOST, FILES_GONE)
            return None
        began = time.monotonic()
        result, roots = _execute(worker, held)
        if result is None:
            return None
        status = "completed" if isinstance(result, stages.Completed) else result.reason
        metrics.stage(claim.definition.name, claim.stage.kind, status, seconds=time.monotonic() - began)
        log.info(
            "step=stage run=%s stage=%s status=%s ms=%d",
            claim.run.id,
            claim.stage.name,
            status,
            (time.monotonic() - began) * 1000,
        )
        following = settling.record(worker, held, result, roots, until=until)
        if following is None or following.run.id != claim.run.id:
            return following
        held.claim = following


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
        cancelled=lambda: why_end(worker, held),
        stage_user=worker.config.stage_user,
        client=worker.client,
        resumed=stages.Resumed(**vars(claim.ended)) if claim.ended else None,
        models=stages.ModelServer(worker.config.llm_base_url, worker.config.llm_api_key),
    )
    crashpoints.reach("stage-started")
    if not held.is_leased:
        # This process stood still: whoever has the run now may have begun the stage.
        runs.renew(worker.box, claim, elapsed_ms=held.elapsed_ms)
    result = stages.execute(context)
    crashpoints.reach("effect-done")
    if isinstance(result, stages.Wait | stages.Child):
        return pauses.settle(worker.box, worker.bell, context, claim, result, elapsed_ms=lambda: held.elapsed_ms), roots
    return result, roots


def _are_files_gone(config: Config, held: Held) -> bool:
    """Tell whether the folder that held files before this claim is no more when a stage wants it: an empty one would pass for it."""
    run, stage = held.claim.run, held.claim.stage
    if not run.machine or held.had_files or stage.kind not in flow.KINDS_WITH_FILES:
        return False
    held.had_files = (config.data / "runs" / str(run.id)).exists()
    return not held.had_files


def make_run_dir(config: Config, run_id: int, stage: StageDefinition) -> Path:
    """Give the run's own folder, which its stages share; made where this stage can write to it."""
    path = config.data / "runs" / str(run_id)
    if stage.kind in flow.KINDS_WITH_FILES:
        for folder in (path.parent, path):
            folder.mkdir(exist_ok=True)
            if not folder.stat().st_mode & stat.S_IXOTH:
                # The service's umask keeps others out; the stage user passes through.
                folder.chmod(0o711)
    return path
