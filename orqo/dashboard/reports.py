"""Reports on runs: one by hand for a stage that waits, and the list of those that came to `POST /api/v1/callback`."""

from __future__ import annotations

import logging

from flask import Response, g, request

from orqo import listings, runs
from orqo.dashboard.actions import check_known
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import Refused, done, field, page, whole_number
from orqo.dashboard.runs import run_page
from orqo.dashboard.starting import typed_input
from orqo.errors import Conflict, Fault, Invalid
from orqo.models import Verdict
from orqo.received import CALLBACK_PATH
from orqo.site import check_room, site

log = logging.getLogger(__name__)

VERDICTS = [str(each) for each in (Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.REFUSED)]
STATUSES = ("completed", "failed", "output")


@blueprint.post("/runs/<int:run_id>/report")
def report_run(run_id: int) -> Response:
    """Report for a stage that waits: that it completed or failed, or how far it is."""
    typed = {"output": field("output", most=site().config.body_max_bytes)}
    typed |= {name: field(name, most=runs.ERROR_MAX) for name in ("status", "outcome", "error", "stage", "wait")}
    try:
        check_room(site().config)
        wanted = _wanted(typed)
        with site().database.transaction() as connection:
            check_known(connection, run_id)
            wait = runs.wait_of(connection, run_id, typed["stage"])
            if str(wait.id) != typed["wait"] or wait.kind != "wait":
                raise Conflict("What was waited for is over; the run has gone on since. Look at its page again.")
            runs.answer(site().box, connection, wait, wanted, by=str(g.session.name or "somebody who came by link"), now=g.now)
    except Invalid as fault:
        return run_page(run_id, Refused(fault, typed["wait"], typed))
    site().bell.wake_workers()
    site().bell.notify()
    log.info("step=report run=%s stage=%s status=%s", run_id, wait.stage, wanted.status)
    return done("run", "noted" if wanted.status == "output" else "answered", run_id=run_id)


def _wanted(typed: dict[str, str]) -> runs.Answer:
    """Give the answer that was typed; Invalid names the field that does not fit."""
    if typed["status"] not in STATUSES:
        raise Invalid("Say whether the stage completed, failed, or goes on.", errors=[Fault("/status", "choose one")])
    output = typed_input(typed["output"], name="output")
    if typed["status"] == "completed":
        return runs.Answer("completed", output, typed["outcome"] or None)
    return runs.Answer(typed["status"], output, error=(typed["error"].strip() or None) if typed["status"] == "failed" else None)


@blueprint.get("/received/reports")
def report_list() -> Response:
    """List the calls of the callback endpoint that reported on a run, or meant to."""
    verdict, before = request.args.get("verdict", ""), whole_number("before")
    verdict = verdict if verdict in VERDICTS else ""
    with site().database.read() as connection:
        found = listings.reports(connection, verdict=verdict, before=before)
    where = site().config.base_url + CALLBACK_PATH
    return page("reports.html", tab="reports", listed=found, verdict=verdict, verdicts=VERDICTS, before=before, callback_url=where)
