"""Tokens pinned in a workflow file: their digest, and the file's text without them.

Owns the form `sha256:<64 hex>`. Never keeps a token: versions of a file are stored, and whoever reads them must not be
able to start runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from orqo.errors import Fault
from orqo.places import strings
from orqo.yamlfile import Document, Place, shown

HASHED = "sha256:"


def token_hash(token: str) -> str:
    """Give the hex SHA-256 of a token, or that which `sha256:…` names."""
    return token.removeprefix(HASHED) if token.startswith(HASHED) else hashlib.sha256(token.encode("ascii")).hexdigest()


def faults(document: Document, text: str) -> Iterator[Fault]:
    """Give the places of a file without other faults from which a pinned token could not be taken out."""
    for place, token in _tokens(document.value):
        if token not in text:
            yield document.fault(place, f"{shown(place)} must be written without escapes or line breaks")
        for other, held in strings(document.value, ()):
            if other != place and token in held:
                yield document.fault(other, f"{shown(other)} holds the token of {shown(place[:2])}; take it from a secret instead")


def without_tokens(text: str, value: Mapping[str, Any]) -> str:
    """Give the file's text with each pinned token replaced by its digest, which parses to the same definition."""
    for _, token in _tokens(value):
        text = text.replace(token, HASHED + token_hash(token))
    return text


def _tokens(value: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Give the tokens that stand in the file as themselves."""
    for index, trigger in enumerate(value.get("triggers", ())):
        token = (trigger.get("webhook") or {}).get("token", "")
        if token and not token.startswith(HASHED):
            yield ("triggers", index, "webhook", "token"), token
