"""The shape of a workflow file: workflow.schema.json applied, its faults told in sentences with lines.

Owns the wording of shape faults and the schema's own formats. Never knows what a look-up is or which names must exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from orqo import cron, webhook
from orqo.config import duration_s, size_bytes
from orqo.errors import Fault
from orqo.yamlfile import Document, Json, Place, shown

SCHEMA_FILE = Path(__file__).with_name("workflow.schema.json")
RESERVED_NAMES = ("fail", "next", "end")
DURATION_MAX_S = 366 * 86400
PAUSE_MAX_S = 30
OUTPUT_MAX_BYTES = 4 * 2**20
BODY_MAX_BYTES = 2**30
TYPES = {
    "string": "text", "object": "a mapping", "array": "a list", "integer": "a whole number", "number": "a number",
    "boolean": "true or false", "null": "empty",
}  # fmt: skip


def faults(document: Document) -> Iterator[Fault]:
    """Give every fault of shape, each at its place."""
    for error in _validator().iter_errors(document.value):
        place = tuple(error.instance_path)
        yield from _told(document, place, error)


def known_keys(definition: str) -> tuple[str, ...]:
    """Give the keys of one of the schema's definitions, such as `stage`."""
    return tuple(_schema()["$defs"][definition]["properties"])


def suggestion(word: str, known: Sequence[str]) -> str:
    """Give `; did you mean …?` where a known word is close, else nothing."""
    close = get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _told(document: Document, place: Place, error: jsonschema_rs.ValidationError) -> Iterator[Fault]:
    kind: Any = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        known = list(_subschema(error).get("properties", {}))
        for key in kind.unexpected:
            unknown = (*place, key)
            yield document.fault(unknown, f"{shown(unknown)} is not known{suggestion(key, known)}")
    elif isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        # The pointer names what is missing, so that two faults of one mapping stay two.
        yield document.fault((*place, kind.property), f"{shown(place)} lacks {kind.property}")
    else:
        yield document.fault(place, f"{shown(place)} {_sentence(error, kind)}")


def _sentence(error: jsonschema_rs.ValidationError, kind: Any) -> str:
    kinds = jsonschema_rs.ValidationErrorKind
    if isinstance(kind, kinds.Enum):
        options = [str(option) for option in _subschema(error)["enum"]]
        return f"is none of {', '.join(options)}{_meant(error.instance, options)}"
    how = _subschema(error).get("x-write")
    if how:
        return f"does not fit: {how}{_in_quotes(error.instance, kind)}"
    if isinstance(kind, kinds.Type):
        return f"must be {' or '.join(TYPES[name] for name in kind.types)}{_in_quotes(error.instance, kind)}"
    return f"does not fit: {error.message[:200]}"


def _meant(value: Json, options: Sequence[str]) -> str:
    if not isinstance(value, str):
        return ""
    either_case = {option.lower(): option for option in options}
    return f"; did you mean {either_case[value.lower()]}?" if value.lower() in either_case else suggestion(value, options)


def _in_quotes(value: Json, kind: Any) -> str:
    wants_text = isinstance(kind, jsonschema_rs.ValidationErrorKind.Type) and "string" in kind.types
    return "; text that looks like a number, true, false or null needs quotes" if wants_text and not isinstance(value, list | dict) else ""


def _subschema(error: jsonschema_rs.ValidationError) -> dict[str, Any]:
    """Give the schema that holds the keyword which failed."""
    schema: Any = _schema()
    for step in list(error.schema_path)[:-1]:
        schema = schema[step]
    return schema if isinstance(schema, dict) else {}


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


@cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(_schema(), formats=FORMATS, validate_formats=True)


def _measured(read: Callable[[str], float], low: float, high: float) -> Callable[[str], bool]:
    """Make a format of texts that `read` takes, within bounds; a text of many digits is refused before it is counted."""

    def fits(text: str) -> bool:
        try:
            return len(text) <= 20 and low <= read(text) <= high
        except ValueError:
            return False

    return fits


FORMATS: dict[str, Callable[[str], bool]] = {
    "orqo-timeout": _measured(duration_s, 0.001, DURATION_MAX_S),
    "orqo-delay": _measured(duration_s, 0, DURATION_MAX_S),
    "orqo-output-size": _measured(size_bytes, 1, OUTPUT_MAX_BYTES),
    "orqo-pause": _measured(duration_s, 0, PAUSE_MAX_S),
    "orqo-free-name": lambda text: text not in RESERVED_NAMES,
    "orqo-body-size": _measured(size_bytes, 1, BODY_MAX_BYTES),
    "orqo-rate": webhook.is_rate,
    "orqo-network": webhook.is_network,
    "orqo-scheme": webhook.is_scheme,
    "orqo-cron": cron.is_expression,
    "orqo-timezone": cron.is_zone,
}
