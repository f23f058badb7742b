"""What a request handler works with, and who may call what.

Owns the API's part of the Site, and the one way of presenting an API token.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import datetime

from flask import current_app, request
from sqlalchemy import Connection

from orqo import simulation, tokens
from orqo import site as web_site
from orqo.api.validation import Validators
from orqo.errors import Forbidden, Unauthorized
from orqo.site import check_room, reading

__all__ = ["Site", "check_room", "holder_of", "holder_with", "look_up_holder", "presented_token", "reading", "require", "site"]

BEARER = re.compile(r"Bearer +([\x21-\x7e]+) *", re.IGNORECASE)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="orqo"'}
INVALID_TOKEN = {"WWW-Authenticate": 'Bearer realm="orqo", error="invalid_token"'}


@dataclass(kw_only=True)
class Site(web_site.Site):
    """The parts of one web process, what holds request bodies against the API's description, and how many may wait for a run."""

    validators: Validators
    waiters: threading.Semaphore
    simulation: simulation.Rules | None = None


def site() -> Site:
    """Give the current application's Site."""
    return current_app.extensions["orqo"]  # type: ignore[no-any-return]


def presented_token() -> str | None:
    """Give the Bearer token of the request, None where there is none of that form. Source: RFC 6750 §2.1."""
    found = BEARER.fullmatch(request.headers.get("Authorization", ""))
    return found[1] if found else None


def holder_with(connection: Connection, scope: str, *, now: datetime) -> tokens.Holder:
    """Give the holder of the presented API token; Unauthorized without a valid one, Forbidden without the scope."""
    return require(holder_of(connection, now=now), scope)


def holder_of(connection: Connection, *, now: datetime) -> tokens.Holder:
    """Give the holder of the presented API token, whatever it may do; Unauthorized without a valid one."""
    return _known(tokens.find(connection, _token(), now=now))


def look_up_holder(here: Site, *, now: datetime) -> tokens.Holder:
    """Do the same without a transaction around it."""
    return _known(tokens.look_up(here.database, _token(), now=now))


def _token() -> str:
    token = presented_token()
    if token is None:
        raise Unauthorized("Send an API token: Authorization: Bearer orqo_… (make one in Settings → API Tokens).", headers=CHALLENGE)
    return token


def _known(holder: tokens.Holder | None) -> tokens.Holder:
    if holder is None:
        raise Unauthorized("The API token is unknown, expired or revoked. Make a new one in Settings → API Tokens.", headers=INVALID_TOKEN)
    return holder


def require(holder: tokens.Holder, scope: str) -> tokens.Holder:
    """Give the holder again; Forbidden without the scope."""
    if not holder.may(scope):
        raise Forbidden(f"This API token lacks the scope {scope}. Make one that has it in Settings → API Tokens.")
    return holder
