"""Settings: API tokens, people and sessions, and what this box is."""

from __future__ import annotations

import json
import platform
from datetime import timedelta
from typing import Any

from flask import Response, g, make_response, redirect, request, url_for
from sqlalchemy import Connection, select

from orqo import clock, config, db, people, secretstore, tokens
from orqo.dashboard import shown
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field, page
from orqo.errors import Fault, Invalid, NotFound, Problem
from orqo.listings import LARGEST_ID
from orqo.models import ApiToken, Workflow
from orqo.people import Credentials
from orqo.site import site

SHOWN_MAX = 200
EXPIRIES = {"": "never", "7": "in 7 days", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}
SCOPES = {
    "trigger": "start runs",
    "read": "read runs",
    "write": "change workflows: may run commands as the stage user",
    "callback": "report on runs",
    "admin": "everything",
}


@blueprint.get("/settings")
def settings() -> Response:
    """Go to the first page of the settings."""
    return make_response(redirect(url_for("dashboard.token_list"), 303))


# ── API tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/settings/tokens")
def token_list() -> Response:
    """List the API tokens."""
    return _tokens()


def _tokens(*, fault: Problem | None = None, made: dict[str, Any] | None = None) -> Response:
    with site().database.read() as connection:
        rows = connection.execute(select(ApiToken.__table__).order_by(ApiToken.id.desc()).limit(SHOWN_MAX)).all()
        names = select(Workflow.id, Workflow.name).where(Workflow.deleted_at.is_(None)).order_by(Workflow.name).limit(SHOWN_MAX)
        workflows = connection.execute(names).all()
    listed = [dict(row._mapping) | {"only": _only(row.workflow_ids, workflows), "state": _state(row)} for row in rows]
    return page(
        "settings_tokens.html", code=fault.status if fault else 200, tab="tokens", listed=listed, workflows=workflows,
        scopes=SCOPES, chosen=request.form.getlist("scopes") or tokens.DEFAULT_SCOPES, expiries=EXPIRIES, fault=fault, made=made,
    )  # fmt: skip


def _only(workflow_ids: str | None, workflows: Any) -> list[str] | None:
    """Name the workflows that a token may use, None for all."""
    if workflow_ids is None:
        return None
    names = {row.id: row.name for row in workflows}
    return [names.get(each, f"workflow {each}") for each in json.loads(workflow_ids)]


def _state(row: Any) -> str:
    if row.revoked_at:
        return "revoked"
    return "expired" if row.expires_at and row.expires_at <= clock.to_text(g.now) else "valid"


@blueprint.post("/settings/tokens")
def create_token() -> Response:
    """Make an API token and show it, this once."""
    try:
        with site().database.transaction() as connection:
            only = _chosen_workflows(connection)
            name, expiry = field("name", most=200).strip(), field("expires", most=4)
            expires_at = g.now + timedelta(days=int(expiry)) if expiry in EXPIRIES and expiry else None
            scopes = request.form.getlist("scopes")
            token_id, token = tokens.create(connection, name=name, scopes=scopes, now=g.now, workflow_ids=only, expires_at=expires_at)
    except Problem as fault:
        return _tokens(fault=fault)
    return _tokens(made={"id": token_id, "name": name, "token": token, "starts": only[0] if only else None})


def _chosen_workflows(connection: Connection) -> list[int] | None:
    """Give the ids of the workflows that were ticked, None where all are meant."""
    if field("which", most=10) != "some":
        return None
    chosen = {text for text in request.form.getlist("workflow_ids") if text.isascii() and text.isdigit() and len(text) < 19}
    known = connection.execute(select(Workflow.id).where(Workflow.deleted_at.is_(None))).scalars()
    ids = [each for each in known if str(each) in chosen]
    if not ids:
        fault = Fault("/workflow_ids", "choose at least one")
        raise Invalid("The token cannot be made: choose the workflows that it may use.", errors=[fault])
    return ids


@blueprint.post("/settings/tokens/<int:token_id>/revoke")
def revoke_token(token_id: int) -> Response:
    """End an API token for good."""
    with site().database.transaction() as connection:
        tokens.revoke(connection, _row_id(token_id), now=g.now)
    return done("token_list", "revoked")


def _row_id(number: int) -> int:
    if not 0 < number <= LARGEST_ID:
        raise NotFound("There is no such thing.")
    return number


# ── people and sessions ─────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/settings/people", endpoint="people")
def people_page() -> Response:
    """List who may sign in and who is signed in."""
    return _people()


def _people(*, fault: Problem | None = None, link: str | None = None) -> Response:
    with site().database.read() as connection:
        persons, sessions = people.list_people(connection), people.list_sessions(connection, now=g.now)
    status = fault.status if fault else 200
    return page("settings_people.html", code=status, tab="people", people=persons, sessions=sessions, fault=fault, link=link)


@blueprint.post("/settings/people/link")
def make_sign_in_link() -> Response:
    """Make a one-time link for one more person or browser and show it, this once."""
    with site().database.transaction() as connection:
        token = people.make_link(connection, now=g.now)
    return _people(link=people.link_url(site().config.base_url, token))


@blueprint.post("/settings/people/me")
def set_credentials() -> Response:
    """Set or change one's own name and password."""
    wanted = Credentials(field("name", most=200).strip(), field("password", most=1000))
    try:
        people.set_credentials(site().database, g.session, wanted, now=g.now)
    except Problem as fault:
        return _people(fault=fault)
    return done("people", "credentials")


@blueprint.post("/settings/people/<int:person_id>/remove")
def remove_person(person_id: int) -> Response:
    """Take a person away."""
    with site().database.transaction() as connection:
        people.remove(connection, _row_id(person_id))
    return done("people", "removed")


@blueprint.post("/settings/sessions/<int:session_id>/end")
def end_session(session_id: int) -> Response:
    """Sign one browser out."""
    with site().database.transaction() as connection:
        people.end_session(connection, _row_id(session_id))
    return done("people", "ended")


# ── instance ────────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/settings/instance")
def instance() -> Response:
    """Show what this box is and how it is set; secrets by name only."""
    here = site().config
    listed = [_setting(key, setting) for key, setting in config.SETTINGS.items()]
    facts = {
        "python": platform.python_version(),
        "database": f"SQLite {db.sqlite_module().sqlite_version}" if site().database.is_sqlite else "PostgreSQL",
        "schema": db.SCHEMA_VERSION,
    }
    names = sorted(secretstore.SecretStore.from_config(here))
    return page("settings_instance.html", tab="instance", settings=listed, facts=facts, config=here, secrets=names)


def _unit(key: str, value: Any) -> str:
    """Give a setting's value in the unit that its name tells."""
    if key.endswith("_s"):
        return shown.span(value * 1000)
    if key.endswith("_bytes"):
        return shown.size(value)
    return "" if value is None else str(int(value) if isinstance(value, bool) else value)


def _setting(key: str, setting: config.Setting) -> dict[str, Any]:
    value = getattr(site().config, key)
    if setting.secret:
        text = "set" if value else "not set"
    elif isinstance(value, tuple):
        text = ", ".join(_unit(key, each) for each in value)
    else:
        text = _unit(key, value)
    return {"name": setting.name, "value": text, "meaning": setting.meaning, "secret": setting.secret}
