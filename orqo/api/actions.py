"""What can be done with a run: stop, answer, run again."""

from __future__ import annotations

from flask import Response, g

from orqo import runs
from orqo.api import reports
from orqo.api.access import holder, resources
from orqo.api.answers import answering, as_json, received_answer, told, wait_for_holder
from orqo.api.paging import body
from orqo.api.runs import usable_run
from orqo.api.site import check_room, reading, site


@resources.post("/runs/<id:run_id>/stop")
def stop_run(run_id: int) -> Response:
    """Stop a run: `{"id", "status"}`, `running` where its worker was asked to."""
    here = site()
    with reading() as connection:
        usable_run(connection, run_id)
    status = runs.stop(here.box, run_id, now=g.now)
    here.bell.notify()
    here.bell.wake_workers()
    return as_json({"id": run_id, "status": str(status)}, 200)


@resources.post("/runs/<id:run_id>/answer")
def answer_run(run_id: int) -> Response:
    """Answer the stage that a run waits at, for the holder of a token of scope `write`."""
    here = site()
    with reading() as connection:
        usable_run(connection, run_id)
    wanted = body()
    given = reports.answer_of({"status": "completed"} | wanted)
    with answering(here) as connection:
        wait = wait_for_holder(connection, holder(), run_id, wanted.get("stage"))
        answered = runs.answer(here.box, connection, wait, given, by=f"API token {holder().name}", now=g.now)
    return received_answer(answered)


@resources.post("/runs/<id:run_id>/rerun")
def rerun_run(run_id: int) -> Response:
    """Repeat a run on its workflow's newest version, whole or `from` a stage; 201 with the new run."""
    here = site()
    with reading() as connection:
        usable_run(connection, run_id)
    from_stage = body().get("from")
    check_room(here.config)
    with here.database.transaction() as connection:
        made = runs.rerun(here.box, connection, run_id, from_stage=from_stage, origin="api", token_id=holder().id, now=g.now)
        shown = runs.show(connection, made)
    told(here, made, duplicate=False)
    return as_json(shown, 201, {"Location": f"/api/v1/runs/{made}"})
