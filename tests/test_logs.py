"""Log lines as JSON: one object a line, the message's own keys as members."""

from __future__ import annotations

import json
import subprocess
import sys

from orqo.config import PROJECT_DIR

SCRIPT = """
import logging
from orqo import logs
logs.install("info", "json")
log = logging.getLogger("orqo.x")
log.info("step=stage run=%s status=%s ms=%d", 7, "completed", 12)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("step=execute run=%s status=fault", 8)
"""


def test_each_line_is_an_object_with_the_keys_of_the_step() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)

    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert {key: first[key] for key in ("step", "run", "status", "ms", "level")} == {
        "step": "stage", "run": "7", "status": "completed", "ms": "12", "level": "info",
    }  # fmt: skip
    assert "ZeroDivisionError" in second["traceback"]
