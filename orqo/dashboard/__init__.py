"""The dashboard: pages for people. Each module owns a few pages; access.py owns who may see them.

install() puts it into the application. Never imported by the API or the command line, and imports neither.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from flask import Flask
from jinja2 import FileSystemBytecodeCache

from orqo.dashboard import access, shown
from orqo.dashboard.blueprint import Desk, blueprint
from orqo.dashboard.pages import problem_page

__all__ = ["install", "problem_page", "warm"]

# Importing a module of pages is what registers them on the blueprint.
PAGES = (
    *("signin", "home", "workflows", "requests", "triggers", "schedules", "callbacks", "runs"),
    *("actions", "reports", "deliveries", "settings", "answers", "artifacts", "reference"),
)
for name in PAGES:
    importlib.import_module(f"orqo.dashboard.{name}")


def warm(app: Flask) -> None:
    """Have all templates compiled and in memory: else whoever comes first waits for it."""
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)


def install(app: Flask) -> None:
    """Add the pages, their guard and their filters to an application."""
    app.extensions["orqo.dashboard"] = Desk()
    app.before_request(access.guard)
    app.after_request(access.add_headers)
    app.jinja_env.filters.update(shown.FILTERS)
    app.jinja_env.globals["csrf_token"] = access.csrf_token
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.bytecode_cache = _compiled()
    app.register_blueprint(blueprint)


def _compiled() -> FileSystemBytecodeCache | None:
    """Give where compiled templates are kept from one start to the next: beside the compiled modules, and as trusted as they are.

    None where nothing may be written there. A template that changed is compiled anew.
    """
    folder = Path(__file__).parent / "__pycache__" / "templates"
    if not os.access(Path(__file__).parent, os.W_OK):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemBytecodeCache(str(folder), "%s.bin")
