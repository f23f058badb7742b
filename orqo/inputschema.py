"""`input_schema`: what a workflow's input must be, JSON Schema 2020-12.

Owns the compiling of such a schema and the wording of its faults and of an input's. Never fetches anything: a `$ref` that
leads out of the schema is a fault. Patterns run in linear time, for inputs come from outside. `format` is not checked, as
the specification has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import jsonschema_rs

from orqo.errors import Fault, Invalid
from orqo.lookup import Json
from orqo.yamlfile import Place, pointer

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REGEX_SIZE_LIMIT = 2**20
FAULTS_MAX = 20
PATTERN_FAULT = "is no regular expression that runs in linear time; look-around and back references are not taken"


def compiled(schema: Json) -> Any:
    """Give the validator of a schema without faults; thread-safe."""
    options = jsonschema_rs.RegexOptions(size_limit=REGEX_SIZE_LIMIT, dfa_size_limit=REGEX_SIZE_LIMIT)
    return jsonschema_rs.Draft202012Validator(schema, pattern_options=options, offline=True)


def faults(schema: Json) -> Iterator[tuple[Place, str]]:
    """Give what is wrong with a schema: the place within it and a sentence."""
    if isinstance(schema, dict) and str(schema.get("$schema", DIALECT)).rstrip("#") != DIALECT:
        yield ("$schema",), f"must be {DIALECT}, or absent"
        return
    found = False
    for error in islice(_dialect().iter_errors(schema), FAULTS_MAX):
        found = True
        yield tuple(error.instance_path), "is not what JSON Schema 2020-12 takes there"
    if found:
        return
    try:
        compiled(schema)
    except jsonschema_rs.ValidationError as error:
        place = tuple(error.instance_path)
        is_pattern = place[-1:] == ("pattern",) or place[-2:-1] == ("patternProperties",)
        yield place, PATTERN_FAULT if is_pattern else _unresolved(str(error))


def _unresolved(message: str) -> str:
    first = message.splitlines()[0]
    if "retrieving it failed" in first:
        return "has a $ref that leads out of the file; nothing is fetched, so write it into $defs"
    return f"cannot be used: {first[:200]}"


def _dialect() -> Any:
    return jsonschema_rs.Draft202012Validator({"$ref": DIALECT}, offline=True)


def check(validator: Any, value: Json) -> None:
    """Raise Invalid with one fault a place, each pointer below `/input`, where an input does not fit."""
    if validator.is_valid(value):
        return
    found = [fault for error in islice(validator.iter_errors(value), FAULTS_MAX) for fault in _told(error)][:FAULTS_MAX]
    told = "; ".join(f"{fault.pointer.removeprefix('/')} {fault.detail}" for fault in found[:3])
    raise Invalid(f"The input does not fit the workflow's input_schema: {told}.", errors=found)


def _told(error: Any) -> Iterator[Fault]:
    place, kind = ("input", *error.instance_path), error.kind
    if isinstance(kind, KINDS.Required):
        yield Fault(pointer((*place, kind.property)), "is required")
    elif isinstance(kind, KINDS.AdditionalProperties | KINDS.UnevaluatedProperties):
        for name in kind.unexpected:
            yield Fault(pointer((*place, name)), "is not known to the schema; remove it")
    else:
        yield Fault(pointer(place), sentence(kind))


def sentence(kind: Any) -> str:
    """Say what to write; never quote the value, which may be long or secret."""
    return next((text(kind) for cls, text in SENTENCES.items() if isinstance(kind, cls)), f"does not fit ({kind.name})")


KINDS = jsonschema_rs.ValidationErrorKind
SENTENCES: dict[Any, Callable[[Any], str]] = {
    KINDS.Type: lambda kind: f"must be of type {' or '.join(kind.types)}",
    KINDS.Minimum: lambda kind: f"must be at least {kind.limit}",
    KINDS.Maximum: lambda kind: f"must be at most {kind.limit}",
    KINDS.ExclusiveMinimum: lambda kind: f"must be more than {kind.limit}",
    KINDS.ExclusiveMaximum: lambda kind: f"must be less than {kind.limit}",
    KINDS.MultipleOf: lambda kind: f"must be a multiple of {kind.multiple_of:g}",
    KINDS.MinLength: lambda kind: f"must have at least {kind.limit} characters",
    KINDS.MaxLength: lambda kind: f"must have at most {kind.limit} characters",
    KINDS.MinItems: lambda kind: f"must have at least {kind.limit} items",
    KINDS.MaxItems: lambda kind: f"must have at most {kind.limit} items",
    KINDS.UniqueItems: lambda kind: "must not hold the same item twice",
    KINDS.MinProperties: lambda kind: f"must have at least {kind.limit} members",
    KINDS.MaxProperties: lambda kind: f"must have at most {kind.limit} members",
    KINDS.Pattern: lambda kind: f"must match {kind.pattern}",
    KINDS.Enum: lambda kind: f"must be one of {', '.join(map(str, kind.options))[:200]}",
    KINDS.Constant: lambda kind: f"must be {kind.expected_value}"[:200],
    KINDS.FalseSchema: lambda kind: "must not be there",
}
