"""`make contract` holds against this service, as it is and strict."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orqo.config import PROJECT_DIR
from support import TestBox, running


@pytest.mark.parametrize("strict", ["0", "1"])
def test_the_contract_holds(settings: dict[str, str], box: TestBox, tmp_path: Path, strict: str) -> None:
    settings["ORQO_STRICT"] = strict
    given = {"CONTRACT_TOKEN": box.token("trigger"), "CONTRACT_HOOK": box.hook().rpartition("/")[2], "CONTRACT_WORKFLOW": "1"}
    with running(box, settings, tmp_path / "service.log", "app") as service:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/contract.py"],
            cwd=PROJECT_DIR,
            env=os.environ | given | {"CONTRACT_URL": service.url},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
