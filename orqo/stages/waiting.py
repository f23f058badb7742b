"""The kinds `delay`, `approval`, `wait` and `workflow`: stages that wait without holding a worker.

Each is executed twice: first it says what it waits for, later what ended the wait makes its result. Owns what an answer
means. Never writes a wait, and never knows a token but as `${wait.url}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orqo import lookup
from orqo.config import duration_s
from orqo.stages import http
from orqo.stages.context import Context
from orqo.stages.result import Child, Completed, Failed, Result, Resumed, Wait, from_value

APPROVAL_TIMEOUT, WAIT_TIMEOUT, CHILD_TIMEOUT = "24h", "1h", "5m"


def delay(context: Context) -> Result:
    """Let the time pass."""
    if context.resumed is not None:
        return Completed(b"null", "json")
    return Wait(duration_s(context.stage.spec))


def approval(context: Context) -> Result:
    """Ask somebody; the answer is the outcome."""
    spec = context.stage.spec
    if context.resumed is not None:
        return _answered(context, context.resumed, spec)
    message = lookup.render_text(spec["message"], context.roots)
    return Wait(duration_s(spec.get("timeout", APPROVAL_TIMEOUT)), is_answerable=True, message=message)


def wait(context: Context) -> Result:
    """Wait for a report at /api/v1/callback; the request that asks for it goes out by `send`, once the wait is durable."""
    spec = context.stage.spec or {}
    if context.resumed is not None:
        return _answered(context, context.resumed, spec)
    return Wait(duration_s(spec.get("timeout", WAIT_TIMEOUT)), is_answerable=True, has_request="request" in spec)


def send(context: Context, url: str) -> Failed | None:
    """Send the request of a `wait` stage, `${wait.url}` being where it is answered; None once it was taken."""
    stage = dataclasses.replace(context.stage, kind="http", spec=context.stage.spec["request"], idempotent=True)
    roots = {**context.roots, "wait": {"url": url}}
    result = http.execute(dataclasses.replace(context, stage=stage, roots=roots))
    return result if isinstance(result, Failed) else None


def workflow(context: Context) -> Result:
    """Start a run of another workflow, and wait for its end unless told not to."""
    spec = context.stage.spec
    if context.resumed is not None:
        return _answered(context, context.resumed, spec)
    waits = spec.get("wait", True)
    value = lookup.render(spec.get("input"), context.roots)
    return Child(spec["name"], value, duration_s(spec.get("timeout", CHILD_TIMEOUT)) if waits else None)


def _answered(context: Context, resumed: Resumed, spec: Mapping[str, Any]) -> Result:
    """Make a result of what ended the wait."""
    if resumed.status == "timed_out":
        return _timed_out(context, spec)
    if resumed.status != "completed":
        what = "the run that it started" if context.stage.kind == "workflow" else "the answer"
        why = f": {resumed.error}" if resumed.error else ""
        return Failed("stage_failed", f"{what} {'was stopped' if resumed.status == 'stopped' else 'says failed'}{why}")
    output, kind, truncated = from_value(resumed.output, max_bytes=context.stage.max_output_bytes)
    return Completed(output, kind, truncated or resumed.truncated, outcome=resumed.outcome)


def _timed_out(context: Context, spec: Mapping[str, Any]) -> Result:
    if spec.get("on_timeout") is not None:
        return Completed(b"null", "json", outcome=spec["on_timeout"])
    defaults = {"approval": APPROVAL_TIMEOUT, "wait": WAIT_TIMEOUT, "workflow": CHILD_TIMEOUT}
    limit = spec.get("timeout", defaults[context.stage.kind])
    what = "the run that it started did not end" if context.stage.kind == "workflow" else "nobody answered"
    return Failed("timeout", f"{what} within {limit}")
