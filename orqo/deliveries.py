"""Deliveries: claimed when due, sent, and what came of each attempt recorded.

Owns the tables deliveries and attempts once callbacks.py has written the event. Never imports runs; never decides which
thread sends.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

from sqlalchemy import Connection, Row, Table, bindparam, exists, func, not_, or_, select, update

from orqo import clock, leases, outbound, signing
from orqo.db import Database
from orqo.errors import Conflict, Fault, Invalid, NotFound
from orqo.models import Attempt, Callback, Delivery, DeliveryStatus, Run
from orqo.secretstore import SecretStore
from orqo.slots import Room

ANSWER_MAX_BYTES = 16384
EXCERPT_BYTES = 4096
TIMEOUT_S = 15.0
LEASE_S = 45.0
GONE = 410
REDELIVER_BATCH = 1000
# How many of the longest due are looked at for those that there is room for.
WINDOW = 200
PREVIOUS = "_PREVIOUS"
COLUMNS = cast(Table, Delivery.__table__)
NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_boot": None, "lease_until": None}
# Built once: SQLAlchemy takes longer to put such a statement together than SQLite to carry it out.
DUE = (
    select(COLUMNS.c.id, COLUMNS.c.host, COLUMNS.c.guarded)
    .where(
        COLUMNS.c.status == DeliveryStatus.PENDING,
        COLUMNS.c.next_attempt_at <= bindparam("now"),
        or_(COLUMNS.c.lease_owner.is_(None), COLUMNS.c.lease_boot != bindparam("boot"), COLUMNS.c.lease_until <= bindparam("seconds")),
        COLUMNS.c.guarded <= bindparam("guarded"),
        not_(COLUMNS.c.host.in_(bindparam("full", expanding=True))),
    )
    .order_by(COLUMNS.c.next_attempt_at, COLUMNS.c.id)
    .limit(bindparam("most"))
)
# Two dispatchers on PostgreSQL pass each other by.
DUE_LOCKED = DUE.with_for_update(skip_locked=True)
LEASED = (
    update(COLUMNS)
    .where(COLUMNS.c.id.in_(bindparam("ids", expanding=True)))
    .values(lease_owner=bindparam("owner"), lease_boot=bindparam("lease_in"), lease_until=bindparam("lease_to"))
    .returning(*COLUMNS.c)
)


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


def claim_due(database: Database, *, owner: str, room: Room, now: datetime) -> list[Row[Any]]:
    """Lease deliveries that are due and free, the longest due first; one commit, none where nothing is due.

    No more than there is room for, in all and at each host: receivers that hang hold no others up.
    """
    if room.slots <= 0:
        return []
    with database.read() as connection:
        if connection.execute(DUE, _wanted(database, connection, room, now) | {"most": 1}).first() is None:
            return []
    with database.transaction() as connection:
        return claim_some(database, connection, owner=owner, room=room, now=now)


def claim_some(database: Database, connection: Connection, *, owner: str, room: Room, now: datetime) -> list[Row[Any]]:
    """Do what `claim_due` does within the caller's transaction."""
    if room.slots <= 0:
        return []
    wanted = _wanted(database, connection, room, now)
    due = connection.execute(DUE_LOCKED, wanted | {"most": WINDOW}).all()
    chosen = [row.id for row in due if room.take(row.host, guarded=bool(row.guarded))]
    if not chosen:
        return []
    lease = {"owner": owner, "lease_in": wanted["boot"], "lease_to": wanted["seconds"] + LEASE_S}
    rows = {row.id: row for row in connection.execute(LEASED, {"ids": chosen} | lease)}
    return [rows[each] for each in chosen]


def _wanted(database: Database, connection: Connection, room: Room, now: datetime) -> dict[str, Any]:
    reading = database.lease_clock(connection)
    # A slot of a guarded one is the only thing that may be wanting while others have room.
    guarded = int(room.guarded > 0)
    return {"boot": reading.boot, "seconds": reading.seconds, "now": clock.to_text(now), "guarded": guarded, "full": room.full}


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


def redeliver(connection: Connection, delivery_id: int, *, now: datetime) -> None:
    """Send a delivery once more, with a fresh retry schedule, the same id and the same bytes.

    NotFound where there is none; Conflict while it is pending, or where it could not be rendered.
    """
    row = get(connection, delivery_id)
    if row.status == DeliveryStatus.PENDING:
        raise Conflict(f"Delivery {delivery_id} is pending: it is being sent already.")
    if not row.body:
        raise Conflict(f"Delivery {delivery_id} could not be rendered: there is nothing to send. Mend the callback and run again.")
    _send_again(connection, [delivery_id], now)


def redeliver_dead(
    connection: Connection,
    *,
    callback_id: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    workflow_ids: Collection[int] | None = None,
    limit: int = REDELIVER_BATCH,
    now: datetime,
) -> list[int]:
    """Send dead deliveries once more, those of a callback, those that died from `since` until before `until`, or both; gives their ids.

    One batch: call again, in a transaction of its own and with the same `until`, while it gives `limit` of them. Whatever
    is repeated finds only what is still dead. Invalid where no moment lies between the two.
    """
    if since is not None and until is not None and until <= since:
        raise Invalid("until must be later than since.", errors=[Fault("/until", "must be later than since")])
    wanted = [Delivery.status == DeliveryStatus.DEAD, Delivery.body != b""]
    if callback_id is not None:
        wanted.append(Delivery.callback_id == callback_id)
    if since is not None:
        wanted.append(Delivery.finished_at >= clock.to_text(since))
    if until is not None:
        wanted.append(Delivery.finished_at < clock.to_text(until))
    if workflow_ids is not None:
        wanted.append(Delivery.run_id.in_(select(Run.id).where(Run.workflow_id.in_(workflow_ids))))
    ids = list(connection.execute(select(Delivery.id).where(*wanted).order_by(Delivery.id).limit(limit)).scalars())
    _send_again(connection, ids, now)
    return ids


def with_dead(connection: Connection, callback_ids: Sequence[int]) -> set[int]:
    """Give which of these callbacks have dead deliveries that could be sent again."""
    again = (Delivery.callback_id == Callback.id, Delivery.status == DeliveryStatus.DEAD, Delivery.body != b"")
    return set(connection.execute(select(Callback.id).where(Callback.id.in_(callback_ids), exists().where(*again))).scalars())


def _send_again(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    """Make deliveries pending anew, and the first of each run and callback due unless it is paused."""
    again = {"status": DeliveryStatus.PENDING, "retries": 0, "finished_at": None, "next_attempt_at": None}
    connection.execute(update(Delivery).where(Delivery.id.in_(ids)).values(again))
    of_runs = Delivery.run_id.in_(select(Delivery.run_id).where(Delivery.id.in_(ids)))
    heads = (
        select(func.min(Delivery.id)).where(of_runs, Delivery.status == DeliveryStatus.PENDING).group_by(Delivery.run_id, Delivery.channel)
    )
    paused = exists().where(Callback.id == Delivery.callback_id, Callback.paused_at.is_not(None))
    free = (Delivery.id.in_(heads), Delivery.next_attempt_at.is_(None), not_(paused))
    connection.execute(update(Delivery).where(*free).values(next_attempt_at=clock.to_text(now)))


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
