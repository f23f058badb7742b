"""What a webhook trigger must keep beyond its shape: a signature has a secret, a filter can hold.

Owns these refusals. Takes any JSON value, for files with faults of shape are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orqo import call, match, webhook
from orqo.errors import Fault
from orqo.lookup import Json
from orqo.yamlfile import Document, Place, shown

ROOTS = ("input", "trigger")
SECRETS = ("secret", "previous_secret", "verify_token")


def faults(document: Document, place: Place, trigger: dict[str, Json]) -> Iterator[Fault]:
    """Give the faults of one trigger's webhook and filter."""
    options = trigger.get("webhook")
    for at, detail in _webhook(options) if isinstance(options, dict) else ():
        where = (*place, "webhook", *at)
        yield document.fault(where, f"{shown(where)} {detail}")
    for at, detail in _filter(trigger["filter"]) if trigger.get("filter") else ():
        where = (*place, "filter", *at)
        yield document.fault(where, f"{shown(where)} {detail}")


def _webhook(options: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for key in SECRETS:
        text = options.get(key)
        if isinstance(text, str) and not webhook.SECRET.fullmatch(text):
            yield (key,), 'must be wholly "${secrets.NAME}": files are kept as versions, secrets are not'
    if "signature" in options and "secret" not in options:
        yield ("signature",), 'needs secret: "${secrets.NAME}"; without one nothing could be verified'
    if "secret" in options and "signature" not in options:
        yield ("secret",), "needs signature:, which says how requests are signed with it"
    if "previous_secret" in options and "secret" not in options:
        yield ("previous_secret",), "needs secret:, the new one"
    if "previous_secret" in options and options["previous_secret"] == options.get("secret"):
        yield ("previous_secret",), "is the same as secret:"
    yield from _signature(options.get("signature"))
    answer = options.get("response")
    if isinstance(answer, dict) and answer.get("status") in (204, 205) and "json" in answer:
        yield ("response", "json"), f"cannot be sent with status {answer['status']}, which has no body"


def _signature(signature: Json) -> Iterator[tuple[Place, str]]:
    if isinstance(signature, dict) and signature.get("algorithm") == "plain" and "encoding" in signature:
        yield ("signature", "encoding"), "does not apply to plain, where the header is the secret itself"
    header = signature.get("header") if isinstance(signature, dict) else None
    if isinstance(header, str) and header.lower() in ("content-length", "content-type", "host", "transfer-encoding", "connection"):
        yield ("signature", "header"), "is a header of HTTP itself"


def _filter(condition: Json) -> Iterator[tuple[Place, str]]:
    yield from match.faults(condition, ROOTS)
    for at, reference in match.paths(condition):
        if reference.root == "trigger":
            detail = _trigger_path([str(step) for step in reference.path])
            if detail:
                yield at, detail


def _trigger_path(path: list[str]) -> str | None:
    """Say why nothing would ever stand at a path below `trigger`, None where something may."""
    if not path or path[0] not in ("name", "headers", "query"):
        return "is none of trigger.name, trigger.headers.…, trigger.query.…"
    if path[0] != "headers" or len(path) < 2:
        return None
    if path[1] != path[1].lower():
        return f"must name the header in lower case: trigger.headers.{path[1].lower()}"
    return None if call.is_told(path[1]) else f"names the header {path[1]}, which no workflow is told (the README lists those that are)"
