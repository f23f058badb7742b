"""What a run's stages do: one module per kind, one function each.

Owns the table of kinds. A stage takes a Context and gives back a Result; it never writes a run or reads a database.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from orqo import flow
from orqo.lookup import LookupFailed
from orqo.stages import command, http, prompt, script, stub, waiting
from orqo.stages.context import Context, ModelServer, timed_out
from orqo.stages.result import CannotRun, Child, Completed, Failed, Result, Resumed, Wait

__all__ = ["KINDS", "Child", "Completed", "Context", "Failed", "ModelServer", "Result", "Resumed", "Wait", "execute", "send"]

Given = TypeVar("Given")
KINDS: dict[str, Callable[[Context], Result]] = {
    "command": command.execute,
    "script": script.execute,
    "http": http.execute,
    "stub": stub.execute,
    "prompt": prompt.execute,
    "delay": waiting.delay,
    "approval": waiting.approval,
    "wait": waiting.wait,
    "workflow": waiting.workflow,
}


def execute(context: Context) -> Result:
    """Execute one stage; whatever the stage or its data do wrong comes back as Failed."""
    if context.left_s <= 0:
        return timed_out(context)
    kind = KINDS.get(context.stage.kind)
    if kind is None:
        return Failed("stage_failed", f"this release knows no stages of the kind {context.stage.kind!r}", retryable=False)
    return _listed(context, _guarded(lambda: kind(context)))


def _listed(context: Context, result: Result) -> Result:
    """Fail a stage that ended with a label which it does not list."""
    fault = flow.unlisted(context.stage, result.outcome) if isinstance(result, Completed) else None
    if fault is None or not isinstance(result, Completed):
        return result
    kept = {each.name: getattr(result, each.name) for each in dataclasses.fields(result) if each.name not in ("outcome", "note")}
    return Failed("outcome_unknown", fault, retryable=False, **kept)


def send(context: Context, url: str) -> Failed | None:
    """Send the request of a stage that waits, with `url` as `${wait.url}`; None once it was taken."""
    return _guarded(lambda: waiting.send(context, url))


def _guarded(call: Callable[[], Given]) -> Given | Failed:
    try:
        return call()
    except LookupFailed as fault:
        return Failed("lookup_failed", fault.detail, retryable=False)
    except CannotRun as fault:
        return Failed("stage_failed", fault.detail, retryable=False)
