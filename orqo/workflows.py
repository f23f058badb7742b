"""Definitions in the database: saved as versions, found by id or name, enabled, disabled, deleted.

Owns the tables workflows and workflow_versions. Never executes anything; the shape of a file is definition.py's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, bindparam, insert, select, update

from orqo import clock, db, inputschema, jsontext
from orqo.definition import Definition
from orqo.errors import Conflict, Fault, Invalid, NotFound
from orqo.lookup import Json
from orqo.models import Instance, Workflow, WorkflowVersion
from orqo.prepared import Prepared

LARGEST_ID = 2**63 - 1
TERMS_MAX = 1000
_terms: WeakKeyDictionary[Engine, dict[int, Terms]] = WeakKeyDictionary()
_terms_lock = threading.Lock()
BY_ID = Prepared(select(Workflow.__table__).where(Workflow.id == bindparam("reference"), Workflow.deleted_at.is_(None)))
BY_NAME = Prepared(select(Workflow.__table__).where(Workflow.name == bindparam("reference"), Workflow.deleted_at.is_(None)))


@dataclass(frozen=True)
class Terms:
    """What a version asks of a run that would begin: the compiled input_schema, None where any input fits, and its concurrency."""

    validator: Any
    concurrency: Mapping[str, Any] | None


@dataclass(frozen=True)
class Saved:
    """What saving a definition came to; `changed` is False where the newest version was the same already."""

    id: int
    name: str
    version: int
    changed: bool


def save(connection: Connection, definition: Definition, *, now: datetime) -> Saved:
    """Store a definition as the workflow's newest version; the same text again changes nothing.

    Raises Invalid where a pinned id contradicts what is stored.
    """
    workflow = _existing(connection, definition)
    workflow_id = workflow.id if workflow else _insert(connection, definition, now)
    stored = jsontext.dump(definition.as_dict())
    newest = _newest(connection, workflow_id)
    if workflow and newest and not workflow.deleted_at and (newest.source, newest.definition) == (definition.source, stored):
        return Saved(workflow_id, definition.name, newest.number, changed=False)
    number = (newest.number if newest else 0) + 1
    version = insert(WorkflowVersion).values(
        workflow_id=workflow_id, number=number, source=definition.source, definition=stored, created_at=clock.to_text(now),
        concurrency=jsontext.dump(asdict(definition.concurrency)) if definition.concurrency else None,
    )  # fmt: skip
    version_id = connection.execute(version.returning(WorkflowVersion.id)).scalar_one()
    changes = {"name": definition.name, "version_id": version_id, "updated_at": clock.to_text(now), "deleted_at": None}
    connection.execute(update(Workflow).where(Workflow.id == workflow_id).values(changes))
    return Saved(workflow_id, definition.name, number, changed=True)


def _existing(connection: Connection, definition: Definition) -> Row[Any] | None:
    """Find the row that this definition belongs to; a pinned id is fixed for life."""
    table = Workflow.__table__
    named = connection.execute(select(table).where(Workflow.name == definition.name)).one_or_none()
    if definition.id is None:
        return named
    if named and named.id != definition.id:
        how = f"remove `id: {definition.id}` or use another name"
        raise _pinned(f"workflow {definition.name} has id {named.id}, which is fixed for life; {how}")
    numbered = connection.execute(select(table).where(Workflow.id == definition.id)).one_or_none()
    if numbered and not numbered.deleted_at and numbered.name != definition.name:
        raise _pinned(f"id {definition.id} belongs to workflow {numbered.name}; choose another")
    return numbered


def _pinned(detail: str) -> Invalid:
    return Invalid(f"The id does not fit: {detail}", errors=[Fault("/id", detail)])


def _insert(connection: Connection, definition: Definition, now: datetime) -> int:
    moment = clock.to_text(now)
    values = {"name": definition.name, "enabled": 1, "created_at": moment, "updated_at": moment}
    if definition.id is not None:
        values["id"] = definition.id
        db.number_behind(connection, Workflow.__tablename__, definition.id)
    return connection.execute(insert(Workflow).values(values).returning(Workflow.id)).scalar_one()


def _newest(connection: Connection, workflow_id: int) -> Row[Any] | None:
    table = WorkflowVersion.__table__
    newest = select(table).where(WorkflowVersion.workflow_id == workflow_id).order_by(WorkflowVersion.number.desc()).limit(1)
    return connection.execute(newest).one_or_none()


def find(connection: Connection, reference: int | str) -> Row[Any] | None:
    """Give the row of a workflow by id or name, None where there is none or it was deleted."""
    if not 0 < reference <= LARGEST_ID if isinstance(reference, int) else "\0" in reference:
        # None has such an id, nor a NUL in its name, which PostgreSQL would not even look for.
        return None
    found: Row[Any] | None = (BY_ID if isinstance(reference, int) else BY_NAME).first(connection, {"reference": reference})
    return found


def get(connection: Connection, reference: int | str) -> Row[Any]:
    """Give the row of a workflow by id or name; NotFound where there is none."""
    row = find(connection, reference)
    if row is None:
        raise NotFound(f"There is no workflow {reference}. List them with: workflow list")
    return row


def named(connection: Connection, text: str) -> Row[Any]:
    """Give the row of the workflow that a person means: by name, else by id where the text is a number. NotFound."""
    row = find(connection, text)
    if row is None and text.isascii() and text.isdigit():
        row = find(connection, int(text[:20]))
    return row or get(connection, text)


class Definitions:
    """The definitions of one database's versions, kept in memory: versions never change. For one thread."""

    def __init__(self, *, most: int = 500) -> None:
        self._known: dict[int, Definition] = {}
        self._most = most

    def of(self, connection: Connection, version_id: int) -> Definition:
        """Give the definition that a version holds, read at most once."""
        if version_id not in self._known:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[version_id] = definition_of(connection, version_id)
        return self._known[version_id]


