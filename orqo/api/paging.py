"""What lists and bodies of the resources share: the query held against the description, the page and its Link.

Owns the reading of query strings and JSON bodies by operation. What they may hold stands in openapi.yaml alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from flask import Response, request
from sqlalchemy import Connection, Row

from orqo import workflows
from orqo.api import body as bodies
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.site import reading, site
from orqo.catalog import Page, Part
from orqo.errors import NotFound, UnsupportedMedia


@resources.before_request
def refuse_unknown_query() -> None:
    """Raise Malformed for a query that a change does not take: `?since=…` passed over would redeliver everything."""
    if request.method not in ("GET", "HEAD") and request.args:
        query()


def operation() -> str:
    """Give the operationId of what the request is for: the function's name in the description's spelling."""
    first, *rest = (request.endpoint or "").rpartition(".")[2].split("_")
    return first + "".join(word.capitalize() for word in rest)


def query() -> dict[str, Any]:
    """Give the query's parameters by name, typed and with their defaults; Malformed names what does not fit."""
    return site().validators.query(operation(), list(request.args.items(multi=True)))


def body() -> dict[str, Any]:
    """Give the JSON object of the request; no body is an empty one where the description does not require it."""
    raw = bodies.read(request, site().config.body_max_bytes)
    if not raw and not site().validators.requires_body(operation()):
        return {}
    if not bodies.is_json(request.headers.get("Content-Type", "")):
        raise UnsupportedMedia("Send JSON: Content-Type: application/json.")
    value = bodies.parse_json(raw)
    site().validators.check_body(operation(), value)
    return value  # type: ignore[no-any-return]


def listed(find: Callable[[Connection, Part, dict[str, Any]], Page]) -> Response:
    """Answer a list: an array, and a Link to the next page where there is one. Source: RFC 8288."""
    wanted = query()
    part = Part(wanted.pop("limit"), wanted.pop("before", None), holder().workflow_ids)
    with reading() as connection:
        page = find(connection, part, wanted)
    headers = {} if page.older is None else {"Link": f'<{_next_url(page.older)}>; rel="next"'}
    return as_json(page.items, 200, headers)


def _next_url(before: int) -> str:
    kept = [(name, value) for name, value in request.args.items(multi=True) if name != "before"]
    return f"{site().config.base_url}{request.path}?{urlencode([*kept, ('before', before)])}"


def workflow_of(connection: Connection, reference: str | float) -> Row[Any]:
    """Give the row of a workflow by name, or by its number; NotFound also where the token may not use it."""
    if isinstance(reference, float):
        # JSON Schema has 1.0 for an integer.
        reference = int(reference)
    row = workflows.find(connection, reference)
    if row is None and isinstance(reference, str) and reference.isascii() and reference.isdigit():
        row = workflows.find(connection, int(reference[:20]))
    if row is None or not holder().may_use(row.id):
        raise NotFound(f"There is no workflow {reference} that this token may use.")
    return row


def workflow_id_of(connection: Connection, reference: str | None) -> int | None:
    """Give the number of the workflow that a filter names, None for no filter."""
    return None if reference is None else int(workflow_of(connection, reference).id)


def usable(found: Row[Any] | None, workflow_id: int | None, what: str) -> Row[Any]:
    """Give a row again that the token may use; NotFound where there is none, or it is of another workflow."""
    limited = holder().workflow_ids is not None
    if found is None or (limited and (workflow_id is None or not holder().may_use(workflow_id))):
        raise NotFound(f"There is no {what} that this token may use.")
    return found
