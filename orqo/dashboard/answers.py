"""The page behind the link of an approval: what is asked, and a button for each outcome. The link itself is the credential.

Looking decides nothing. Works without signing in; a form counts only from this page in the same browser, as everywhere.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g, redirect, url_for
from sqlalchemy import Row

from orqo import runs
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import field, page
from orqo.errors import Conflict, Gone, NotFound, Problem
from orqo.models import RunStatus, WaitStatus
from orqo.site import check_room, site

UNKNOWN = "This link leads to no question: it was cut off on its way, or its run is no longer kept."
LABELS = {"approved": "Approve", "rejected": "Reject"}


@blueprint.get("/answer/<token>")
def answer_page(token: str) -> Response:
    """Show what is asked, or how it was answered."""
    return _page(_found(token), token)


@blueprint.post("/answer/<token>")
def answer(token: str) -> Response:
    """Decide."""
    wanted = runs.Answer("completed", outcome=field("outcome", most=100))
    try:
        check_room(site().config)
        with site().database.transaction() as connection:
            runs.answer(site().box, connection, _found(token), wanted, by=_who(), now=g.now)
    except (Conflict, Gone) as fault:
        return _page(_found(token), token, fault)
    site().bell.wake_workers()
    return redirect(url_for("dashboard.answer_page", token=token), 303)  # type: ignore[return-value]


def _found(token: str) -> Row[Any]:
    with site().database.read() as connection:
        try:
            wait = runs.find_wait(connection, token)
        except NotFound as fault:
            raise NotFound(UNKNOWN) from fault
    if wait.kind != "approval":
        raise NotFound(UNKNOWN)
    return wait


def _who() -> str:
    """Give who decides: whoever is signed in, else the name that was typed, else nobody known."""
    if g.session is not None:
        return str(g.session.name or "somebody who came by link")
    typed = " ".join(field("by", most=60).split())
    return f"{typed} (by link)" if typed else "somebody with the link"


def _page(wait: Row[Any], token: str, fault: Problem | None = None) -> Response:
    given = json.loads(wait.answer) if wait.answer else {}
    is_open = wait.status == WaitStatus.OPEN and not RunStatus(wait.run_status).terminal
    code = fault.status if fault else 200 if is_open or wait.status == WaitStatus.ANSWERED else Gone.status
    return page(
        "answer.html", code=code, wait=wait, token=token, is_open=is_open, given=given, fault=fault,
        choices=[(label, LABELS.get(label, label)) for label in json.loads(wait.outcomes)],
    )  # fmt: skip
