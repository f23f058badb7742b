"""The web half by hand: `gunicorn bench.handwritten.web:app`."""

from __future__ import annotations

import hashlib
import os

from flask import Response, abort, jsonify, request
from redis import Redis
from rq import Queue

from bench.handwritten.jobs import execute
from bench.handwritten.models import Run, Token, Workflow, create_app, db

app = create_app()
queue = Queue("runs", connection=Redis.from_url(os.environ["REDIS_URL"]))


@app.post("/trigger")
def trigger() -> tuple[Response, int]:
    """Check the token, store a run, enqueue its job."""
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if Token.query.filter_by(digest=hashlib.sha256(token.encode()).hexdigest()).first() is None:
        abort(401)
    given = request.get_json()
    workflow = db.session.get(Workflow, given["workflow_id"])
    if workflow is None:
        abort(404)
    run = Run(workflow_id=workflow.id, input=given.get("input"))
    db.session.add(run)
    db.session.commit()
    queue.enqueue(execute, run.id)
    return jsonify(workflow_run_id=run.id, status="started"), 201


@app.post("/bare")
def bare() -> tuple[Response, int]:
    """Do nothing with the same request: what the server and Flask alone take."""
    request.get_json()
    return jsonify(workflow_run_id=1, status="started"), 201
