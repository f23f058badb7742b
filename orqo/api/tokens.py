"""`/api/v1/tokens`: API tokens. A token is told once, in the answer that makes it."""

from __future__ import annotations

from datetime import datetime

from flask import Response, g

from orqo import catalog, clock, tokens, workflows
from orqo.api.access import check_unlimited, resources
from orqo.api.answers import as_json
from orqo.api.paging import body, listed
from orqo.api.site import site
from orqo.errors import Fault, Invalid


@resources.get("/tokens")
def list_tokens() -> Response:
    """List the API tokens, without the tokens themselves."""
    check_unlimited()
    return listed(lambda connection, part, _: catalog.list_tokens(connection, part))


@resources.post("/tokens")
def create_token() -> Response:
    """Make an API token."""
    check_unlimited()
    wanted = body()
    # JSON Schema has 1.0 for an integer.
    limited = [int(each) for each in wanted["workflow_ids"]] if "workflow_ids" in wanted else None
    expires_at = _expiry(wanted.get("expires_at"))
    with site().database.transaction() as connection:
        unknown = [each for each in limited or [] if workflows.find(connection, each) is None]
        if unknown:
            raise Invalid(f"There is no workflow {unknown[0]}.", errors=[Fault("/workflow_ids", f"there is no workflow {unknown[0]}")])
        made, token = tokens.create(
            connection,
            name=wanted["name"],
            scopes=wanted.get("scopes", tokens.DEFAULT_SCOPES),
            now=g.now,
            workflow_ids=limited,
            expires_at=expires_at,
        )
        shown = tokens.shown(tokens.get(connection, made))
    return as_json(shown | {"token": token}, 201)


def _expiry(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = clock.any_moment(text)
    except ValueError as fault:
        raise Invalid("expires_at is no time.", errors=[Fault("/expires_at", "must be a time such as 2027-01-31T00:00:00Z")]) from fault
    if moment <= g.now:
        raise Invalid("expires_at is over already.", errors=[Fault("/expires_at", "must lie in the future")])
    return moment


@resources.post("/tokens/<id:token_id>/revoke")
def revoke_token(token_id: int) -> Response:
    """End a token for good."""
    check_unlimited()
    with site().database.transaction() as connection:
        tokens.revoke(connection, token_id, now=g.now)
        return as_json(tokens.shown(tokens.get(connection, token_id)), 200)
