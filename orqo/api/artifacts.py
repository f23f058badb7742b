"""`/api/v1/runs/<id>/artifacts`: the files that a run left, listed and downloaded, never shown by a browser."""

from __future__ import annotations

from flask import Response, send_file

from orqo import artifacts, machines
from orqo.api.access import resources
from orqo.api.answers import as_json
from orqo.api.runs import usable_run
from orqo.api.site import reading, site


@resources.get("/runs/<id:run_id>/artifacts")
def list_artifacts(run_id: int) -> Response:
    """List a run's files, `{"path", "size", "type", "modified_at"}` each, by path."""
    with reading() as connection:
        usable_run(connection, run_id)
        machines.check_here(connection, run_id, site().config)
    return as_json(artifacts.list_all(site().config.data / "runs", run_id), 200)


@resources.get("/runs/<id:run_id>/artifacts/<path:path>")
def show_artifact(run_id: int, path: str) -> Response:
    """Give a file as it is."""
    with reading() as connection:
        usable_run(connection, run_id)
        machines.check_here(connection, run_id, site().config)
    found = artifacts.opened(site().config.data / "runs", run_id, path)
    response = send_file(found.file, mimetype=found.type, as_attachment=True, download_name=found.name, etag=False, max_age=0)
    response.headers.update(artifacts.HEADERS | {"Content-Length": str(found.size)})
    return response
