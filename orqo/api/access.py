"""Who may call what: the scope of each operation in one table, looked at before any handler.

Owns that table and the guard. Deny by default: what the table does not name is answered to nobody. The three endpoints
and health look after themselves: their credentials are of other kinds, or none.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from flask import Blueprint, Response, g, request
from werkzeug.routing import BaseConverter

from orqo import clock, tokens
from orqo.api.site import holder_with, reading, site
from orqo.db import Database
from orqo.errors import Forbidden, NotFound, Unavailable
from orqo.tokens import Holder

PUBLIC, ITSELF = "public", "itself"
READ = (
    *("list_workflows", "show_workflow", "list_triggers", "show_trigger", "list_runs", "show_run", "show_run_output"),
    *("list_deliveries", "show_delivery", "list_callbacks", "show_callback", "list_requests", "show_request", "show_instance"),
    *("list_artifacts", "show_artifact", "show_metrics"),
)
WRITE = (
    *("put_workflow", "enable_workflow", "disable_workflow", "delete_workflow"),
    *("create_trigger", "update_trigger", "enable_trigger", "disable_trigger", "rotate_trigger", "delete_trigger"),
    *("stop_run", "answer_run", "rerun_run", "redeliver", "redeliver_dead", "replay_request"),
    *("create_callback", "delete_callback", "test_callback", "pause_callback", "resume_callback"),
)
ADMIN = ("list_tokens", "create_token", "revoke_token")
ACCESS = {
    **dict.fromkeys(READ, "read"),
    **dict.fromkeys(WRITE, "write"),
    **dict.fromkeys(ADMIN, "admin"),
    **dict.fromkeys(("openapi_json", "openapi_yaml", "healthz", "readyz"), PUBLIC),
    **dict.fromkeys(("trigger", "hook", "callback"), ITSELF),
}
"""Every operation by the name of its function, and the scope of the API token that it takes."""

LARGEST = 18


class Id(BaseConverter):
    """The number of a thing: one spelling for each, and none that a database could not hold."""

    regex = rf"[1-9][0-9]{{0,{LARGEST - 1}}}"

    def to_python(self, value: str) -> int:
        return int(value)


class Name(BaseConverter):
    """The name of a workflow."""

    regex = "[a-z0-9-]{1,64}"


resources = Blueprint("resources", __name__, url_prefix="/api/v1")
resources.record_once(lambda state: state.app.url_map.converters.update(id=Id, name=Name))


@resources.before_request
def guard() -> None:
    """Find the holder of the presented token and hold it against the table; Unauthorized, Forbidden."""
    scope = ACCESS.get((request.endpoint or "").rpartition(".")[2])
    if scope == PUBLIC:
        return
    if scope is None or scope == ITSELF:
        raise NotFound("There is nothing at this path.")
    g.now = clock.now()
    with reading() as connection:
        g.holder = holder_with(connection, scope, now=g.now)


@resources.after_request
def note_use(response: Response) -> Response:
    """Record the token's use once the answer is out: whoever reads must not wait for whoever writes."""
    holder, now, database = g.get("holder"), g.get("now"), site().database
    if holder is not None and not tokens.is_marked(holder, now=now):
        response.call_on_close(lambda: _mark_used(database, holder, now))
    return response


def _mark_used(database: Database, holder: Holder, now: datetime) -> None:
    with suppress(Unavailable), database.transaction() as connection:
        tokens.mark_used(connection, holder, now=now)


def holder() -> Holder:
    """Give whom the request's token belongs to."""
    return g.holder  # type: ignore[no-any-return]


def check_unlimited() -> None:
    """Raise Forbidden for a token that is limited to some workflows: it must not make one that is not."""
    if holder().workflow_ids is not None:
        raise Forbidden("This API token is limited to some workflows, so it cannot do this. Use one that is not.")
