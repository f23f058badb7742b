"""What becomes of a request at a webhook once its bytes are there: checked in order, then a run, or why there is none.

Owns the order of the checks after 404, 409 and 413 (DESIGN §1), and the replay of what was refused. Knows no HTTP server.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from orqo import call, facts, inbound, lookup, match, payload, requestlog, runs, triggers, vendors
from orqo.call import Call
from orqo.db import Database
from orqo.errors import Busy, Conflict, Forbidden, Invalid, Malformed, NotFound, Problem, TooManyRequests, Unauthorized
from orqo.models import Verdict
from orqo.signing import SignatureInvalid
from orqo.vendors import Handshake
from orqo.webhook import Options

log = logging.getLogger(__name__)

NOT_PASSED = "the webhook's filter does not let it pass; its request log says why"
KEY_MAX_CHARACTERS = 255
DIAGNOSED_MAX_BYTES = 256 * 1024
CHALLENGE = {"WWW-Authenticate": 'Signature realm="webhook"'}


class SignatureRefused(Unauthorized):
    """The signature does not fit. The sender is told that alone: why is its owner's to read."""

    def __init__(self, for_owner: str) -> None:
        detail = "The signature is missing or does not fit. The request log in the workflow's Runs & Triggers tab says why."
        super().__init__(detail, headers=CHALLENGE, for_owner=for_owner)


@dataclass(frozen=True)
class Gate:
    """What requests are checked with: the database, the secrets by name, and how others reach this box.

    Without `replays` the same event again is another run. `before_start` may raise, delay or name the run to answer with, for a stand-in.
    """

    database: Database
    secrets: Mapping[str, str]
    base_url: str
    replays: bool = True
    before_start: Callable[[int, Mapping[str, Any]], int | None] | None = None


@dataclass(frozen=True)
class Visit:
    """One request at one trigger. `replay_of`: it was kept and comes again; `unverified`: an admin said to run it anyway."""

    found: Row[Any]
    options: Options
    call: Call
    replay_of: int | None = None
    unverified: bool = False

    def entry(self, verdict: Verdict, status_code: int, reason: str | None = None, run_id: int | None = None) -> requestlog.Entry:
        """Give what the request log writes of it."""
        return requestlog.Entry(
            "hook", self.call, verdict, status_code, reason,
            trigger_id=self.found.id, run_id=run_id, scheme=self.options.scheme, replay_of=self.replay_of,
        )  # fmt: skip

    def refused(self, fault: Problem) -> requestlog.Entry:
        """Give what the request log writes where it was refused."""
        return self.entry(Verdict.REFUSED, fault.status, requestlog.refusal(fault))


@dataclass(frozen=True)
class Outcome:
    """What a request came to, short of a refusal: a run, found or made, or the reason why there is none."""

    verdict: Verdict
    run_id: int | None = None
    reason: str | None = None
    handshake: Handshake | None = None
    answer: tuple[int, Any] | None = None
    """The trigger's own answer: status and JSON, where it has one."""


def visit(found: Row[Any], given: Call) -> Visit:
    """Make the visit of a request at the trigger that its token belongs to, a row of `triggers.find`."""
    return Visit(found, Options.from_stored(found.options), given)


def receive(gate: Gate, guest: Visit, *, now: datetime) -> Outcome:
    """Check a request whose body was read and start its run; the run and its row of the log are one commit.

    Raises Forbidden, TooManyRequests, SignatureRefused, Malformed or Invalid: nothing is written then.
    """
    _check_network(guest)
    _check_rate(gate, guest, now)
    if guest.call.method == "GET":
        return _greeted(gate, guest, _challenged(gate, guest), now)
    verify(gate, guest, now=now)
    return judge(gate, guest, now=now)


# ── the checks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_network(guest: Visit) -> None:
    if guest.options.networks and not call.within(guest.call.remote, guest.options.networks):
        sender = guest.call.remote or "an unknown address"
        raise Forbidden(
            "This webhook is not open to the address that this came from.",
            for_owner=f"{sender} is in none of the trigger's networks; behind a proxy set ORQO_TRUSTED_PROXIES",
        )


