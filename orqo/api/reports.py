"""What a report on a run says: the short form, or the event of another box, as the answer that it is.

Owns both forms (DESIGN §1). Never knows whom the report is for.
"""

from __future__ import annotations

from typing import Any

from orqo import runs
from orqo.errors import Fault, Invalid

STATUSES = ("completed", "failed", "stopped", "output")
EVENTS = {f"run.{status}": status for status in STATUSES}


def answer_of(report: dict[str, Any]) -> runs.Answer:
    """Read a report that fits the description; Invalid where its status is none that answers."""
    kind = report.get("type")
    if isinstance(kind, str) and kind.startswith("run."):
        data = report.get("data") or {}
        return _answer(EVENTS.get(kind), "/type", data.get("output"), data.get("outcome"), data.get("error"))
    status = report["status"] if report["status"] in STATUSES else None
    return _answer(status, "/status", report.get("output"), report.get("outcome"), report.get("error"))


def _answer(status: str | None, pointer: str, output: Any, outcome: Any, error: Any) -> runs.Answer:
    if status is None:
        known = ", ".join(EVENTS if pointer == "/type" else STATUSES)
        raise Invalid(f"The body does not fit: {pointer} must be one of {known}.", errors=[Fault(pointer, f"must be one of {known}")])
    return runs.Answer(status, output, outcome if isinstance(outcome, str) else None, _sentence(error))


def _sentence(error: Any) -> str | None:
    """Give an error as one text: as it is, or of another box's `{"reason", "detail", "stage"}`."""
    if isinstance(error, dict):
        error = ": ".join(str(error[key]) for key in ("reason", "detail") if error.get(key)) or None
    return None if error is None else str(error)[: runs.ERROR_MAX]
