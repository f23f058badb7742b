"""What the rules of runs are told with: runs, their stages' executions and waits as plain values; look-ups and conditions on them.

Imports nothing of the service, like rules_of_runs.py, whose half this is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNITS = {"s": 1, "m": 60, "h": 3600}
WAITS = ("delay", "approval", "wait", "workflow")
TIMEOUTS = {"approval": "24h", "wait": "1h", "workflow": "5m"}
ENDED = ("completed", "failed", "stopped")


class Refused(Exception):
    """What was asked for is refused: `conflict`, `invalid` or `gone`."""


@dataclass
class Wait:
    """What a stage waits for: `answer` is (status, outcome, output) once it is there; `child` the run whose end it is."""

    kind: str
    deadline: float
    child: int | None = None
    state: str = "open"
    answer: tuple[str, str | None, Any] | None = None


@dataclass
class Entry:
    """One execution of a stage; `is_back` where the run came to it by going back."""

    name: str
    kind: str
    pass_: int
    status: str
    attempts: int = 0
    failures: int = 0
    outcome: str | None = None
    output: Any = None
    reason: str | None = None
    is_back: bool = False
    wait: Wait | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "failed", "skipped", "stopped")


@dataclass
class Run:
    """A run; `file` is the version that it keeps, `lost` counts the workers that its stage has cost."""

    id: int
    file: dict[str, Any]
    input: Any
    status: str = "pending"
    reason: str | None = None
    stage: str | None = None
    output: Any = None
    entries: list[Entry] = field(default_factory=list)
    key: str | None = None
    held: bool = False
    stop_asked: bool = False
    lost: int = 0
    used_s: float = 0
    wake: float | None = None
    parent: int | None = None
    depth: int = 0
    children: dict[tuple[str, int, str], int] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)

    def spec(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self.file["stages"] if stage["name"] == name)

    def position(self, name: str) -> int:
        return next(index for index, stage in enumerate(self.file["stages"]) if stage["name"] == name)

    def latest(self, name: str) -> Entry | None:
        return next((each for each in reversed(self.entries) if each.name == name and each.is_over), None)


def seconds(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


def kind_of(stage: dict[str, Any]) -> str:
    return next(kind for kind in ("stub", "command", *WAITS) if kind in stage)


def outcomes_of(stage: dict[str, Any]) -> list[str]:
    return list(stage.get("outcomes", ["approved", "rejected"] if "approval" in stage else []))


MISSING = object()


def look_up(run: Run, path: str) -> Any:
    """Give what a path of a condition or a template finds, MISSING where there is nothing."""
    root, name, *more = path.split(".")
    if root == "input":
        return run.input.get(name, MISSING) if isinstance(run.input, dict) else MISSING
    entry = run.latest(name)
    if entry is None or (more == ["output"] and entry.status == "skipped"):
        return MISSING
    return getattr(entry, more[0])


def holds(run: Run, condition: dict[str, Any]) -> bool:
    if "not" in condition:
        return not holds(run, condition["not"])
    ((path, wanted),) = condition.items()
    value = look_up(run, path)
    if isinstance(wanted, dict) and "exists" in wanted:
        return (value is not MISSING) == wanted["exists"]
    if isinstance(wanted, dict):
        return value in wanted["in"]
    return bool(value == wanted)


def filled(run: Run, value: Any) -> Any:
    """Fill in templates that are wholly one look-up with a question mark."""
    if isinstance(value, dict):
        return {key: filled(run, each) for key, each in value.items()}
    if isinstance(value, str) and value.startswith("${"):
        found = look_up(run, value[2:-2])
        return None if found is MISSING else found
    return value
