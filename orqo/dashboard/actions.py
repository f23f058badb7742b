"""What can be done with a run: stop it, answer what it asks, run it again, whole or from a stage."""

from __future__ import annotations

import logging

from flask import Response, g
from sqlalchemy import Connection

from orqo import runs
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import done, field
from orqo.dashboard.starting import announce
from orqo.errors import Conflict, NotFound
from orqo.listings import LARGEST_ID
from orqo.models import RunStatus
from orqo.site import check_room, site

log = logging.getLogger(__name__)

UNKNOWN = "There is no such run."


@blueprint.post("/runs/<int:run_id>/stop")
def stop_run(run_id: int) -> Response:
    """Stop a run."""
    with site().database.read() as connection:
        check_known(connection, run_id)
    status = runs.stop(site().box, run_id, now=g.now)
    site().bell.notify()
    # Its end may let another run of its key begin, or its parent go on.
    site().bell.wake_workers()
    return done("run", "stopping" if status == RunStatus.RUNNING else "stopped", run_id=run_id)


@blueprint.post("/runs/<int:run_id>/again")
def run_again(run_id: int) -> Response:
    """Run the workflow's newest version with the same input once more, from a stage where one is named, and show that run."""
    stage = field("stage", most=100)
    check_room(site().config)
    with site().database.transaction() as connection:
        check_known(connection, run_id)
        made = runs.rerun(
            site().box, connection, run_id, from_stage=stage or None, origin="dashboard", facts={"by": g.session.name}, now=g.now
        )
    announce(made)
    return done("run", "started", run_id=made)


@blueprint.post("/runs/<int:run_id>/answer")
def answer_run(run_id: int) -> Response:
    """Answer what a run asks somebody."""
    wanted = runs.Answer("completed", outcome=field("outcome", most=100))
    with site().database.transaction() as connection:
        check_known(connection, run_id)
        wait = runs.wait_of(connection, run_id, field("stage", most=100))
        if str(wait.id) != field("wait", most=20) or wait.kind != "approval":
            raise Conflict("What was asked is over; the run has gone on since. Look at its page again.")
        runs.answer(site().box, connection, wait, wanted, by=str(g.session.name or "somebody who came by link"), now=g.now)
    site().bell.wake_workers()
    log.info("step=answer run=%s stage=%s", run_id, wait.stage)
    return done("run", "answered", run_id=run_id)


def check_known(connection: Connection, run_id: int) -> None:
    """Raise NotFound, in the words of the pages, where there is no such run."""
    if not 0 < run_id <= LARGEST_ID or runs.status_of(connection, run_id) is None:
        raise NotFound(UNKNOWN)
