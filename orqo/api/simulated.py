"""A stand-in's `Prefer: code=409` and `Prefer: code=200, example=ignored`: the answer that the contract gives for that status.

Owns the reading of that wish, on the three endpoints. Registered under ORQO_SIMULATE alone.
"""

from __future__ import annotations

import re

from flask import Flask, Response, request

from orqo import description, simulation
from orqo.api.answers import as_json
from orqo.errors import Malformed

CODE = re.compile(r"(?:^|[,;])\s*code\s*=\s*\"?([0-9]{3})\"?\s*(?=[,;]|$)", re.IGNORECASE)
EXAMPLE = re.compile(r"(?:^|[,;])\s*example\s*=\s*\"?([a-z]+)\"?\s*(?=[,;]|$)", re.IGNORECASE)
REPLAYED = "replayed"
OPERATIONS = {"endpoints.trigger": "trigger", "hooks.hook": "hook", "callback.callback": "callback"}
GONE_ON_WITH = {"trigger": 201, "hook": 201, "callback": 200}


def install(app: Flask) -> None:
    """Look at each request to the three endpoints before they do."""
    app.before_request(_before)


def _before() -> Response | None:
    operation = OPERATIONS.get(request.endpoint or "")
    found = CODE.search(request.headers.get("Prefer", ""))
    if operation is None or found is None:
        return None
    example = EXAMPLE.search(request.headers["Prefer"])
    return answer(operation, int(found[1]), example[1] if example else REPLAYED)


def answer(operation: str, status: int, example: str) -> Response | None:
    """Give the contract's answer of a status, None for the one by which a request is taken: that is taken.

    Where a good status has several answers, `example` names one of the description's.
    """
    responses = description.operations()[operation].value["responses"]
    if status == GONE_ON_WITH[operation]:
        return None
    if str(status) not in responses:
        raise Malformed(f"This endpoint never answers {status}; it answers {', '.join(sorted(responses))}.")
    if status < 300:
        examples = description.resolved(responses[str(status)])["content"]["application/json"]["examples"]
        if example not in examples:
            raise Malformed(f"This endpoint has no example {example} of {status}; it has {', '.join(examples)}.")
        return as_json(examples[example]["value"], status, {"Idempotent-Replayed": "true"} if example == REPLAYED else {})
    raise simulation.problem(status, f"Prefer: code={status} asked for this answer")
