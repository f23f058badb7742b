"""Named points between two steps of a run's life, at which a test has the process end as in a power loss.

Owns the list of points. Off, which is always but in tests, a point is a call of a function that does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

VARIABLE = "ORQO_CRASH_AT"
POINTS = (
    # web
    "accept-before-commit",
    "accept-committed",
    "workers-woken",
    # worker
    "claim-before-commit",
    "claimed",
    "stage-started",
    "effect-done",
    "record-before-commit",
    "result-recorded",
    "finish-before-commit",
    "finished",
    "wait-before-commit",
    "wait-open",
    "wait-asked",
    "child-before-commit",
    "child-started",
    # dispatcher
    "delivery-claimed",
    "delivery-sent",
    "attempt-before-commit",
    "attempt-recorded",
    "schedule-before-commit",
    "schedule-fired",
)


def _nothing(_name: str) -> None:
    """Stand in where no point is switched on."""


def _armed(text: str) -> Callable[[str], None]:
    """Give the function that ends this process at `NAME`, or at the third time with `NAME:3`; ValueError on another name."""
    wanted, _, count = text.partition(":")
    if wanted not in POINTS:
        raise ValueError(f"{VARIABLE}: there is no point {wanted}; there are {', '.join(POINTS)}")
    left = Counter({wanted: int(count or 1)})

    def reach(name: str) -> None:
        left[name] -= 1
        if name == wanted and left[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


reach = _armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _nothing
