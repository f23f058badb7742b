"""API tokens and webhook tokens: minted, digested, found.

Owns the table api_tokens. Only digests are stored; a token is shown once, when it is made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from orqo import clock
from orqo.db import Database
from orqo.errors import Fault, Invalid, NotFound
from orqo.models import ApiToken
from orqo.prepared import Prepared

SCOPES = ("trigger", "read", "write", "callback", "admin")
DEFAULT_SCOPES = ("trigger", "read")
API_TOKEN = re.compile(r"orqo_[A-Za-z0-9_-]{43}")
WEBHOOK_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
LAST_USED_EVERY = timedelta(minutes=1)
BY_DIGEST = Prepared(select(ApiToken.__table__).where(ApiToken.token_hash == bindparam("digest")))


@dataclass(frozen=True)
class Holder:
    """Whom a presented API token belongs to and what it may do. `workflow_ids` None: every workflow."""

    id: int
    name: str
    scopes: frozenset[str]
    workflow_ids: frozenset[int] | None
    last_used_at: str | None

    def may(self, scope: str) -> bool:
        """Tell whether this scope is held; admin is all."""
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, workflow_id: int) -> bool:
        """Tell whether this workflow is within the token's list."""
        return self.workflow_ids is None or workflow_id in self.workflow_ids


def digest(token: str) -> str:
    """Give the SHA-256 that is stored in a token's place: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def mint_api_token() -> str:
    """Make a new API token: `orqo_` and 43 URL-safe characters, 32 random bytes."""
    return f"orqo_{_url_safe(secrets.token_bytes(32))}"


def mint_nonce() -> str:
    """Make what a webhook token is derived from."""
    return _url_safe(secrets.token_bytes(32))


def webhook_token(key: bytes, nonce: str) -> str:
    """Derive a webhook's 43-character token: the page can show it again, the database alone reveals none."""
    return _url_safe(hmac.new(key, b"webhook" + nonce.encode(), hashlib.sha256).digest())


def wait_token(key: bytes, nonce: str) -> str:
    """Derive a wait's 43-character token, as a webhook's."""
    return _url_safe(hmac.new(key, b"wait" + nonce.encode(), hashlib.sha256).digest())


def _url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def create(
    connection: Connection,
    *,
    name: str,
    scopes: Iterable[str] = DEFAULT_SCOPES,
    now: datetime,
    workflow_ids: Iterable[int] | None = None,
    expires_at: datetime | None = None,
    token: str | None = None,
) -> tuple[int, str]:
    """Store a new API token and give its id and its text, which cannot be had again. Invalid names what does not fit."""
    kept = _checked(name, list(scopes))
    token = token or mint_api_token()
    values = {
        "name": name,
        "token_hash": digest(token),
        "scopes": " ".join(kept),
        "workflow_ids": None if workflow_ids is None else json.dumps(sorted(workflow_ids)),
        "created_at": clock.to_text(now),
        "expires_at": clock.to_text(expires_at) if expires_at else None,
    }
    row = connection.execute(insert(ApiToken).values(values).returning(ApiToken.id))
    return row.scalar_one(), token


def _checked(name: str, scopes: list[str]) -> list[str]:
    faults = []
    if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,100}", name):
        faults.append(Fault("/name", "give 1 to 100 characters without control characters"))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        faults.append(Fault("/scopes", f"choose from {', '.join(SCOPES)}"))
    if faults:
        raise Invalid("The token cannot be made: " + "; ".join(f"{f.pointer[1:]}: {f.detail}" for f in faults), errors=faults)
    return [scope for scope in SCOPES if scope in scopes]


def find(connection: Connection, token: str, *, now: datetime) -> Holder | None:
    """Give the holder of a presented token, None where it is unknown, revoked or expired. One look-up by digest."""
    return _holder(BY_DIGEST.first(connection, {"digest": digest(token)}), now) if API_TOKEN.fullmatch(token) else None


def look_up(database: Database, token: str, *, now: datetime) -> Holder | None:
    """Do the same without a transaction around it."""
    return _holder(database.look(BY_DIGEST, {"digest": digest(token)}), now) if API_TOKEN.fullmatch(token) else None


def _holder(row: Any, now: datetime) -> Holder | None:
    if row is None or row.revoked_at or (row.expires_at and row.expires_at <= clock.to_text(now)):
        return None
    listed = None if row.workflow_ids is None else frozenset(json.loads(row.workflow_ids))
    return Holder(row.id, row.name, frozenset(row.scopes.split()), listed, row.last_used_at)


def is_marked(holder: Holder, *, now: datetime) -> bool:
    """Tell whether a token's use within this minute is recorded already."""
    return bool(holder.last_used_at and holder.last_used_at > clock.to_text(now - LAST_USED_EVERY))


def mark_used(connection: Connection, holder: Holder, *, now: datetime) -> None:
    """Record that a token was used, to the minute."""
    if is_marked(holder, now=now):
        return
    connection.execute(update(ApiToken).where(ApiToken.id == holder.id).values(last_used_at=clock.to_text(now)))


def list_all(connection: Connection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Give each API token without what it is checked by, oldest first; `workflow_ids` null: every workflow."""
    return [shown(row) for row in connection.execute(select(ApiToken.__table__).order_by(ApiToken.id).limit(limit))]


def shown(row: Row[Any]) -> dict[str, Any]:
    """Give the JSON of an API token, without what it is checked by."""
    told = ("created_at", "last_used_at", "expires_at", "revoked_at")
    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes.split(),
        "workflow_ids": None if row.workflow_ids is None else json.loads(row.workflow_ids),
        **{key: getattr(row, key) for key in told},
    }


def get(connection: Connection, token_id: int) -> Row[Any]:
    """Give a token's row; NotFound where there is none."""
    row = connection.execute(select(ApiToken.__table__).where(ApiToken.id == token_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no API token {token_id}. List them with: token list")
    return row


def revoke(connection: Connection, token_id: int, *, now: datetime) -> None:
    """End a token for good; NotFound where there is none. Revoking twice is once."""
    changed = connection.execute(
        update(ApiToken).where(ApiToken.id == token_id, ApiToken.revoked_at.is_(None)).values(revoked_at=clock.to_text(now))
    )
    if not changed.rowcount:
        get(connection, token_id)
