"""The background process: RQ workers for runs, and the dispatcher (callbacks, sweep).

One parent without threads forks them all, before any engine exists, and starts again what ends. It imports no Flask.
"""

from __future__ import annotations

import sys

from orqo.config import ConfigError
from orqo.db import SchemaMismatch
from orqo.errors import Unavailable
from orqo.pool import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ConfigError, SchemaMismatch, Unavailable) as fault:
        sys.exit(f"orqo: {fault}")
