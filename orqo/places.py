"""Where in a workflow file look-ups may stand, and of what.

Owns the table of places and the roots' keys. Every check takes any JSON value, for files with faults of shape are
looked at too, so that all faults are told at once. Never renders anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orqo import lookup
from orqo.errors import Fault
from orqo.lookup import Json, Reference
from orqo.shape import suggestion
from orqo.yamlfile import Document, Place, shown

SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What may stand below each root; None is anything. The keys of `stage` and `workflow` are the executor's to choose.
ROOTS: dict[str, tuple[str, ...] | None] = {
    "input": None,
    "stages": None,
    "trigger": ("name", "headers", "query"),
    "run": ("id", "url", "dir", "workflow", "status", "error", "created_at"),
    "stage": None,
    "workflow": None,
    "wait": ("url", "stage", "message", "link", "deadline"),
    "secrets": None,
}
WAIT_KNOWN = "wait.url is in a waiting stage's request, wait.link, .message, .stage and .deadline are in callbacks"
STAGE_KEYS = ("output", "outcome", "status", "error", "response")


@dataclass(frozen=True)
class Use:
    """What a string at some place may hold: look-ups at all (`why` says why not), of secrets, and what is absent there."""

    why: str = ""
    secrets: bool = False
    absent: tuple[str, ...] = ()
    wait: tuple[str, ...] = ()


FREE = Use(why="is not looked at here")
ANY = Use(secrets=True)
NOWHERE = Use(why="takes no look-ups")
NO_SECRETS = Use()
# An event may come from a run whose stages never began, so what belongs to one stage is not there.
TOLD_OF_WAITS = ("stage", "message", "link", "deadline")
EVENT = Use(secrets=True, absent=("stage", "run.dir"), wait=TOLD_OF_WAITS)
# What goes out once the wait is durable, and so knows where it is answered.
REQUEST = Use(secrets=True, wait=("url",))
# What answers a webhook is made before the run begins.
ANSWER = Use(absent=("stages", "stage", "run.dir", "run.status", "run.error", "run.created_at", "run.workflow"))
# So is what a run waits its turn by.
KEY = Use(absent=("stages", "stage", "run"))
# The first pattern that fits a place holds; * is one step, ** is the rest.
USES: tuple[tuple[tuple[str, ...], Use], ...] = (
    (("description",), FREE),
    (("input_schema", "**"), FREE),
    (("output", "**"), NO_SECRETS),
    (("concurrency", "key"), KEY),
    (("callbacks", "*", "json", "**"), Use(absent=EVENT.absent, wait=TOLD_OF_WAITS)),
    (("callbacks", "*", "url"), EVENT),
    (("callbacks", "*", "headers", "*"), EVENT),
    (("callbacks", "*", "secret"), FREE),
    *((("triggers", "*", "webhook", key), FREE) for key in ("secret", "previous_secret", "verify_token")),
    (("triggers", "*", "webhook", "response", "json", "**"), ANSWER),
    (("triggers", "*", "input", "**"), FREE),
    (("stages", "*", "command", "*"), NO_SECRETS),
    (("stages", "*", "script"), FREE),
    (("stages", "*", "env", "*"), ANY),
    (("stages", "*", "http", "url"), ANY),
    *((("stages", "*", "http", key, "**"), ANY) for key in ("query", "headers", "json", "form", "body")),
    (("stages", "*", "stub", "output", "**"), ANY),
    (("stages", "*", "stub", "fail"), ANY),
    (("stages", "*", "prompt", "system"), NO_SECRETS),
    (("stages", "*", "prompt", "user"), NO_SECRETS),
    (("stages", "*", "prompt", "base_url"), ANY),
    (("stages", "*", "prompt", "api_key"), FREE),
    (("stages", "*", "approval", "message"), NO_SECRETS),
    (("stages", "*", "wait", "request", "url"), REQUEST),
    *((("stages", "*", "wait", "request", key, "**"), REQUEST) for key in ("query", "headers", "json", "form", "body")),
    (("stages", "*", "workflow", "input", "**"), NO_SECRETS),
)
SECRETS_REFUSED = {
    "response": "whoever calls the webhook would read it",
    "command": "arguments are visible in ps; hand it over by env: and read it there",
    "json": "a callback's body is kept as it was sent; put it into headers:",
    "output": "a run's output is shown and sent",
    "input": "a run's input is kept and shown",
    "message": "it is kept and shown",
    "prompt": "a model may tell it again; a server's key goes into api_key:",
}


def faults(document: Document, stage_names: Sequence[str]) -> Iterator[Fault]:
    """Give every look-up that is misspelt, stands where none may, or is of what the file does not have."""
    for place, text in strings(document.value, ()):
        use = _use(place)
        if use is not FREE:
            yield from (document.fault(place, f"{shown(place)}{detail}") for detail in _details(place, text, use, stage_names))


def references(value: Json) -> list[Reference]:
    """Give the look-ups of a value; none where one is misspelt, for that is told by `faults`."""
    try:
        return list(lookup.references(value))
    except lookup.LookupSyntaxError:
        return []


def script_references(text: Json) -> list[str]:
    """Give the look-ups in a script; `${HOME}` and `${x%y}` are the shell's own."""
    found = lookup.LOOKUP.finditer(text) if isinstance(text, str) else ()
    return [each[0] for each in found if each[2] or each[1] in ROOTS]


