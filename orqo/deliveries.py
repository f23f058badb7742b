"""Deliveries: claimed when due, sent, and what came of each attempt recorded.

Owns the tables deliveries and attempts once callbacks.py has written the event. Never imports runs; never decides which
thread sends.
"""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from sqlalchemy import Connection, Row, and_, func, insert, not_, or_, select, update
from sqlalchemy.orm import aliased

from orqo import callbacks, clock, crashpoints, leases, outbound, signing
from orqo.db import Database
from orqo.errors import Conflict, NotFound
from orqo.models import Attempt, Callback, Delivery, DeliveryStatus
from orqo.secretstore import SecretStore

ANSWER_MAX_BYTES = 16384
EXCERPT_BYTES = 4096
TIMEOUT_S = 15.0
LEASE_S = 45.0
JITTER = 0.1
GONE = 410
REDELIVER_LIMIT = 10_000
# No host is called so: every one has its port.
GUARDED = "guarded"
GUARDED_MAX = 24
PREVIOUS = "_PREVIOUS"
COLUMNS = Delivery.__table__
NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_boot": None, "lease_until": None}


@dataclass(frozen=True)
class Outcome:
    """What one attempt came to. `status_code` None: no answer. `retry_after_s`: what the receiver asked for."""

    started_at: datetime
    duration_ms: int
    status_code: int | None
    reason: str
    detail: str
    excerpt: str | None = None
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        """Tell whether the receiver took it: 2xx and nothing else."""
        return self.status_code is not None and 200 <= self.status_code < 300


@dataclass(frozen=True)
class Sender:
    """What sending needs: the client, the secrets, and the instance key that default signing secrets derive from."""

    client: outbound.Client
    secrets: SecretStore
    key: bytes


def claim_due(
    database: Database, *, owner: str, limit: int, per_host: int, in_flight: Mapping[str, int], slow: Collection[str] = (), now: datetime
) -> list[Row[Any]]:
    """Lease deliveries that are due and free, the longest due first; one commit, none where nothing is due.

    At most `limit`, and at most `per_host` to one host with those `in_flight` already, one to a `slow` one: receivers that
    hang hold no others up. `in_flight` counts what a request's own URL influences under GUARDED too, of which there are at
    most GUARDED_MAX: whoever may start runs can name many hosts.
    """
    full = _full_hosts(in_flight, per_host, slow)
    with database.read() as connection:
        if not connection.execute(_due(database, connection, full, now).limit(1)).first():
            return []
    with database.transaction() as connection:
        room: dict[str, Any] = {"limit": limit, "per_host": per_host, "in_flight": in_flight, "slow": slow}
        return claim_some(database, connection, owner=owner, **room, now=now)


def claim_some(
    database: Database,
    connection: Connection,
    *,
    owner: str,
    limit: int,
    per_host: int,
    in_flight: Mapping[str, int],
    slow: Collection[str] = (),
    now: datetime,
) -> list[Row[Any]]:
    """Do what `claim_due` does within the caller's transaction."""
    if limit <= 0:
        return []
    reading = database.lease_clock(connection)
    due = _due(database, connection, _full_hosts(in_flight, per_host, slow), now)
    due = due.limit(limit * 4).with_for_update(skip_locked=True)
    chosen = _chosen(connection.execute(due).all(), limit, per_host, in_flight, slow)
    if chosen:
        lease = {"lease_owner": owner, "lease_boot": reading.boot, "lease_until": reading.seconds + LEASE_S}
        connection.execute(update(Delivery).where(Delivery.id.in_([row.id for row in chosen])).values(lease))
    return chosen


def _full_hosts(in_flight: Mapping[str, int], per_host: int, slow: Collection[str]) -> list[str]:
    return [host for host, count in in_flight.items() if count >= (GUARDED_MAX if host == GUARDED else 1 if host in slow else per_host)]


