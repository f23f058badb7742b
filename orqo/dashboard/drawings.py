"""The geometry of the pictures: a run's timeline, runs per hour, a workflow's stages and routing.

Pure: data in, numbers out. The templates make SVG of them; horizontal places are per cent, so that text keeps its shape
at any width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orqo import clock
from orqo.dashboard.shown import between_ms, span
from orqo.definition import Definition, StageDefinition
from orqo.models import RunStatus
from orqo.overview import Hour

TICKS_MAX = 5
STEPS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000)
LONG_STEPS_MS = tuple(60_000 * minutes for minutes in (1, 2, 5, 10, 30, 60, 120, 360, 720, 1440, 2880, 10_080))
BAR_MIN_PERCENT = 0.6
CHART_HEIGHT = 120
BOX_WIDTH, BOX_HEIGHT, BOX_GAP = 300, 52, 34
LANE = 22
TOP = 38
LABEL_MAX = 20


@dataclass(frozen=True)
class Bar:
    """One bar of a timeline: a stage's execution, or the time before the first. Places in per cent of the whole."""

    left: float
    width: float
    status: str
    row: Any = None
    span: str = ""


@dataclass(frozen=True)
class Timeline:
    """A run's stages on one axis: the time it waited first, then a bar for each execution."""

    queued: Bar
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    total: str


def timeline(run: Any, stages: Sequence[Any], now: datetime) -> Timeline:
    """Lay a run out from its acceptance to its end, or to now."""
    present = clock.to_text(now)
    end = run.finished_at or max(present, run.created_at)
    total_ms = max(between_ms(run.created_at, end) or 0.0, 1.0)

    def bar(begin: str, until: str | None, status: str, row: Any = None) -> Bar:
        from_ms = min(max(between_ms(run.created_at, begin) or 0.0, 0.0), total_ms)
        length_ms = max(between_ms(begin, until or end) or 0.0, 0.0)
        width = max(min(length_ms, total_ms - from_ms) / total_ms * 100, BAR_MIN_PERCENT)
        left = min(from_ms / total_ms * 100, 100 - BAR_MIN_PERCENT)
        return Bar(round(left, 3), round(min(width, 100 - left), 3), status, row, span(length_ms))

    # What was inherited from the run that this one repeats took its time there.
    own = [row for row in stages if not row.inherited]
    first = own[0].started_at if own else run.started_at or end
    spans = [(first, first) if row.inherited else (row.started_at, row.finished_at) for row in stages]
    bars = [bar(*times, row.status, row) for times, row in zip(spans, stages, strict=True)]
    return Timeline(bar(run.created_at, first, "queued"), bars, _ticks(total_ms), span(total_ms))


