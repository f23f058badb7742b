"""What the tests of stages share: a run folder that the stage user can reach, and contexts."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orqo import outbound, stages
from orqo.definition import Retry, StageDefinition


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """Make a folder that other users may pass through; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="orqo-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_stage(kind: str = "command", spec: Any = None, **changes: Any) -> StageDefinition:
    values: dict[str, Any] = {"timeout_s": None, "retry": Retry(), "max_output_bytes": 262144, "output": "text", "env": {}, "workdir": None}
    return StageDefinition(name="build", kind=kind, spec=spec, **(values | changes))


def make_roots(**changes: Any) -> dict[str, Any]:
    return {"run": {"id": 7}, "input": None, "trigger": {"name": None}, "stages": {}, "secrets": {}} | changes


def make_context(run_dir: Path, stage: StageDefinition, *, within_s: float = 20.0, **changes: Any) -> stages.Context:
    values: dict[str, Any] = {
        "roots": make_roots(),
        "run_id": 7,
        "workflow": "deploy",
        "run_dir": run_dir,
        "base_dir": None,
        "deadline": time.monotonic() + within_s,
        "cancelled": lambda: None,
        "stage_user": "nobody",
        "client": outbound.Client(),
    }
    return stages.Context(stage=stage, **(values | changes))
