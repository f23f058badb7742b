"""Strict YAML 1.2 with JSON types only, every fault with its line.

Owns the reading of a text into JSON values and where each of them stands. Never knows what the document means.
Anchors, aliases and tags are refused wholly: a workflow file has no need of them, and so nothing in it can expand.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from orqo.errors import Fault

Json = Any
Place = tuple[str | int, ...]

TEXT_MAX_BYTES = 256 * 1024
DEPTH_MAX = 64
INTEGER_LIMIT = 2**63

LINE_BREAK = re.compile(r"\r\n?|\n")
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
# The core schema's float with JSON's rule against leading zeros, so that 042 and 01.5 stay what was written.
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
NULLS = ("", "~", "null", "Null", "NULL")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True)
class Document:
    """What was read: the value, the line of every place in it, the spelling of plain numbers and booleans, the faults.

    `whole` is False where reading had to stop, so that `value` says nothing.
    """

    value: Json
    whole: bool
    lines: Mapping[Place, int] = field(default_factory=dict)
    spellings: Mapping[Place, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def fault(self, place: Place, detail: str) -> Fault:
        """Make a fault at a place; one that is absent has the line of what should hold it."""
        nearest = place
        while nearest and nearest not in self.lines:
            nearest = nearest[:-1]
        return Fault(pointer(place), detail, self.lines.get(nearest, 1))


class _Stop(Exception):
    """Reading cannot go on; the faults hold why."""


def pointer(place: Place) -> str:
    """Give the JSON pointer (RFC 6901) of a place."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)


