"""A run's files, downloaded by whoever is signed in."""

from __future__ import annotations

from flask import Response, send_file

from orqo import artifacts, machines
from orqo.dashboard.blueprint import blueprint
from orqo.site import site


@blueprint.get("/runs/<int:run_id>/artifacts/<path:path>")
def artifact(run_id: int, path: str) -> Response:
    """Give a file as it is, to be saved and not to be shown."""
    with site().database.read() as connection:
        machines.check_here(connection, run_id, site().config)
    found = artifacts.opened(site().config.data / "runs", run_id, path)
    response = send_file(found.file, mimetype=found.type, as_attachment=True, download_name=found.name, etag=False, max_age=0)
    response.headers.update(artifacts.HEADERS | {"Content-Length": str(found.size)})
    return response
