"""Who signs in to the dashboard: people, their sessions, one-time links, passwords.

Owns the tables people, sessions, login_links and sign_in_failures. Everyone who is signed in has all rights. Tokens are
kept as digests only. Never knows a cookie or a page.
"""

from __future__ import annotations

import functools
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from werkzeug.security import check_password_hash, generate_password_hash

from orqo import clock, tokens
from orqo.db import Database
from orqo.errors import Conflict, Fault, Gone, Invalid, NotFound, TooManyRequests, Unauthorized
from orqo.models import LoginLink, Person, Session, SignInFailure

SESSION_LASTS = timedelta(hours=12)
LINK_LASTS = timedelta(minutes=15)
SEEN_EVERY = timedelta(minutes=1)
GUESS_WINDOW = timedelta(minutes=15)
GUESSES_PER_NAME = 10
GUESSES_IN_ALL = 100
PASSWORD_MIN, PASSWORD_MAX = 10, 200
NAME = re.compile(r"[^\x00-\x1f\x7f\s](?:[^\x00-\x1f\x7f]{0,62}[^\x00-\x1f\x7f\s])?")
AGENT_MAX = 200
LISTED_MAX = 200
LINK_GONE = "This sign-in link was used already, or is older than 15 minutes. Make a new one with: .venv/bin/python -m orqo login-link"


@dataclass(frozen=True)
class SignedIn:
    """Whom a session's token belongs to; `name` None: somebody who came by a link and gave no name."""

    id: int
    person_id: int | None
    name: str | None
    seen_at: str


@dataclass(frozen=True)
class Credentials:
    """A name and a password as somebody typed them."""

    name: str
    password: str


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_link(connection: Connection, *, now: datetime) -> str:
    """Make a one-time sign-in link and give its token, which cannot be had again."""
    token = secrets.token_urlsafe(32)
    values = {"token_hash": tokens.digest(token), "created_at": clock.to_text(now), "expires_at": clock.to_text(now + LINK_LASTS)}
    connection.execute(insert(LoginLink).values(values))
    return token


def link_url(base_url: str, token: str) -> str:
    """Give the address that a person opens. It holds a credential: for a terminal or a page, never for a log."""
    return f"{base_url}/sign-in?link={token}"


def link_is_open(connection: Connection, token: str, *, now: datetime) -> bool:
    """Tell whether a link can still be used."""
    return connection.execute(select(LoginLink.id).where(*_open(token, now))).scalar() is not None


def _open(token: str, now: datetime) -> tuple[Any, ...]:
    return (LoginLink.token_hash == tokens.digest(token), LoginLink.expires_at > clock.to_text(now))


def sign_in_by_link(database: Database, token: str, wanted: Credentials | None, *, agent: str, now: datetime) -> str:
    """Consume a link, make the named person where `wanted` is given, and give a new session's token.

    Raises Gone for a link that is used or too old; Invalid or Conflict for a name or password that will not do, and
    then the link stays good.
    """
    with database.read() as connection:
        # Hashing takes its time: only for those who hold a link.
        if not link_is_open(connection, token, now=now):
            raise Gone(LINK_GONE)
    hashed = _hashed(wanted) if wanted else None
    with database.transaction() as connection:
        if connection.execute(delete(LoginLink).where(*_open(token, now))).rowcount != 1:
            raise Gone(LINK_GONE)
        person_id = _add(connection, wanted.name, hashed, now) if wanted and hashed else None
        return _begin(connection, person_id, agent, now)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sign_in_by_password(database: Database, given: Credentials, *, agent: str, now: datetime) -> str:
    """Give a new session's token. Unauthorized where name or password is wrong; TooManyRequests after too many failures.

    The failure is committed before the password is looked at: trying in parallel, over many processes, gains nothing.
    """
    name_hash = tokens.digest(given.name)
    with database.transaction() as connection:
        _check_guesses(connection, name_hash, now)
        failure = {"name_hash": name_hash, "failed_at": clock.to_text(now)}
        connection.execute(insert(SignInFailure).values(failure))
        person = connection.execute(select(Person.__table__).where(Person.name == given.name)).one_or_none()
    # An unknown name takes as long as a known one.
    right = check_password_hash(person.password_hash if person else _nobodys_hash(), given.password[:PASSWORD_MAX])
    if person is None or not right:
        raise Unauthorized("The name or the password is wrong.")
    with database.transaction() as connection:
        if connection.execute(select(Person.id).where(Person.id == person.id)).scalar() is None:
            raise Unauthorized("The name or the password is wrong.")
        connection.execute(delete(SignInFailure).where(SignInFailure.name_hash == name_hash))
        return _begin(connection, person.id, agent, now)


def _check_guesses(connection: Connection, name_hash: str, now: datetime) -> None:
    since = clock.to_text(now - GUESS_WINDOW)
    counted = select(func.count()).select_from(SignInFailure).where(SignInFailure.failed_at > since)
    of_name = connection.execute(counted.where(SignInFailure.name_hash == name_hash)).scalar_one()
    if of_name >= GUESSES_PER_NAME or connection.execute(counted).scalar_one() >= GUESSES_IN_ALL:
        raise TooManyRequests(
            "Too many sign-ins failed. Wait 15 minutes, or sign in with a link: .venv/bin/python -m orqo login-link",
            headers={"Retry-After": str(int(GUESS_WINDOW.total_seconds()))},
        )


