"""Signing in by a one-time link or by name and password, and signing out."""

from __future__ import annotations

import logging

from flask import Response, g, make_response, redirect, request, url_for

from orqo import people
from orqo.dashboard import access
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field, page
from orqo.errors import Gone, NotFound, Problem
from orqo.people import Credentials
from orqo.site import site

log = logging.getLogger(__name__)


@blueprint.get("/sign-in")
def sign_in_page() -> Response:
    """Show the form: a button where a link was followed, else name and password. Looking consumes nothing."""
    link = request.args.get("link", "")
    if not link:
        return redirect(url_for("dashboard.home"), 303) if g.session else _form()  # type: ignore[return-value]
    with site().database.read() as connection:
        is_open = people.link_is_open(connection, link, now=g.now)
    return _form(link=link) if is_open else _form(Gone(people.LINK_GONE))


def _form(fault: Problem | None = None, *, link: str = "", name: str = "") -> Response:
    follow = request.values.get("next", "")
    return page("sign_in.html", code=fault.status if fault else 200, fault=fault, link=link, name=name, follow=follow)


@blueprint.post("/sign-in")
def sign_in() -> Response:
    """Sign in by name and password."""
    given = Credentials(field("name", most=200).strip(), field("password", most=1000))
    try:
        token = people.sign_in_by_password(site().database, given, agent=_agent(), now=g.now)
    except Problem as fault:
        log.warning("step=sign-in by=password status=refused code=%d", fault.status)
        response = _form(fault, name=given.name)
        response.headers.update(fault.headers)
        return response
    return _signed_in(token)


@blueprint.post("/sign-in/link")
def sign_in_by_link() -> Response:
    """Sign in by a link's button, which consumes it; a name and a password may be set at the same time."""
    link = field("link", most=100)
    wanted = Credentials(field("name", most=200).strip(), field("password", most=1000))
    try:
        token = people.sign_in_by_link(site().database, link, wanted if wanted.name or wanted.password else None, agent=_agent(), now=g.now)
    except Problem as fault:
        log.warning("step=sign-in by=link status=refused code=%d", fault.status)
        return _form(fault, link="" if isinstance(fault, Gone) else link, name=wanted.name)
    return _signed_in(token)


def _agent() -> str:
    """Give the browser's name of itself as text that can be stored."""
    return request.headers.get("User-Agent", "").encode("utf-8", "replace").decode().replace("\0", "")


def _signed_in(token: str) -> Response:
    log.info("step=sign-in status=done")
    response = make_response(redirect(access.next_path(request.form.get("next", "")), 303))
    access.set_cookie(response, "orqo_session", token, lasts_s=int(people.SESSION_LASTS.total_seconds()))
    access.drop_cookie(response, "orqo_visit")
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End this browser's session."""
    try:
        with site().database.transaction() as connection:
            people.end_session(connection, g.session.id)
    except NotFound:
        # Ended from elsewhere meanwhile: that is what was wanted.
        pass
    response = done("sign_in_page", "signed-out")
    access.drop_cookie(response, "orqo_session")
    return response
