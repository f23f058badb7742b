"""The lease of a long stage, renewed by a thread of its own, which also sees that somebody asked for a stop.

Owns the pace of it. Ends nothing itself: the stage asks why it must end.
"""

from __future__ import annotations

import logging
import threading
import time

from orqo import clock, runs
from orqo.errors import Unavailable
from orqo.held import Held, Worker

log = logging.getLogger(__name__)

RENEW_EVERY_S = 2.0


def start_renewing(worker: Worker) -> threading.Thread:
    """Start the thread that renews the lease of a long stage and sees a stop request; ends with the process."""
    thread = threading.Thread(target=_renew_for_ever, args=(worker,), name="lease", daemon=True)
    thread.start()
    return thread


def _renew_for_ever(worker: Worker) -> None:
    while True:
        time.sleep(RENEW_EVERY_S)
        held = worker.held
        if held is not None and held.elapsed_ms > RENEW_EVERY_S * 1000:
            _renew(worker, held)
            if worker.on_renew:
                worker.on_renew()


def _renew(worker: Worker, held: Held) -> None:
    renewed_until = clock.boot_seconds() + runs.LEASE_S
    try:
        if runs.renew(worker.box, held.claim, elapsed_ms=held.elapsed_ms):
            held.must_end = held.must_end or "stopped"
        held.renewed_until = renewed_until
    except runs.LeaseLost:
        # The stage may have ended this moment, and the claim with it: only the claim still held is lost.
        if worker.held is held:
            held.must_end = "lease_lost"
    except Unavailable as fault:
        log.warning("step=renew run=%s status=unavailable error=%s", held.claim.run.id, fault.detail)
    except Exception:
        log.exception("step=renew run=%s status=fault", held.claim.run.id)
