"""The dashboard: pages for people. Each module owns a few pages; access.py owns who may see them.

install() puts it into the application. Never imported by the API or the command line, and imports neither.
"""

from __future__ import annotations

import importlib

from flask import Flask

from orqo.dashboard import access, shown
from orqo.dashboard.blueprint import Desk, blueprint
from orqo.dashboard.pages import problem_page

__all__ = ["install", "problem_page"]

# Importing a module of pages is what registers them on the blueprint.
PAGES = (
    *("signin", "home", "workflows", "requests", "triggers", "callbacks", "runs"),
    *("actions", "deliveries", "settings", "answers", "artifacts", "reference"),
)
for name in PAGES:
    importlib.import_module(f"orqo.dashboard.{name}")


def install(app: Flask) -> None:
    """Add the pages, their guard and their filters to an application."""
    app.extensions["orqo.dashboard"] = Desk()
    app.before_request(access.guard)
    app.after_request(access.add_headers)
    app.jinja_env.filters.update(shown.FILTERS)
    app.jinja_env.globals["csrf_token"] = access.csrf_token
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.register_blueprint(blueprint)