def _ticks(total_ms: float) -> list[tuple[float, str]]:
    step = next((step for step in (*STEPS_MS, *LONG_STEPS_MS) if total_ms / step <= TICKS_MAX), total_ms / 4)
    numbers = range(int(total_ms // step) + 1)
    return [(round(each * step / total_ms * 100, 3), span(each * step).replace(".0 s", " s") if each else "0") for each in numbers]


# ── runs per hour ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Column:
    """One hour of the chart: rectangles from below, `(status, y, height)`, and what a pointer is told."""

    left: float
    width: float
    parts: list[tuple[str, float, float]]
    title: str
    hour: Hour


@dataclass(frozen=True)
class Chart:
    """Runs per hour: columns, the figure at the top of the axis, and the marks below it."""

    columns: list[Column]
    top: int
    marks: list[tuple[float, str]]
    height: int = CHART_HEIGHT


def chart(hours: Sequence[Hour]) -> Chart:
    """Lay out the hours side by side."""
    top = _round_up(max((hour.total for hour in hours), default=0))
    each = 100 / len(hours)
    columns = [_column(hour, index * each, each * 0.78, top) for index, hour in enumerate(hours)]
    marks = [(round(index * each, 3), f"{hour.begins:%a %H:%M}") for index, hour in enumerate(hours) if hour.begins.hour % 12 == 0]
    return Chart(columns, top, marks)


def _column(hour: Hour, left: float, width: float, top: int) -> Column:
    parts, y = [], float(CHART_HEIGHT)
    for status, count in hour.counts.items():
        if count:
            height = max(count / top * CHART_HEIGHT, 2.0)
            y -= height
            parts.append((status, round(y, 2), round(height, 2)))
    told = ", ".join(f"{count:,} {status}" for status, count in hour.counts.items() if count) or "no run ended"
    more = " or more" if hour.full else ""
    return Column(round(left, 3), round(width, 3), parts, f"{hour.begins:%a %d %b %H:%M} UTC: {told}{more}", hour)


def _round_up(number: int) -> int:
    """Give the next of 4, 5, 10, 20, 50, 100 …"""
    if number <= 4:
        return 4
    power = int(f"1{'0' * (len(str(number)) - 1)}")
    return next(step * power for step in (1, 2, 5, 10) if step * power >= number)


# ── a workflow's stages ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Box:
    """One stage of a diagram."""

    stage: StageDefinition
    y: int
    notes: str


@dataclass(frozen=True)
class Arrow:
    """A way that is not the next stage: an SVG path on the right of the boxes. `kind` is route or error."""

    path: str
    label: str
    kind: str
    x: int
    y: int


@dataclass(frozen=True)
class Diagram:
    """A workflow from its start to its end, one stage below the other."""

    boxes: list[Box]
    arrows: list[Arrow]
    width: int
    height: int
    told: str


def diagram(definition: Definition) -> Diagram:
    """Draw the stages in order, and where their outcomes and their failures lead."""
    step = BOX_HEIGHT + BOX_GAP
    boxes = [Box(stage, TOP + index * step, _notes(stage)) for index, stage in enumerate(definition.stages)]
    ways = [way for index, box in enumerate(boxes) for way in _spread(box, list(_ways(definition, box.stage, index)))]
    arrows = [_arrow(boxes, *way, lane=lane, lanes=len(ways)) for lane, way in enumerate(ways)]
    longest = max((len(arrow.label) for arrow in arrows), default=0)
    width = BOX_WIDTH + 20 + (len(ways) * LANE + 24 + longest * 6 if ways else 0)
    return Diagram(boxes, arrows, width, TOP + len(boxes) * step + 24, _told(definition))


def _ways(definition: Definition, stage: StageDefinition, index: int) -> Iterator[tuple[int, str, str]]:
    """Give the index that each outcome and a failure lead to (one past the last is the end), the label and the kind."""
    places = {each.name: number for number, each in enumerate(definition.stages)} | {"end": len(definition.stages)}
    for label, target in stage.routing.items():
        if isinstance(target, str) and target in places:
            yield places[target], label[:LABEL_MAX], "route"
    if stage.on_error == "next":
        yield index + 1, "on error", "error"
    elif stage.on_error in places and stage.on_error != "end":
        yield places[stage.on_error], "on error", "error"


def _spread(box: Box, ways: list[tuple[int, str, str]]) -> list[tuple[int, int, str, str]]:
    """Give the ways from one box the heights at which they begin, so that their labels stand below each other."""
    step = min(14, (BOX_HEIGHT - 12) // max(len(ways) - 1, 1))
    first = box.y + BOX_HEIGHT // 2 - step * (len(ways) - 1) // 2
    return [(first + number * step, *way) for number, way in enumerate(ways)]


def _arrow(boxes: Sequence[Box], start_y: int, target: int, label: str, kind: str, *, lane: int, lanes: int) -> Arrow:
    right, last = 10 + BOX_WIDTH, boxes[-1].y + BOX_HEIGHT
    end_y = boxes[target].y + 8 + lane % 4 * 5 if target < len(boxes) else last + BOX_GAP + 8
    end_x = right if target < len(boxes) else 10 + BOX_WIDTH // 2 + 14
    x, turn = right + 20 + lane * LANE, 8 if end_y > start_y else -8
    path = f"M{right} {start_y} H{x - 8} Q{x} {start_y} {x} {start_y + turn} V{end_y - turn} Q{x} {end_y} {x - 8} {end_y} H{end_x + 4}"
    # The labels stand right of all lanes, each at the height where its way begins.
    return Arrow(path, label, kind, right + 20 + lanes * LANE, start_y + 4)


def _notes(stage: StageDefinition) -> str:
    notes = [stage.kind]
    if stage.retry.attempts > 1:
        notes.append(f"{stage.retry.attempts} attempts")
    if stage.timeout_s is not None:
        notes.append(f"at most {span(stage.timeout_s * 1000)}")
    if stage.when is not None:
        notes.append("on a condition")
    started = [target["workflow"] for target in stage.routing.values() if isinstance(target, Mapping)]
    return " · ".join([*notes, *(f"may start {name}" for name in started)])


def _told(definition: Definition) -> str:
    """Say the diagram in words, for those who do not see it."""
    words = []
    for number, stage in enumerate(definition.stages, 1):
        targets = {label: target if isinstance(target, str) else target["workflow"] for label, target in stage.routing.items()}
        routes = "".join(f"; {label} leads to {target}" for label, target in targets.items())
        way = {"fail": "", "next": "; on error goes on"}.get(stage.on_error, f"; on error goes to {stage.on_error}")
        words.append(f"{number}. {stage.name} ({_notes(stage)}{routes}{way})")
    return "Stages in order: " + ", ".join(words)


def unfinished(status: str) -> bool:
    """Tell whether a run in this status will still change."""
    return not RunStatus(status).terminal
