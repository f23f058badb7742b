"""What a webhook asks of its requests, as the YAML that a workflow file has for it: written for a form, read with faults by line.

Owns this spelling. What may be asked is definition.py's to refuse, what is stored webhook.py's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from orqo import definition, webhook, yamlfile
from orqo.errors import Fault, Invalid
from orqo.yamlfile import Document, Place

KEYS = ("webhook", "filter")
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# What YAML's core schema takes for something else than text.
NOT_TEXT = ("true", "false", "null")
EXAMPLE = """webhook:
  signature: github
  secret: "${secrets.GITHUB_HOOK}"
  rate: 60/m
filter:
  trigger.headers.x-github-event: pull_request
  input.action: {in: [opened, synchronize]}
"""


def as_yaml(options: Mapping[str, Any]) -> str:
    """Give a webhook's stored options as a workflow file writes them, "" for none."""
    return "".join(f"{line}\n" for line in _members(webhook.written(options)))


def _members(value: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines: list[str] = []
    for key, each in value.items():
        name = f"{'  ' * depth}{_text(key)}:"
        # Deeper than a file is commonly indented, JSON in one line is easier to read.
        nested = isinstance(each, dict) and each and depth < 2
        lines += [name, *_members(each, depth + 1)] if nested else [f"{name} {_flow(each)}"]
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def read(text: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """Give the stored form of what was typed; Invalid with every fault and its line. `secrets` are the service's."""
    if not text.strip():
        return {}
    document = yamlfile.read(text)
    _refuse(_faults_of_shape(document))
    value = document.value or {}
    try:
        found = definition.parse_trigger("x", webhook=value.get("webhook"), filter=value.get("filter")).options
    except Invalid as fault:
        _refuse([Fault(each.pointer, each.detail, _line(document, each.pointer)) for each in fault.errors])
        raise
    _refuse([
        Fault("/webhook", f"the secret {name} is not set: give the service ORQO_SECRET_{name}", _line_of(document, text, name))
        for name in webhook.names_of_secrets(found)
        if not secrets.get(name)
    ])  # fmt: skip
    return found


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise Invalid("; ".join(each.detail for each in faults[:5]), errors=faults)


def _faults_of_shape(document: Document) -> list[Fault]:
    if not document.whole or document.faults:
        return list(document.faults)
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        return [document.fault((), "write webhook: and filter:, as a workflow file's trigger has them")]
    unknown = [document.fault((key,), f"{key} is not known here: webhook and filter are") for key in value if key not in KEYS]
    wrong = [key for key in KEYS if value.get(key) is not None and not isinstance(value[key], dict)]
    found = unknown + [document.fault((key,), f"{key} must be a mapping") for key in wrong]
    if "webhook" not in wrong and "token" in (value.get("webhook") or {}):
        at = ("webhook", "token")
        found.append(document.fault(at, "webhook.token is for workflow files: here the token is made, and Rotate makes another"))
    return found


def _line(document: Document, pointer: str) -> int | None:
    """Give the line of a JSON pointer, or of what holds it."""
    place: Place = ()
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        place = (*place, int(name)) if name.isdigit() and (*place, int(name)) in document.lines else (*place, name)
    return document.fault(place, "").line


def _line_of(document: Document, text: str, name: str) -> int | None:
    lines = enumerate(text.split("\n"), 1)
    return next((number for number, line in lines if f"secrets.{name}}}" in line), document.lines.get(("webhook",)))