def shown(place: Place) -> str:
    """Give a place as people write it: `stages[1].command`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".") or "the file"


def read(text: str) -> Document:
    """Read one YAML document; faults are in the result, nothing is raised. Sizes and depth are bounded."""
    reader = _Reader(text)
    try:
        value = reader.document()
    except _Stop:
        return Document(None, False, faults=tuple(reader.faults))
    return Document(value, True, reader.lines, reader.spellings, tuple(reader.faults))


class _Reader:
    """Turns the parser's events into values; the parser's own constructors, resolvers and composer are never used."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.faults: list[Fault] = []
        self.lines: dict[Place, int] = {}
        self.spellings: dict[Place, str] = {}
        self.line_starts = [0, *(found.end() for found in LINE_BREAK.finditer(text))]
        self.events = self._events()

    def document(self) -> Json:
        self._check_text()
        next(self.events)
        if isinstance(next(self.events), yaml_events.StreamEndEvent):
            self._stop((), 1, "the file is empty")
        value = self._value(next(self.events), ())
        next(self.events)
        after = next(self.events)
        if not isinstance(after, yaml_events.StreamEndEvent):
            self._stop((), self._line(after), "a file holds one document, this is the second")
        return value

    def _check_text(self) -> None:
        try:
            size = len(self.text.encode("utf-8"))
        except UnicodeEncodeError as fault:
            self._stop((), self._line_at(fault.start), "this is not a character: half of a surrogate pair")
        if size > TEXT_MAX_BYTES:
            self._stop((), None, f"the file has {size} bytes; at most {TEXT_MAX_BYTES} are read")

    def _events(self) -> Iterator[Any]:
        """Give the parser's events; what it cannot read ends the reading with its line."""
        try:
            yield from YAML(typ="safe", pure=True).parse(self.text)
        except MarkedYAMLError as fault:
            mark = fault.problem_mark or fault.context_mark
            self._not_yaml(mark.index if mark else 0, fault.problem or "it cannot be read")
        except YAMLError as fault:
            self._not_yaml(getattr(fault, "position", 0) or 0, getattr(fault, "reason", "") or "it cannot be read")
        except (ValueError, OverflowError):
            # "\U00110000" passes the scanner and fails in chr().
            self._not_yaml(0, "an escape names no character")

    def _not_yaml(self, index: int, problem: str) -> None:
        line = self._line_at(index)
        hint = "; inside [ ] or { } a value with ${…} needs quotes" if "${" in self._line_text(line) else ""
        self._stop((), line, f"this is not YAML: {problem}{hint}")

    def _stop(self, place: Place, line: int | None, detail: str) -> None:
        self.faults.append(Fault(pointer(place), detail, line))
        raise _Stop

    def _line_at(self, index: int) -> int:
        return bisect_right(self.line_starts, index)

    def _line(self, event: Any) -> int:
        return self._line_at(event.start_mark.index)

    def _line_text(self, line: int) -> str:
        return self.text[self.line_starts[line - 1] :].split("\n", 1)[0]

    def _fault(self, place: Place, event: Any, detail: str) -> None:
        self.faults.append(Fault(pointer(place), f"{shown(place)} {detail}", self._line(event)))

    def _value(self, event: Any, place: Place) -> Json:
        self.lines.setdefault(place, self._line(event))
        if isinstance(event, yaml_events.AliasEvent):
            self._fault(place, event, f"is an alias (*{event.anchor}), which is not taken here; write the value out")
            return None
        if event.anchor is not None:
            self._fault(place, event, f"has an anchor (&{event.anchor}), which is not taken here; write the value out where it is needed")
        if event.tag is not None:
            self._fault(place, event, f"has a tag ({event.tag}), which is not taken here")
        if isinstance(event, yaml_events.ScalarEvent):
            return self._scalar(event, place)
        if len(place) >= DEPTH_MAX:
            self._stop(place, self._line(event), f"this is nested more than {DEPTH_MAX} levels deep")
        return self._list(place) if isinstance(event, yaml_events.SequenceStartEvent) else self._mapping(place)

    def _list(self, place: Place) -> list[Json]:
        items: list[Json] = []
        while not isinstance(event := next(self.events), yaml_events.SequenceEndEvent):
            items.append(self._value(event, (*place, len(items))))
        return items

    def _mapping(self, place: Place) -> dict[str, Json]:
        members: dict[str, Json] = {}
        while not isinstance(event := next(self.events), yaml_events.MappingEndEvent):
            key = self._key(event, place)
            if key is None:
                self._skip(next(self.events))
            elif key in members:
                self._fault((*place, key), event, f"stands twice; the first is in line {self.lines[(*place, key)]}")
                self._skip(next(self.events))
            else:
                self.lines[(*place, key)] = self._line(event)
                # A value that is absent so far must already count as present for the check above.
                members[key] = None
                members[key] = self._value(next(self.events), (*place, key))
        return members

    def _key(self, event: Any, place: Place) -> str | None:
        """Give the key, or None where it is not text."""
        if not isinstance(event, yaml_events.ScalarEvent):
            self._fault(place, event, "has a key that is not text")
            self._skip(event)
            return None
        if event.anchor is not None or event.tag is not None:
            self._fault(place, event, f"has a key with an anchor or a tag ({event.value[:40]}), which is not taken here")
        if _is_plain(event) and not isinstance(_resolved(event.value), str):
            self._fault(place, event, f"has the key {event.value or 'null'}, which is not text; write it in quotes")
            return None
        return self._checked(event, event.value, place)

    def _skip(self, event: Any) -> None:
        """Pass over a value that has no place; what it holds is not looked at, its depth is bounded all the same."""
        depth = 0
        while True:
            depth += isinstance(event, yaml_events.CollectionStartEvent)
            depth -= isinstance(event, yaml_events.CollectionEndEvent)
            if depth == 0:
                return
            if depth > DEPTH_MAX:
                self._stop((), self._line(event), f"this is nested more than {DEPTH_MAX} levels deep")
            event = next(self.events)

    def _scalar(self, event: Any, place: Place) -> Json:
        value = _resolved(event.value) if _is_plain(event) else event.value
        if isinstance(value, str):
            return self._checked(event, value, place)
        if value is not None:
            self.spellings[place] = event.value
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(place, event, f"is {event.value[:20]}, which JSON does not have; write it in quotes if it is text")
            return None
        if isinstance(value, int) and not -INTEGER_LIMIT <= value < INTEGER_LIMIT:
            self._fault(place, event, "is a whole number of more than 64 bits; write it in quotes if it is text")
            return None
        return value

    def _checked(self, event: Any, text: str, place: Place) -> str | None:
        """Give the text, or None where it holds NUL or a lone surrogate; JSON's surrogate pairs become the character that they mean."""
        try:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._fault(place, event, "holds half of a surrogate pair, which is not a character")
            return None
        if "\0" in text:
            self._fault(place, event, "holds a NUL character, which is not taken here")
            return None
        return text


def _is_plain(event: Any) -> bool:
    return not event.style


def _resolved(text: str) -> Json:
    """Give what a plain scalar means: null, a boolean, a number, or the text itself. Too large an integer gives 2**63."""
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text):
        return _integer(text)
    if NOT_FINITE.fullmatch(text):
        return math.inf
    return float(text) if FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    # int() itself refuses a text of more than 4,300 digits, so the length is looked at first.
    if len(text) > 70:
        return INTEGER_LIMIT
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)
