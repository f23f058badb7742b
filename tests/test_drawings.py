"""What the pages draw and how they write values: pure functions."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from orqo import clock, definition
from orqo.dashboard import drawings, shown
from orqo.inspection import Cut
from orqo.overview import Hour

NOW = datetime.fromisoformat("2026-03-04T05:06:07+00:00")


def at(seconds: float) -> str:
    return clock.to_text(NOW + timedelta(seconds=seconds))


def stage(begin: float, end: float | None, status: str = "completed") -> Any:
    return SimpleNamespace(name="a", inherited=0, started_at=at(begin), finished_at=None if end is None else at(end), status=status)


def run(created: float = 0, finished: float | None = 10) -> Any:
    return SimpleNamespace(created_at=at(created), started_at=None, finished_at=None if finished is None else at(finished))


def test_bars_lie_where_their_stages_lie_in_time() -> None:
    drawn = drawings.timeline(run(), [stage(1, 3), stage(3, 10)], NOW)

    assert [(bar.left, bar.width, bar.span) for bar in drawn.bars] == [(10, 20, "2.0 s"), (30, 70, "7.0 s")]
    assert (drawn.queued.left, drawn.queued.width, drawn.total) == (0, 10, "10.0 s")


@pytest.mark.parametrize(
    ("created", "stages", "now"),
    [(0, [], 0), (0, [stage(0, None, "running")], 0), (5, [stage(0, 1)], 6), (0, [stage(9, 9)], 9), (0, [stage(0, 0), stage(-3, 99)], 1)],
    ids=["nothing", "just begun", "clock set back", "no time at all", "outside"],
)
def test_no_bar_leaves_the_axis(created: float, stages: list[Any], now: float) -> None:
    drawn = drawings.timeline(run(created, None), stages, NOW + timedelta(seconds=now))

    assert all(0 <= bar.left <= bar.left + bar.width <= 100.001 and bar.width > 0 for bar in [drawn.queued, *drawn.bars])


@pytest.mark.parametrize("seconds", [0.001, 0.5, 1, 7, 59, 61, 3600, 86_400 * 3, 86_400 * 400])
def test_an_axis_has_a_few_ticks(seconds: float) -> None:
    drawn = drawings.timeline(run(0, seconds), [], NOW)

    assert 1 <= len(drawn.ticks) <= drawings.TICKS_MAX + 1 and drawn.ticks[0] == (0, "0")
    assert all(0 <= left <= 100 for left, _ in drawn.ticks)


def test_a_charts_columns_are_as_high_as_their_counts() -> None:
    counts = {"completed": 6, "failed": 4, "stopped": 0}
    drawn = drawings.chart([Hour(NOW, counts, full=False), Hour(NOW, dict.fromkeys(counts, 0), full=False)])

    assert drawn.top == 10
    assert drawn.columns[0].parts == [("completed", 48, 72), ("failed", 0, 48)]
    assert drawn.columns[1].parts == [] and "no run ended" in drawn.columns[1].title


def test_a_diagram_shows_where_outcomes_and_failures_lead() -> None:
    read = definition.parse("""
name: judge
stages:
  - {name: a, stub: {}, outcomes: [good, bad], routing: {good: end, bad: b}, on_error: c}
  - {name: b, stub: {}, on_error: next}
  - {name: c, stub: {}}
""")

    drawn = drawings.diagram(read)

    assert [(arrow.label, arrow.kind) for arrow in drawn.arrows] == [
        ("good", "route"), ("bad", "route"), ("on error", "error"), ("on error", "error"),
    ]  # fmt: skip
    assert "a (stub; good leads to end; bad leads to b; on error goes to c)" in drawn.told


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (59_000, "59.0 s"), (60_000, "1 min"), (61_000, "1 min 1 s"), (3_599_600, "1 h"),
     (7_500_000, "2 h 5 min"), (90_000_000, "1 d 1 h"), (None, "—")],
)  # fmt: skip
def test_spans_are_written_in_two_units_at_most(ms: float | None, text: str) -> None:
    assert shown.span(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (-5, "5 s ago"),
        (-3700, "1 h ago"),
        (90, "in 1 min"),
        (-90_000, "1 d ago"),
        (28_790, "in 8 h"),
        (3590, "in 1 h"),
        (5000, "in 1 h"),
    ],
)
def test_times_are_written_from_now(seconds: float, text: str) -> None:
    assert shown.ago(at(seconds), NOW) == text


def test_a_cut_character_is_left_out() -> None:
    assert shown.readable(Cut("aé".encode()[:2], 3, "text")) == "a"
    assert shown.readable(Cut(b'{"a":1}', 7, "json")) == '{\n  "a": 1\n}'
    assert shown.readable(Cut(b"\x00\xffA", 3, "bytes")).endswith("..A")
