"""orqo: a self-hosted implementation of ORQO's HTTP API.

create_app() is the only assembly of the web application; worker.py assembles the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from orqo.config import Config

__all__ = ["create_app"]
__version__ = "0.1.0"


def create_app(config: Config | None = None) -> Flask:
    """Give the WSGI application for these settings, the environment's by default.

    Raises ConfigError or SchemaMismatch: a box that cannot keep what it accepts must not answer.
    """
    # Imported here: the worker imports this package and must not pay for Flask.
    from orqo.assembly import assemble
    from orqo.config import Config as Settings

    return assemble(config or Settings.from_environ())
