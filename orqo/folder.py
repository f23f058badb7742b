"""Folder mode: the files of ORQO_WORKFLOWS alone say what workflows there are.

Owns the table workflow_files, and which workflows are disabled because their file is gone. They are not deleted: a file that
comes back finds its id, its runs and its webhook URLs as they were.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from orqo import apply, clock, jsontext, workflowfiles
from orqo.db import Database
from orqo.errors import Conflict, Fault, Invalid
from orqo.models import Workflow, WorkflowFile
from orqo.workflowfiles import Parsed

log = logging.getLogger(__name__)

# What a folder that cannot be read is noted under, among its files.
WHOLE = "."
Signature = frozenset[tuple[str, int, int, int]]


@dataclass(frozen=True)
class BadFile:
    """A file whose faults keep the last good version of its workflow in place."""

    name: str
    faults: tuple[Fault, ...]

    @property
    def lines(self) -> list[str]:
        """The faults, `file:line: what is wrong`."""
        return [workflowfiles.line(self.name, fault) for fault in self.faults]


def bad_files(connection: Connection) -> list[BadFile]:
    """Give the files that cannot be used as they are now, by name."""
    table = WorkflowFile.__table__
    rows = connection.execute(select(table).where(WorkflowFile.faults != "[]").order_by(WorkflowFile.name).limit(1000))
    return [BadFile(row.name, tuple(Fault(**fault) for fault in json.loads(row.faults))) for row in rows]


class Folder:
    """The folder as it is watched; for one thread. `secrets` are the service's: webhooks that lack theirs are refused."""

    def __init__(self, database: Database, path: Path, *, key: bytes, secrets: Mapping[str, str]) -> None:
        self._database = database
        self._path = path
        self._key = key
        self._secrets = secrets
        self._read: Signature | None = None
        self._seen: Signature | None = None

    def look(self, *, now: datetime) -> bool:
        """Read the files where any has changed and none has within the time since the last look; tells whether it read.

        The first look reads at once. Later a file may be half written when it is seen: it is read once it holds still.
        """
        try:
            seen = _signature(self._path)
        except OSError as fault:
            # Not there is not the same as empty: a disk that is not mounted must not take every workflow away.
            self._note_unreadable(fault, now)
            return False
        is_still, self._seen = seen == self._seen, seen
        if seen == self._read or not (is_still or self._read is None):
            return False
        try:
            self._apply(workflowfiles.parsed(workflowfiles.within(self._path)), now)
        except OSError as fault:
            self._note_unreadable(fault, now)
            return False
        self._read = seen
        return True

    def _apply(self, files: Sequence[Parsed], now: datetime) -> None:
        """Make the workflows what the files say, each good file by itself, and disable what no file defines."""
        for one in files:
            self._apply_one(one, now)
        with self._database.transaction() as connection:
            _forget(connection, {one.path.name for one in files})
            gone = _disable_absent(connection, now)
        bad = sum(bool(one.faults) for one in files)
        log.info("step=folder files=%d bad=%d disabled=%d", len(files), bad, gone)

    def _apply_one(self, one: Parsed, now: datetime) -> None:
        faults = one.faults
        if one.definition is not None:
            try:
                with self._database.transaction() as connection:
                    saved = apply.apply(connection, one.definition, key=self._key, now=now, secrets=self._secrets)
                    _enable_again(connection, saved.id)
                    _note(connection, one.path.name, (), now, workflow_id=saved.id)
                return
            except (Invalid, Conflict) as fault:
                faults = fault.errors or (Fault("", fault.detail),)
        log.warning("step=folder file=%s status=bad faults=%d", one.path.name, len(faults))
        with self._database.transaction() as connection:
            _note(connection, one.path.name, faults, now)

    def _note_unreadable(self, fault: OSError, now: datetime) -> None:
        told = Fault("", f"{fault.filename or self._path} cannot be read: {fault.strerror}; the workflows stay as they were")
        with self._database.read() as connection:
            known = [bad for bad in bad_files(connection) if bad.name == WHOLE and bad.faults == (told,)]
        self._read = None
        if not known:
            with self._database.transaction() as connection:
                _note(connection, WHOLE, (told,), now)


def _signature(folder: Path) -> Signature:
    stats = ((path.name, path.stat()) for path in workflowfiles.within(folder))
    return frozenset((name, found.st_mtime_ns, found.st_size, found.st_ino) for name, found in stats)


def _note(connection: Connection, name: str, faults: Sequence[Fault], now: datetime, *, workflow_id: int | None = None) -> None:
    """Write what a file came to; a bad one goes on to stand for the workflow that it defined when it was good last."""
    values: dict[str, object] = {"faults": jsontext.dump([fault.as_dict() for fault in faults]), "read_at": clock.to_text(now)}
    if workflow_id is not None:
        values["workflow_id"] = workflow_id
    if not connection.execute(update(WorkflowFile).where(WorkflowFile.name == name).values(values)).rowcount:
        connection.execute(insert(WorkflowFile).values(values | {"name": name}))


def _forget(connection: Connection, present: set[str]) -> None:
    """Take away the rows of files that are gone, and of a folder that can be read again."""
    names = connection.execute(select(WorkflowFile.name)).scalars().all()
    for name in names:
        if name not in present:
            connection.execute(delete(WorkflowFile).where(WorkflowFile.name == name))


def _enable_again(connection: Connection, workflow_id: int) -> None:
    """Enable a workflow whose file is back; one that a person disabled stays so."""
    back = (Workflow.id == workflow_id, Workflow.absent == 1)
    connection.execute(update(Workflow).where(*back).values(enabled=1, absent=0))


def _disable_absent(connection: Connection, now: datetime) -> int:
    """Disable every enabled workflow that no file stands for; gives how many."""
    defined = select(WorkflowFile.workflow_id).where(WorkflowFile.workflow_id.is_not(None))
    absent = (Workflow.id.not_in(defined), Workflow.enabled == 1, Workflow.deleted_at.is_(None))
    gone = update(Workflow).where(*absent).values(enabled=0, absent=1, updated_at=clock.to_text(now))
    return connection.execute(gone).rowcount
