"""What waiting stages, schedules and concurrency must keep beyond their shape.

Owns these refusals. Takes any JSON value, for files with faults of shape are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orqo.errors import Fault
from orqo.lookup import Json
from orqo.yamlfile import Document, Place, shown

WAITING_KINDS = ("delay", "approval", "wait", "workflow")
APPROVAL_OUTCOMES = ("approved", "rejected")
CONCERNS_OF_WEBHOOKS = ("filter",)
CONCERNS_OF_SCHEDULES = ("timezone", "input")
# A child is made once for each pass of its stage, a delay cannot fail, and whom an approval asks has answered.
NEVER_RETRIED = ("delay", "approval", "workflow")


def of_stage(document: Document, place: Place, stage: dict[str, Json], kind: str) -> Iterator[Fault]:
    """Give the faults of one stage of a waiting kind."""
    for key in ("timeout", *(("retry",) if kind in NEVER_RETRIED else ())):
        if key in stage:
            where = "" if kind == "delay" or key == "retry" else f"; write it within {kind}:"
            yield document.fault((*place, key), f"{shown((*place, key))} does not apply to {kind}{where}")
    spec = stage[kind]
    label = spec.get("on_timeout") if isinstance(spec, dict) else None
    listed = stage.get("outcomes", list(APPROVAL_OUTCOMES) if kind == "approval" else None)
    if isinstance(label, str) and isinstance(listed, list) and label not in listed:
        at = (*place, kind, "on_timeout")
        yield document.fault(at, f"{shown(at)} {label!r} is none of the stage's outcomes: {', '.join(map(str, listed))}")
    if kind == "workflow" and isinstance(spec, dict) and spec.get("wait") is False and "timeout" in spec:
        at = (*place, kind, "timeout")
        yield document.fault(at, f"{shown(at)} does not apply where wait is false: nobody waits for the run")


def of_trigger(document: Document, place: Place, trigger: dict[str, Any]) -> Iterator[Fault]:
    """Give the faults of one trigger's schedule."""
    scheduled = "schedule" in trigger
    if scheduled and "webhook" in trigger:
        yield document.fault((*place, "webhook"), f"{shown(place)} takes one of webhook, schedule; make two triggers of it")
    for key in CONCERNS_OF_WEBHOOKS if scheduled else CONCERNS_OF_SCHEDULES:
        if key in trigger:
            kind = "a schedule" if scheduled else "a webhook, only to a schedule"
            yield document.fault((*place, key), f"{shown((*place, key))} does not apply to {kind}")
