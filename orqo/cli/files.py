"""Workflow files that a command means, and their faults as lines.

Reading them is workflowfiles.py's. Never touches the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from orqo import workflowfiles
from orqo.cli.arguments import Refused
from orqo.workflowfiles import Parsed, parsed

__all__ = ["Parsed", "lines", "named", "parsed"]


def named(paths: Iterable[str]) -> list[Path]:
    """Give the files that are meant, a folder's by name, each once. Refused where one is absent or a folder holds none."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found |= dict.fromkeys(_within(path) if path.is_dir() else [path])
    return list(found)


def _within(folder: Path) -> list[Path]:
    files = workflowfiles.within(folder)
    if not files:
        raise Refused(f"orqo: {folder} holds no workflow file (*.yaml, *.yml)")
    return files


def lines(results: Sequence[Parsed]) -> list[str]:
    """Give a line for each fault: `file:line: what is wrong`."""
    return [workflowfiles.line(one.path, fault) for one in results for fault in one.faults]
