"""The WSGI entry: any WSGI server takes `app:app`; run as a program it serves with waitress."""

from __future__ import annotations

import sys

from orqo import assembly
from orqo.config import Config, ConfigError
from orqo.db import SchemaMismatch
from orqo.errors import Unavailable

try:
    _config = Config.from_environ()
    app = assembly.started(_config)
except (ConfigError, SchemaMismatch, Unavailable) as fault:
    sys.exit(f"orqo: {fault}")

if __name__ == "__main__":
    from orqo import web

    sys.exit(web.serve(app, _config))