@functools.cache
def _nobodys_hash() -> str:
    return generate_password_hash(secrets.token_urlsafe(32))


def _hashed(wanted: Credentials) -> str:
    """Give the hash to keep; Invalid where name or password will not do."""
    faults = []
    if not NAME.fullmatch(wanted.name):
        faults.append(Fault("/name", "give a name of 1 to 64 characters"))
    if not PASSWORD_MIN <= len(wanted.password) <= PASSWORD_MAX:
        faults.append(Fault("/password", f"give a password of {PASSWORD_MIN} to {PASSWORD_MAX} characters"))
    if faults:
        raise Invalid("Not saved: " + "; ".join(fault.detail for fault in faults) + ".", errors=faults)
    return generate_password_hash(wanted.password)


def set_credentials(database: Database, session: SignedIn, wanted: Credentials, *, now: datetime) -> None:
    """Give the person of a session a name and a password, or change them; other sessions of that person end.

    Raises Invalid, or Conflict where the name is another's.
    """
    hashed = _hashed(wanted)
    with database.transaction() as connection:
        person_id = session.person_id
        if person_id is None:
            person_id = _add(connection, wanted.name, hashed, now)
            connection.execute(update(Session).where(Session.id == session.id).values(person_id=person_id))
            return
        _refuse_taken(connection, wanted.name, but=person_id)
        connection.execute(update(Person).where(Person.id == person_id).values(name=wanted.name, password_hash=hashed))
        connection.execute(delete(Session).where(Session.person_id == person_id, Session.id != session.id))


def _add(connection: Connection, name: str, hashed: str, now: datetime) -> int:
    _refuse_taken(connection, name)
    values = {"name": name, "password_hash": hashed, "created_at": clock.to_text(now)}
    return int(connection.execute(insert(Person).values(values).returning(Person.id)).scalar_one())


def _refuse_taken(connection: Connection, name: str, *, but: int | None = None) -> None:
    holder = connection.execute(select(Person.id).where(Person.name == name)).scalar()
    if holder is not None and holder != but:
        raise Conflict(f"There is a person {name} already: choose another name, or sign in without one and remove that person first.")


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _begin(connection: Connection, person_id: int | None, agent: str, now: datetime) -> str:
    """Write a new session and forget what is over."""
    token, moment = secrets.token_urlsafe(32), clock.to_text(now)
    values = {
        "token_hash": tokens.digest(token),
        "person_id": person_id,
        "agent": agent[:AGENT_MAX],
        "created_at": moment,
        "seen_at": moment,
        "expires_at": clock.to_text(now + SESSION_LASTS),
    }
    connection.execute(insert(Session).values(values))
    connection.execute(delete(Session).where(Session.expires_at <= moment))
    connection.execute(delete(LoginLink).where(LoginLink.expires_at <= moment))
    connection.execute(delete(SignInFailure).where(SignInFailure.failed_at <= clock.to_text(now - GUESS_WINDOW)))
    return token


def find_session(connection: Connection, token: str, *, now: datetime) -> SignedIn | None:
    """Give whom a session's token belongs to, None where it is unknown, ended or over."""
    query = select(Session.id, Session.person_id, Session.seen_at, Person.name).outerjoin(Person, Person.id == Session.person_id)
    valid = (Session.token_hash == tokens.digest(token), Session.expires_at > clock.to_text(now))
    row = connection.execute(query.where(*valid)).one_or_none()
    return SignedIn(row.id, row.person_id, row.name, row.seen_at) if row else None


def is_seen_anew(session: SignedIn, *, now: datetime) -> bool:
    """Tell whether a session's last use is worth writing: once a minute."""
    return clock.from_text(session.seen_at) <= now - SEEN_EVERY


def mark_seen(connection: Connection, session: SignedIn, *, now: datetime) -> None:
    """Record that a session was used."""
    connection.execute(update(Session).where(Session.id == session.id).values(seen_at=clock.to_text(now)))


def end_session(connection: Connection, session_id: int) -> None:
    """Sign one browser out; NotFound where there is no such session."""
    if not connection.execute(delete(Session).where(Session.id == session_id)).rowcount:
        raise NotFound("There is no such session: it has ended already.")


def list_sessions(connection: Connection, *, now: datetime, limit: int = LISTED_MAX) -> list[dict[str, Any]]:
    """Give the sessions that are not over, newest first: `{"id", "name", "agent", "created_at", "seen_at", "expires_at"}`."""
    columns = (Session.id, Person.name, Session.agent, Session.created_at, Session.seen_at, Session.expires_at)
    query = select(*columns).outerjoin(Person, Person.id == Session.person_id).where(Session.expires_at > clock.to_text(now))
    return [dict(row._mapping) for row in connection.execute(query.order_by(Session.id.desc()).limit(limit))]


def list_people(connection: Connection, *, limit: int = LISTED_MAX) -> list[dict[str, Any]]:
    """Give those who have a name and a password, by name: `{"id", "name", "created_at"}`."""
    rows = connection.execute(select(Person.id, Person.name, Person.created_at).order_by(Person.name).limit(limit))
    return [dict(row._mapping) for row in rows]


def remove(connection: Connection, person_id: int) -> None:
    """Take a person away; their sessions end. NotFound where there is none."""
    if not connection.execute(delete(Person).where(Person.id == person_id)).rowcount:
        raise NotFound("There is no such person: they were removed already.")
