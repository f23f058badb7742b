"""What `workflow apply` does: a definition, its triggers and its callbacks in one transaction.

Owns the order of these steps. Each table is written by its own module.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from orqo import callbacks, triggers, workflows
from orqo.definition import Definition


def apply(connection: Connection, definition: Definition, *, key: bytes, now: datetime) -> workflows.Saved:
    """Make a definition the workflow's newest version, with exactly the file's triggers and callbacks.

    All or nothing: a fault leaves the last good version. The same text again changes nothing. Raises Invalid or Conflict.
    """
    saved = workflows.save(connection, definition, now=now)
    if not saved.changed:
        return saved
    trigger_ids = triggers.configure(connection, workflow_id=saved.id, wanted=definition.triggers, key=key, now=now)
    callbacks.configure(connection, workflow_id=saved.id, trigger_id=None, wanted=definition.callbacks, origin="file", now=now)
    for trigger in definition.triggers:
        callbacks.configure(
            connection, workflow_id=saved.id, trigger_id=trigger_ids[trigger.name], wanted=trigger.callbacks, origin="file", now=now
        )
    return saved
