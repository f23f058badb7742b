"""What `workflow apply` does: a definition, its triggers and its callbacks in one transaction.

Owns the order of these steps. Each table is written by its own module.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection

from orqo import callbacks, triggers, webhook, workflows
from orqo.definition import Definition
from orqo.errors import Fault, Invalid


def apply(
    connection: Connection, definition: Definition, *, key: bytes, now: datetime, secrets: Mapping[str, str] | None = None
) -> workflows.Saved:
    """Make a definition the workflow's newest version, with exactly the file's triggers and callbacks.

    All or nothing: a fault leaves the last good version. The same text again changes nothing. Raises Invalid or Conflict.
    `secrets` are the service's, where the caller knows them: a webhook that needs one which is absent or empty is refused,
    for it would refuse every request.
    """
    if secrets is not None:
        _check_secrets(definition, secrets)
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


def warnings(connection: Connection, definition: Definition) -> list[str]:
    """Say what a definition lacks that may still come: a workflow that one of its stages starts."""
    found = []
    for index, stage in enumerate(definition.stages):
        routed = [route["workflow"] for route in stage.routing.values() if isinstance(route, Mapping)]
        for name in [*([stage.spec["name"]] if stage.kind == "workflow" else []), *routed]:
            if workflows.find(connection, name) is None:
                found.append(f"stages[{index}] ({stage.name}) starts workflow {name}, which is not there; until it is, the stage fails")
    return found


def _check_secrets(definition: Definition, secrets: Mapping[str, str]) -> None:
    faults = [
        Fault(f"/triggers/{index}/webhook", f"the secret {name} of trigger {trigger.name} is not set: give the service ORQO_SECRET_{name}")
        for index, trigger in enumerate(definition.triggers)
        for name in webhook.names_of_secrets(trigger.options)
        if not secrets.get(name)
    ]
    if faults:
        raise Invalid("; ".join(fault.detail for fault in faults), errors=faults)