def strings(value: Json, place: Place) -> Iterator[tuple[Place, str]]:
    """Give every string of a nested JSON value with its place, keys of mappings excepted."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from strings(member, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*place, index))


def _use(place: Place) -> Use:
    of_trigger = place[:1] == ("triggers",) and place[2:3] == ("callbacks",)
    seen = place[2:] if of_trigger else place
    return next((use for pattern, use in USES if _fits(pattern, seen)), NOWHERE)


def _fits(pattern: tuple[str, ...], place: Place) -> bool:
    if pattern[-1] == "**":
        pattern, place = pattern[:-1], place[: len(pattern) - 1]
    return len(pattern) == len(place) and all(want in ("*", step) for want, step in zip(pattern, place, strict=True))


def _details(place: Place, text: str, use: Use, stage_names: Sequence[str]) -> Iterator[str]:
    try:
        found = list(lookup.references(text))
    except lookup.LookupSyntaxError as fault:
        yield f" {use.why}" if use.why else f": {fault.detail}"
        return
    if found and use.why:
        yield f" {use.why}, and ${{{found[0]}}} stands in it"
        return
    details = (reference_fault(place, use, each, stage_names) for each in found)
    yield from (f": {detail}" for detail in details if detail)


def reference_fault(place: Place, use: Use, reference: Reference, stage_names: Sequence[str]) -> str | None:
    """Say why a look-up cannot stand at a place of some use; None where it can."""
    root = reference.root
    if root == "wait" and (reference.path[:1] or ("",))[0] not in use.wait:
        return f"${{{reference}}} is not known here: {WAIT_KNOWN}"
    if root not in ROOTS:
        shells = "" if reference.path else f"; for a shell's variable write $${{{root}}}"
        return f"${{{reference}}} begins with none of {', '.join(ROOTS)}{suggestion(root, tuple(ROOTS)) or shells}"
    if root == "secrets":
        return _secret_fault(place, use, reference)
    if any(f"{reference}.".startswith(f"{each}.") for each in use.absent):
        return f"${{{reference}}} is known within a stage only"
    if root != "stages" or not reference.path:
        return _key_fault(reference, 0, ROOTS[root])
    name = str(reference.path[0])
    if name not in stage_names:
        return f"${{{reference}}} is of a stage that this file does not have{suggestion(name, stage_names)}"
    return _key_fault(reference, 1, STAGE_KEYS)


def _secret_fault(place: Place, use: Use, reference: Reference) -> str | None:
    if not use.secrets:
        why = next((SECRETS_REFUSED[str(step)] for step in place if step in SECRETS_REFUSED), "it would be visible")
        return f"${{{reference}}} cannot stand here: {why}"
    if len(reference.path) != 1 or not SECRET_NAME.fullmatch(str(reference.path[0])):
        return f"${{{reference}}} is no secret; write ${{secrets.NAME}}"
    return None


def _key_fault(reference: Reference, position: int, known: tuple[str, ...] | None) -> str | None:
    if known is None or len(reference.path) <= position:
        return None
    key = str(reference.path[position])
    return None if key in known else f"${{{reference}}}: {key!r} is none of {', '.join(known)}{suggestion(key, known)}"
