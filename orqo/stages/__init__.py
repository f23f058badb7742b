"""What a run's stages do: one module per kind, one function each.

Owns the table of kinds. A stage takes a Context and gives back a Result; it never writes a run or reads a database.
"""

from __future__ import annotations

from collections.abc import Callable

from orqo.lookup import LookupFailed
from orqo.stages import command, http, script, stub
from orqo.stages.context import Context, timed_out
from orqo.stages.result import CannotRun, Completed, Failed, Result

__all__ = ["KINDS", "Completed", "Context", "Failed", "Result", "execute"]

KINDS: dict[str, Callable[[Context], Result]] = {
    "command": command.execute,
    "script": script.execute,
    "http": http.execute,
    "stub": stub.execute,
}


def execute(context: Context) -> Result:
    """Execute one stage; whatever the stage or its data do wrong comes back as Failed."""
    if context.left_s <= 0:
        return timed_out(context)
    kind = KINDS.get(context.stage.kind)
    if kind is None:
        return Failed("stage_failed", f"this release knows no stages of the kind {context.stage.kind!r}", retryable=False)
    try:
        return kind(context)
    except LookupFailed as fault:
        return Failed("lookup_failed", fault.detail, retryable=False)
    except CannotRun as fault:
        return Failed("stage_failed", fault.detail, retryable=False)
