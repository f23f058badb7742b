"""Run now's form, made from a workflow's `input_schema`: a field for each property, read back into the input.

Owns which property gets which field, and what an empty one means: it is left out. Never judges the input: that is the
schema's, and its faults come back to the fields. What no form can be made of is typed as JSON, as anything may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orqo import jsontext
from orqo.errors import Fault, Invalid
from orqo.lookup import Json
from orqo.yamlfile import pointer

FIELDS_MAX = 40
CHOICES_MAX = 100
LONG_TEXT = 200
SIMPLE = ("string", "number", "integer", "boolean")
TEXTS = ("text", "long", "date")
SAMPLES: dict[str, Json] = {"text": "…", "long": "…", "date": "2026-01-31", "number": 1, "integer": 1, "check": True}
# Where the property itself does not say what it holds.
COMBINED = ("$ref", "$dynamicRef", "oneOf", "anyOf", "allOf", "not", "if")


@dataclass(frozen=True)
class Field:
    """One field: `kind` is text, long, date, number, integer, check, choice or json; `value` is what stands in it, as text.

    `choices` are (value, label); `limits` the attributes that a browser checks by. `faults` are told beside it.
    """

    name: str
    kind: str
    label: str
    hint: str = ""
    required: bool = False
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()
    nullable: bool = False
    faults: tuple[str, ...] = ()


def fields(schema: Json) -> list[Field] | None:
    """Give the fields of a schema in its order, None where its inputs are not objects whose properties are known."""
    if not isinstance(schema, dict) or schema.get("type") != "object" or any(key in schema for key in COMBINED):
        return None
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not 0 < len(properties) <= FIELDS_MAX:
        return None
    return [_field(name, each if isinstance(each, dict) else {}, name in required) for name, each in properties.items()]


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    kind, choices = _kind(schema, required)
    hints = [str(schema[key]) for key in ("description",) if schema.get(key)]
    if kind == "json":
        hints.append("JSON" if schema.get("type") not in ("array", "object") else f"JSON: {'[…]' if schema['type'] == 'array' else '{…}'}")
    return Field(
        name,
        kind,
        label=str(schema.get("title") or name),
        hint=" · ".join(hints),
        required=required,
        value=_written(kind, schema["default"]) if "default" in schema else "",
        choices=choices,
        limits=tuple(_limits(kind, schema)),
        nullable="null" in _types(schema),
    )


def _types(schema: Mapping[str, Any]) -> Sequence[Any]:
    kind = schema.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def _kind(schema: Mapping[str, Any], required: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Give a property's kind of field, and its choices."""
    listed = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if isinstance(listed, list) and 0 < len(listed) <= CHOICES_MAX:
        return "choice", tuple((jsontext.dump(each), each if isinstance(each, str) else jsontext.dump(each)) for each in listed)
    types = [each for each in _types(schema) if each != "null"]
    if len(types) != 1 or types[0] not in SIMPLE or any(key in schema for key in COMBINED):
        return "json", ()
    if types[0] == "boolean":
        # An unticked box says false; where a property may be left out, three things can be meant.
        is_plain = (required or "default" in schema) and "null" not in _types(schema)
        return ("check", ()) if is_plain else ("choice", (("true", "yes"), ("false", "no")))
    if types[0] != "string":
        return types[0], ()
    most = schema.get("maxLength")
    return "date" if schema.get("format") == "date" else "long" if isinstance(most, int) and most > LONG_TEXT else "text", ()


def _limits(kind: str, schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what the browser may check before it sends; a pattern is not among it, for the two kinds of regex differ."""
    found = [("step", "1" if kind == "integer" else "any")] if kind in ("integer", "number") else []
    names = {"min": "minimum", "max": "maximum"} if kind in ("integer", "number") else {}
    if kind in ("text", "long"):
        names = {"minlength": "minLength", "maxlength": "maxLength"}
    return found + [(name, jsontext.dump(schema[key])) for name, key in names.items() if isinstance(schema.get(key), int | float)]


def _written(kind: str, value: Json) -> str:
    if kind in TEXTS and isinstance(value, str):
        return value
    return json.dumps(value, indent=2, ensure_ascii=False) if kind == "json" else jsontext.dump(value)


def sample(asked: Sequence[Field] | None) -> str:
    """Give an input as somebody might send it, in one line of JSON; it need not keep what the schema says beyond types."""
    if asked is None:
        return '{"name": "world"}'
    return json.dumps({each.name: _sampled(each) for each in asked if each.required or each.value}, ensure_ascii=False)


def _sampled(field: Field) -> Json:
    if field.value:
        return field.value if field.kind in TEXTS else json.loads(field.value)
    if field.choices:
        return json.loads(field.choices[0][0])
    return SAMPLES.get(field.kind)


# ── read back ───────────────────────────────────────────────────────────────────────────────────────────────────────


def typed(asked: Sequence[Field], sent: Sequence[str]) -> list[Field]:
    """Give the fields with what was sent in them, one text each; a box that is not ticked sends nothing."""
    return [replace(each, value=_ticked(text) if each.kind == "check" else text) for each, text in zip(asked, sent, strict=True)]


def _ticked(text: str) -> str:
    return "true" if text else "false"


def value_of(filled: Sequence[Field]) -> dict[str, Any]:
    """Give the input that the fields say; Invalid with a fault for each that cannot be read."""
    value: dict[str, Any] = {}
    found: list[Fault] = []
    for each in filled:
        if not each.value.strip():
            if each.required and each.nullable:
                value[each.name] = None
            continue
        try:
            value[each.name] = _read(each)
        except ValueError as fault:
            found.append(Fault(place_of(each), str(fault)))
    if found:
        raise Invalid("The input cannot be read: look at the fields.", errors=found)
    return value


def _read(field: Field) -> Any:
    if field.kind in TEXTS:
        return field.value
    try:
        value = jsontext.parse(field.value.strip().encode("utf-8", "surrogatepass"))
    except jsontext.NotJson as fault:
        detail = {"number": "must be a number", "integer": "must be a whole number"}
        raise ValueError(detail.get(field.kind, f"is not JSON: {fault}")) from fault
    if field.kind == "choice" and field.value not in [known for known, _ in field.choices]:
        raise ValueError("must be one of those that are offered")
    if field.kind in ("number", "integer") and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("must be a number")
    return value


def place_of(field: Field) -> str:
    """Give the JSON pointer that a fault of this field has."""
    return pointer(("input", field.name))


def with_faults(filled: Sequence[Field], faults: Sequence[Fault]) -> tuple[list[Field], list[Fault]]:
    """Give the fields with their faults, and the faults that belong to no field."""
    left = list(faults)
    shown = []
    for each in filled:
        place = place_of(each)
        mine = [fault for fault in left if fault.pointer == place or fault.pointer.startswith(place + "/")]
        left = [fault for fault in left if fault not in mine]
        # Deeper within a field of JSON, the place is part of what is wrong.
        told = (f"{fault.pointer.removeprefix(place)[1:]} {fault.detail}".strip() for fault in mine)
        shown.append(replace(each, faults=tuple(told)))
    return shown, left
