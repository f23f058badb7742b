"""What `serve` forks its processes from: all that web and the workers import, loaded once by a parent without threads.

Importing this module is what loads it; the children share its pages until they change them. Owns nothing besides: web and
worker are the same here as app.py and worker.py, which need no such parent.
"""

from __future__ import annotations

import gc
import importlib
import socket
import sys

from orqo import assembly, db, description, metrics, pool, serve, web
from orqo.config import Config, ConfigError
from orqo.db import SchemaMismatch
from orqo.errors import Unavailable


def load() -> None:
    """Load what is imported or read at its first need only, and so would be in each child anew."""
    importlib.import_module("sqlalchemy.dialects.sqlite")
    db.sqlite_module()
    metrics.load()
    description.operations()


def settle(config: Config) -> bytes:
    """Do what precedes the first fork, and give the instance key. Raises ConfigError, SchemaMismatch, Unavailable.

    What a child's garbage collector looks through it also writes to, and what it writes to is the child's own from then on.
    """
    key = pool.begin(config)
    gc.freeze()
    gc.enable()
    return key


def main(name: str, key: bytes, sockets: list[socket.socket]) -> int:
    """Be the process of this name, a web process or one of the pool's, from its beginning to its end; give the exit status."""
    try:
        return _serve(sockets) if serve.is_web(name) else pool.alone(name, key)
    except (ConfigError, SchemaMismatch, Unavailable) as fault:
        print(f"orqo: {fault}", file=sys.stderr)
        return 1


def _serve(sockets: list[socket.socket]) -> int:
    config = Config.from_environ()
    return web.serve(assembly.started(config, counts_as=pool.METRICS), config, sockets)
