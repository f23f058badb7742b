"""Conditions: a trigger's `filter`, a stage's `when`.

Owns their syntax, what they say of data and why. Never decides what a condition is for, and never evaluates anything:
a path is a look-up. Regular expressions run in linear time (Rust's regex, by way of jsonschema-rs, which is there for
input_schema anyway), because their text comes from a file and what they are held against from outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from orqo import lookup
from orqo.lookup import Json, Reference

Place = tuple[str | int, ...]

COMBINERS = ("all", "any", "not")
OPERATORS = ("in", "regex", "exists")
REGEX_MAX_CHARACTERS = 1000
REGEX_SIZE_LIMIT = 2**20
SHOWN_MAX_CHARACTERS = 60
HOW = 'write a path such as input.action or trigger.headers.x-github-event, or input["a.b"] for a key with dots'


# ── what may be written ─────────────────────────────────────────────────────────────────────────────────────────────


def faults(condition: Json, roots: Iterable[str]) -> Iterator[tuple[Place, str]]:
    """Give what is wrong with a condition: the place within it and a sentence. `roots` are where a path may begin."""
    known = tuple(roots)
    if not isinstance(condition, dict) or not condition:
        yield (), "must be a mapping of paths to what they must be"
        return
    for key, wanted in condition.items():
        if key == "not":
            yield from _below((key,), faults(wanted, known))
        elif key in COMBINERS:
            yield from _combined_faults(key, wanted, known)
        else:
            yield from ((((key, *place)), detail) for place, detail in _member_faults(key, wanted, known))


def _combined_faults(key: str, wanted: Json, known: tuple[str, ...]) -> Iterator[tuple[Place, str]]:
    if not isinstance(wanted, list) or not wanted:
        yield (key,), "must be a list of conditions"
        return
    for index, each in enumerate(wanted):
        yield from _below((key, index), faults(each, known))


def _below(place: Place, found: Iterable[tuple[Place, str]]) -> Iterator[tuple[Place, str]]:
    yield from (((*place, *inner), detail) for inner, detail in found)


def _member_faults(path: str, wanted: Json, known: tuple[str, ...]) -> Iterator[tuple[Place, str]]:
    try:
        reference = parsed(path)
    except lookup.LookupSyntaxError as fault:
        yield (), fault.detail
        return
    if reference.root not in known:
        yield (), f"begins with none of {', '.join(known)}; {HOW}"
    if isinstance(wanted, dict):
        yield from _operator_faults(wanted)


def _operator_faults(wanted: dict[str, Json]) -> Iterator[tuple[Place, str]]:
    if not wanted:
        yield (), f"needs one of {', '.join(OPERATORS)}"
    for operator, operand in wanted.items():
        if operator not in OPERATORS:
            yield (operator,), f"is none of {', '.join(OPERATORS)}; to compare with a mapping write in: [{{…}}]"
        elif operator == "in" and not isinstance(operand, list):
            yield (operator,), "must be a list of values"
        elif operator == "exists" and not isinstance(operand, bool):
            yield (operator,), "must be true or false"
        elif operator == "regex" and not _usable(operand):
            yield (
                (operator,),
                (
                    f"is not a regular expression of at most {REGEX_MAX_CHARACTERS} characters; "
                    "look-around and back references do not run in linear time and are not taken"
                ),
            )


def paths(condition: Json) -> Iterator[tuple[Place, Reference]]:
    """Give the readable paths of a condition with their places."""
    for key, wanted in condition.items() if isinstance(condition, dict) else ():
        if key == "not":
            yield from (((key, *place), reference) for place, reference in paths(wanted))
        elif key in COMBINERS:
            for index, each in enumerate(wanted if isinstance(wanted, list) else ()):
                yield from (((key, index, *place), reference) for place, reference in paths(each))
        else:
            try:
                yield (key,), parsed(key)
            except lookup.LookupSyntaxError:
                continue


@lru_cache(maxsize=1024)
def parsed(path: str) -> Reference:
    """Read a path; LookupSyntaxError says how one is written."""
    try:
        found = list(lookup.references(f"${{{path}}}"))
    except lookup.LookupSyntaxError:
        found = []
    if len(found) != 1 or found[0].optional or lookup.skeleton(f"${{{path}}}") != lookup.BLANK:
        raise lookup.LookupSyntaxError(f"is not a path; {HOW}")
    return found[0]


def _usable(pattern: Json) -> bool:
    if not isinstance(pattern, str) or len(pattern) > REGEX_MAX_CHARACTERS:
        return False
    try:
        _compiled(pattern)
    except jsonschema_rs.ValidationError:
        return False
    return True


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    options = jsonschema_rs.RegexOptions(size_limit=REGEX_SIZE_LIMIT, dfa_size_limit=REGEX_SIZE_LIMIT)
    return jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=options)


# ── what they say ───────────────────────────────────────────────────────────────────────────────────────────────────


def matches(condition: Mapping[str, Json], roots: Mapping[str, Any]) -> bool:
    """Tell whether a condition without faults holds. LookupFailed where a value must not be read, as a cut output."""
    return explain(condition, roots) is None


def explain(condition: Mapping[str, Json], roots: Mapping[str, Any]) -> str | None:
    """Give why a condition does not hold, one sentence without its full stop; None where it holds."""
    for key, wanted in condition.items():
        reason = _unmet(key, wanted, roots)
        if reason is not None:
            return reason
    return None


def _unmet(key: str, wanted: Json, roots: Mapping[str, Any]) -> str | None:
    if key == "all":
        return next((reason for each in wanted if (reason := explain(each, roots)) is not None), None)
    if key == "any":
        reasons = [explain(each, roots) for each in wanted]
        return None if None in reasons else "; and ".join(str(reason) for reason in reasons)[:500]
    if key == "not":
        return None if explain(wanted, roots) is not None else f"what must not hold does: {_shown(wanted)}"
    exists, value = lookup.find(parsed(key), roots)
    if isinstance(wanted, dict):
        return next((reason for each in wanted.items() if (reason := _operated(key, exists, value, *each)) is not None), None)
    if not exists:
        return f"{key} is absent"
    return None if equal(value, wanted) else f"{key} is {_shown(value)}, not {_shown(wanted)}"


def _operated(path: str, exists: bool, value: Json, operator: str, operand: Json) -> str | None:
    """Give why one operator does not hold."""
    if operator == "exists":
        return None if exists == operand else f"{path} is {'there' if exists else 'absent'}"
    if not exists:
        return f"{path} is absent"
    if operator == "in":
        return None if any(equal(value, each) for each in operand) else f"{path} is {_shown(value)}, none of {_shown(operand)}"
    if operator == "regex":
        return None if _fits(operand, value) else f"{path} is {_shown(value)}, which does not match {operand[:SHOWN_MAX_CHARACTERS]}"
    # What a newer release stored and this one does not know must not let anything through.
    return f"{path} has the unknown operator {operator[:SHOWN_MAX_CHARACTERS]}"


def _fits(pattern: str, value: Json) -> bool:
    """Tell whether the pattern is found anywhere in a text; nothing else than text matches."""
    if not isinstance(value, str):
        return False
    try:
        return bool(_compiled(pattern).is_valid(value))
    except (UnicodeEncodeError, jsonschema_rs.ValidationError):
        return False


def equal(one: Json, other: Json) -> bool:
    """Compare two JSON values by type: 1 is 1.0, true is not 1, objects do not care for order, lists do."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _shown(value: Json) -> str:
    """Give a value as compact JSON, cut: it may be long and is told to whoever sent it."""
    text = json.dumps(value[:80] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= SHOWN_MAX_CHARACTERS else f"{text[: SHOWN_MAX_CHARACTERS - 1]}…"
