"""How a model is made to choose one label, and how its choice is read.

Owns the JSON that is asked for and the tolerant reading of what comes. Never guesses: a label within a sentence is no choice,
for "not approved" holds "approved".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orqo import jsontext

FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
LAST_LINE = re.compile(r"(?:(?:final )?(?:outcome|decision|label|answer)\s*[:=])?\s*(\S+)", re.IGNORECASE)
MARKDOWN = str.maketrans("", "", "*`")
DECORATION = "\"'.,;:()[]<> \t"


@dataclass(frozen=True)
class Choice:
    """The label that was chosen, and the answer's text without it."""

    outcome: str
    answer: str


def response_format(outcomes: Sequence[str]) -> dict[str, Any]:
    """Give the structured output to ask for; the answer stands first, so that the model has reasoned when it decides."""
    properties = {"answer": {"type": "string"}, "outcome": {"type": "string", "enum": list(outcomes)}}
    schema = {"type": "object", "properties": properties, "required": ["answer", "outcome"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}


def instruction(outcomes: Sequence[str]) -> str:
    """Give the sentence that asks for a choice; servers without structured output have this alone."""
    labels = ", ".join(outcomes)
    return (
        'Answer with one JSON object and nothing else: {"answer": "<your whole answer>", "outcome": "<label>"}. '
        f"<label> is exactly one of: {labels}."
    )


def reminder(outcomes: Sequence[str]) -> str:
    """Give what is said once to a model that chose none."""
    return f"Your answer chose none of the labels. {instruction(outcomes)}"


def read(text: str, outcomes: Sequence[str]) -> Choice | None:
    """Read a choice: JSON as it was asked for, alone or among other text, else a last line that is a label. None where there is none."""
    for value in _objects(text):
        label = _label(value.get("outcome"), outcomes)
        if label is not None:
            answer = value.get("answer", "")
            return Choice(label, answer if isinstance(answer, str) else jsontext.dump(answer))
    before, _, last = text.strip().rpartition("\n")
    found = LAST_LINE.fullmatch(last.translate(MARKDOWN).strip(DECORATION))
    label = _label(found[1].strip(DECORATION), outcomes) if found else None
    return Choice(label, before.strip() or text.strip()) if label is not None else None


def whole_json(text: str) -> Any:
    """Read an answer that shall be JSON, with or without a fence round it; ValueError where it is none."""
    fenced = FENCED.fullmatch(text.strip())
    return jsontext.parse((fenced[1] if fenced else text).strip().encode("utf-8", "surrogatepass"))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    written = [text, *(found[1] for found in FENCED.finditer(text)), text[text.find("{") : text.rfind("}") + 1]]
    for each in written:
        try:
            value = jsontext.parse(each.strip().encode("utf-8", "surrogatepass"))
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _label(written: Any, outcomes: Sequence[str]) -> str | None:
    """Give the label that was meant: exactly, else the only one that differs in case alone."""
    if not isinstance(written, str):
        return None
    if written in outcomes:
        return written
    near = [label for label in outcomes if label.casefold() == written.strip().casefold()]
    return near[0] if len(near) == 1 else None
