"""`/api/v1/workflows`: what workflows there are, and their definitions, put by name as YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Response, g, request
from sqlalchemy import Connection, Row

from orqo import apply, catalog, definition, instance, workflows
from orqo.api import body as bodies
from orqo.api.access import holder, resources
from orqo.api.answers import as_json
from orqo.api.paging import listed, workflow_of
from orqo.api.site import check_room, reading, site
from orqo.definition import Definition
from orqo.errors import Fault, Invalid, Malformed, NotFound, UnsupportedMedia

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


@resources.get("/workflows")
def list_workflows() -> Response:
    """List the workflows."""
    return listed(lambda connection, part, _: catalog.workflows(connection, part))


@resources.get("/workflows/<name:name>")
def show_workflow(name: str) -> Response:
    """Give a workflow with its file as it was applied last."""
    with reading() as connection:
        return as_json(_shown(connection, workflow_of(connection, name)), 200)


def _shown(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    told = {"id": row.id, "name": row.name, "version": workflows.number_of(connection, row.version_id), "enabled": bool(row.enabled)}
    return told | {"updated_at": row.updated_at, "source": workflows.source_of(connection, row.version_id)}


# ── put ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@resources.put("/workflows/<name:name>")
def put_workflow(name: str) -> Response:
    """Make a workflow what the body says, with exactly its triggers and callbacks: 201 where it is new, else 200."""
    text = _text()
    with reading() as connection:
        read = definition.parse(text, folder=_folder(connection, name))
    if read.name != name:
        raise Invalid(f"The body is of another workflow: write name: {name}.", errors=[Fault("/name", f"must be {name}")])
    check_room(site().config)
    with site().database.transaction() as connection:
        is_new = _saved(connection, read)
        shown = _shown(connection, workflows.get(connection, name))
    return as_json(shown, 201 if is_new else 200, {"Location": f"/api/v1/workflows/{name}"} if is_new else None)


def _text() -> str:
    content_type = request.headers.get("Content-Type", "")
    raw = bodies.read(request, site().config.body_max_bytes)
    if content_type.partition(";")[0].strip().lower() not in YAML_TYPES and not bodies.is_json(content_type):
        raise UnsupportedMedia("Send the workflow as Content-Type: application/yaml or application/json.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise Malformed(f"The body is not UTF-8 at byte {fault.start}.") from fault


def _folder(connection: Connection, name: str) -> Path | None:
    """Give where a relative `workdir` begins: what it meant when a file was applied it goes on to mean."""
    row = workflows.find(connection, name)
    folder = workflows.definition_of(connection, row.version_id).folder if row is not None else None
    return Path(folder) if folder else None


def _saved(connection: Connection, read: Definition) -> bool:
    """Apply a definition and tell whether the workflow is new. A token that is limited to workflows can make none."""
    instance.check_editable(connection)
    is_new = workflows.find(connection, read.name) is None
    if holder().workflow_ids is not None:
        workflow_of(connection, read.name)
    saved = apply.apply(connection, read, key=site().key, now=g.now, secrets=site().secrets)
    if not holder().may_use(saved.id):
        raise NotFound(f"There is no workflow {read.name} that this token may use.")
    return is_new


# ── change ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@resources.post("/workflows/<name:name>/enable")
def enable_workflow(name: str) -> Response:
    """Let a workflow be started again."""
    return _set_enabled(name, enabled=True)


@resources.post("/workflows/<name:name>/disable")
def disable_workflow(name: str) -> Response:
    """Refuse every new run of a workflow; runs that exist go on."""
    return _set_enabled(name, enabled=False)


def _set_enabled(name: str, *, enabled: bool) -> Response:
    with site().database.transaction() as connection:
        row = workflow_of(connection, name)
        workflows.set_enabled(connection, row.id, enabled=enabled, now=g.now)
        return as_json(_shown(connection, workflows.get(connection, row.id)), 200)


@resources.delete("/workflows/<name:name>")
def delete_workflow(name: str) -> Response:
    """Take a workflow away; its runs stay readable, and unfinished ones go on."""
    with site().database.transaction() as connection:
        instance.check_editable(connection)
        workflows.delete(connection, workflow_of(connection, name).id, now=g.now)
    return Response(status=204)
