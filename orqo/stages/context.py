"""What a stage is given.

Owns the shape of the context that every kind of stage is executed with. Never knows a run's row or a database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orqo import outbound
from orqo.definition import StageDefinition
from orqo.stages.result import Failed, Resumed

CANCELLED = {
    "stopped": "the run was stopped",
    "lease_lost": "this worker lost the run's lease; another one goes on with it",
    "shutdown": "the worker was told to end",
}


@dataclass(frozen=True)
class ModelServer:
    """Where prompts go that name no server of their own: an OpenAI-compatible `/v1` address and the key that it wants."""

    base_url: str = ""
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Context:
    """One execution of one stage.

    `roots` are the look-up roots, `run_dir` exists, `base_dir` is the folder of the workflow's file. `deadline` is the
    value of `time.monotonic()` at which the stage times out. `cancelled` is asked at most every 0.2 s and gives None
    or why the stage must end now: `stopped`, `lease_lost` or `shutdown`. `resumed` is what ended the stage's wait.
    `models` is the server of prompts.
    """

    stage: StageDefinition
    roots: Mapping[str, Any]
    run_id: int
    workflow: str
    run_dir: Path
    base_dir: Path | None
    deadline: float
    cancelled: Callable[[], str | None]
    stage_user: str
    client: outbound.Client
    models: ModelServer = field(default_factory=ModelServer)
    resumed: Resumed | None = None

    @property
    def left_s(self) -> float:
        """Give the seconds until the stage times out; never below 0."""
        return max(self.deadline - time.monotonic(), 0.0)


class Why:
    """Remember why the stage was cancelled: outbound only asks whether it was."""

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._ask = ask
        self.reason = ""

    def __call__(self) -> bool:
        self.reason = self._ask() or ""
        return bool(self.reason)


def cancelled(why: str, **captured: Any) -> Failed:
    """Give the result of a stage that was cancelled; `captured` is what it had written by then."""
    return Failed("cancelled", CANCELLED.get(why, why), retryable=False, **captured)


def timed_out(context: Context, **captured: Any) -> Failed:
    """Give the result of a stage that was not done in time."""
    limit_s = context.stage.timeout_s
    own = "" if limit_s is None else f"its timeout of {limit_s:g} s or "
    return Failed("timeout", f"the stage did not end within {own}what was left of the run's timeout", **captured)
