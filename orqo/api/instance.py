"""`/api/v1/instance`: what this box is, what it takes, and how it is; and the API's description itself."""

from __future__ import annotations

from flask import Response, jsonify

from orqo import __version__, description
from orqo.api.access import resources
from orqo.api.answers import METADATA_MAX_BYTES, as_json
from orqo.api.health import reasons
from orqo.api.site import site

CACHED = {"Cache-Control": "public, max-age=300"}


@resources.get("/instance")
def show_instance() -> Response:
    """Give the release, the limits, and whether runs are accepted and executed."""
    here = site()
    why = reasons(here)
    limits = {"body_max_bytes": here.config.body_max_bytes, "metadata_max_bytes": METADATA_MAX_BYTES, "page_max": 100}
    health = {"status": "unready" if why else "ready", "reasons": why}
    return as_json({"version": __version__, "base_url": here.config.base_url, "limits": limits, "health": health}, 200)


@resources.get("/openapi.json")
def openapi_json() -> Response:
    """Give the API's description as JSON."""
    response = jsonify(description.load())
    response.headers.update(CACHED)
    return response


@resources.get("/openapi.yaml")
def openapi_yaml() -> Response:
    """Give the API's description as it was written."""
    return Response(description.OPENAPI_FILE.read_bytes(), content_type="application/yaml; charset=utf-8", headers=CACHED)
