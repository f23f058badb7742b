"""What can be done with a run: stop, answer, run again."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from orqo import clock, runs, tokens
from orqo.api import body as bodies
from orqo.api import reports
from orqo.api.answers import answering, as_json, received_answer, told, wait_for_holder
from orqo.api.site import Site, check_room, holder_of, require, site
from orqo.errors import NotFound, UnsupportedMedia

blueprint = Blueprint("actions", __name__, url_prefix="/api/v1/runs")


@blueprint.post("/<int:run_id>/stop")
def stop_run(run_id: int) -> Response:
    """Stop a run: `{"id", "status"}`, `running` where its worker was asked to."""
    here, now = site(), clock.now()
    _holder(here, run_id)
    status = runs.stop(here.box, run_id, now=now)
    here.bell.notify()
    here.bell.wake_workers()
    return as_json({"id": run_id, "status": str(status)}, 200)


@blueprint.post("/<int:run_id>/answer")
def answer_run(run_id: int) -> Response:
    """Answer the stage that a run waits at, for the holder of a token of scope `write`."""
    here, now = site(), clock.now()
    holder = _holder(here, run_id)
    wanted = _body(here, "AnswerRequest")
    given = reports.answer_of({"status": "completed"} | wanted)
    with answering(here) as connection:
        wait = wait_for_holder(connection, holder, run_id, wanted.get("stage"))
        answered = runs.answer(here.box, connection, wait, given, by=f"API token {holder.name}", now=now)
    return received_answer(answered)


@blueprint.post("/<int:run_id>/rerun")
def rerun(run_id: int) -> Response:
    """Repeat a run on its workflow's newest version, whole or `from` a stage; 201 with the new run."""
    here, now = site(), clock.now()
    holder = _holder(here, run_id)
    from_stage = _body(here, "RerunRequest").get("from")
    check_room(here.config)
    with here.database.transaction() as connection:
        made = runs.rerun(here.box, connection, run_id, from_stage=from_stage, origin="api", token_id=holder.id, now=now)
        shown = runs.show(connection, made)
    told(here, made, duplicate=False)
    return as_json(shown, 201, {"Location": f"/api/v1/runs/{made}"})


def _holder(here: Site, run_id: int) -> tokens.Holder:
    """Give the holder of a token that may change this run; NotFound also for a run of a workflow that it may not use."""
    with here.database.read() as connection:
        holder = require(holder_of(connection, now=clock.now()), "write")
        workflow_id = runs.workflow_of(connection, run_id)
    if workflow_id is None or not holder.may_use(workflow_id):
        raise NotFound(f"There is no run {run_id} that this token may use.")
    return holder


def _body(here: Site, schema: str) -> dict[str, Any]:
    """Read a JSON object; no body is an empty one."""
    raw = bodies.read(request, here.config.body_max_bytes)
    if not raw:
        return {}
    if not bodies.is_json(request.headers.get("Content-Type", "")):
        raise UnsupportedMedia("Send JSON: Content-Type: application/json.")
    value = bodies.parse_json(raw)
    here.validators.check(schema, value)
    return value  # type: ignore[no-any-return]