def _chosen(rows: Sequence[Row[Any]], limit: int, per_host: int, in_flight: Mapping[str, int], slow: Collection[str]) -> list[Row[Any]]:
    counts = Counter(in_flight)
    chosen: list[Row[Any]] = []
    for row in rows:
        taken = taken_by(row)
        if len(chosen) < limit and not set(taken) & set(_full_hosts({name: counts[name] for name in taken}, per_host, slow)):
            counts.update(taken)
            chosen.append(row)
    return chosen


def taken_by(row: Row[Any]) -> list[str]:
    """Give what a delivery in flight takes room of: its host, and the share of guarded ones where it is one."""
    return [row.host, GUARDED] if row.guarded else [row.host]


def _due(database: Database, connection: Connection, full: Collection[str], now: datetime) -> Any:
    reading = database.lease_clock(connection)
    free = or_(Delivery.lease_owner.is_(None), Delivery.lease_boot != reading.boot, Delivery.lease_until <= reading.seconds)
    due = and_(Delivery.status == DeliveryStatus.PENDING, Delivery.next_attempt_at <= clock.to_text(now))
    query = select(COLUMNS).where(due, free).order_by(Delivery.next_attempt_at, Delivery.id)
    if GUARDED in full:
        query = query.where(Delivery.guarded == 0)
    return query.where(not_(Delivery.host.in_(sorted(full)))) if full else query


def release(connection: Connection, delivery_ids: Sequence[int], *, owner: str) -> None:
    """Give leased deliveries back unsent."""
    mine = (Delivery.id.in_(delivery_ids), Delivery.lease_owner == owner)
    connection.execute(update(Delivery).where(*mine).values(NO_LEASE))


def sweep(database: Database) -> int:
    """Free the deliveries whose dispatcher is gone, without waiting for their lease; gives how many."""
    leased = select(Delivery.lease_owner).where(Delivery.status == DeliveryStatus.PENDING, Delivery.lease_owner.is_not(None)).distinct()
    with database.read() as connection:
        gone = [owner for owner in connection.execute(leased).scalars() if owner and leases.is_gone(owner)]
    if not gone:
        return 0
    with database.transaction() as connection:
        freed = update(Delivery).where(Delivery.status == DeliveryStatus.PENDING, Delivery.lease_owner.in_(gone))
        return connection.execute(freed.values(NO_LEASE)).rowcount


def send(delivery: Row[Any], sender: Sender, *, now: datetime) -> Outcome:
    """POST a delivery once, signed for this attempt's time, and give what came of it. Touches no database.

    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    try:
        url, headers = request_of(delivery, sender.secrets, sender.key, now=now)
    except KeyError as fault:
        name = fault.args[0]
        return Outcome(now, 0, None, "secret_missing", f"There is no secret {name}; set ORQO_SECRET_{name}.")
    except ValueError as fault:
        return Outcome(now, 0, None, "secret_unusable", f"The secret {delivery.secret} cannot sign: {fault}.")
    answer = sender.client.send(
        method="POST",
        url=url,
        headers=headers,
        body=delivery.body,
        guarded=bool(delivery.guarded),
        timeout_s=TIMEOUT_S,
        max_bytes=ANSWER_MAX_BYTES,
    )
    return _outcome(answer, url, sender.secrets, now)


def request_of(delivery: Row[Any], secrets: SecretStore, key: bytes, *, now: datetime) -> tuple[str, dict[str, str]]:
    """Give the URL and the headers of an attempt, secrets filled in and signed for `now`.

    KeyError where a secret is absent, ValueError where the signing secret cannot be used.
    """
    url = _filled(json.loads(delivery.url), secrets, quoted=True)
    headers = {name: _filled(value, secrets, quoted=False) for name, value in json.loads(delivery.headers).items()}
    keys = _signing_keys(delivery.secret, url, secrets, key)
    signed = signing.callback_headers(keys, message_id=delivery.webhook_id, timestamp=int(now.timestamp()), body=delivery.body)
    return url, {"Content-Type": "application/json", **headers, **signed}


def _signing_keys(name: str | None, url: str, secrets: SecretStore, key: bytes) -> list[bytes]:
    """Give the keys to sign with, the newest first: while a secret is rotated, NAME_PREVIOUS signs too.

    KeyError where the secret is absent, ValueError where it is empty or not what its prefix says.
    """
    if name is None:
        return [signing.secret_bytes(signing.derived_secret(key, url))]
    previous = secrets.get(f"{name}{PREVIOUS}")
    return [signing.secret_bytes(secret) for secret in (secrets[name], previous) if secret is not None]


def _filled(segments: Sequence[Any], secrets: Mapping[str, str], *, quoted: bool) -> str:
    """Put the secrets into a frozen text; in a URL's path or query each as one percent-encoded segment."""
    text = ""
    for segment in segments:
        if isinstance(segment, str):
            text += segment
        else:
            value = secrets[segment["secret"]]
            in_path = any(mark in text.partition("://")[2] for mark in "/?#")
            text += quote(value, safe="") if quoted and in_path else value
    return text


