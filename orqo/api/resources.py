"""Everything of the API but the three endpoints: what there is, read and changed."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from orqo import clock, runs
from orqo.api.site import holder_with, reading
from orqo.errors import NotFound

blueprint = Blueprint("resources", __name__, url_prefix="/api/v1")


@blueprint.get("/runs/<int:run_id>")
def show_run(run_id: int) -> Response:
    """Give a run with its stages; NotFound also for a run of a workflow that the token may not use."""
    with reading() as connection:
        holder = holder_with(connection, "read", now=clock.now())
        run = runs.show(connection, run_id)
    if run is None or not holder.may_use(run["workflow_id"]):
        raise NotFound(f"There is no run {run_id} that this token may see.")
    return jsonify(run)
