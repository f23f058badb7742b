"""The dispatcher's loop: sends what is due in the outbox, sweeps runs that lost their worker or waited long enough.

Owns the sending threads and the pace of the loop. Decides nothing about a run or a delivery itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError

from orqo import attempts, clock, clockstep, crashpoints, db, deliveries, machines, metrics, retention, runs, schedules
from orqo.errors import Unavailable
from orqo.folder import Folder
from orqo.models import DeliveryStatus
from orqo.queue import Bell
from orqo.simulation import Sending
from orqo.slots import IN_FLIGHT_MAX, Slots

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
STALE_S = 2.0
DRAIN_LOOK_S = 0.2
SHARED_S = 0.02
# Whoever listens has nothing else to do, and ends with the process.
LISTEN_S = 30.0
FOLDER_EVERY_S = 2.0
SAY_EVERY_S = 60.0
TIDY_EVERY_S = 3600.0
PRUNE_FIRST_S, PRUNE_PAUSE_S, PRUNE_EVERY_S = 10.0, 0.5, 60.0


@dataclass
class Dispatcher:
    """What the loop works with. `schedule_s` are the pauses between the attempts of a delivery.

    `slots` holds what was claimed and is not recorded yet; `inbox` is where the sending threads put what they sent with
    its outcome, and the listening thread a None for each notice. Only the loop's own thread touches the rest.
    """

    box: runs.Box
    bell: Bell
    sender: deliveries.Sender
    schedule_s: Sequence[float]
    owner: str
    stopping: threading.Event
    keep: retention.Limits | None = None
    folder: Folder | None = None
    runs_dir: Path = Path()
    machine_lost_after_s: float = runs.MACHINE_LOST_AFTER_S
    simulation: Sending | None = None
    slots: Slots = field(default_factory=Slots)
    inbox: SimpleQueue[attempts.Sent | None] = field(default_factory=SimpleQueue)
    unrecorded: list[attempts.Sent] = field(default_factory=list)
    wall_clock: clockstep.WallClock = field(default_factory=clockstep.WallClock)
    # By how much the clock was set and nothing was shifted yet.
    clock_set: timedelta = timedelta()
    next_tidying: float = 0.0


def loop(dispatcher: Dispatcher) -> None:
    """Deliver and sweep until `stopping` is set; then let the attempts under way end.

    Where another release upgrades the database meanwhile, let them end too and stand still until somebody stops this one.
    """
    threading.Thread(target=_listen, args=(dispatcher,), name="notices", daemon=True).start()
    next_sweep, next_look, next_beat, next_prune, busy = 0.0, 0.0, 0.0, time.monotonic() + PRUNE_FIRST_S, False
    with ThreadPoolExecutor(IN_FLIGHT_MAX, thread_name_prefix="deliver") as pool:
        while not dispatcher.stopping.is_set():
            _guarded(lambda: follow_clock(dispatcher))
            if time.monotonic() >= next_sweep:
                if _guarded(lambda: outdated(dispatcher)):
                    break
                _guarded(lambda: sweep(dispatcher))
                _guarded(lambda: fire_schedules(dispatcher))
                next_sweep = time.monotonic() + SWEEP_EVERY_S
            # One machine needs no sign of life, and its quiet disk stays quiet.
            if not dispatcher.box.database.is_sqlite and time.monotonic() >= next_beat:
                _guarded(lambda: beat(dispatcher))
                next_beat = time.monotonic() + machines.BEAT_EVERY_S
            if dispatcher.folder and time.monotonic() >= next_look:
                _guarded(lambda: dispatcher.folder and dispatcher.folder.look(now=clock.now()))
                next_look = time.monotonic() + FOLDER_EVERY_S
            if time.monotonic() >= next_prune:
                # Batch after batch while there is more, each a turn of its own so that nothing due waits for it.
                more = _guarded(lambda: prune(dispatcher))
                next_prune = time.monotonic() + (PRUNE_PAUSE_S if more else PRUNE_EVERY_S)
            _gather(dispatcher, 0.0 if busy else max(0.0, next_sweep - time.monotonic()))
            # The clock may have been set while nothing came in.
            _guarded(lambda: follow_clock(dispatcher))
            busy = _guarded(lambda: deliver_due(dispatcher, pool))
            _guarded(lambda: hand_back(dispatcher))
        dispatcher.slots.close()
        while dispatcher.slots.held:
            _guarded(lambda: hand_back(dispatcher))
            _gather(dispatcher, DRAIN_LOOK_S)
            if dispatcher.unrecorded:
                _guarded(lambda: _record(dispatcher))
    _stand_still(dispatcher)


def outdated(dispatcher: Dispatcher) -> str | None:
    """Say what to do where another release upgraded the database; None where it is still this one's."""
    try:
        db.check_still(dispatcher.box.database)
    except db.SchemaMismatch as fault:
        return str(fault)
    return None