def _check_rate(gate: Gate, guest: Visit, now: datetime) -> None:
    if guest.options.rate is None:
        return
    with gate.database.transaction() as connection:
        wait_s = triggers.take_turn(connection, guest.found.id, guest.options.rate, now=now)
    if wait_s is not None:
        raise TooManyRequests(f"This webhook is over its rate. Try again in {wait_s} s.", headers={"Retry-After": str(wait_s)})


def verify(gate: Gate, guest: Visit, *, now: datetime, tolerance_s: int | None = inbound.TOLERANCE_S) -> None:
    """Return where the trigger wants no signature or one fits; SignatureRefused else, also without a secret to check with."""
    scheme = guest.options.scheme
    if scheme is None:
        return
    missing = [name for name in guest.options.secrets if not gate.secrets.get(name)]
    secrets = [gate.secrets[name] for name in guest.options.secrets if name not in missing]
    for name in missing:
        log.warning("step=signature trigger=%s status=secret_missing secret=%s", guest.found.id, name)
    headers, body = guest.call.headers, guest.call.body or b""
    try:
        inbound.verify(scheme, secrets, headers, body, now=int(now.timestamp()), tolerance_s=tolerance_s)
    except SignatureInvalid as fault:
        hint = inbound.diagnose(scheme, secrets, headers, body) if secrets and len(body) <= DIAGNOSED_MAX_BYTES else None
        told = [fault.reason, hint, *(f"the secret {name} is not set: give the service ORQO_SECRET_{name}" for name in missing)]
        raise SignatureRefused("; ".join(part for part in told if part)) from fault


def _challenged(gate: Gate, guest: Visit) -> Handshake:
    name = guest.options.verify_token or ""
    try:
        return vendors.challenge(guest.call, gate.secrets.get(name, ""))
    except SignatureInvalid as fault:
        unset = "" if gate.secrets.get(name) else f"; the secret {name} is not set: give the service ORQO_SECRET_{name}"
        raise SignatureRefused(fault.reason + unset) from fault


def judge(gate: Gate, guest: Visit, *, now: datetime) -> Outcome:
    """Do what comes after the signature: handshake, body, duplicate, filter, run."""
    value, malformed = _value(guest.call)
    greeting = vendors.handshake(guest.options.scheme, guest.call, value)
    if greeting is not None:
        return _greeted(gate, guest, greeting, now)
    if malformed is not None:
        raise malformed
    told = {"name": guest.found.name, "headers": call.told_headers(guest.call), "query": call.told_query(guest.call)}
    replay = _replay(guest, value) if gate.replays else None
    reason = _filtered(gate, guest, replay, {"input": value, "trigger": told}, now)
    if reason is not None:
        requestlog.note(gate.database, guest.entry(Verdict.IGNORED, 200, reason), now=now)
        # The reason quotes what the filter wants, which is nothing for the sender.
        return Outcome(Verdict.IGNORED, reason=NOT_PASSED)
    if not guest.found.workflow_enabled and not _known(gate, replay, now):
        raise Invalid(f"The workflow {guest.found.workflow_name} is disabled: it cannot be started.")
    try:
        return _accepted(gate, guest, value, told, replay, now)
    except Busy as fault:
        requestlog.note(gate.database, guest.entry(Verdict.IGNORED, 200, fault.detail), now=now)
        return Outcome(Verdict.IGNORED, reason=fault.detail)


def _value(given: Call) -> tuple[Any, Malformed | None]:
    try:
        return payload.to_input(given.body or b"", given.content_type), None
    except Malformed as fault:
        return None, fault


def _greeted(gate: Gate, guest: Visit, greeting: Handshake, now: datetime) -> Outcome:
    requestlog.note(gate.database, guest.entry(Verdict.HANDSHAKE, 200, greeting.reason), now=now)
    return Outcome(Verdict.HANDSHAKE, handshake=greeting)


def _replay(guest: Visit, value: Any) -> runs.Replay | None:
    """Give what makes this request the same as an earlier one: the sender's key, else the event's own name."""
    if not guest.options.dedupe or guest.unverified:
        # An event's name counts only after the signature passed: else a forged one could take the place of the real.
        return None
    scope = f"trigger:{guest.found.id}"
    signed = vendors.signed_id(guest.options.scheme, guest.call, value)
    if signed is not None:
        return runs.Replay(scope, signed, None)
    key = guest.call.headers.get("idempotency-key")
    if key is not None:
        return keyed(scope, key, guest.call.body or b"")
    event = vendors.event_id(guest.call, value)
    return runs.Replay(scope, event, None) if event else None