def _outcome(answer: outbound.Answer | outbound.Failure, url: str, secrets: SecretStore, now: datetime) -> Outcome:
    if isinstance(answer, outbound.Failure):
        return Outcome(now, answer.duration_ms, None, answer.reason, secrets.mask(answer.detail))
    excerpt = _excerpt(answer, url, secrets)
    taken = 200 <= answer.status < 300
    reason, detail = ("delivered", "") if taken else ("status", _why_not(answer.status))
    retry_after_s = None if taken else outbound.retry_after_s(answer.headers.get("retry-after"), now=now)
    return Outcome(now, answer.duration_ms, answer.status, reason, detail, excerpt, retry_after_s)


def _excerpt(answer: outbound.Answer, url: str, secrets: SecretStore) -> str:
    """Give the beginning of an answer as text, masked before it is cut: half a secret is one too."""
    body = secrets.mask_bytes(answer.body)
    user = urlsplit(url).netloc.rpartition("@")[0].encode()
    for shown in (user, base64.b64encode(unquote_to_bytes(user))) if user else ():
        body = body.replace(shown, b"***")
    body = secrets.mask_last(body) if answer.truncated else body
    return body[:EXCERPT_BYTES].decode("utf-8", errors="replace").replace("\0", "\ufffd")


def _why_not(status: int) -> str:
    if 300 <= status < 400:
        return f"The receiver answered {status}. Redirects are not followed: configure the address it points to."
    if status == GONE:
        return "The receiver answered 410: it wants no more. The callback is paused until it is resumed."
    return f"The receiver answered {status}; only 2xx counts as delivered."


def retry_delay(number: int, schedule_s: Sequence[float]) -> float | None:
    """Give the pause after the `number`-th counted attempt, None after the last: then the delivery is dead."""
    return schedule_s[number - 1] if number <= len(schedule_s) else None


def record_attempt(
    database: Database, delivery: Row[Any], outcome: Outcome, *, owner: str, schedule_s: Sequence[float], now: datetime
) -> DeliveryStatus | None:
    """Record one attempt and what follows from it: delivered, pending again or dead; one commit.

    Gives the delivery's new status, None where its lease was lost meanwhile: then another attempt is under way and
    this one is recorded as a duplicate without changing the delivery.
    """
    with database.transaction() as connection:
        status = record_one(connection, delivery, outcome, owner=owner, schedule_s=schedule_s, now=now)
        crashpoints.reach("attempt-before-commit")
        return status


