"""How results are printed: tables and fields for people, JSON for programs.

Owns stdout. What comes from outside is data: in tables and fields no control character of it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from orqo import clock


def as_json(value: Any) -> None:
    """Print JSON for a program that reads it."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def as_json_line(value: Any) -> None:
    """Print JSON on one line, at once: one of many that follow each other."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """Print a line that may hold anything."""
    print(clean(text), flush=True)


def note(text: str) -> None:
    """Print a line beside the result: on stderr, so that a program never reads it."""
    sys.stdout.flush()
    print(f"orqo: {clean(text)}", file=sys.stderr)


def clean(text: str) -> str:
    """Give a text in which whatever is not printable is replaced: control characters can move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, nothing: str) -> None:
    """Print rows under headings, aligned; where there are none, the sentence that says so."""
    if not rows:
        print(nothing)
        return
    cells = [list(headings), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """Give a value as one line of text: `-` for none, yes and no, texts as they are, lists in words, else JSON."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean(" ".join(value))
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line and aligned; a text of several lines stands below its name."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        lines = value.rstrip("\n").split("\n") if isinstance(value, str) else [value]
        if len(lines) == 1:
            print(f"{name.ljust(width)}  {cell(lines[0])}")
            continue
        print(name)
        for line in lines:
            print(f"    {clean(line)}")


def result(value: Any) -> None:
    """Print a run's output: a text as it is, all else as JSON."""
    if isinstance(value, str):
        print(value)
    else:
        as_json(value)


def took(started_at: str | None, finished_at: str | None) -> str | None:
    """Give the time between two stored moments as `0.12 s`, `3 m 20 s` or `1 h 05 m`, None where one of them is not yet."""
    if not started_at or not finished_at:
        return None
    seconds = max(0.0, (clock.from_text(finished_at) - clock.from_text(started_at)).total_seconds())
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def error(value: Mapping[str, Any] | None) -> str | None:
    """Give the error of a run or a stage as one sentence, None where there is none."""
    if value is None:
        return None
    where = f" in stage {value['stage']}" if value["stage"] else ""
    return f"{value['reason']}{where}: {value['detail']}"
