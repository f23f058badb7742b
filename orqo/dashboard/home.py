"""Home: what runs, what failed, what waits, how many per hour, and how the box is."""

from __future__ import annotations

from typing import Any

from flask import Response, g, render_template
from sqlalchemy import Connection

from orqo import listings, overview, triggers
from orqo.dashboard import drawings
from orqo.dashboard.blueprint import blueprint, desk
from orqo.dashboard.pages import common, etag_of, live_answer, page
from orqo.folder import bad_files
from orqo.site import site

BUSY_MS, CALM_MS = 2000, 5000


@blueprint.get("/")
def home() -> Response:
    """Show the box at a glance."""
    parts, next_ms, shown = _parts()
    return page("home.html", parts=parts, etag=etag_of(parts, next_ms), next_ms=next_ms, **shown)


@blueprint.get("/live")
def home_live() -> Response:
    """Answer a poll of Home."""
    parts, next_ms, _ = _parts()
    return live_answer(parts, next_ms)


def _parts() -> tuple[dict[str, str], int, dict[str, Any]]:
    """Give Home's live parts as HTML, when to ask again, and what only the whole page shows."""
    here = site()
    pulse = desk().pulse.reading(here.bell, now=g.now)
    with here.database.read() as connection:
        present = overview.present(connection, now=g.now)
        hours = desk().hours.of(connection, now=g.now)
        health = {
            "pulse": pulse,
            "due": overview.deliveries_due(connection),
            "dead": overview.deliveries_dead(connection),
            "bad_files": bad_files(connection),
            "database_bytes": overview.database_bytes(here.database, connection),
        }
        first = _first(connection) if not any(hour.total for hour in hours) and not present.running else None
    day = hours[-overview.DAY_HOURS :]
    values = {"present": present, "chart": drawings.chart(hours), "health": health, "failed_day": sum(h.counts["failed"] for h in day)}
    values |= {"ended_day": sum(hour.total for hour in day), **common()}
    parts = {name: render_template(f"parts/home_{name}.html", **values) for name in ("health", "chart", "now")}
    return parts, BUSY_MS if present.running or present.waiting else CALM_MS, {"is_empty": first is not None, **(first or {})}


def _first(connection: Connection) -> dict[str, Any]:
    """Give what to try on a box on which nothing has run yet: a `hook`, else a `workflow`, null where there is none."""
    here = site()
    rows, _ = listings.workflows(connection)
    hooks = [row for row in triggers.list_all(connection, limit=20) if row["kind"] == "webhook" and not row["pinned"] and row["enabled"]]
    if not hooks:
        return {"hook": None, "workflow": rows[0]["name"] if rows else None}
    url = triggers.url_of(triggers.get(connection, hooks[0]["id"]), here.key, here.config.base_url)
    return {"hook": {"workflow": hooks[0]["workflow"], "url": url}, "workflow": hooks[0]["workflow"]}