def record_one(
    connection: Connection, delivery: Row[Any], outcome: Outcome, *, owner: str, schedule_s: Sequence[float], now: datetime
) -> DeliveryStatus | None:
    """Do what `record_attempt` does within the caller's transaction."""
    if delivery.callback_id and outcome.status_code == GONE:
        callbacks.pause(connection, delivery.callback_id, reason="The receiver answered 410 Gone.", now=now)
    elif delivery.callback_id and not _is_hopeless(delivery, outcome):
        callbacks.note_attempt(connection, delivery.callback_id, delivered=outcome.delivered, now=now)
    paused = _is_paused(connection, delivery.callback_id)
    # Nobody else changes what is leased, so the row as it was claimed still tells the counts.
    hopeless = _is_hopeless(delivery, outcome)
    status, next_s = (DeliveryStatus.DEAD, None) if hopeless else _verdict(outcome, delivery.retries + 1, schedule_s)
    ended = status != DeliveryStatus.PENDING
    changes = {
        "attempts": Delivery.attempts + 1,
        "retries": delivery.retries + 1,
        "status": status,
        "next_attempt_at": None if ended or paused else clock.to_text(now + timedelta(seconds=next_s or 0.0)),
        "finished_at": clock.to_text(now) if ended else None,
        **NO_LEASE,
    }
    mine = (Delivery.id == delivery.id, Delivery.lease_owner == owner, Delivery.status == DeliveryStatus.PENDING)
    number = connection.execute(update(Delivery).where(*mine).values(changes).returning(Delivery.attempts)).scalar()
    if number is None and connection.execute(select(Delivery.id).where(Delivery.id == delivery.id)).scalar() is None:
        # Pruned with its run meanwhile: there is nothing left to record it for.
        return None
    _insert_attempt(connection, delivery.id, outcome, number=number or delivery.attempts + 1)
    if number is None:
        return None
    if ended and not paused:
        _release_next(connection, delivery.run_id, delivery.channel, clock.to_text(now))
    return status


def _is_hopeless(delivery: Row[Any], outcome: Outcome) -> bool:
    """Tell whether what cannot be sent now never can: its bytes are frozen, and no secret of it can be mended."""
    return outcome.reason == "bad_url" and '"secret"' not in delivery.url + delivery.headers


def _verdict(outcome: Outcome, counted: int, schedule_s: Sequence[float]) -> tuple[DeliveryStatus, float | None]:
    """Decide a delivery's status after an attempt and, while it stays pending, the seconds to the next."""
    if outcome.delivered:
        return DeliveryStatus.DELIVERED, None
    delay_s = retry_delay(counted, schedule_s)
    if outcome.status_code == GONE or delay_s is None:
        return DeliveryStatus.DEAD, None
    jittered_s = delay_s * random.uniform(1 - JITTER, 1 + JITTER)
    return DeliveryStatus.PENDING, max(jittered_s, outcome.retry_after_s or 0.0)


def _insert_attempt(connection: Connection, delivery_id: int, outcome: Outcome, *, number: int) -> None:
    values = {
        "delivery_id": delivery_id,
        "number": number,
        "started_at": clock.to_text(outcome.started_at),
        "duration_ms": outcome.duration_ms,
        "status_code": outcome.status_code,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "excerpt": outcome.excerpt,
    }
    connection.execute(insert(Attempt).values(values))


def _is_paused(connection: Connection, callback_id: int | None) -> bool:
    if callback_id is None:
        return False
    return connection.execute(select(Callback.paused_at).where(Callback.id == callback_id)).scalar() is not None


def _has_earlier(connection: Connection, row: Row[Any]) -> bool:
    """Tell whether an earlier delivery of the same run and callback is pending: it goes first, and releases this one."""
    same = (Delivery.run_id == row.run_id, Delivery.channel == row.channel, Delivery.id < row.id)
    return connection.execute(select(Delivery.id).where(*same, Delivery.status == DeliveryStatus.PENDING).limit(1)).scalar() is not None


