"""Workflows: the list, the Definition tab, a new one, editing with faults that point at their lines, on and off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flask import Response, g, request
from sqlalchemy import Connection, Row, select

from orqo import apply, definition, listings, workflows
from orqo.dashboard import drawings
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field, page, whole_number
from orqo.definition import Definition
from orqo.errors import Conflict, Fault, Invalid, NotFound, Problem
from orqo.models import Instance, WorkflowVersion
from orqo.site import check_room, site

SOURCE_MAX = 512 * 1024
VERSIONS_SHOWN = 20
NEW = """name: my-workflow
description: What it is for
stages:
  - name: greet
    command: [echo, "Hello, ${input.name?}"]
  - name: shout
    script: tr a-z A-Z
    env: {TEXT: "${stages.greet.output}"}
"""


def known(connection: Connection, name: str) -> Row[Any]:
    """Give the row of a workflow by its name; NotFound in the words of the pages."""
    row = workflows.find(connection, name)
    if row is None:
        raise NotFound("There is no such workflow. The list of workflows has those that there are.")
    return row


def files_folder(connection: Connection) -> str | None:
    """Give the folder whose files alone say what workflows are (ORQO_WORKFLOWS), None where workflows are edited here."""
    return connection.execute(select(Instance.workflows_folder)).scalar()


def _check_editable() -> None:
    with site().database.read() as connection:
        folder = files_folder(connection)
    if folder is not None:
        raise Conflict(f"Workflows come from the files in {folder} (ORQO_WORKFLOWS): change the file there.")


@blueprint.get("/workflows")
def workflow_list() -> Response:
    """List the workflows with their newest runs."""
    with site().database.read() as connection:
        rows, after = listings.workflows(connection, after=request.args.get("after", ""))
        folder = files_folder(connection)
    return page("workflows.html", rows=rows, after=after, folder=folder)


@blueprint.get("/workflows/<name>")
def workflow(name: str) -> Response:
    """Show a workflow's Definition tab: its newest version, or the one that `version` names."""
    with site().database.read() as connection:
        row = known(connection, name)
        shown = _version(connection, row, whole_number("version"))
        numbers = select(WorkflowVersion.number, WorkflowVersion.created_at).where(WorkflowVersion.workflow_id == row.id)
        versions = connection.execute(numbers.order_by(WorkflowVersion.number.desc()).limit(VERSIONS_SHOWN)).all()
        folder = files_folder(connection)
    read = Definition.from_dict(json.loads(shown.definition))
    lines = shown.source.rstrip("\n").split("\n")
    return page(
        "workflow.html", tab="definition", workflow=row, shown=shown, versions=versions,
        read=read, lines=lines, diagram=drawings.diagram(read), folder=folder,
    )  # fmt: skip


def _version(connection: Connection, row: Row[Any], number: int | None) -> Row[Any]:
    query = select(WorkflowVersion.__table__).where(WorkflowVersion.workflow_id == row.id)
    query = query.where(WorkflowVersion.id == row.version_id) if number is None else query.where(WorkflowVersion.number == number)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise NotFound("There is no such version of this workflow.")
    return found


# ── new and edit ────────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.get("/new-workflow")
def new_workflow() -> Response:
    """Show the form for a new workflow. Not below /workflows: there every word may be a workflow's name."""
    _check_editable()
    return _editor(NEW)


@blueprint.post("/workflows")
def create_workflow() -> Response:
    """Save a new workflow."""
    _check_editable()
    source = field("source", most=SOURCE_MAX)
    try:
        read = definition.parse(source)
        check_room(site().config)
        with site().database.transaction() as connection:
            if workflows.find(connection, read.name) is not None:
                raise _at_name(source, f"there is a workflow {read.name} already; choose another name, or edit that one")
            saved = apply.apply(connection, read, key=site().key, now=g.now, secrets=site().secrets)
    except (Invalid, Conflict) as fault:
        return _editor(source, fault=fault)
    return done("workflow", "created", name=saved.name)


@blueprint.get("/workflows/<name>/edit")
def edit_workflow(name: str) -> Response:
    """Show the form that changes a workflow."""
    _check_editable()
    with site().database.read() as connection:
        row = known(connection, name)
        shown = _version(connection, row, None)
    return _editor(shown.source, row=row, version=shown.number)


@blueprint.post("/workflows/<name>/edit")
def save_workflow(name: str) -> Response:
    """Save a workflow's next version, unless somebody else has meanwhile."""
    _check_editable()
    source, base = field("source", most=SOURCE_MAX), field("version", most=20)
    with site().database.read() as connection:
        row = known(connection, name)
        newest = _version(connection, row, None)
    try:
        # A relative `workdir` goes on to mean what it meant when the file was applied.
        folder = json.loads(newest.definition).get("folder")
        read = definition.parse(source, folder=Path(folder) if folder else None)
        if read.name != name:
            raise _at_name(source, f"the name is fixed: write `name: {name}`, or make a new workflow")
        saved = _save(read, base)
    except (Invalid, Conflict) as fault:
        return _editor(source, row=row, version=newest.number if isinstance(fault, Invalid) else int(base or 0), fault=fault)
    return done("workflow", "saved" if saved.changed else "unchanged", name=name)


def _save(read: Definition, base: str) -> workflows.Saved:
    check_room(site().config)
    with site().database.transaction() as connection:
        newest = _version(connection, known(connection, read.name), None)
        if str(newest.number) != base:
            raise Conflict(f"Version {newest.number} was saved while you were editing version {base}. Look at it, then edit again.")
        return apply.apply(connection, read, key=site().key, now=g.now, secrets=site().secrets)


def _at_name(source: str, detail: str) -> Invalid:
    numbered = enumerate(source.split("\n"), 1)
    line = next((number for number, text in numbered if text.startswith("name:")), None)
    return Invalid(f"The name does not fit: {detail}", errors=[Fault("/name", detail, line)])


def _editor(source: str, *, row: Row[Any] | None = None, version: int = 0, fault: Problem | None = None) -> Response:
    lines = source.split("\n")
    faults = [(each, lines[each.line - 1] if each.line and each.line <= len(lines) else "") for each in fault.errors] if fault else []
    values = {"workflow": row, "source": source, "version": version, "fault": fault, "faults": faults}
    return page("workflow_edit.html", code=fault.status if fault else 200, tab="definition", **values)


# ── on, off, gone ───────────────────────────────────────────────────────────────────────────────────────────────────


@blueprint.post("/workflows/<name>/switch")
def switch_workflow(name: str) -> Response:
    """Enable or disable a workflow."""
    enabled = field("enabled", most=1) == "1"
    with site().database.transaction() as connection:
        workflows.set_enabled(connection, known(connection, name).id, enabled=enabled, now=g.now)
    return done("workflow", "enabled" if enabled else "disabled", name=name)


@blueprint.post("/workflows/<name>/delete")
def delete_workflow(name: str) -> Response:
    """Take a workflow away; its runs stay readable."""
    _check_editable()
    with site().database.transaction() as connection:
        workflows.delete(connection, known(connection, name).id, now=g.now)
    return done("workflow_list", "deleted")
