"""Workflow files on disk: what each of them defines, or its faults.

Owns the reading of files. Never touches the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from orqo import definition
from orqo.definition import Definition
from orqo.errors import Fault, Invalid

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Parsed:
    """One file: what it defines, or its faults."""

    path: Path
    definition: Definition | None
    faults: tuple[Fault, ...] = ()


def within(folder: Path) -> list[Path]:
    """Give the workflow files of a folder by name; hidden ones, such as editors leave while they write, are none. OSError."""
    paths = (path for path in folder.iterdir() if path.suffix in ENDINGS and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())


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


def line(path: Path | str, fault: Fault) -> str:
    """Give the line of one fault, in the form that editors know: `file:line: what is wrong`."""
    where = f"{path}:{fault.line}" if fault.line is not None else str(path)
    return f"{where}: {fault.detail}"
