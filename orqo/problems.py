"""How a problem is answered over HTTP: problem+json under /api, a page elsewhere.

Owns the application's error handlers. The tree of problems is errors.py's.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from flask import Flask, Response, make_response, render_template_string, request
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from orqo import db, errors, jsontext

log = logging.getLogger(__name__)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ problem.title }} · orqo</title></head>
<body><h1>{{ problem.title }}</h1><p>{{ problem.detail }}</p></body></html>
"""


def install(app: Flask, *, page: Callable[[errors.Problem], str] | None = None) -> None:
    """Answer every problem and every fault in our one form; `page` renders those outside /api."""
    render = page or (lambda problem: render_template_string(PAGE, problem=problem))
    app.register_error_handler(errors.Problem, lambda problem: answer(problem, render))
    app.register_error_handler(HTTPException, lambda fault: answer(_of_http(fault), render, fault))
    app.register_error_handler(DBAPIError, lambda fault: answer(_of_database(fault), render))
    app.register_error_handler(Exception, lambda fault: answer(_of_bug(fault), render))


def answer(problem: errors.Problem, page: Callable[[errors.Problem], str], fault: HTTPException | None = None) -> Response:
    """Give the response for a problem: as JSON for machines, as a page for people."""
    if request.path.startswith("/api/") or request.path in ("/healthz", "/readyz", "/metrics"):
        response = make_response(jsontext.dump(problem.as_dict()) + "\n", problem.status)
        response.content_type = "application/problem+json"
    else:
        response = make_response(page(problem), problem.status)
    response.headers.update(problem.headers)
    if isinstance(fault, MethodNotAllowed) and fault.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(set(fault.valid_methods) - {"OPTIONS"}))
    response.headers["Cache-Control"] = "no-store"
    return response


def _of_http(fault: HTTPException) -> errors.Problem:
    """Give our problem for what routing or Werkzeug found."""
    if isinstance(fault, NotFound):
        return errors.NotFound("There is nothing at this path.")
    if isinstance(fault, MethodNotAllowed):
        return errors.MethodNotAllowed("This path does not take this method; Allow names those it takes.")
    if isinstance(fault, RequestEntityTooLarge):
        return errors.TooLarge("The body is too large.")
    if fault.code is not None and 400 <= fault.code < 500:
        return errors.Malformed(f"The request cannot be read ({fault.name}).")
    return _of_bug(fault)


def _of_database(fault: DBAPIError) -> errors.Problem:
    cause = db.unavailable_cause(fault)
    if cause is None:
        return _of_bug(fault)
    log.warning("step=database status=unavailable error=%s", type(fault.orig).__name__)
    return errors.Unavailable(db.told_unavailable(cause))


def _of_bug(fault: Exception) -> errors.Problem:
    """Log our own fault under an id, and tell the id alone."""
    fault_id = secrets.token_hex(6)
    log.error("step=request status=fault id=%s endpoint=%s", fault_id, request.endpoint, exc_info=fault)
    return errors.ServerFault(f"This is a fault of ours. The log has it under {fault_id}.")
