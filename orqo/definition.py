"""Workflow definitions: what a workflow file says, as frozen values.

Owns the reading of a file into a Definition and its stored form. Never knows the database; what stands in a file and is
refused is decided in yamlfile.py (YAML), shape.py (keys and types) and rules.py (the rest).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from orqo import cron, lookup, pinned, rules, shape, waitrules, webhook, yamlfile
from orqo.config import duration_s, size_bytes
from orqo.errors import Fault, Invalid
from orqo.lookup import Json
from orqo.yamlfile import Document, Place

MAX_OUTPUT_BYTES = 256 * 1024
TIMEOUT_S = 3600.0
# Servers of models say 429 and 503 every day.
PROMPT_ATTEMPTS = 3
FAULTS_SHOWN = 100
EVENTS = ("completed", "failed", "stopped")
Stored = TypeVar("Stored", bound="Retry | LoopGuard | Concurrency | StageDefinition | CallbackDefinition | TriggerDefinition | Definition")


@dataclass(frozen=True)
class Retry:
    """How often a stage is tried, the first attempt counted, and the pause before the second."""

    attempts: int = 1
    delay_s: float = 5.0


@dataclass(frozen=True)
class LoopGuard:
    """How often a stage may be entered by going back, and what happens then: `next` goes forward, `fail` ends the run."""

    limit: int = 3
    then: str = "next"


@dataclass(frozen=True)
class StageDefinition:
    """One stage. `spec` is what stands under the key of its kind; `timeout_s` None is what is left of the run's.

    `routing` leads from a label to a stage's name, `end` or `{"workflow": name}`; `when` None is: always.
    """

    name: str
    kind: str
    spec: Json
    timeout_s: float | None = None
    retry: Retry = field(default_factory=Retry)
    max_output_bytes: int = MAX_OUTPUT_BYTES
    output: str = "text"
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    on_error: str = "fail"
    idempotent: bool = False
    outcomes: tuple[str, ...] = ()
    routing: dict[str, Any] = field(default_factory=dict)
    when: dict[str, Any] | None = None


@dataclass(frozen=True)
class CallbackDefinition:
    """One destination. `secret` is the name of a secret; `guarded` says that the address rule applies to the URL."""

    url: str
    events: tuple[str, ...] = EVENTS
    json: Json = None
    has_json: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    secret: str | None = None
    guarded: bool = False


@dataclass(frozen=True)
class TriggerDefinition:
    """One trigger; `token_hash` is the hex SHA-256 of a token pinned in the file, None where the token is derived.

    `options` are what a webhook asks of a request, in the stored form of webhook.py, or `{"schedule", "timezone", "input"}`.
    """

    name: str
    kind: str = "webhook"
    token_hash: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[CallbackDefinition, ...] = ()


@dataclass(frozen=True)
class Concurrency:
    """How many runs of one rendered `key` may be under way, and what a further one does: `queue`, `skip` or `replace`."""

    key: str
    limit: int = 1
    when_busy: str = "queue"


@dataclass(frozen=True)
class Definition:
    """One workflow. `output` counts only with `has_output`; `source` is the file's text without pinned tokens.

    `input_schema` None is: any input fits.
    """

    id: int | None
    name: str
    stages: tuple[StageDefinition, ...]
    description: str = ""
    timeout_s: float = TIMEOUT_S
    output: Json = None
    has_output: bool = False
    callbacks: tuple[CallbackDefinition, ...] = ()
    triggers: tuple[TriggerDefinition, ...] = ()
    folder: str | None = None
    source: str = ""
    concurrency: Concurrency | None = None
    input_schema: Json = None
    loop_guard: LoopGuard = field(default_factory=LoopGuard)
    simulate: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give the stored form, JSON; `from_dict` gives the same definition again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Definition:
        """Read what any release stored: nothing is checked, absent keys take defaults, unknown ones are passed over."""
        parts = {
            "stages": tuple(_stored_stage(each) for each in stored["stages"]),
            "callbacks": _stored_callbacks(stored),
            "triggers": tuple(_stored_trigger(each) for each in stored.get("triggers", ())),
            "concurrency": _stored(Concurrency, stored["concurrency"]) if stored.get("concurrency") else None,
            "loop_guard": _stored(LoopGuard, stored.get("loop_guard", {})),
            "simulate": tuple(stored.get("simulate", ())),
        }
        return _stored(cls, {"id": None, **stored, **parts})


def parse(text: str, *, folder: Path | None = None) -> Definition:
    """Read a workflow file; Invalid holds every fault (the first 100) with its line. `folder` is where a relative `workdir` begins."""
    document = yamlfile.read(text.removeprefix("\ufeff"))
    # Of one line, what stands there comes before what is missing: a misspelt key is told first.
    faults = sorted(_faults(document, text), key=lambda fault: (fault.line or 0, " lacks " in fault.detail))
    if faults:
        raise Invalid(_summary(faults), errors=faults[:FAULTS_SHOWN])
    return _definition(document, folder, text)


def parse_trigger(name: str, *, webhook: Mapping[str, Any] | None = None, filter: Mapping[str, Any] | None = None) -> TriggerDefinition:
    """Read one trigger written with a file's keys, as the command line and the dashboard make them; Invalid as `parse`."""
    return _only_trigger({"name": name, "webhook": dict(webhook or {})} | ({"filter": dict(filter)} if filter is not None else {}))


