"""Health, for supervisors and load balancers: /healthz and /readyz. Public, and silent about anything else."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from orqo import clock, db
from orqo.api.site import Site, check_room, site
from orqo.errors import Unavailable

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Say that this process answers."""
    return jsonify({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Say that runs are accepted and executed: database writable, Redis there, a worker heard of. Else 503 with reasons."""
    why = reasons(site())
    if why:
        raise Unavailable(" ".join(why))
    return jsonify({"status": "ready"})


def reasons(here: Site) -> list[str]:
    """Say why runs are not accepted or not executed now, in a sentence each; nothing where they are."""
    found = []
    try:
        check_room(here.config)
        with here.database.transaction():
            pass
        db.check_still(here.database)
    except Unavailable as fault:
        found.append(fault.detail)
    except db.SchemaMismatch as fault:
        found.append(str(fault))
    if not here.bell.is_reachable():
        found.append("Redis does not answer: runs are accepted and begin when it is back.")
    elif not here.bell.workers(now=clock.now()):
        found.append("No worker was heard of in the last 60 s: start worker.py.")
    return found
