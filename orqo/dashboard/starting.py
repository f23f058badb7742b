"""Starting a run from a page: with an input that somebody typed, or with an earlier run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flask import g
from sqlalchemy import Connection, Row

from orqo import jsontext, runs
from orqo.dashboard import inputform
from orqo.dashboard.pages import field
from orqo.errors import Conflict, Fault, Invalid
from orqo.site import check_room, site

log = logging.getLogger(__name__)


def start(connection: Connection, workflow: Row[Any], value: Any, *, metadata: Mapping[str, Any] | None = None) -> int:
    """Accept a run of a workflow's newest version and give its id; durable once the caller's transaction commits.

    Raises Conflict where the workflow is disabled, Unavailable where the disk is nearly full.
    """
    check_room(site().config)
    if not workflow.enabled:
        raise Conflict(f"Workflow {workflow.name} is disabled. Enable it, then start it again.")
    new = runs.NewRun(
        workflow_id=workflow.id,
        version_id=workflow.version_id,
        origin="dashboard",
        input=value,
        metadata=metadata or {},
        trigger_facts={"by": g.session.name},
    )
    return runs.accept(connection, new, now=g.now).run_id


def announce(run_id: int) -> None:
    """Wake a worker for a run that is committed."""
    site().bell.wake_workers()
    log.info("step=accept run=%s status=pending", run_id)


def fields(connection: Connection, workflow: Row[Any]) -> list[inputform.Field] | None:
    """Give the fields that the newest version of a workflow asks its input by, None where it is typed as JSON."""
    return inputform.fields(site().box.definitions.of(connection, workflow.version_id).input_schema)


def filled(asked: Sequence[inputform.Field]) -> list[inputform.Field]:
    """Give the fields with what the current form sent in them: `field-0`, `field-1`, …"""
    most = site().config.body_max_bytes
    return inputform.typed(asked, [field(f"field-{number}", most=most) for number in range(len(asked))])


def typed_input(text: str, *, name: str = "input") -> Any:
    """Give the JSON that somebody typed, null for nothing; Invalid says where it is none."""
    if not text.strip():
        return None
    try:
        return jsontext.parse(text.encode("utf-8", "surrogatepass"))
    except jsontext.NotJson as fault:
        raise Invalid(f"The {name} is not JSON: {fault}.", errors=[Fault(f"/{name}", str(fault))]) from fault
