"""Answers held against openapi.yaml: the status, the media type, the headers and the body that the description gives them."""

from __future__ import annotations

import re

import jsonschema_rs
from werkzeug.test import TestResponse

from orqo import description
from orqo.description import Operation


def operation_of(method: str, path: str) -> Operation:
    """Give the operation that a request was for."""
    for each in description.operations().values():
        if each.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each.path), path):
            return each
    raise AssertionError(f"{method} {path} is not described")


def check(operation: Operation, answer: TestResponse) -> None:
    """Assert that an answer is one that the description gives."""
    responses = operation.value["responses"]
    assert str(answer.status_code) in responses, f"{operation.id} answered {answer.status_code}: {answer.text}"
    said = description.resolved(responses[str(answer.status_code)])
    if "content" not in said:
        assert answer.data == b"", operation.id
        return
    media = answer.content_type.partition(";")[0]
    assert media in said["content"], f"{operation.id} answered {media}"
    schema = said["content"][media].get("schema", {})
    if media.endswith("json"):
        root = {**schema, "components": description.load()["components"]}
        fault = next(iter(jsonschema_rs.Draft202012Validator(root).iter_errors(answer.json)), None)
        assert fault is None, f"{operation.id}: {fault}"
