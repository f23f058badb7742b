"""Who may see and do what: the table of routes, sessions by cookie, forms that only our own pages can send, headers.

Owns both cookies. Deny by default: a route that the table does not name is for people who are signed in.
"""

from __future__ import annotations

import hmac
import re
import secrets
from urllib.parse import urlsplit

from flask import Response, g, redirect, request, url_for

from orqo import clock, people
from orqo.errors import Forbidden, Malformed, Unauthorized, Unavailable
from orqo.site import site

PUBLIC, SIGNED_IN = "public", "signed-in"
PUBLIC_ENDPOINTS = ("static", "sign_in_page", "sign_in", "sign_in_by_link", "answer_page", "answer", "reference")
SIGNED_IN_ENDPOINTS = (
    *("home", "home_live", "sign_out"),
    *("workflow_list", "new_workflow", "create_workflow", "workflow", "edit_workflow", "save_workflow"),
    *("switch_workflow", "delete_workflow"),
    *("workflow_runs", "workflow_runs_live", "run_now", "create_trigger", "switch_trigger", "rotate_trigger", "delete_trigger"),
    *("create_schedule", "set_schedule", "report_run", "report_list"),
    *("workflow_requests_live", "kept_request", "kept_request_body", "replay_request", "set_trigger_options"),
    *("workflow_callbacks", "add_callback", "remove_callback", "resume_callback", "redeliver_dead", "callback_secret"),
    *("run_list", "run_list_live", "run", "run_live", "stop_run", "run_again", "answer_run", "run_input", "run_output"),
    *("stage_output", "stage_stderr", "artifact"),
    *("delivery_list", "delivery", "delivery_body", "redeliver", "received_list", "received", "received_body"),
    *("settings", "token_list", "create_token", "revoke_token", "people", "make_sign_in_link", "set_credentials", "remove_person"),
    *("end_session", "instance"),
)
ACCESS = {f"dashboard.{name}": PUBLIC for name in PUBLIC_ENDPOINTS} | {f"dashboard.{name}": SIGNED_IN for name in SIGNED_IN_ENDPOINTS}
"""Every route of the dashboard and who may use it. Everyone who is signed in has all rights."""

COOKIE_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
LOCAL_PATH = re.compile(r"/(?![/\\])[\x21-\x7e]{0,500}")
SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HINT = "Reload the page and send the form again; cookies must be allowed, and this box must be opened at"


def guard() -> Response | None:
    """Look at a request before any page does; None lets it pass."""
    g.now = clock.now()
    if _is_for_machines():
        return None
    request.max_content_length = site().config.body_max_bytes
    request.max_form_memory_size = site().config.body_max_bytes
    g.session = _session()
    wanted = ACCESS.get(request.endpoint or "")
    if request.endpoint is not None and wanted != PUBLIC and g.session is None:
        return _turn_away()
    if request.endpoint is not None and request.method not in SAFE_METHODS:
        _check_form()
    return None


def _is_for_machines() -> bool:
    return request.path.startswith("/api/") or request.path in ("/healthz", "/readyz", "/metrics")


def _session() -> people.SignedIn | None:
    token = request.cookies.get(cookie_name("orqo_session"), "")
    if not COOKIE_TOKEN.fullmatch(token) or request.endpoint == "dashboard.static":
        return None
    database = site().database
    with database.read() as connection:
        found = people.find_session(connection, token, now=g.now)
    if found and people.is_seen_anew(found, now=g.now):
        try:
            with database.transaction() as connection:
                people.mark_seen(connection, found, now=g.now)
        except Unavailable:
            # Pages can be read while the database cannot be written.
            return found
    return found


def _turn_away() -> Response:
    """Send a person to the sign-in page and back afterwards; a script and a form are told."""
    if request.method not in SAFE_METHODS or request.path.endswith("/live"):
        raise Unauthorized("You are not signed in, or your session is over. Sign in and try again.")
    asked = request.full_path.rstrip("?")
    follow = asked if asked != "/" and LOCAL_PATH.fullmatch(asked) else None
    return redirect(url_for("dashboard.sign_in_page", next=follow), 303)  # type: ignore[return-value]


def next_path(text: str) -> str:
    """Give where to go after signing in: a path of ours and nothing else."""
    return text if LOCAL_PATH.fullmatch(text) else url_for("dashboard.home")


# ── forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def csrf_token() -> str:
    """Give the token that a form on this page must send: bound to the session, or to the visit before there is one."""
    return hmac.digest(site().key, b"form" + _form_cookie().encode(), "sha256").hex()


def _form_cookie() -> str:
    """Give the cookie that forms are bound to; before sign-in it is made when it is first needed."""
    if g.get("session") is not None:
        return request.cookies[cookie_name("orqo_session")]
    kept = request.cookies.get(cookie_name("orqo_visit"), "")
    if COOKIE_TOKEN.fullmatch(kept):
        return kept
    if "visit" not in g:
        g.visit = secrets.token_urlsafe(32)
    return str(g.visit)


def _check_form() -> None:
    """Refuse a form that did not come from one of our pages in this browser."""
    if request.content_length is None or request.mimetype != "application/x-www-form-urlencoded":
        raise Malformed("Send the form as a browser does: urlencoded, with Content-Length.")
    if not _is_own_origin():
        raise Forbidden("This form was sent by another site. Nothing was done.")
    sent = request.form.get("csrf", "")
    if not sent.isascii() or not hmac.compare_digest(sent, csrf_token()):
        raise Forbidden(f"This form is too old or was not made for you. Nothing was done. {HINT} {site().config.base_url}.")


def _is_own_origin() -> bool:
    """Judge by what browsers say of where a form comes from.

    Our pages send no referrer, and then Chromium and Firefox give `Origin: null` for our own forms too: so null says
    nothing, Sec-Fetch-Site says it where there is one (https and localhost), and the token is checked in any case.
    """
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    origin = request.headers.get("Origin", "null")
    own = urlsplit(site().config.base_url)
    return origin in ("null", f"{own.scheme}://{own.netloc}", f"http://{request.host}", f"https://{request.host}")


# ── cookies and headers ─────────────────────────────────────────────────────────────────────────────────────────────


def cookie_name(name: str) -> str:
    """Give a cookie's name: bound to this host by the browser where the box is reached by https."""
    return f"__Host-{name}" if _is_https() else name


def _is_https() -> bool:
    return site().config.base_url.startswith("https://")


def set_cookie(response: Response, name: str, value: str, *, lasts_s: int | None = None) -> None:
    """Give the browser a cookie that no script reads and no other site's form brings along."""
    response.set_cookie(cookie_name(name), value, max_age=lasts_s, httponly=True, samesite="Lax", secure=_is_https(), path="/")


def drop_cookie(response: Response, name: str) -> None:
    """Take a cookie away."""
    response.delete_cookie(cookie_name(name), httponly=True, samesite="Lax", secure=_is_https(), path="/")


def add_headers(response: Response) -> Response:
    """Put the headers of every page on a response, and the visit's cookie where a form was made before sign-in."""
    if _is_for_machines():
        return response
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint == "dashboard.static" and response.status_code == 200:
        # The address holds the release, so a new one is a new address.
        response.headers["Cache-Control"] = "public, max-age=86400"
    else:
        response.headers["Cache-Control"] = "no-store"
    if "visit" in g and "session" in g and g.session is None:
        set_cookie(response, "orqo_visit", g.visit)
    return response
