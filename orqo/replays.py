"""Kept requests sent through their webhook once more, after what refused them was mended.

Owns which of them may come again. A signature is verified again, without its time: what was signed then is still signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from orqo import hooks, requestlog, triggers
from orqo.errors import Conflict, NotFound
from orqo.hooks import Gate, Outcome, Visit
from orqo.models import Verdict
from orqo.webhook import Options

DISABLED = "Trigger {name} is disabled: enable it first."
AGAIN = (Verdict.REFUSED, Verdict.IGNORED)


def replay(gate: Gate, request_id: int, *, anyway: bool = False, now: datetime) -> Outcome:
    """Judge a refused or ignored request by what its trigger says now, and start its run, which notes where it came from.

    `anyway` starts it without the signature: an admin's word, noted on the run. The caller wakes the workers. Raises NotFound,
    Conflict, SignatureRefused, Malformed or Invalid.
    """
    with gate.database.read() as connection:
        row = requestlog.find(connection, request_id)
        found = triggers.find_by_id(connection, row.trigger_id) if row is not None and row.trigger_id is not None else None
    if row is None:
        raise NotFound(f"There is no request {request_id}: it never arrived, or was older than what is kept.")
    if found is None:
        raise Conflict(_why_not(row) or f"The trigger of request {request_id} is gone.")
    refusal = _why_not(row)
    if refusal:
        raise Conflict(refusal)
    with gate.database.read() as connection:
        again = requestlog.run_of_replay(connection, request_id)
    if again is not None:
        raise Conflict(f"Request {request_id} was replayed already: it started run {again}. Run that one again instead.")
    if not found.enabled:
        raise Conflict(DISABLED.format(name=found.name))
    guest = Visit(found, Options.from_stored(found.options), requestlog.call_of(row), replay_of=request_id)
    if anyway:
        guest = _unverified(gate, guest, now)
    else:
        hooks.verify(gate, guest, now=now, tolerance_s=None)
    return hooks.judge(gate, guest, now=now)


@dataclass(frozen=True)
class Prospect:
    """What would become of a kept request now: `refusal` says why it cannot come again, `signature` why it does not fit."""

    refusal: str | None = None
    signature: str | None = None


def prospect(gate: Gate, row: Row[Any], found: Row[Any] | None, *, now: datetime) -> Prospect:
    """Look at a request as `replay` would, and start nothing. `found` is its trigger, a row of `triggers.find_by_id`."""
    refusal = _why_not(row) or (None if found is not None else f"The trigger of request {row.id} is gone.")
    if refusal is not None or found is None:
        return Prospect(refusal)
    guest = Visit(found, Options.from_stored(found.options), requestlog.call_of(row))
    closed = None if found.enabled else DISABLED.format(name=found.name)
    try:
        hooks.verify(gate, guest, now=now, tolerance_s=None)
    except hooks.SignatureRefused as fault:
        return Prospect(closed, fault.for_owner)
    return Prospect(closed)


def _why_not(row: Row[Any]) -> str | None:
    """Say why a request cannot come again, None where it can."""
    if row.endpoint != "hook":
        return f"Request {row.id} came to /{row.endpoint}: its sender's token is not kept, so only the sender can send it again."
    if row.verdict not in AGAIN:
        return f"Request {row.id} was not refused: it is {row.verdict}" + (f", and its run is {row.run_id}." if row.run_id else ".")
    if row.body is None:
        return f"The body of request {row.id} is not kept: it was not read, or 100 others of its trigger were refused since."
    if row.method != "POST":
        return f"Request {row.id} is a {row.method}, which starts no run."
    return None


def _unverified(gate: Gate, guest: Visit, now: datetime) -> Visit:
    """Mark a request whose signature does not fit; one that fits needs nobody's word."""
    try:
        hooks.verify(gate, guest, now=now, tolerance_s=None)
    except hooks.SignatureRefused:
        return Visit(guest.found, guest.options, guest.call, guest.replay_of, unverified=True)
    return guest