def _stand_still(dispatcher: Dispatcher) -> None:
    """Do nothing but say each minute why, until told to stop or the database is this release's again: workers claim nothing either."""
    next_word = 0.0
    while not dispatcher.stopping.is_set() and (told := outdated(dispatcher)) is not None:
        if time.monotonic() >= next_word:
            log.error("step=dispatch status=outdated error=%s", told)
            next_word = time.monotonic() + SAY_EVERY_S
        dispatcher.stopping.wait(SWEEP_EVERY_S)


def follow_clock(dispatcher: Dispatcher) -> bool:
    """Where the wall clock was set, shift what is planned before anything that seems due is done; tells whether it was."""
    dispatcher.clock_set += dispatcher.wall_clock.stepped() or timedelta()
    if not dispatcher.clock_set or not dispatcher.box.database.is_sqlite:
        return False
    with dispatcher.box.database.transaction() as connection:
        shifted = clockstep.follow(connection, dispatcher.clock_set, now=clock.now())
    log.warning("step=clock status=set by_s=%.1f planned_shifted=%d", dispatcher.clock_set.total_seconds(), shifted)
    dispatcher.clock_set = timedelta()
    return True


def fire_schedules(dispatcher: Dispatcher) -> bool:
    """Start what is scheduled for now; a schedule with a fault of its own costs itself alone. Tells whether any run began."""
    due = schedules.due(dispatcher.box.database, now=clock.now())
    fired = sum(_guarded(lambda row=row: _fire(dispatcher, row)) for row in due)
    if fired:
        dispatcher.bell.wake_workers()
    return bool(fired)


def _fire(dispatcher: Dispatcher, row: Row[Any]) -> bool:
    run_id = schedules.fire(dispatcher.box.database, row, now=clock.now())
    if run_id is not None:
        crashpoints.reach("schedule-fired")
        log.info("step=schedule trigger=%s run=%s", row.id, run_id)
    return run_id is not None


def _listen(dispatcher: Dispatcher) -> None:
    """Pass on what workers tell; without Redis the loop looks once a second."""
    notices = dispatcher.bell.notices()
    while not dispatcher.stopping.is_set():
        if notices.wait(LISTEN_S):
            dispatcher.inbox.put(None)


def _gather(dispatcher: Dispatcher, timeout_s: float) -> None:
    """Wait for something to come in, and take all that has.

    While others wait in memory for their slot, nobody waits for this commit: what ends within some milliseconds shares it.
    """
    try:
        _take(dispatcher, dispatcher.inbox.get(timeout=timeout_s) if timeout_s else dispatcher.inbox.get_nowait())
        until = time.monotonic() + (SHARED_S if dispatcher.slots.waiting else 0.0)
        while True:
            left_s = until - time.monotonic()
            _take(dispatcher, dispatcher.inbox.get(timeout=left_s) if left_s > 0 else dispatcher.inbox.get_nowait())
    except Empty:
        return


def _take(dispatcher: Dispatcher, item: attempts.Sent | None) -> None:
    if item is not None:
        dispatcher.unrecorded.append(item)


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
    swept = runs.sweep(dispatcher.box, stale_s=STALE_S, machine_lost_after_s=dispatcher.machine_lost_after_s, now=clock.now())
    freed = deliveries.sweep(dispatcher.box.database)
    if swept.lost or freed:
        log.warning("step=sweep runs_lost=%d deliveries_freed=%d", swept.lost, freed)
        metrics.leases_lost("sweep", swept.lost)
    if swept.stranded:
        log.warning("step=sweep runs_without_files=%d", swept.stranded)
    if swept.stale:
        dispatcher.bell.wake_workers()
    if swept.bound_here:
        dispatcher.bell.wake_here()
    return swept.stale or swept.bound_here


def beat(dispatcher: Dispatcher) -> bool:
    """Say that this machine lives, so that runs with files wait for it; and forget the folders of runs deleted elsewhere."""
    machines.seen(dispatcher.box.database, dispatcher.box.machine)
    if time.monotonic() >= dispatcher.next_tidying:
        dispatcher.next_tidying = time.monotonic() + TIDY_EVERY_S
        retention.prune_folders(dispatcher.box.database, dispatcher.runs_dir)
    return True


def prune(dispatcher: Dispatcher) -> bool:
    """Delete a batch of what is kept no longer; tells whether there was any."""
    if dispatcher.keep is None:
        return False
    gone = retention.prune(dispatcher.box.database, dispatcher.keep, dispatcher.runs_dir, now=clock.now())
    if gone:
        log.info("step=prune rows=%d", gone)
    return gone > 0


