"""/docs: the reference of the HTTP API, made from its description, with a form that tries each operation.

Owns how the description is laid out for people. Says nothing that openapi.yaml does not say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from flask import Response

from orqo import description
from orqo.dashboard.blueprint import blueprint
from orqo.dashboard.pages import page
from orqo.description import Operation
from orqo.site import site

ENDPOINTS = "The three endpoints"
OWN_NAMES = {"healthz": "Health", "readyz": "Health", "metrics": "Metrics", "openapi.json": "Description", "openapi.yaml": "Description"}


@dataclass(frozen=True)
class Field:
    """One member of a body, or one parameter."""

    name: str
    type: str
    required: bool
    meaning: str
    within: str = "body"


@blueprint.get("/docs")
def reference() -> Response:
    """Show the reference; of a strict box, that of the three endpoints."""
    groups = {name: each for name, each in _groups().items() if name in (ENDPOINTS, "Health") or not site().config.strict}
    return page("reference.html", groups=groups, schemas=_schemas(), events=_events(), strict=site().config.strict)


@cache
def _groups() -> Mapping[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for operation in description.operations().values():
        groups.setdefault(_group(operation), []).append(_shown(operation))
    return groups


def _group(operation: Operation) -> str:
    if "endpoints" in operation.value["tags"]:
        return ENDPOINTS
    noun = operation.path.removeprefix("/api/v1/").strip("/").split("/")[0]
    return OWN_NAMES.get(noun, noun.capitalize())


def _shown(operation: Operation) -> dict[str, Any]:
    value = operation.value
    media, body = _first(description.resolved(value.get("requestBody", {})))
    parameters = [_parameter(each) for each in operation.parameters]
    return {
        "id": operation.id,
        "method": operation.method,
        "path": operation.path,
        "summary": value["summary"],
        "text": value.get("description", ""),
        "origin": value["x-origin"],
        "scopes": operation.scopes,
        "parameters": parameters,
        "media": media,
        "fields": list(_fields(body.get("schema", {}))),
        "example": _example(body),
        "answers": [_answer(status, description.resolved(each)) for status, each in value["responses"].items()],
    }


def _parameter(parameter: Mapping[str, Any]) -> Field:
    schema = description.resolved(parameter["schema"])
    required = bool(parameter.get("required", False))
    return Field(parameter["name"], _type(schema), required, parameter.get("description", ""), parameter["in"])


def _fields(schema: Mapping[str, Any]) -> Iterator[Field]:
    """Give the members of an object, those of its parts first."""
    schema = description.resolved(schema)
    for part in schema.get("allOf", ()):
        yield from _fields(part)
    for name, each in schema.get("properties", {}).items():
        yield Field(name, _type(each), name in schema.get("required", ()), description.resolved(each).get("description", ""))


def _type(schema: Mapping[str, Any]) -> str:
    """Give a type in words."""
    if "$ref" in schema:
        named, found = schema["$ref"].rpartition("/")[2], description.resolved(schema)
        return named if "properties" in found or "allOf" in found else _type(found)
    if "enum" in schema:
        return " | ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    kinds = schema.get("type", "any JSON")
    words = " or ".join(kinds) if isinstance(kinds, list) else kinds
    return f"{words} of {_type(schema['items'])}" if "items" in schema else words


def _answer(status: str, response: Mapping[str, Any]) -> dict[str, Any]:
    media, content = _first(response)
    schema = content.get("schema", {})
    told = {"status": status, "phrase": HTTPStatus(int(status)).phrase, "meaning": response["description"]}
    return told | {"media": media, "type": _type(schema) if schema else "", "example": _example(content)}


def _first(holder: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Give the first media type of a body or an answer, and what it holds."""
    for media, content in holder.get("content", {}).items():
        return media, content
    return "", {}


def _example(content: Mapping[str, Any]) -> str:
    for each in content.get("examples", {}).values():
        value = each["value"]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    return ""


@cache
def _schemas() -> Mapping[str, list[Field]]:
    """Give the objects that answers are made of."""
    found = {name: list(_fields(schema)) for name, schema in description.load()["components"]["schemas"].items()}
    return {name: fields for name, fields in found.items() if fields}


@cache
def _events() -> list[dict[str, Any]]:
    """Give what is sent: the description's webhooks."""
    shown = []
    for name, item in description.load()["webhooks"].items():
        post = item["post"]
        headers = [_parameter(description.resolved(each)) for each in post["parameters"]]
        body = post["requestBody"]["content"]["application/json"]
        told = {"name": name, "summary": post["summary"], "text": post["description"]}
        shown.append(told | {"headers": headers, "type": _type(body["schema"])})
    return shown