def _release_next(connection: Connection, run_id: int, channel: str, moment: str) -> None:
    """Make the next delivery of the same run and callback due: this is what keeps them in order."""
    later = aliased(Delivery)
    head = select(func.min(later.id)).where(later.run_id == run_id, later.channel == channel, later.status == DeliveryStatus.PENDING)
    connection.execute(
        update(Delivery).where(Delivery.id == head.scalar_subquery(), Delivery.next_attempt_at.is_(None)).values(next_attempt_at=moment)
    )


def redeliver(connection: Connection, delivery_id: int, *, now: datetime) -> None:
    """Send a delivery once more, with a fresh retry schedule, the same id and the same bytes.

    NotFound where there is none; Conflict while it is pending, or where it could not be rendered.
    """
    row = get(connection, delivery_id)
    if row.status == DeliveryStatus.PENDING:
        raise Conflict(f"Delivery {delivery_id} is pending: it is being sent already.")
    if not row.body:
        raise Conflict(f"Delivery {delivery_id} could not be rendered: there is nothing to send. Mend the callback and run again.")
    held = _is_paused(connection, row.callback_id) or _has_earlier(connection, row)
    due_at = None if held else clock.to_text(now)
    again = {"status": DeliveryStatus.PENDING, "retries": 0, "finished_at": None, "next_attempt_at": due_at}
    connection.execute(update(Delivery).where(Delivery.id == delivery_id).values(again))


def redeliver_dead(connection: Connection, *, callback_id: int | None = None, since: datetime | None = None, now: datetime) -> list[int]:
    """Send all dead deliveries of a callback, of a time, or of both once more; gives their ids, at most 10,000."""
    wanted = [Delivery.status == DeliveryStatus.DEAD, Delivery.body != b""]
    if callback_id is not None:
        wanted.append(Delivery.callback_id == callback_id)
    if since is not None:
        wanted.append(Delivery.finished_at >= clock.to_text(since))
    ids = list(connection.execute(select(Delivery.id).where(*wanted).order_by(Delivery.id).limit(REDELIVER_LIMIT)).scalars())
    for delivery_id in ids:
        redeliver(connection, delivery_id, now=now)
    return ids


def get(connection: Connection, delivery_id: int) -> Row[Any]:
    """Give a delivery's row; NotFound where there is none."""
    row = connection.execute(select(COLUMNS).where(Delivery.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no delivery {delivery_id}. List them with: delivery list")
    return row


def attempts_of(connection: Connection, delivery_id: int, *, limit: int = 200) -> list[dict[str, Any]]:
    """Give the attempts of a delivery, oldest first."""
    rows = connection.execute(select(Attempt.__table__).where(Attempt.delivery_id == delivery_id).order_by(Attempt.id).limit(limit))
    told = ("number", "started_at", "duration_ms", "status_code", "reason", "detail", "excerpt")
    return [{key: getattr(row, key) for key in told} for row in rows]


def shown_url(stored: str) -> str:
    """Give the stored URL for people: secrets by name, no user info, no query."""
    segments = json.loads(stored)
    return outbound.shown_template("".join(part if isinstance(part, str) else f"${{secrets.{part['secret']}}}" for part in segments))


def list_all(connection: Connection, *, status: str | None = None, run_id: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Give `{"id", "workflow_run_id", "event", "url", "status", "attempts"}` for each delivery, newest first."""
    query = select(COLUMNS).order_by(Delivery.id.desc()).limit(limit)
    if status:
        query = query.where(Delivery.status == status)
    if run_id is not None:
        query = query.where(Delivery.run_id == run_id)
    told = ("id", "workflow_run_id", "event", "url", "status", "attempts")
    return [{key: value for key, value in shown(row).items() if key in told} for row in connection.execute(query)]


def shown(row: Row[Any]) -> dict[str, Any]:
    """Give the JSON of a delivery."""
    return {
        "id": row.id,
        "workflow_run_id": row.run_id,
        "event": row.event,
        "url": shown_url(row.url),
        "status": row.status,
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_at,
        "webhook_id": row.webhook_id,
        "created_at": row.created_at,
    }
