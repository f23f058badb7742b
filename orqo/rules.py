"""What a workflow file must keep beyond its shape: names that exist, keys that apply, no payload where it could do harm.

Owns the refusals of DESIGN.md §7 that are not about one look-up's place (those are in places.py). Every rule takes any
JSON value, for files with faults of shape are looked at too. Never builds a definition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from orqo import decisionrules, lookup, places, simulationrules, waitrules, webhookrules
from orqo.argv import code_argument
from orqo.errors import Fault
from orqo.lookup import Json
from orqo.shape import known_keys, suggestion
from orqo.yamlfile import Document, Place, shown

KINDS = ("command", "script", "http", "stub", "prompt", "delay", "approval", "wait", "workflow")
KEYS_OF_KINDS = {"env": ("command", "script"), "workdir": ("command", "script"), "output": ("command", "script", "prompt")}
BODIES = ("json", "form", "body")

WHOLLY_SECRET = re.compile(r"\$\{secrets\.([A-Za-z_][A-Za-z0-9_]*)\}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
HEADERS_OF_OURS = ("host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect")
CALLBACK_HEADERS_OF_OURS = ("webhook-id", "webhook-timestamp", "webhook-signature", "x-signature-256")


def faults(document: Document) -> Iterator[Fault]:
    """Give every fault that is not one of shape."""
    rules = _Rules(document)
    yield from places.faults(document, rules.stage_names)
    yield from decisionrules.of_schema(document)
    yield from simulationrules.faults(document)
    yield from rules.names("stages")
    yield from rules.names("triggers")
    yield from rules.tokens()
    for place, trigger in _mappings(document.value, ("triggers",)):
        yield from webhookrules.faults(document, place, trigger)
        yield from waitrules.of_trigger(document, place, trigger)
    for place, callback in _callbacks(document.value):
        yield from rules.callback(place, callback)
    for place, stage in _mappings(document.value, ("stages",)):
        yield from rules.stage(place, stage)


class _Rules:
    """The rules, applied to one file."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.fault = document.fault
        self.value = document.value
        self.stage_names = [stage["name"] for _, stage in _mappings(document.value, ("stages",)) if isinstance(stage.get("name"), str)]

    def names(self, key: str) -> Iterator[Fault]:
        seen: set[str] = set()
        for place, item in _mappings(self.value, (key,)):
            name = item.get("name")
            if isinstance(name, str) and name in seen:
                yield self.fault((*place, "name"), f"{shown((*place, 'name'))} {name!r} is taken by another of the {key}")
            seen |= {name} if isinstance(name, str) else set()

    def tokens(self) -> Iterator[Fault]:
        seen: set[str] = set()
        for place, trigger in _mappings(self.value, ("triggers",)):
            webhook, at = trigger.get("webhook"), (*place, "webhook", "token")
            token = webhook.get("token") if isinstance(webhook, dict) else None
            if isinstance(token, str) and token in seen:
                yield self.fault(at, f"{shown(at)} is that of another trigger")
            seen |= {token} if isinstance(token, str) else set()

    def callback(self, place: Place, callback: dict[str, Json]) -> Iterator[Fault]:
        yield from self._request(place, callback)
        yield from self._headers((*place, "headers"), callback.get("headers"), (*HEADERS_OF_OURS, *CALLBACK_HEADERS_OF_OURS))
        secret = callback.get("secret")
        if isinstance(secret, str) and not WHOLLY_SECRET.fullmatch(secret):
            at = (*place, "secret")
            yield self.fault(at, f'{shown(at)} must be wholly "${{secrets.NAME}}": files are kept as versions, secrets are not')

    def stage(self, place: Place, stage: dict[str, Json]) -> Iterator[Fault]:
        kinds = [kind for kind in KINDS if kind in stage]
        if len(kinds) != 1 and (kinds or all(key in known_keys("stage") for key in stage)):
            has = f"; it has {', '.join(kinds)}" if kinds else ""
            yield self.fault(place, f"{shown(place)} needs exactly one of {', '.join(KINDS)}{has}")
        for key, owners in KEYS_OF_KINDS.items():
            if key in stage and len(kinds) == 1 and kinds[0] not in owners:
                at = (*place, key)
                yield self.fault(at, f"{shown(at)} does not apply to {kinds[0]}, only to {', '.join(owners)}")
        for kind in kinds:
            yield from RULES[kind](self, (*place, kind), stage[kind])
            if kind in waitrules.WAITING_KINDS:
                yield from waitrules.of_stage(self.document, place, stage, kind)
        yield from decisionrules.of_stage(self.document, place, stage, self.stage_names)
        yield from self._env((*place, "env"), stage.get("env"))
        yield from self._on_error((*place, "on_error"), stage)

    def command(self, place: Place, argv: Json) -> Iterator[Fault]:
        if not isinstance(argv, list) or not argv:
            return
        if argv[0] == "":
            yield self.fault((*place, 0), f"{shown((*place, 0))} is empty; it must name a program")
        for reference in places.references(argv[0]):
            if reference.root not in ("run", "workflow", "secrets"):
                detail = f"data must not choose the program, so ${{{reference}}} cannot stand here"
                yield self.fault((*place, 0), f"{shown((*place, 0))}: {detail}")
        first = code_argument([text if isinstance(text, str) else str(text) for text in argv])
        for index in range(len(argv) if first is None else first, len(argv)):
            if any(places.references(argv[index])):
                at, option = (*place, index), str(argv[first or 0])[:20]
                how = 'use env: {NAME: "${…}"} and read the variable NAME'
                yield self.fault(at, f"{shown(at)}: no look-up may follow {option}, where it could become code; {how}")

    def script(self, place: Place, text: Json) -> Iterator[Fault]:
        for written in places.script_references(text)[:1]:
            how = 'read the JSON on stdin, or use env: and "$NAME"'
            yield self.fault(place, f"{shown(place)} takes no look-ups, and {written} stands in it; {how}")

    def http(self, place: Place, request: Json) -> Iterator[Fault]:
        if not isinstance(request, dict):
            return
        yield from self._request(place, request)
        yield from self._headers((*place, "headers"), request.get("headers"), HEADERS_OF_OURS)
        bodies = [key for key in BODIES if key in request]
        if len(bodies) > 1:
            yield self.fault((*place, bodies[1]), f"{shown(place)} takes one of {', '.join(BODIES)}; it has {' and '.join(bodies)}")

    def wait(self, place: Place, wait: Json) -> Iterator[Fault]:
        if isinstance(wait, dict) and "request" in wait:
            yield from self.http((*place, "request"), wait["request"])

    def unruled(self, place: Place, spec: Json) -> Iterator[Fault]:
        return iter(())

    def stub(self, place: Place, stub: Json) -> Iterator[Fault]:
        if isinstance(stub, dict) and "fail" in stub and "outcome" in stub:
            yield self.fault((*place, "outcome"), f"{shown(place)} fails, so it has no outcome; take fail or outcome away")

    def _request(self, place: Place, request: dict[str, Json]) -> Iterator[Fault]:
        url, at = request.get("url"), (*place, "url")
        if not isinstance(url, str) or not _readable(url):
            return
        reason = _url_fault(url)
        if reason:
            yield self.fault(at, f"{shown(at)} {reason}")
        if lookup.influences_host(url) and any(each.root == "secrets" for each in places.references(request)):
            how = "what carries ${secrets.…} must have its scheme, host and port written out or in ${secrets.…}"
            yield self.fault(at, f"{shown(at)}: {how}")

    def _headers(self, place: Place, headers: Json, ours: tuple[str, ...]) -> Iterator[Fault]:
        for name, value in headers.items() if isinstance(headers, dict) else ():
            at = (*place, name)
            if not HEADER_NAME.fullmatch(name):
                yield self.fault(at, f"{shown(at)} is not the name of a header")
            elif name.lower() in ours:
                yield self.fault(at, f"{shown(at)} is set by this service; take it away")
            if isinstance(value, str) and re.search(r"[\r\n]", value):
                yield self.fault(at, f"{shown(at)} must be one line")

    def _env(self, place: Place, env: Json) -> Iterator[Fault]:
        for name in env if isinstance(env, dict) else ():
            at = (*place, name)
            if not ENV_NAME.fullmatch(name):
                yield self.fault(at, f"{shown(at)} is not the name of a variable; write letters, digits and _")
            elif name.startswith("ORQO_"):
                yield self.fault(at, f"{shown(at)}: names that begin with ORQO_ are set by this service")

    def _on_error(self, place: Place, stage: dict[str, Json]) -> Iterator[Fault]:
        target = stage.get("on_error")
        if not isinstance(target, str) or target in ("fail", "next") or "${" in target:
            return
        if target not in self.stage_names:
            known = ("fail", "next", *self.stage_names)
            yield self.fault(place, f"{shown(place)} {target!r} is neither fail, next nor a stage of this file{suggestion(target, known)}")
        elif target == stage.get("name"):
            yield self.fault(place, f"{shown(place)} leads back to the same stage; use retry:")


