"""Logging: one line per step of a run's life, to stderr. Never tokens, bodies, header values or whole URLs."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

FORMAT = "%(asctime)s.%(msecs)03dZ level=%(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"
PAIR = re.compile(r"([a-z_]+)=(\S+)")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and each `key=value` of the message as a member of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line; a traceback stands in `traceback`."""
        message = record.getMessage()
        told: dict[str, Any] = dict(PAIR.findall(message)) if record.name.startswith("orqo") else {}
        told |= {"time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        told["message"] = message
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def install(level: str, form: str = "text") -> None:
    """Send our log lines to stderr, in UTC, as text or as JSON; other libraries' from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter(datefmt=DATE_FORMAT) if form == "json" else logging.Formatter(FORMAT, datefmt=DATE_FORMAT)
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("orqo").setLevel(level.upper())
    # What no line of ours tells is not looked up either.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
