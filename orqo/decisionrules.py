"""What outcomes, routing, `when`, prompts and `input_schema` must keep beyond their shape.

Owns these refusals. Takes any JSON value, for files with faults of shape are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orqo import inputschema, lookup, match, places, waitrules, webhook
from orqo.errors import Fault
from orqo.lookup import Json
from orqo.shape import suggestion
from orqo.yamlfile import Document, Place, shown

# An http stage's answer, a pause and a child run end in no label.
KINDS_WITH_OUTCOMES = ("command", "script", "stub", "prompt", "approval", "wait")
WHEN_ROOTS = ("input", "stages", "trigger", "run", "workflow")
# What is known between two stages.
BETWEEN = places.Use(absent=("stage", "run.dir"))
OPTIONS_OF_OURS = ("model", "messages", "stream", "response_format", "temperature", "max_tokens")


def of_schema(document: Document) -> Iterator[Fault]:
    """Give the faults of the file's input_schema."""
    schema = document.value.get("input_schema") if isinstance(document.value, dict) else None
    for within, detail in inputschema.faults(schema) if isinstance(schema, dict) else ():
        place = ("input_schema", *within)
        yield document.fault(place, f"{shown(place)} {detail}")


def of_stage(document: Document, place: Place, stage: dict[str, Json], stage_names: Sequence[str]) -> Iterator[Fault]:
    """Give the faults of one stage."""
    kind = next((kind for kind in KINDS_WITH_OUTCOMES if kind in stage), None)
    outcomes = stage.get("outcomes", list(waitrules.APPROVAL_OUTCOMES) if kind == "approval" else [])
    if "outcomes" in stage and kind is None:
        yield _fault(document, (*place, "outcomes"), f"does not apply here, only to {', '.join(KINDS_WITH_OUTCOMES)}")
    elif isinstance(outcomes, list):
        yield from _routing(document, place, stage.get("routing"), outcomes, stage_names)
        stub = stage.get("stub")
        label = stub.get("outcome") if isinstance(stub, dict) else None
        if isinstance(label, str) and outcomes and label not in outcomes:
            yield _fault(document, (*place, "stub", "outcome"), f"{label!r} {_none_of(outcomes, label)}")
    if isinstance(stage.get("when"), dict) and stage["when"]:
        yield from _when(document, (*place, "when"), stage["when"], stage_names)
    if isinstance(stage.get("prompt"), dict):
        yield from _prompt(document, place, stage)


def _fault(document: Document, place: Place, detail: str) -> Fault:
    return document.fault(place, f"{shown(place)} {detail}")


def _none_of(outcomes: list[Json], label: str) -> str:
    listed = [str(each) for each in outcomes]
    return f"is none of the stage's outcomes: {', '.join(listed)}{suggestion(label, listed)}"


def _routing(document: Document, place: Place, routing: Json, outcomes: list[Json], stage_names: Sequence[str]) -> Iterator[Fault]:
    for label, target in routing.items() if isinstance(routing, dict) else ():
        at = (*place, "routing", label)
        if not outcomes:
            yield _fault(document, at, "leads from a label, and the stage has no outcomes: list them")
        elif label not in outcomes:
            yield _fault(document, at, _none_of(outcomes, label))
        if isinstance(target, str) and target != "end" and "${" not in target and target not in stage_names:
            known = ("end", *stage_names)
            yield _fault(document, at, f"leads to {target!r}, which is neither end nor a stage of this file{suggestion(target, known)}")


def _when(document: Document, place: Place, condition: Json, stage_names: Sequence[str]) -> Iterator[Fault]:
    for within, detail in match.faults(condition, WHEN_ROOTS):
        yield _fault(document, (*place, *within), detail)
    for within, reference in match.paths(condition):
        if reference.root in WHEN_ROOTS:
            reason = places.reference_fault((*place, *within), BETWEEN, reference, stage_names)
            yield from [_fault(document, (*place, *within), f"cannot hold: {reason}")] if reason else []


def _prompt(document: Document, place: Place, stage: dict[str, Any]) -> Iterator[Fault]:
    prompt, at = stage["prompt"], (*place, "prompt")
    key, url, options = prompt.get("api_key"), prompt.get("base_url"), prompt.get("options")
    if isinstance(key, str) and not webhook.SECRET.fullmatch(key):
        yield _fault(document, (*at, "api_key"), 'must be wholly "${secrets.NAME}": files are kept as versions, secrets are not')
    if isinstance(url, str):
        if any(reference.root != "secrets" for reference in places.references(url)):
            yield _fault(document, (*at, "base_url"), "must be written out or in ${secrets.…}: data must not choose who reads the prompt")
        elif not lookup.skeleton(url).startswith((lookup.BLANK, "http://", "https://")):
            yield _fault(document, (*at, "base_url"), "must start with http:// or https://, such as https://api.openai.com/v1")
    for name in options if isinstance(options, dict) else ():
        if name in OPTIONS_OF_OURS:
            yield _fault(document, (*at, "options", name), "is set by this service; take it away")
    if stage.get("output") == "json" and "outcomes" in stage:
        yield _fault(document, (*place, "output"), "cannot be json where the model chooses an outcome: the output is its answer's text")
