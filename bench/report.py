"""One figure of a measurement: ours beside its baseline, both taken in the same run, and the goal that the ratio is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """`ours` and `baseline` in `unit`; `goal` bounds their ratio, or `ours` itself where there is no baseline."""

    number: str
    name: str
    ours: float
    unit: str
    goal: float
    sense: Literal[">=", "<="]
    baseline: float | None = None
    baseline_name: str = ""

    @property
    def compared(self) -> float:
        """Give what is held to the goal: the ratio, or the figure itself."""
        return self.ours / self.baseline if self.baseline else self.ours

    @property
    def reached(self) -> bool:
        """Tell whether the goal is reached."""
        return self.compared >= self.goal if self.sense == ">=" else self.compared <= self.goal

    def row(self) -> str:
        """Give the figure as a row of a Markdown table."""
        beside = f"{self.baseline_name}: {number(self.baseline)}" if self.baseline else "-"
        ratio = number(self.compared) if self.baseline else "-"
        goal = f"{'≥' if self.sense == '>=' else '≤'} {number(self.goal)}"
        verdict = "yes" if self.reached else "**no**"
        return f"| {self.number} | {self.name} | {number(self.ours)} {self.unit} | {beside} | {ratio} | {goal} | {verdict} |"


HEAD = "| # | figure | ours | beside it | ratio | goal | reached |\n|---|---|---|---|---|---|---|"


def number(value: float) -> str:
    """Give a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
