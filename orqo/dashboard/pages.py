"""What all pages share: rendering, redirects with a message, reading of forms, live parts.

Owns the sentences that are shown after something was done. Never decides who may see a page.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import Response, g, make_response, redirect, render_template, request, url_for

from orqo import __version__, errors
from orqo.dashboard import inputform
from orqo.site import site

# A redirect names one of these; whatever else a link says is not shown.
DONE = {
    "stopping": "Asked to stop: the worker ends the stage under way.",
    "stopped": "The run was stopped.",
    "started": "The run was accepted.",
    "answered": "Answered: the run goes on.",
    "noted": "Kept as progress: the stage goes on waiting.",
    "saved": "Saved as the newest version. Runs under way keep the version that they began with.",
    "unchanged": "Nothing was different: no new version was made.",
    "enabled": "Enabled.",
    "disabled": "Disabled.",
    "paused": "Paused: it does not fire until it is resumed.",
    "continued": "Resumed: it goes on with its next time.",
    "rescheduled": "Saved: it fires at these times from now on.",
    "deleted": "Deleted.",
    "created": "Created.",
    "rotated": "The trigger has a new URL. The old one is unknown from now on.",
    "removed": "Removed.",
    "resumed": "Resumed: what was held is being delivered.",
    "replayed": "The request was sent through its webhook once more, and this is its run.",
    "replayed-before": "The request was sent through its webhook once more: this run was there already.",
    "replayed-to-nothing": "The request was sent through its webhook once more and started no run: its newest replay says why.",
    "options": "Saved: it holds for every request from now on.",
    "redelivered": "Being delivered once more.",
    "revoked": "Revoked.",
    "signed-out": "Signed out.",
    "ended": "The session was ended.",
    "credentials": "Saved. Sign in with this name and password from now on.",
}


@dataclass(frozen=True)
class Refused:
    """A form of a page that was refused: why, which one of the page it was, and what stands in its fields."""

    fault: errors.Problem
    at: str
    typed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: list[inputform.Field] | None = None


def page(template: str, *, code: int = 200, **values: Any) -> Response:
    """Render a page."""
    done = DONE.get(request.args.get("done", "")) if request.method == "GET" else None
    return make_response(render_template(template, done=done, **common(), **values), code)


def common() -> dict[str, Any]:
    """Give what every template may use."""
    config = site().config
    return {"visitor": g.get("session"), "base_url": config.base_url, "release": __version__, "simulates": config.simulate, "now": g.now}


def problem_page(problem: errors.Problem) -> str:
    """Render a problem for people."""
    return render_template("problem.html", problem=problem, done=None, **common())


def done(endpoint: str, what: str, **values: Any) -> Response:
    """Send the browser to a page that says what was done."""
    return make_response(redirect(url_for(f"dashboard.{endpoint}", done=what, **values), 303))


def field(name: str, *, most: int = 4096) -> str:
    """Give a form's field with its line ends as LF, "" where it is absent; Invalid where it is too long."""
    value = request.form.get(name, "").replace("\r\n", "\n")
    if len(value) > most:
        raise errors.Invalid(f"The field {name} holds more than {most} characters.")
    if "\0" in value:
        raise errors.Invalid(f"The field {name} holds a NUL character.")
    return value


def whole_number(name: str) -> int | None:
    """Give a query's whole number, None where there is none: what is no number is as good as none."""
    text = request.args.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


# ── live parts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def etag_of(parts: Mapping[str, str], next_ms: int | None) -> str:
    """Name a state of a page's live parts."""
    return hashlib.sha256(json.dumps([dict(parts), next_ms]).encode()).hexdigest()[:24]


def live_answer(parts: Mapping[str, str], next_ms: int | None) -> Response:
    """Answer a poll: `{"parts": {id: html}, "next_ms"}`, or 304 where the browser has it. `next_ms` null: nothing will change."""
    response = make_response(json.dumps({"parts": dict(parts), "next_ms": next_ms}))
    response.content_type = "application/json"
    response.set_etag(etag_of(parts, next_ms))
    response.make_conditional(request)
    return response


def plain(data: bytes | None, what: str) -> Response:
    """Answer stored bytes as text that no browser runs; NotFound where there are none."""
    if data is None:
        raise errors.NotFound(f"There is no such {what}.")
    response = make_response(data)
    response.content_type = "text/plain; charset=utf-8"
    return response