RULES: dict[str, Callable[[_Rules, Place, Json], Iterator[Fault]]] = {
    "command": _Rules.command,
    "script": _Rules.script,
    "http": _Rules.http,
    "stub": _Rules.stub,
    "wait": _Rules.wait,
    **dict.fromkeys(("prompt", "delay", "approval", "workflow"), _Rules.unruled),
}


def _mappings(value: Json, place: Place) -> Iterator[tuple[Place, dict[str, Json]]]:
    """Give the mappings in the list that stands at the last step of the place, each with its own place."""
    items = value.get(place[-1]) if isinstance(value, dict) else None
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield (*place, index), item


def _callbacks(value: Json) -> Iterator[tuple[Place, dict[str, Json]]]:
    yield from _mappings(value, ("callbacks",))
    for place, trigger in _mappings(value, ("triggers",)):
        yield from _mappings(trigger, (*place, "callbacks"))


def _readable(text: str) -> bool:
    try:
        lookup.check_syntax(text)
    except lookup.LookupSyntaxError:
        return False
    return True


def _url_fault(url: str) -> str | None:
    """Say what is wrong with the literal parts of a URL; one that begins with a look-up is known at the run only."""
    literal = lookup.skeleton(url)
    if re.search(r"[\x01-\x20\\\x7f]", literal):
        return "holds a space, a backslash or a control character; write it percent-encoded"
    if literal.startswith(lookup.BLANK):
        return None
    authority = re.match(r"https?://[^/?#]+", literal, re.IGNORECASE)
    if not authority:
        return "must start with http:// or https:// and a host"
    if lookup.BLANK in authority[0]:
        return None
    try:
        usable = bool(urlsplit(authority[0]).hostname) and urlsplit(authority[0]).port != 0
    except ValueError:
        usable = False
    return None if usable else "has no usable host or port"
