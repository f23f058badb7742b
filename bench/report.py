"""One figure of a measurement: ours beside its baseline, both taken in the same run, and the goal that the ratio is held to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orqo import clock, db

RESULTS = Path("bench/RESULTS.md")
PACKAGES = ("flask", "sqlalchemy", "waitress", "rq", "redis", "gunicorn")


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


def table(figures: Iterable[Figure]) -> str:
    """Give figures as a Markdown table."""
    return "\n".join([HEAD, *(figure.row() for figure in figures)])


def write(figures: Iterable[Figure], *, rounds: int) -> None:
    """Write the table down with the machine, the versions and the date."""
    text = f"""# Results

{table(figures)}

Each is the median of {rounds}, ours and what is beside it taken in turn on the same machine. Taken by `make bench`
on {clock.now():%Y-%m-%d}: {_machine()}; {_versions()}. What limits each stands in docs/performance.md.
"""
    RESULTS.write_text(text, encoding="utf-8")


def _machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory_gb:.0f} GB, {platform.system()} {platform.release().split('-')[0]}"


def _versions() -> str:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, SQLite {db.sqlite_module().sqlite_version}, {packages}"
