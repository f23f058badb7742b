"""Request bodies and queries held against openapi.yaml: the only definition of their shape.

Owns the turning of schema faults into JSON pointers and sentences. A schema is compiled at its first use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import jsonschema_rs

from orqo import description
from orqo.errors import Fault, Invalid, Malformed

FAULTS_MAX = 20
INTEGER = re.compile(r"-?[0-9]{1,18}")
DEEP = re.compile(r"([a-z_]+)\[(.+)\]", re.DOTALL)


class Validators:
    """Compiled validators of the description's schemas. Thread-safe: two threads may compile the same one, and it stays the same."""

    def __init__(self) -> None:
        self._compiled: dict[str, Any] = {}

    def check(self, name: str, value: Any) -> None:
        """Raise Invalid with one fault a place where the value does not fit the schema of this name."""
        _check(self._of(name, {"$ref": f"#/components/schemas/{name}"}), value)

    def check_body(self, operation: str, value: Any) -> None:
        """Raise Invalid with one fault a place where the value does not fit the JSON body of this operation."""
        schema = _body(operation)["content"]["application/json"]["schema"]
        _check(self._of(f"body of {operation}", schema), value)

    def requires_body(self, operation: str) -> bool:
        """Tell whether an operation cannot do without a body."""
        return bool(_body(operation).get("required", False))

    def query(self, operation: str, given: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Give an operation's query parameters, typed and with their defaults; Malformed names the first that does not fit."""
        known = {each["name"]: each for each in description.operations()[operation].parameters if each["in"] == "query"}
        found: dict[str, Any] = {}
        for name, text in given:
            deep = DEEP.fullmatch(name)
            if deep and known.get(deep[1], {}).get("style") == "deepObject" and "][" not in deep[2]:
                if text != found.setdefault(deep[1], {}).setdefault(deep[2], text):
                    raise Malformed(f"The parameter {deep[1]} has {deep[2][:40]} twice.")
            elif name not in known or known[name].get("style") == "deepObject":
                told = f"there are: {', '.join(known)}" if known else "there are none: remove it"
                raise Malformed(f"There is no parameter {name[:40]} here; {told}.")
            elif name in found:
                raise Malformed(f"The parameter {name} is given twice.")
            else:
                found[name] = _typed(known[name]["schema"], text)
        for name, value in found.items():
            self._check_parameter(operation, known[name], value)
        return {name: each["schema"]["default"] for name, each in known.items() if "default" in each["schema"]} | found

    def _check_parameter(self, operation: str, parameter: Mapping[str, Any], value: Any) -> None:
        name = parameter["name"]
        validator = self._of(f"{name} of {operation}", parameter["schema"])
        for error in islice(validator.iter_errors(value), 1):
            raise Malformed(f"The parameter {name} {next(_faults(error)).detail}.")

    def _of(self, key: str, schema: Mapping[str, Any]) -> Any:
        if key not in self._compiled:
            root = {**schema, "components": description.load()["components"]}
            self._compiled[key] = jsonschema_rs.Draft202012Validator(root)
        return self._compiled[key]


def _body(operation: str) -> Mapping[str, Any]:
    return description.resolved(description.operations()[operation].value["requestBody"])


def _typed(schema: Mapping[str, Any], text: str) -> Any:
    return int(text) if description.resolved(schema).get("type") == "integer" and INTEGER.fullmatch(text) else text


def _check(validator: Any, value: Any) -> None:
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
    _KINDS.MinItems: lambda kind: f"must have at least {kind.limit} items",
    _KINDS.MaxItems: lambda kind: f"must have at most {kind.limit} items",
    _KINDS.FalseSchema: lambda kind: "does not apply together with the others: remove it",
    _KINDS.MinProperties: lambda kind: f"must have at least {kind.limit} members",
    _KINDS.MaxProperties: lambda kind: f"must have at most {kind.limit} members",
    _KINDS.Pattern: lambda kind: f"must match {kind.pattern}",
    _KINDS.Enum: lambda kind: f"must be one of {', '.join(map(str, kind.options))}",
}
