"""Starting a run from a page: with an input that somebody typed, or with an earlier run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import g
from sqlalchemy import Connection, Row

from orqo import jsontext, runs
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


def typed_input(text: str) -> Any:
    """Give the JSON that somebody typed, null for nothing; Invalid says where it is none."""
    if not text.strip():
        return None
    try:
        return jsontext.parse(text.encode("utf-8", "surrogatepass"))
    except jsontext.NotJson as fault:
        raise Invalid(f"The input is not JSON: {fault}.", errors=[Fault("/input", str(fault))]) from fault
