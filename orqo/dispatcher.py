"""The dispatcher's loop: sends what is due in the outbox, sweeps runs that lost their worker or waited long enough.

Owns the sending threads and the pace of the loop. Decides nothing about a run or a delivery itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from orqo import clock, deliveries, runs
from orqo.errors import Unavailable
from orqo.queue import Bell, Notices

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 48
PER_HOST_MAX = 8
SWEEP_EVERY_S = 1.0
STALE_S = 2.0


@dataclass
class Dispatcher:
    """What the loop works with. `schedule_s` are the pauses between the attempts of a delivery."""

    box: runs.Box
    bell: Bell
    sender: deliveries.Sender
    schedule_s: Sequence[float]
    owner: str
    stopping: threading.Event
    in_flight: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def loop(dispatcher: Dispatcher) -> None:
    """Deliver and sweep until `stopping` is set; then let the attempts under way end."""
    notices = Notices(dispatcher.bell)
    next_sweep = 0.0
    with ThreadPoolExecutor(IN_FLIGHT_MAX, thread_name_prefix="deliver") as pool:
        while not dispatcher.stopping.is_set():
            if time.monotonic() >= next_sweep:
                _guarded(lambda: sweep(dispatcher))
                next_sweep = time.monotonic() + SWEEP_EVERY_S
            if not _guarded(lambda: deliver_due(dispatcher, pool)):
                notices.wait(max(0.0, min(next_sweep - time.monotonic(), SWEEP_EVERY_S)))


def _guarded(step: Any) -> bool:
    """Do one step of the loop; a busy database or a bug of ours costs this step and not the loop."""
    try:
        return bool(step())
    except Unavailable as fault:
        log.warning("step=dispatch status=unavailable error=%s", fault.detail)
    except Exception:
        log.exception("step=dispatch status=fault")
    return False


def sweep(dispatcher: Dispatcher) -> bool:
    """Take back what lost workers and dispatchers held, and wake workers where a run waits too long."""
    swept = runs.sweep(dispatcher.box, stale_s=STALE_S, now=clock.now())
    freed = deliveries.sweep(dispatcher.box.database)
    if swept.lost or freed:
        log.warning("step=sweep runs_lost=%d deliveries_freed=%d", swept.lost, freed)
    if swept.stale:
        dispatcher.bell.wake_workers()
    return swept.stale


def deliver_due(dispatcher: Dispatcher, pool: ThreadPoolExecutor) -> bool:
    """Claim what is due and hand it to the sending threads; tells whether there was any."""
    with dispatcher.lock:
        in_flight = Counter(dispatcher.in_flight)
    room = IN_FLIGHT_MAX - in_flight.total()
    if room <= 0:
        return False
    claimed = deliveries.claim_due(
        dispatcher.box.database, owner=dispatcher.owner, limit=room, per_host=PER_HOST_MAX, in_flight=in_flight, now=clock.now()
    )
    with dispatcher.lock:
        dispatcher.in_flight.update(row.host for row in claimed)
    for row in claimed:
        pool.submit(_deliver, dispatcher, row)
    return bool(claimed)


def _deliver(dispatcher: Dispatcher, row: Row[Any]) -> None:
    """Send one delivery and record the attempt; what cannot be recorded is sent again when the lease is over."""
    try:
        outcome = deliveries.send(row, dispatcher.sender, now=clock.now())
        status = deliveries.record_attempt(
            dispatcher.box.database, row, outcome, owner=dispatcher.owner, schedule_s=dispatcher.schedule_s, now=clock.now()
        )
        log.info(
            "step=deliver delivery=%s run=%s event=%s status=%s reason=%s code=%s ms=%d",
            row.id, row.run_id, row.event, status, outcome.reason, outcome.status_code, outcome.duration_ms,
        )  # fmt: skip
    except Unavailable as fault:
        log.warning("step=deliver delivery=%s status=unrecorded error=%s", row.id, fault.detail)
    except Exception:
        log.exception("step=deliver delivery=%s status=fault", row.id)
    finally:
        with dispatcher.lock:
            dispatcher.in_flight[row.host] -= 1
            if dispatcher.in_flight[row.host] <= 0:
                del dispatcher.in_flight[row.host]
        dispatcher.bell.notify()
