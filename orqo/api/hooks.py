"""`/api/v1/hooks/<token>`: the bytes of a request in, an answer out. What becomes of it is decided in orqo/hooks.py."""

from __future__ import annotations

import logging
from dataclasses import replace

import werkzeug.exceptions
from flask import Blueprint, Response, request
from werkzeug.routing import BaseConverter

from orqo import clock, hooks, triggers
from orqo.api import body as bodies
from orqo.api import patience
from orqo.api.answers import as_json, call_of_request, refusals_noted, started, told
from orqo.api.site import Site, check_room, site
from orqo.call import Call
from orqo.errors import Conflict, MethodNotAllowed, NotFound, Problem
from orqo.hooks import Gate, Outcome, Visit
from orqo.models import Verdict
from orqo.vendors import Handshake

log = logging.getLogger(__name__)
blueprint = Blueprint("hooks", __name__, url_prefix="/api/v1")

PREFIX = "/api/v1/hooks/"
NOT_POST = "A webhook takes POST, and GET only as a greeting that its verify_token asks for; Allow names what this one takes."


class Rest(BaseConverter):
    """Whatever follows in a path, nothing, slashes and newlines too: a token of any wrong shape is answered alike."""

    part_isolating = False
    regex = r"[\s\S]*?"


blueprint.record_once(lambda state: state.app.url_map.converters.update(rest=Rest))


@blueprint.before_app_request
def refuse_other_methods() -> None:
    """Raise MethodNotAllowed with what this webhook takes: the route has GET for those with a greeting alone."""
    if isinstance(request.routing_exception, werkzeug.exceptions.MethodNotAllowed) and request.path.startswith(PREFIX):
        found = triggers.look_up(site().database, request.path.removeprefix(PREFIX))
        raise _not_post(("POST",) if found is None else hooks.visit(found, call_of_request(site())).options.methods)


@blueprint.route("/hooks/<rest:token>", methods=["GET", "POST"])
def hook(token: str) -> Response:
    """Start the workflow of the trigger that the URL's token belongs to; the body becomes the run's input."""
    here, now = site(), clock.now()
    found = triggers.look_up(here.database, token)
    if found is None:
        raise NotFound(triggers.UNKNOWN) if request.method == "POST" else _not_post(("POST",))
    guest = hooks.visit(found, call_of_request(here, token=token))
    before_start = here.simulation.before_start if here.simulation else None
    gate = Gate(here.database, here.secrets, here.config.base_url, replays=not here.config.strict, before_start=before_start)
    with refusals_noted(here, lambda fault: guest.refused(fault), now=now):
        if not found.enabled:
            guest = _with_what_can_be_read(here, guest)
        _check_open(guest)
        guest = replace(guest, call=replace(guest.call, body=_read(here, guest)))
        check_room(here.config)
        outcome = hooks.receive(gate, guest, now=now)
    return _answered(here, outcome, guest.call)


def _not_post(methods: tuple[str, ...]) -> MethodNotAllowed:
    return MethodNotAllowed(NOT_POST, headers={"Allow": ", ".join(methods)})


def _with_what_can_be_read(here: Site, guest: Visit) -> Visit:
    """Read the body of a request that is refused, so that it can be replayed; whatever is wrong with it is not the answer."""
    try:
        return replace(guest, call=replace(guest.call, body=_read(here, guest)))
    except Problem:
        return guest


def _check_open(guest: Visit) -> None:
    if not guest.found.enabled:
        raise Conflict("This webhook is disabled. Enable it in the workflow's Runs & Triggers tab.")
    if guest.call.method not in guest.options.methods:
        raise _not_post(guest.options.methods)


def _read(here: Site, guest: Visit) -> bytes:
    """Read the body within the trigger's own limit, which lies below the server's."""
    own, ours = guest.options.max_body_bytes, here.config.body_max_bytes
    if own is not None and own < ours:
        return bodies.read(request, own, set_by="max_body of this webhook")
    return bodies.read(request, ours)


def _answered(here: Site, outcome: Outcome, given: Call) -> Response:
    """Give the answer to a request that was not refused."""
    if outcome.handshake is not None:
        return _greeted(outcome.handshake)
    if outcome.run_id is None:
        return as_json({"status": "ignored", "reason": outcome.reason}, 200)
    duplicate = outcome.verdict == Verdict.DUPLICATE
    if outcome.answer is None:
        return started(here, outcome.run_id, duplicate=duplicate, wait_s=patience.wanted_s(here, given.headers))
    told(here, outcome.run_id, duplicate=duplicate)
    status, value = outcome.answer
    return Response(status=status) if value is None else as_json(value, status)


def _greeted(greeting: Handshake) -> Response:
    if greeting.text is not None:
        return Response(greeting.text, mimetype="text/plain", headers={"X-Content-Type-Options": "nosniff"})
    return as_json(greeting.json, 200)
