"""What a run gives, and what its next stages see of the one that ended just now.

Owns the rendering of a workflow's `output`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orqo import facts, flow, jsontext, lookup
from orqo.models import Reason, RunStatus
from orqo.runs.state import Output, StageEnd


def known(roots: Mapping[str, Any], stage: str, end: StageEnd) -> dict[str, Any]:
    """Give the look-up roots with a stage that ended and is not recorded yet."""
    finished = {
        "output": lookup.Unreadable(facts.CUT.format(stage=stage)) if end.truncated else jsontext.value_of(end.output, end.output_kind),
        "outcome": end.outcome,
        "status": "failed" if end.error_reason else "completed",
        "error": end.error_reason and {"reason": end.error_reason, "detail": end.error_detail, "stage": stage},
        "response": end.response,
    }
    return {**roots, "stages": {**roots["stages"], stage: finished}}


def passed_over(roots: Mapping[str, Any], skipped: Sequence[flow.Skipped]) -> dict[str, Any]:
    """Give the look-up roots with stages that are skipped and not recorded yet."""
    return {**roots, "stages": {**roots["stages"], **{each.stage.name: facts.skipped_root(each.stage.name) for each in skipped}}}


def of(verdict: flow.End, output: Any, roots: Mapping[str, Any], last: Output) -> tuple[flow.End, Output]:
    """Give a completed run's output as its file's `output` says; a run whose output cannot be made fails."""
    try:
        value = lookup.render(output, roots)
    except lookup.LookupFailed as fault:
        detail = f"The workflow's output cannot be made: {fault.detail}"
        return replace(verdict, status=RunStatus.FAILED, error=flow.RunError(Reason.LOOKUP_FAILED, detail, None), starts=None), last
    text = value if isinstance(value, str) else jsontext.dump(value)
    return verdict, Output(text.encode(), "text" if isinstance(value, str) else "json")