def _only_trigger(trigger: Mapping[str, Any]) -> TriggerDefinition:
    # JSON is YAML: one reading, one set of refusals.
    text = json.dumps({"name": "x", "triggers": [trigger], "stages": [{"name": "x", "stub": {}}]})
    try:
        return parse(text).triggers[0]
    except Invalid as fault:
        errors = [Fault(each.pointer.removeprefix("/triggers/0"), each.detail.replace("triggers[0].", "")) for each in fault.errors]
        raise Invalid("; ".join(each.detail for each in errors[:5]), errors=errors) from fault


def scheduled(expression: str, zone: str, value: Json) -> dict[str, Any]:
    """Give the stored form of a schedule's options."""
    return {"schedule": " ".join(expression.split()), "timezone": zone, "input": value}


def parse_schedule(expression: str, *, zone: str | None = None, value: Json = None) -> TriggerDefinition:
    """Read a schedule as `parse_trigger` reads a webhook."""
    trigger = {"name": "x", "schedule": expression, "input": value} | ({} if zone is None else {"timezone": zone})
    return _only_trigger(trigger)


def _stored_stage(stage: Mapping[str, Any]) -> StageDefinition:
    parts = {"retry": _stored(Retry, stage.get("retry", {})), "outcomes": tuple(stage.get("outcomes", ()))}
    return _stored(StageDefinition, {**stage, **parts})


def _stored_trigger(trigger: Mapping[str, Any]) -> TriggerDefinition:
    return _stored(TriggerDefinition, {**trigger, "callbacks": _stored_callbacks(trigger)})


def _stored_callbacks(holder: Mapping[str, Any]) -> tuple[CallbackDefinition, ...]:
    callbacks = holder.get("callbacks", ())
    return tuple(_stored(CallbackDefinition, {**each, "events": tuple(each.get("events", EVENTS))}) for each in callbacks)


def _stored(cls: type[Stored], members: Mapping[str, Any]) -> Stored:
    known = {each.name for each in fields(cls)}
    return cls(**{key: value for key, value in members.items() if key in known})


def _faults(document: Document, text: str) -> list[Fault]:
    """Give the faults of all three examinations; a later one does not repeat what an earlier one has said of a place."""
    found = list(document.faults)
    if not document.whole:
        return found
    for examination in (shape.faults, rules.faults):
        told = {fault.pointer for fault in found}
        unknown = tuple(f"{fault.pointer}/" for fault in found if " is not known" in fault.detail)
        found += [each for each in examination(document) if each.pointer not in told and not each.pointer.startswith(unknown)]
    return found or list(pinned.faults(document, text))


def _summary(faults: Sequence[Fault]) -> str:
    first, more = faults[0], len(faults) - 1
    where = f"line {first.line}: " if first.line is not None else ""
    return f"{where}{first.detail}" + (f" (and {more} more)" if more else "")


def _definition(document: Document, folder: Path | None, text: str) -> Definition:
    value = document.value
    return Definition(
        id=value.get("id"),
        name=value["name"],
        stages=tuple(_stage(document, ("stages", index), each) for index, each in enumerate(value["stages"])),
        description=value.get("description", ""),
        timeout_s=float(duration_s(value["timeout"])) if "timeout" in value else TIMEOUT_S,
        output=value.get("output"),
        has_output="output" in value,
        callbacks=_callbacks(document, (), value),
        triggers=tuple(_trigger(document, ("triggers", index), each) for index, each in enumerate(value.get("triggers", ()))),
        folder=str(folder) if folder else None,
        source=pinned.without_tokens(text, value),
        concurrency=Concurrency(**value["concurrency"]) if "concurrency" in value else None,
        input_schema=value.get("input_schema"),
        loop_guard=LoopGuard(**value.get("loop_guard", {})),
        simulate=tuple(value.get("simulate", ())),
    )