def definition_of(connection: Connection, version_id: int) -> Definition:
    """Read the definition that a version holds."""
    stored = connection.execute(select(WorkflowVersion.definition).where(WorkflowVersion.id == version_id)).scalar_one()
    return Definition.from_dict(json.loads(stored))


def check_input(connection: Connection, version_id: int, value: Json) -> None:
    """Raise Invalid, with one fault a place, where an input does not fit a version's input_schema; any fits where it has none."""
    validator = terms_of(connection, version_id).validator
    if validator is not None:
        inputschema.check(validator, value)


def terms_of(connection: Connection, version_id: int) -> Terms:
    """Give what a version asks of a new run, read once in a process: versions never change."""
    with _terms_lock:
        known = _terms.setdefault(connection.engine, {})
        if version_id in known:
            return known[version_id]
    made = _terms_in(definition_of(connection, version_id))
    with _terms_lock:
        if len(known) >= TERMS_MAX:
            known.clear()
        known[version_id] = made
    return made


def _terms_in(definition: Definition) -> Terms:
    schema, concurrency = definition.input_schema, definition.concurrency
    return Terms(None if schema is None else inputschema.compiled(schema), asdict(concurrency) if concurrency else None)


def list_all(connection: Connection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Give `{"id", "name", "version", "enabled", "updated_at"}` for each workflow, by name."""
    columns = (Workflow.id, Workflow.name, WorkflowVersion.number, Workflow.enabled, Workflow.updated_at)
    joined = select(*columns).join(WorkflowVersion, WorkflowVersion.id == Workflow.version_id)
    rows = connection.execute(joined.where(Workflow.deleted_at.is_(None)).order_by(Workflow.name).limit(limit))
    return [
        {"id": row.id, "name": row.name, "version": row.number, "enabled": bool(row.enabled), "updated_at": row.updated_at} for row in rows
    ]


def number_of(connection: Connection, version_id: int) -> int:
    """Give the number of a version within its workflow."""
    return connection.execute(select(WorkflowVersion.number).where(WorkflowVersion.id == version_id)).scalar_one()


def source_of(connection: Connection, version_id: int) -> str:
    """Give the text of a version as it was written."""
    return connection.execute(select(WorkflowVersion.source).where(WorkflowVersion.id == version_id)).scalar_one()


def set_enabled(connection: Connection, reference: int | str, *, enabled: bool, now: datetime) -> None:
    """Let a workflow be started, or refuse every new run of it; runs that exist go on. NotFound where there is none.

    Conflict where it is disabled because the folder that says what workflows there are holds no file for it.
    """
    workflow = get(connection, reference)
    folder = connection.execute(select(Instance.workflows_folder)).scalar() if workflow.absent else None
    if enabled and folder is not None:
        raise Conflict(f"No file in {folder} (ORQO_WORKFLOWS) defines workflow {workflow.name}: put one there.")
    changes = {"enabled": int(enabled), "absent": 0, "updated_at": clock.to_text(now)}
    connection.execute(update(Workflow).where(Workflow.id == workflow.id).values(changes))


def delete(connection: Connection, reference: int | str, *, now: datetime) -> int:
    """Take a workflow away and give its id; its runs stay readable and unfinished ones go on. Its name is free again.

    NotFound where there is none.
    """
    workflow = get(connection, reference)
    moment = clock.to_text(now)
    # A name in a file holds no space, so the kept name meets no new one.
    changes = {"name": f"{workflow.name} deleted {workflow.id} {moment}", "deleted_at": moment, "updated_at": moment}
    connection.execute(update(Workflow).where(Workflow.id == workflow.id).values(changes))
    return int(workflow.id)
