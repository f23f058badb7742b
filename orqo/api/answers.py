"""What the endpoints share: a request as data, the note of a refusal, the form of an answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flask import Response, request
from sqlalchemy import Connection, Row

from orqo import call, crashpoints, requestlog, runs
from orqo.api import patience
from orqo.api.site import Site, check_room
from orqo.call import Call
from orqo.errors import NotFound, Problem, Unavailable
from orqo.tokens import Holder

log = logging.getLogger(__name__)

METADATA_MAX_BYTES = 16384
# ASCII, for what a run's output holds may be no character.
ENCODER = json.JSONEncoder(separators=(",", ":"))


def call_of_request(here: Site, *, token: str = "") -> Call:
    """Give the current request without its body. A header that repeats the `token` of the path, as proxies' do, is hidden."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    if token:
        headers = {name: call.HIDDEN if token in value else value for name, value in headers.items()}
    peer, forwarded = request.environ.get("REMOTE_ADDR") or "", headers.get("x-forwarded-for", "")
    return Call(
        method=request.method,
        headers=headers,
        query=tuple(request.args.items(multi=True)) if request.query_string else (),
        remote=call.remote_address(peer, forwarded, here.config.trusted_proxies),
        body=None,
    )


@contextmanager
def refusals_noted(here: Site, entry: Callable[[Problem], requestlog.Entry], *, now: datetime) -> Iterator[None]:
    """Write whatever is refused within into the request log, best effort; what only came at a bad time is not."""
    try:
        yield
    except Unavailable:
        raise
    except Problem as fault:
        requestlog.note(here.database, entry(fault), now=now)
        raise


def started(here: Site, run_id: int, *, duplicate: bool, wait_s: int = 0) -> Response:
    """Answer an accepted call, after `wait_s` at most where its run ends by then. It is committed: only now may anybody be told."""
    told(here, run_id, duplicate=duplicate)
    answer: dict[str, Any] = {"workflow_run_id": run_id, "status": "started"}
    headers = {} if here.config.strict else {"Location": f"/api/v1/runs/{run_id}"}
    run = patience.ended(here, run_id, within_s=wait_s)
    if run is not None:
        answer["run"] = run
        headers["Preference-Applied"] = f"wait={wait_s}"
    if duplicate:
        return as_json({**answer, "duplicate": True}, 200, {**headers, "Idempotent-Replayed": "true"})
    return as_json(answer, 201, headers)


def told(here: Site, run_id: int, *, duplicate: bool) -> None:
    """Wake the workers for a new run, and log it."""
    if not duplicate:
        crashpoints.reach("accept-committed")
        here.bell.wake_workers_soon()
        crashpoints.reach("workers-woken")
    log.info("step=accept run=%s status=%s", run_id, "duplicate" if duplicate else "pending")


def as_json(value: Any, status: int, headers: dict[str, str] | None = None) -> Response:
    """Give a JSON answer."""
    return Response(ENCODER.encode(value) + "\n", status, headers, content_type="application/json")


# ── answers to waits ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def answering(here: Site) -> Iterator[Connection]:
    """Give the transaction that an answer is written in; once it is committed, workers and the dispatcher are woken."""
    check_room(here.config)
    with here.database.transaction() as connection:
        yield connection
    here.bell.wake_workers()
    here.bell.notify()


def wait_for_holder(connection: Connection, holder: Holder, run_id: int, stage: str | None) -> Row[Any]:
    """Give the wait of a run that the holder of a token means; a run of a workflow that the token may not use is none to it."""
    workflow_id = runs.workflow_of(connection, run_id)
    if workflow_id is None or not holder.may_use(workflow_id):
        raise NotFound(f"There is no run {run_id}.")
    return runs.wait_of(connection, run_id, stage)


def received_answer(answered: runs.Answered) -> Response:
    """Give the answer to an answer."""
    told: dict[str, Any] = {"workflow_run_id": answered.run_id, "status": "received"}
    log.info("step=answer run=%s status=%s", answered.run_id, "duplicate" if answered.duplicate else "received")
    return as_json(told | {"duplicate": True} if answered.duplicate else told, 200)