def keyed(scope: str, key: str, body: bytes) -> runs.Replay:
    """Give the Replay of an Idempotency-Key; Malformed where that is unusable."""
    if not 0 < len(key) <= KEY_MAX_CHARACTERS or not key.isascii() or not key.isprintable():
        raise Malformed(f"Idempotency-Key must have 1 to {KEY_MAX_CHARACTERS} printable ASCII characters.")
    return runs.Replay(scope, f"key:{key}", hashlib.sha256(body).hexdigest())


def _filtered(gate: Gate, guest: Visit, replay: runs.Replay | None, roots: Mapping[str, Any], now: datetime) -> str | None:
    """Give why the filter lets a request not pass. What comes again is answered as the first time, whatever the filter says now."""
    if guest.options.filter is None:
        return None
    return None if _known(gate, replay, now) else match.explain(guest.options.filter, roots)


def _known(gate: Gate, replay: runs.Replay | None, now: datetime) -> bool:
    """Tell whether this call was answered before: it gets that answer again, whatever has changed since."""
    if replay is None:
        return False
    with gate.database.read() as connection:
        return runs.earlier(connection, replay, now=now) is not None


def _accepted(gate: Gate, guest: Visit, value: Any, told: Mapping[str, Any], replay: runs.Replay | None, now: datetime) -> Outcome:
    found = guest.found
    new = runs.NewRun(
        workflow_id=found.workflow_id,
        version_id=found.version_id,
        origin="webhook",
        input=value,
        metadata=_noted(guest),
        trigger_id=found.id,
        trigger_facts=told,
        replay=replay,
        awaited=guest.options.answer is None and call.wait_s(guest.call.headers) > 0,
    )
    same = gate.before_start(found.version_id, {"input": value, "trigger": told}) if gate.before_start else None
    if same is not None:
        requestlog.note(gate.database, guest.entry(Verdict.DUPLICATE, 200, run_id=same), now=now)
        return Outcome(Verdict.DUPLICATE, run_id=same)

    def write(connection: Connection) -> Outcome:
        accepted = runs.accept(connection, _as_it_is_now(connection, new), now=now)
        verdict, status = (Verdict.DUPLICATE, 200) if accepted.duplicate else (Verdict.ACCEPTED, 201)
        answer = _own_answer(gate, guest, {"input": value, "trigger": told}, accepted.run_id)
        requestlog.write(connection, guest.entry(verdict, answer[0] if answer else status, run_id=accepted.run_id), now=now)
        return Outcome(verdict, run_id=accepted.run_id, answer=answer)

    return gate.database.together(write)


def _as_it_is_now(connection: Connection, new: runs.NewRun) -> runs.NewRun:
    """Look at the trigger once more within the transaction: it may have been disabled, deleted or given a new version since."""
    found = triggers.find_by_id(connection, new.trigger_id) if new.trigger_id is not None else None
    if found is None:
        raise NotFound(triggers.UNKNOWN)
    if not found.enabled:
        raise Conflict("This webhook is disabled. Enable it in the workflow's Runs & Triggers tab.")
    return replace(new, version_id=found.version_id)


def _noted(guest: Visit) -> dict[str, Any]:
    """Give what the run's metadata says of a replayed request."""
    if guest.replay_of is None:
        return {}
    signature = "not verified" if guest.unverified else "verified" if guest.options.scheme else "none wanted"
    return {"replayed_request": guest.replay_of, "signature": signature}


def _own_answer(gate: Gate, guest: Visit, roots: Mapping[str, Any], run_id: int) -> tuple[int, Any] | None:
    """Give the trigger's own answer with its look-ups done; ours stands in where one of them finds nothing."""
    own, found = guest.options.answer, guest.found
    if own is None:
        return None
    run = {"id": run_id, "url": facts.run_url(gate.base_url, run_id)}
    known = {**roots, "run": run, "workflow": {"id": found.workflow_id, "name": found.workflow_name}}
    try:
        return own.status, lookup.render(own.json, known) if own.has_json else None
    except lookup.LookupFailed as fault:
        log.warning("step=answer trigger=%s status=lookup_failed path=%s", found.id, fault.path[:80])
        return None
