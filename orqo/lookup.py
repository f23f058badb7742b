"""`${…}`: dotted look-ups in the strings of a workflow file, and nothing more.

Owns the syntax, the rendering and the question whether a look-up can change where a URL points. Never evaluates
anything, never knows what the roots mean, and has no filters, defaults or functions on purpose: payload is data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

Json = Any

OPENING = re.compile(r"\$\$\{|\$\{")
LOOKUP = re.compile(r"""\$\{([A-Za-z_][\w-]*)((?:\.[\w-]+|\["(?:[^"\\]|\\.)*"\])*)(\?)?\}""")
STEP = re.compile(r"""\.([\w-]+)|\[("(?:[^"\\]|\\.)*")\]""")
ITEM_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
PLAIN_KEY = re.compile(r"[\w-]+")
BLANK = "\0"
HOW_TO_WRITE = 'write ${input.a.b}, ${input.a?} or ${input["a.b"]}; a literal ${ is written $${'


class LookupSyntaxError(Exception):
    """A `${` that does not begin a look-up; `detail` says how one is written."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class LookupFailed(Exception):
    """A look-up that finds nothing usable; `path` is what was looked up, `detail` which key is absent and where."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(detail)
        self.path = path
        self.detail = detail


@dataclass(frozen=True)
class Unreadable:
    """A value that exists but must not be used, such as an output that was cut; `reason` becomes the failure's detail."""

    reason: str


class Partial(dict[str, Any]):
    """A mapping some of whose usual keys are absent; whoever looks one up is told `why`."""

    def __init__(self, members: Mapping[str, Any], why: str) -> None:
        super().__init__(members)
        self.why = why


@dataclass(frozen=True)
class Reference:
    """One look-up: its root, the keys and item numbers below it, and whether it may be absent."""

    root: str
    path: tuple[str | int, ...]
    optional: bool

    def __str__(self) -> str:
        return _shown((self.root, *self.path))


class _Absent(Exception):
    """The path ends early; the text says where."""


def check_syntax(text: str) -> None:
    """Raise LookupSyntaxError where a `${` of the text does not begin a look-up."""
    _parts(text)


def references(value: Json) -> Iterator[Reference]:
    """Give the look-ups in every string of a nested JSON value, keys of mappings excepted."""
    if isinstance(value, str):
        yield from (part for part in _parts(value) if isinstance(part, Reference))
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from references(member)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def render(value: Json, roots: Mapping[str, Any]) -> Json:
    """Give the value with its look-ups done; a string that is wholly one look-up becomes what was found, of any type."""
    if isinstance(value, str):
        parts = _parts_to_render(value)
        if len(parts) == 1 and isinstance(parts[0], Reference):
            return _find(parts[0], roots)
        return "".join(_text_of(part, roots) for part in parts)
    if isinstance(value, Mapping):
        return {key: render(member, roots) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [render(item, roots) for item in value]
    return value


def render_text(text: str, roots: Mapping[str, Any]) -> str:
    """Give the text with its look-ups done: strings raw, other values as compact JSON, an absent `${x?}` as nothing."""
    return "".join(_text_of(part, roots) for part in _parts_to_render(text))


def render_url(text: str, roots: Mapping[str, Any]) -> str:
    """Give the URL with its look-ups done, each in path or query percent-encoded as one segment.

    What stands before the path goes in raw, and so does a look-up that is the whole URL. A look-up that would turn a
    segment into `.` or `..` fails: HTTP clients resolve those, encoded or not, so it would reach another path.
    """
    parts = _parts_to_render(text)
    if len(parts) == 1:
        return _text_of(parts[0], roots)
    path_start, position, rendered = _path_start(parts), 0, []
    for part in parts:
        found = _text_of(part, roots)
        if isinstance(part, Reference) and position >= path_start:
            found = quote(found, safe="", errors="replace")
        rendered.append(found)
        position += _length(part)
    _refuse_dot_segments(parts, rendered)
    return "".join(rendered)


def influences_host(url_template: str) -> bool:
    """Say whether a look-up other than of a secret stands before the URL's path, so that data can say where it goes."""
    parts = _parts(url_template)
    path_start, position = _path_start(parts), 0
    for part in parts:
        if isinstance(part, Reference) and part.root != "secrets" and position < path_start:
            return True
        position += _length(part)
    return False


def skeleton(text: str) -> str:
    """Give the text with one NUL in place of each look-up: what of it is literal."""
    return _skeleton(_parts(text))


def _skeleton(parts: tuple[str | Reference, ...]) -> str:
    return "".join(BLANK if isinstance(part, Reference) else part for part in parts)


def _length(part: str | Reference) -> int:
    return 1 if isinstance(part, Reference) else len(part)


def _path_start(parts: tuple[str | Reference, ...]) -> int:
    """Give the position in the skeleton at which scheme, host and port have ended."""
    literal = _skeleton(parts)
    scheme = re.match(r"[^/?#]*://", literal)
    start = scheme.end() if scheme else 0
    end = re.compile(r"[/?#]").search(literal, start)
    return end.start() if end else len(literal)


def _refuse_dot_segments(parts: tuple[str | Reference, ...], rendered: list[str]) -> None:
    position, path_start = 0, _path_start(parts)
    segments: list[tuple[str, Reference | None]] = [("", None)]
    for part, found in zip(parts, rendered, strict=True):
        if isinstance(part, Reference):
            text, reference = segments[-1]
            segments[-1] = (text + found, part if position >= path_start else reference)
        else:
            first, *others = re.split(r"[/?#]", found)
            segments[-1] = (segments[-1][0] + first, segments[-1][1])
            segments.extend((other, None) for other in others)
        position += _length(part)
    for text, reference in segments:
        if reference and unquote(text) in (".", ".."):
            raise LookupFailed(str(reference), f"{reference} makes {unquote(text)!r} a part of a URL's path, which would lead elsewhere")


def _parts_to_render(text: str) -> tuple[str | Reference, ...]:
    # A stored version of an older release may hold what is refused today; its stage fails, the worker goes on.
    try:
        return _parts(text)
    except LookupSyntaxError as fault:
        raise LookupFailed(text[:80], fault.detail) from fault


@lru_cache(maxsize=1024)
def _parts(text: str) -> tuple[str | Reference, ...]:
    """Split the text into literals and look-ups; a text without look-ups is one literal."""
    parts: list[str | Reference] = []
    literal, position = "", 0
    while opening := OPENING.search(text, position):
        literal += text[position : opening.start()]
        if opening[0] == "$${":
            literal, position = literal + "${", opening.end()
            continue
        found = LOOKUP.match(text, opening.start())
        if not found:
            raise LookupSyntaxError(f"{text[opening.start() : opening.start() + 40]!r} is not a look-up; {HOW_TO_WRITE}")
        parts += [literal, _reference(found)] if literal else [_reference(found)]
        literal, position = "", found.end()
    literal += text[position:]
    return (*parts, literal) if literal or not parts else tuple(parts)


def _reference(found: re.Match[str]) -> Reference:
    return Reference(found[1], tuple(_step(step) for step in STEP.finditer(found[2])), bool(found[3]))


def _step(found: re.Match[str]) -> str | int:
    if found[1] is not None:
        return int(found[1]) if ITEM_NUMBER.fullmatch(found[1]) else found[1]
    try:
        return str(json.loads(found[2]))
    except ValueError as fault:
        raise LookupSyntaxError(f"[{found[2][:40]}] is not a key; {HOW_TO_WRITE}") from fault


def _text_of(part: str | Reference, roots: Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    value = _find(part, roots)
    if isinstance(value, str):
        return value
    if value is None and part.optional:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (RecursionError, ValueError, TypeError) as fault:
        raise LookupFailed(str(part), f"{part} cannot be written as JSON: it is nested too deeply or too large") from fault


def find(reference: Reference, roots: Mapping[str, Any]) -> tuple[bool, Json]:
    """Say whether there is something at a path, and what; LookupFailed where it is there and must not be used."""
    try:
        return True, _reached(reference, roots)
    except _Absent:
        return False, None


def _find(reference: Reference, roots: Mapping[str, Any]) -> Json:
    try:
        return _reached(reference, roots)
    except _Absent as absent:
        if reference.optional:
            return None
        raise LookupFailed(str(reference), f"{reference} is absent: {absent}") from None


def _reached(reference: Reference, roots: Mapping[str, Any]) -> Json:
    value: Any = roots
    trail: tuple[str | int, ...] = ()
    for step in (reference.root, *reference.path):
        value = _below(value, step, trail)
        trail = (*trail, step)
        if isinstance(value, Unreadable):
            raise LookupFailed(str(reference), f"{_shown(trail)} cannot be used: {value.reason}")
    _refuse_unreadable(reference, value)
    return value


def _below(value: Any, step: str | int, trail: tuple[str | int, ...]) -> Any:
    where = _shown(trail) if trail else "the context"
    if isinstance(value, Mapping):
        if str(step) not in value:
            why = f"; {value.why}" if isinstance(value, Partial) else ""
            raise _Absent(f"{where} has no key {str(step)!r}{why}")
        return value[str(step)]
    if isinstance(value, list | tuple) and isinstance(step, int):
        if step >= len(value):
            raise _Absent(f"{where} has {len(value)} items, counted from 0, so no item {step}")
        return value[step]
    raise _Absent(f"{where} is {_kind(value)}, so it has no {'item' if isinstance(step, int) else 'key'} {str(step)!r}")


def _refuse_unreadable(reference: Reference, value: Any) -> None:
    """Fail where something unreadable lies within what was found, as it does in `${stages}`."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, Unreadable):
            raise LookupFailed(str(reference), f"a part of {reference} cannot be used: {inner.reason}")
        if isinstance(inner, Mapping):
            left.extend(inner.values())
        elif isinstance(inner, list | tuple):
            left.extend(inner)


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), "a list")


def _shown(path: tuple[str | int, ...]) -> str:
    head, *rest = (str(step) for step in path)
    return head + "".join(f".{key}" if PLAIN_KEY.fullmatch(key) else f"[{json.dumps(key, ensure_ascii=False)}]" for key in rest)
