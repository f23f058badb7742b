"""Logging: one line per step of a run's life, to stderr. Never tokens, bodies, header values or whole URLs."""

from __future__ import annotations

import logging
import sys
import time

FORMAT = "%(asctime)s.%(msecs)03dZ level=%(levelname)s %(message)s"


def install(level: str) -> None:
    """Send our log lines to stderr, in UTC; other libraries' from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("orqo").setLevel(level.upper())
