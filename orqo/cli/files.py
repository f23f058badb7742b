"""Workflow files on disk: which ones are meant, what they define, and their faults as lines.

Owns the reading of files for `workflow apply` and `workflow validate`. Never touches the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orqo import definition
from orqo.cli.arguments import Refused
from orqo.definition import Definition
from orqo.errors import Fault, Invalid

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Parsed:
    """One file: what it defines, or its faults."""

    path: Path
    definition: Definition | None
    faults: tuple[Fault, ...] = ()


def named(paths: Iterable[str]) -> list[Path]:
    """Give the files that are meant, a folder's by name, each once. Refused where one is absent or a folder holds none."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found |= dict.fromkeys(_within(path) if path.is_dir() else [path])
    return list(found)


def _within(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    if not files:
        raise Refused(f"orqo: {folder} holds no workflow file (*.yaml, *.yml)")
    return files


def parsed(paths: Iterable[Path]) -> list[Parsed]:
    """Read files; two that define the same workflow are a fault of the later one. OSError where one cannot be read."""
    results: list[Parsed] = []
    first: dict[str, Path] = {}
    for path in paths:
        one = _parsed(path)
        if one.definition is not None:
            earlier = first.setdefault(one.definition.name, path)
            if earlier != path:
                twice = Fault("/name", f"workflow {one.definition.name} is defined by {earlier} too")
                one = replace(one, definition=None, faults=(twice,))
        results.append(one)
    return results


def _parsed(path: Path) -> Parsed:
    try:
        text = path.read_bytes().decode("utf-8")
        return Parsed(path, definition.parse(text, folder=path.resolve().parent))
    except UnicodeDecodeError as fault:
        return Parsed(path, None, (Fault("", f"byte {fault.start} is not UTF-8"),))
    except Invalid as fault:
        return Parsed(path, None, fault.errors or (Fault("", fault.detail),))


def lines(results: Sequence[Parsed]) -> list[str]:
    """Give a line for each fault: `file:line: what is wrong`."""
    return [line(one.path, fault) for one in results for fault in one.faults]


def line(path: Path, fault: Fault) -> str:
    """Give the line of one fault, in the form that editors know."""
    where = f"{path}:{fault.line}" if fault.line is not None else str(path)
    return f"{where}: {fault.detail}"