def _stage(document: Document, place: Place, stage: Mapping[str, Any]) -> StageDefinition:
    kind = next(kind for kind in rules.KINDS if kind in stage)
    retry = stage.get("retry", {})
    usual = Retry(attempts=PROMPT_ATTEMPTS) if kind == "prompt" else Retry()
    return StageDefinition(
        name=stage["name"],
        kind=kind,
        spec=SPECS[kind](document, (*place, kind), stage[kind]),
        timeout_s=float(duration_s(stage["timeout"])) if "timeout" in stage else None,
        retry=Retry(retry.get("attempts", usual.attempts), float(duration_s(retry["delay"])) if "delay" in retry else usual.delay_s),
        max_output_bytes=size_bytes(str(stage.get("max_output", MAX_OUTPUT_BYTES))),
        output=stage.get("output", "text"),
        env=_texts(document, (*place, "env"), stage.get("env", {})),
        workdir=stage.get("workdir"),
        on_error=stage.get("on_error", "fail"),
        idempotent=stage.get("idempotent", False),
        outcomes=tuple(stage.get("outcomes", waitrules.APPROVAL_OUTCOMES if kind == "approval" else ())),
        routing=stage.get("routing", {}),
        when=stage.get("when"),
    )


def _command(document: Document, place: Place, argv: list[Json]) -> Json:
    return [_text(document, (*place, index), argument) for index, argument in enumerate(argv)]


def _script(document: Document, place: Place, text: str) -> Json:
    return text


def _http(document: Document, place: Place, request: dict[str, Json]) -> Json:
    texts = {key: _texts(document, (*place, key), request[key]) for key in ("query", "headers", "form") if key in request}
    return request | texts | ({"expect": _expected(request["expect"])} if "expect" in request else {})


def _expected(expect: Json) -> Json:
    return [str(each) for each in expect] if isinstance(expect, list) else str(expect)


def _wait(document: Document, place: Place, wait: dict[str, Json] | None) -> Json:
    request = (wait or {}).get("request")
    return (wait or {}) | ({"request": _http(document, (*place, "request"), request)} if isinstance(request, dict) else {})


def _as_written(document: Document, place: Place, spec: Json) -> Json:
    return spec


def _stub(document: Document, place: Place, stub: Json) -> Json:
    return stub or {}


SPECS: dict[str, Callable[[Document, Place, Any], Json]] = {
    "command": _command,
    "script": _script,
    "http": _http,
    "stub": _stub,
    "wait": _wait,
    **dict.fromkeys(("prompt", "delay", "approval", "workflow"), _as_written),
}


def _texts(document: Document, place: Place, members: Mapping[str, Json]) -> dict[str, Any]:
    return {key: _text(document, (*place, key), value) for key, value in members.items()}


def _text(document: Document, place: Place, value: Json) -> Any:
    """Give a text as it is and a plain number or boolean as it was spelt (`3.10` stays 3.10); of a list, each item."""
    if isinstance(value, list):
        return [_text(document, (*place, index), item) for index, item in enumerate(value)]
    return value if isinstance(value, str) else document.spellings[place]


def _callbacks(document: Document, place: Place, holder: Mapping[str, Any]) -> tuple[CallbackDefinition, ...]:
    at = (*place, "callbacks")
    return tuple(_callback(document, (*at, index), each) for index, each in enumerate(holder.get("callbacks", ())))


def _callback(document: Document, place: Place, callback: Mapping[str, Any]) -> CallbackDefinition:
    secret = rules.WHOLLY_SECRET.fullmatch(callback.get("secret", ""))
    return CallbackDefinition(
        url=callback["url"],
        events=tuple(callback.get("events", EVENTS)),
        json=callback.get("json"),
        has_json="json" in callback,
        headers=_texts(document, (*place, "headers"), callback.get("headers", {})),
        secret=secret[1] if secret else None,
        guarded=lookup.influences_host(callback["url"]),
    )


def _trigger(document: Document, place: Place, trigger: Mapping[str, Any]) -> TriggerDefinition:
    token = (trigger.get("webhook") or {}).get("token")
    if "schedule" in trigger:
        options = scheduled(trigger["schedule"], trigger.get("timezone", cron.DEFAULT_ZONE), trigger.get("input"))
        return TriggerDefinition(trigger["name"], "schedule", options=options, callbacks=_callbacks(document, place, trigger))
    return TriggerDefinition(
        name=trigger["name"],
        token_hash=pinned.token_hash(token) if token else None,
        options=webhook.stored(trigger),
        callbacks=_callbacks(document, place, trigger),
    )
