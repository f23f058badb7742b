"""The blueprint that all pages register on, and what the pages of one process keep between requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import Blueprint, current_app

from orqo.dashboard.pulse import Pulse
from orqo.overview import Hours

blueprint = Blueprint("dashboard", __name__, template_folder="templates", static_folder="static", static_url_path="/static")


@dataclass
class Desk:
    """What is remembered from one page to the next; all of it can be had again."""

    hours: Hours = field(default_factory=Hours)
    pulse: Pulse = field(default_factory=Pulse)


def desk() -> Desk:
    """Give the current application's Desk."""
    return current_app.extensions["orqo.dashboard"]  # type: ignore[no-any-return]
