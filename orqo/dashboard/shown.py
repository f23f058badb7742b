"""Values as people read them: times, spans, sizes, JSON, shell lines.

Owns the templates' filters. Pure, but for `ago`, which is told the time. Gives text: escaping is the templates'.
"""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from typing import Any

from orqo import clock
from orqo.errors import Problem
from orqo.inspection import Cut

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
CURL_INPUT_MAX = 4000


def moment(text: str | None) -> str:
    """Give a stored time with its seconds and its zone."""
    return f"{text[:10]} {text[11:19]} UTC" if text else "—"


def ago(text: str, now: datetime) -> str:
    """Give how long ago a stored time was, or how soon it will be, in its largest unit.

    What is nearly full is full for a time to come: a deadline in eight hours is not told as seven, a moment after it was set.
    """
    seconds = (now - clock.from_text(text)).total_seconds()
    slack = 0.0 if seconds > 0 else 0.05
    for unit_s, name in UNITS:
        number = int(abs(seconds) / unit_s + slack)
        if number:
            return f"{number} {name} ago" if seconds > 0 else f"in {number} {name}"
    return "just now"


def span(ms: float | None) -> str:
    """Give a duration in at most two units."""
    if ms is None:
        return "—"
    if ms < 1000:
        return f"{round(ms)} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    seconds = round(ms / 1000)
    index = next(index for index, (unit_s, _) in enumerate(UNITS) if seconds >= unit_s)
    (large_s, large), (small_s, small) = UNITS[index : index + 2]
    rest = seconds % large_s // small_s
    return f"{seconds // large_s} {large}" + (f" {rest} {small}" if rest else "")


def between_ms(begin: str | None, end: str | None) -> float | None:
    """Give the milliseconds between two stored times, None where one is absent."""
    if not begin or not end:
        return None
    return (clock.from_text(end) - clock.from_text(begin)).total_seconds() * 1000


def took(row: Any, now: datetime) -> str:
    """Give how long a run or a stage took, or has taken so far."""
    if row.started_at is None:
        return "—"
    return span(between_ms(row.started_at, row.finished_at or clock.to_text(now)))


def size(number: int) -> str:
    """Give bytes in the unit that suits."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def readable(cut: Cut) -> str:
    """Give stored bytes for a page: whole JSON indented, text as it is, other bytes as hex."""
    if cut.data is None:
        return ""
    if cut.kind == "bytes":
        return _hex(cut.data)
    # The cut may lie within a character.
    text = cut.data.decode("utf-8", errors="replace" if cut.whole else "ignore")
    return pretty(text) if cut.kind == "json" and cut.whole else text


def _hex(data: bytes) -> str:
    lines = []
    for start in range(0, min(len(data), 1024), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def pretty(text: str) -> str:
    """Give JSON with one member a line; what is none stays as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def as_json(value: Any) -> str:
    """Give a value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def shell(text: str) -> str:
    """Give one word for a POSIX shell."""
    return shlex.quote(text)


def trigger_line(base_url: str, workflow_id: int, given: Cut) -> str:
    """Give the curl line that starts a workflow with this input; a large one is read from a file."""
    if not given.whole or given.data is None or given.size > CURL_INPUT_MAX:
        body = "@request.json"
    else:
        body = shell(f'{{"workflow_id": {workflow_id}, "input": {given.data.decode()}}}')
    return (
        f"curl {shell(base_url + '/api/v1/trigger')} \\\n"
        f'  -H "Authorization: Bearer $ORQO_API_TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {body}"
    )


def report_line(base_url: str, run_id: int, stage: str) -> str:
    """Give the curl line that answers a waiting stage."""
    report = json.dumps({"workflow_run_id": run_id, "stage": stage, "status": "completed", "output": None})
    return (
        f"curl {shell(base_url + '/api/v1/callback')} \\\n"
        f'  -H "Authorization: Bearer $ORQO_API_TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shell(report)}"
    )


def hook_line(url: str) -> str:
    """Give the curl line that fires a webhook."""
    return f"curl {shell(url)} \\\n  -H 'Content-Type: application/json' \\\n  -d '{{\"name\": \"world\"}}'"


def workflow_name(stored: str) -> str:
    """Give a workflow's name, also of one that was deleted."""
    return stored.partition(" deleted ")[0]


def at(problem: Problem | None, *pointers: str) -> str:
    """Give what a problem says of these places of a form, "" where it says nothing of them."""
    return "; ".join(each.detail for each in problem.errors if each.pointer in pointers) if problem else ""


def beneath(problem: Problem | None, pointer: str) -> str:
    """Give what a problem says of a place of a form and of the places within it."""
    found = [each for each in problem.errors if (each.pointer + "/").startswith(pointer + "/")] if problem else []
    return "; ".join(f"{each.pointer[len(pointer) + 1 :]} {each.detail}".strip() for each in found)


FILTERS = {
    "at": at,
    "beneath": beneath,
    "workflow_name": workflow_name,
    "moment": moment,
    "ago": ago,
    "span": span,
    "took": took,
    "size": size,
    "readable": readable,
    "pretty": pretty,
    "as_json": as_json,
    "shell": shell,
    "hook_line": hook_line,
}
