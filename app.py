"""The WSGI entry: any WSGI server takes `app:app`; run as a program it serves with waitress."""

from __future__ import annotations

import sys

from flask import Flask

from orqo import create_app, dashboard, logs, metrics
from orqo.config import Config, ConfigError
from orqo.db import SchemaMismatch
from orqo.errors import Unavailable


def _create() -> tuple[Flask, Config]:
    config = Config.from_environ()
    logs.install(config.log_level, config.log_format)
    metrics.begin(config.data, "web")
    made = create_app(config)
    dashboard.warm(made)
    return made, config


try:
    app, _config = _create()
except (ConfigError, SchemaMismatch, Unavailable) as fault:
    sys.exit(f"orqo: {fault}")

if __name__ == "__main__":
    from orqo import web

    sys.exit(web.serve(app, _config))
