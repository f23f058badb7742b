"""Request bodies held against openapi.yaml: the only definition of their shape.

Owns the turning of schema faults into JSON pointers and sentences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema_rs
from ruamel.yaml import YAML

from orqo.errors import Fault, Invalid

OPENAPI_FILE = Path(__file__).resolve().parent.parent / "openapi.yaml"
FAULTS_MAX = 20
SCHEMAS = ("TriggerRequest", "StrictTriggerRequest", "CallbackReport", "AnswerRequest", "RerunRequest")


@functools.cache
def load_openapi() -> dict[str, Any]:
    """Read the API's description, once in a process."""
    return YAML(typ="safe", pure=True).load(OPENAPI_FILE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


class Validators:
    """One compiled validator for each named schema of the description. Thread-safe."""

    def __init__(self, openapi: dict[str, Any]) -> None:
        self._openapi = openapi
        self._compiled = {name: self._compile(name) for name in SCHEMAS}

    def _compile(self, name: str) -> Any:
        root = {"$ref": f"#/components/schemas/{name}", "components": self._openapi["components"]}
        return jsonschema_rs.Draft202012Validator(root)

    def check(self, name: str, value: Any) -> None:
        """Raise Invalid with one fault a place where the value does not fit the schema."""
        validator = self._compiled[name]
        if validator.is_valid(value):
            return
        faults = [fault for error in islice(validator.iter_errors(value), FAULTS_MAX) for fault in _faults(error)][:FAULTS_MAX]
        told = "; ".join(f"{fault.pointer or 'the body'} {fault.detail}" for fault in faults[:3])
        raise Invalid(f"The body does not fit: {told}.", errors=faults)


def pointer(path: list[str | int]) -> str:
    """Give the JSON pointer of a path (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _faults(error: Any) -> Iterator[Fault]:
    path, kind = list(error.instance_path), error.kind
    kinds = jsonschema_rs.ValidationErrorKind
    if isinstance(kind, kinds.Required):
        yield Fault(pointer([*path, kind.property]), "is required")
    elif isinstance(kind, kinds.AdditionalProperties):
        for name in kind.unexpected:
            yield Fault(pointer([*path, name]), "is not a field of this request; remove it")
    elif isinstance(kind, kinds.AnyOf) and not path:
        yield Fault("/workflow_id", "is required: the number of the workflow to start")
    else:
        yield Fault(pointer(path), _sentence(kind))


def _sentence(kind: Any) -> str:
    """Say what to write; never quote the value, which may be long or secret."""
    for cls, text in SENTENCES.items():
        if isinstance(kind, cls):
            return text(kind)
    return f"does not fit ({kind.name})"


_KINDS = jsonschema_rs.ValidationErrorKind
SENTENCES: dict[Any, Callable[[Any], str]] = {
    _KINDS.Type: lambda kind: f"must be of type {' or '.join(kind.types)}",
    _KINDS.Minimum: lambda kind: f"must be at least {kind.limit}",
    _KINDS.Maximum: lambda kind: f"must be at most {kind.limit}",
    _KINDS.MinLength: lambda kind: f"must have at least {kind.limit} characters",
    _KINDS.MaxLength: lambda kind: f"must have at most {kind.limit} characters",
    _KINDS.MaxProperties: lambda kind: f"must have at most {kind.limit} members",
    _KINDS.Pattern: lambda kind: f"must match {kind.pattern}",
    _KINDS.Enum: lambda kind: f"must be one of {', '.join(map(str, kind.options))}",
}