def deliver_due(dispatcher: Dispatcher, pool: ThreadPoolExecutor) -> bool:
    """Record what was sent, claim what is due and hand it to the sending threads; tells whether any was claimed."""
    claimed = _record(dispatcher) if dispatcher.unrecorded else _claim(dispatcher)
    if claimed:
        crashpoints.reach("delivery-claimed")
    for row in dispatcher.slots.add(claimed):
        pool.submit(_send, dispatcher, row)
    return bool(claimed)


def hand_back(dispatcher: Dispatcher) -> bool:
    """Release what was claimed ahead and is not to be sent from here."""
    ids = dispatcher.slots.returned()
    if ids:
        with dispatcher.box.database.transaction() as connection:
            deliveries.release(connection, ids, owner=dispatcher.owner)
        dispatcher.slots.forget(ids)
    return bool(ids)


def _claim(dispatcher: Dispatcher) -> list[Row[Any]]:
    return deliveries.claim_due(dispatcher.box.database, owner=dispatcher.owner, room=dispatcher.slots.room(), now=clock.now())


def _record(dispatcher: Dispatcher) -> list[Row[Any]]:
    """Record all attempts that ended and claim the next deliveries: one commit for all of them.

    What cannot be recorded now is tried again at the next turn. An attempt that a fault of ours keeps from being recorded
    is dropped: it is sent again when its lease is over, and must not hold up the others.
    """
    sent, database, owner, now = list(dispatcher.unrecorded), dispatcher.box.database, dispatcher.owner, clock.now()
    try:
        with database.transaction() as connection:
            statuses = attempts.record(connection, sent, owner=owner, schedule_s=dispatcher.schedule_s, now=now)
            # Before the claim: what is claimed now was not paused.
            dispatcher.slots.drop(attempts.paused(connection, sent))
            claimed = deliveries.claim_some(database, connection, owner=owner, room=dispatcher.slots.room(), now=now)
            crashpoints.reach("attempt-before-commit")
    except DBAPIError:
        log.exception("step=deliver count=%d status=fault", len(sent))
        statuses, claimed = [_record_alone(dispatcher, row, outcome) for row, outcome in sent], []
    # Only now: what could not be recorded is held still.
    dispatcher.slots.settle(row.id for row, _ in sent)
    del dispatcher.unrecorded[: len(sent)]
    crashpoints.reach("attempt-recorded")
    for (row, outcome), status in zip(sent, statuses, strict=True):
        _measure(row, outcome, status)
        log.info(
            "step=deliver delivery=%s run=%s event=%s status=%s reason=%s code=%s ms=%d",
            row.id, row.run_id, row.event, status, outcome.reason, outcome.status_code, outcome.duration_ms,
        )  # fmt: skip
    return claimed


def _measure(row: Row[Any], outcome: deliveries.Outcome, status: DeliveryStatus | None) -> None:
    lag_s = (outcome.started_at - clock.from_text(row.next_attempt_at)).total_seconds() if row.attempts == 0 else None
    metrics.attempt(str(status or "superseded"), outcome.reason, lag_s=lag_s)


def _record_alone(dispatcher: Dispatcher, row: Row[Any], outcome: deliveries.Outcome) -> DeliveryStatus | None:
    """Record by itself what could not be recorded with others, and drop what cannot be: it must not hold them up."""
    settings: dict[str, Any] = {"owner": dispatcher.owner, "schedule_s": dispatcher.schedule_s, "now": clock.now()}
    try:
        return attempts.record_attempt(dispatcher.box.database, row, outcome, **settings)
    except (Unavailable, DBAPIError):
        log.exception("step=deliver delivery=%s status=dropped", row.id)
        return None


def _send(dispatcher: Dispatcher, row: Row[Any]) -> None:
    """Send a delivery in a thread of its own, then what waits for the same slot; the loop records what came of each."""
    following: Row[Any] | None = row
    while following is not None:
        row, outcome = following, _outcome(dispatcher, following)
        following = dispatcher.slots.land(
            row,
            duration_ms=outcome.duration_ms,
            answered=outcome.status_code is not None,
            delivered=outcome.delivered,
            gone=outcome.status_code == deliveries.GONE,
        )
        dispatcher.inbox.put((row, outcome))


def _outcome(dispatcher: Dispatcher, row: Row[Any]) -> deliveries.Outcome:
    now = clock.now()
    try:
        send = dispatcher.simulation.send if dispatcher.simulation else deliveries.send
        outcome = send(row, dispatcher.sender, now=now)
        crashpoints.reach("delivery-sent")
    except Exception:
        log.exception("step=deliver delivery=%s status=fault", row.id)
        return deliveries.Outcome(now, 0, None, "fault", "A fault of the service's own; its log beside this time says which.")
    return outcome
