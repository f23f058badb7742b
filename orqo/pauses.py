"""What a worker does with a stage that waits: its wait made durable, its request sent, its child started.

Owns the order of these steps: whatever goes out goes out after the commit that lets it be answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from orqo import clock, crashpoints, jsontext, runs, stages
from orqo.queue import Bell

log = logging.getLogger(__name__)


def settle(
    box: runs.Box,
    bell: Bell,
    context: stages.Context,
    claim: runs.Claim,
    result: stages.Wait | stages.Child,
    *,
    elapsed_ms: Callable[[], int],
) -> stages.Completed | stages.Failed | None:
    """Let a run wait as its stage says; None where it waits now. A stage that does not wait after all has a result.

    Raises LeaseLost, and nothing went out then.
    """
    if isinstance(result, stages.Child):
        return _start_child(box, bell, context, claim, result, elapsed_ms())
    new = runs.NewWait(result.timeout_s, result.is_answerable, result.message)
    token, told = runs.wait(box, claim, new, pauses=not result.has_request, elapsed_ms=elapsed_ms(), now=clock.now())
    log.info("step=wait run=%s stage=%s kind=%s", claim.run.id, claim.stage.name, claim.stage.kind)
    crashpoints.reach("wait-open")
    if told:
        bell.notify()
    if not result.has_request:
        return None
    failed = stages.send(context, f"{box.base_url}/api/v1/callback?token={token}")
    crashpoints.reach("wait-asked")
    if failed is not None:
        return failed
    if runs.pause(box, claim, elapsed_ms=elapsed_ms(), now=clock.now()):
        bell.wake_workers()
    return None


def _start_child(
    box: runs.Box, bell: Bell, context: stages.Context, claim: runs.Claim, wanted: stages.Child, elapsed_ms: int
) -> stages.Completed | stages.Failed | None:
    child = runs.start_child(box, claim, wanted.workflow, wanted.input, timeout_s=wanted.timeout_s, elapsed_ms=elapsed_ms, now=clock.now())
    crashpoints.reach("child-started")
    if isinstance(child, runs.Refused):
        return stages.Failed("stage_failed", child.detail, retryable=False)
    log.info("step=chain run=%s stage=%s child=%s", claim.run.id, claim.stage.name, child)
    bell.wake_workers()
    if wanted.timeout_s is not None:
        return None
    return stages.Completed(jsontext.dump({"workflow_run_id": child}).encode(), "json")
