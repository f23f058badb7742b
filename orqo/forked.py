"""What `serve` forks its processes from: all that web and the workers import, loaded once by a parent without threads.

Importing this module is what loads it; the children share its pages until they change them. Owns nothing besides: web and
worker are the same here as app.py and worker.py, which need no such parent.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable

from orqo import assembly, db, description, metrics, pool, web
from orqo.config import Config, ConfigError
from orqo.db import SchemaMismatch
from orqo.errors import Unavailable


def settle() -> None:
    """Prepare the memory to be shared: to be called last before the first fork.

    What a child's garbage collector looks through it also writes to, and what it writes to is the child's own from then on.
    """
    # What SQLAlchemy would import at its first engine, in each child anew.
    importlib.import_module("sqlalchemy.dialects.sqlite")
    db.sqlite_module()
    metrics.load()
    description.operations()
    gc.collect()
    gc.freeze()


def web_process() -> int:
    """Be the web process; give its exit status."""
    return _told(_serve)


def worker_process() -> int:
    """Be the parent of the workers and the dispatcher; give its exit status."""
    return _told(pool.main)


def _serve() -> int:
    config = Config.from_environ()
    return web.serve(assembly.started(config), config)


def _told(main: Callable[[], int]) -> int:
    try:
        return main()
    except (ConfigError, SchemaMismatch, Unavailable) as fault:
        print(f"orqo: {fault}", file=sys.stderr)
        return 1
