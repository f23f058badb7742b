"""`Prefer: wait=N`: the answer to a start waits for the run's end, within bounds.

Owns who may wait and for how long; at most half of the server's threads do, so that the others answer. Source: RFC 7240 §4.3.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flask import request

from orqo import call, runs
from orqo.api.site import Site
from orqo.hearing import Ends

# A run that its worker does not tell of (stopped from outside, Redis down) is found by looking this often.
LOOK_S = 0.5


def wanted_s(here: Site, headers: Mapping[str, str]) -> int:
    """Give the seconds that the caller would wait for the run's end; ORQO's own API knows no such wish."""
    return 0 if here.config.strict else call.wait_s(headers)


def ended(here: Site, run_id: int, *, within_s: int) -> dict[str, Any] | None:
    """Give a run as GET does once it has ended; None where it does not in time, or where no thread may wait for it."""
    if not within_s or not here.waiters.acquire(blocking=False):
        return None
    try:
        with here.bell.ends(run_id) as ends:
            return _seen(here, run_id, ends, until=time.monotonic() + within_s)
    finally:
        here.waiters.release()


def _seen(here: Site, run_id: int, ends: Ends, *, until: float) -> dict[str, Any] | None:
    is_draining = request.environ.get("orqo.draining", bool)
    while True:
        with here.database.read() as connection:
            status = runs.status_of(connection, run_id)
            if status is not None and status.terminal:
                return runs.show(connection, run_id)
        left_s = until - time.monotonic()
        if status is None or left_s <= 0 or is_draining():
            return None
        ends.wait(min(left_s, LOOK_S))
