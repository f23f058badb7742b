"""Counts every answer of the web process by its route, for /metrics. Never by its path: paths hold tokens."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request

from orqo import metrics


def install(app: Flask) -> None:
    """Count what this application answers."""
    app.before_request(_begin)
    app.after_request(_count)


def _begin() -> None:
    g.began = time.monotonic()


def _count(response: Response) -> Response:
    route = request.url_rule.rule if request.url_rule else "none"
    metrics.answered(route, request.method, response.status_code, seconds=time.monotonic() - g.began)
    return response
