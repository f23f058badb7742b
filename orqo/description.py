"""The API's description, openapi.yaml: read at its first need, once in a process.

Owns the file and what can be asked of it. Never holds anything against it: that is api/validation.py's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orqo import yamlfile

OPENAPI_FILE = Path(__file__).with_name("openapi.yaml")
METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """One operation; `parameters` are the path's and its own, references followed."""

    id: str
    method: str
    path: str
    value: Mapping[str, Any]
    parameters: tuple[Mapping[str, Any], ...]

    @property
    def scopes(self) -> tuple[str, ...] | None:
        """The scopes of which an API token needs one, None where none is asked for."""
        for each in self.value["security"]:
            if "apiToken" in each:
                return tuple(each["apiToken"])
        return None


class _Description:
    """The file, read once whichever thread is the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: dict[str, Any] = {}
        self._operations: dict[str, Operation] = {}

    def value(self) -> dict[str, Any]:
        with self._lock:
            if not self._value:
                self._value = read(OPENAPI_FILE)
            return self._value

    def operations(self) -> Mapping[str, Operation]:
        value = self.value()
        if not self._operations:
            self._operations = {each.id: each for each in _operations(value)}
        return self._operations


def read(file: Path) -> dict[str, Any]:
    """Read a file of YAML, or the same in JSON from where an earlier start put it: beside the compiled modules, as trusted as they are."""
    text = file.read_text(encoding="utf-8")
    kept = file.parent / "__pycache__" / f"{file.stem}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        return json.loads(kept.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        value = _parsed(text)
    # Where nothing may be written there, the next start reads YAML again.
    with suppress(OSError), tempfile.NamedTemporaryFile("w", dir=kept.parent, encoding="utf-8", delete=False) as new:
        json.dump(value, new)
        new.close()
        os.replace(new.name, kept)
    return value


def _parsed(text: str) -> dict[str, Any]:
    document = yamlfile.read(text)
    assert not document.faults, document.faults
    return document.value  # type: ignore[no-any-return]


_description = _Description()


def load() -> dict[str, Any]:
    """Give the whole description. Nobody may change it."""
    return _description.value()


def operations() -> Mapping[str, Operation]:
    """Give the operations by their operationId."""
    return _description.operations()


def warm() -> None:
    """Begin to read the file beside what else a start does: it takes a third of a second where no earlier start left its JSON."""
    threading.Thread(target=operations, name="description", daemon=True).start()


def resolved(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what a reference within the description leads to; anything else as it is."""
    found: Any = value
    while "$ref" in found:
        steps = found["$ref"].removeprefix("#/").split("/")
        found = load()
        for step in steps:
            found = found[step]
    return found  # type: ignore[no-any-return]


def _operations(value: Mapping[str, Any]) -> Iterator[Operation]:
    for path, item in value["paths"].items():
        shared = item.get("parameters", [])
        for method in METHODS:
            if method in item:
                own = item[method]
                parameters = tuple(resolved(each) for each in [*shared, *own.get("parameters", [])])
                yield Operation(own["operationId"], method.upper(), path, own, parameters)
