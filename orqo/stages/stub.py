"""The kind `stub`: does nothing and ends as it is told, for development and for stand-ins.

Owns nothing. Never starts a process or a request.
"""

from __future__ import annotations

import time

from orqo import lookup
from orqo.config import duration_s
from orqo.stages.context import Context, cancelled, timed_out
from orqo.stages.result import Completed, Failed, Result, from_value

LOOK_S = 0.1


def execute(context: Context) -> Result:
    """Wait `delay`, then fail with the text of `fail`, or complete with `output` (default null) and `outcome`."""
    spec = context.stage.spec or {}
    if ended := _wait(context, duration_s(spec.get("delay") or "0s")):
        return ended
    if spec.get("fail") is not None:
        return Failed("stage_failed", lookup.render_text(str(spec["fail"]), context.roots))
    value = lookup.render(spec.get("output"), context.roots)
    output, kind, truncated = from_value(value, max_bytes=context.stage.max_output_bytes)
    return Completed(output, kind, truncated, outcome=spec.get("outcome"))


def _wait(context: Context, delay_s: float) -> Failed | None:
    until = time.monotonic() + delay_s
    while (left_s := until - time.monotonic()) > 0:
        if why := context.cancelled():
            return cancelled(why)
        if context.left_s <= 0:
            return timed_out(context)
        time.sleep(min(left_s, context.left_s, LOOK_S))
    return None
