"""/docs: everything that the description has, for anybody, offline."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orqo import description


def test_the_reference_has_every_operation_and_every_object(client: Any) -> None:
    text = client.get("/docs").text

    for operation in description.operations().values():
        assert f'id="{operation.id}"' in text
    assert set(re.findall(r'href="#([^"]+)"', text)) - {"main"} <= set(re.findall(r'id="([^"]+)"', text))


def test_the_reference_is_for_anybody_and_loads_nothing_from_elsewhere(client: Any) -> None:
    answer = client.get("/docs")

    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text)
    assert "<style" not in answer.text and " style=" not in answer.text and "onclick" not in answer.text


@pytest.fixture
def strict(settings: dict[str, str]) -> None:
    settings["ORQO_STRICT"] = "1"


def test_a_strict_box_shows_the_three_endpoints_alone(strict: None, client: Any) -> None:
    text = client.get("/docs").text

    assert 'id="trigger"' in text and 'id="listRuns"' not in text and "openapi.yaml" not in text


@pytest.fixture
def simulating(settings: dict[str, str]) -> None:
    settings["ORQO_SIMULATE"] = "1"


def test_a_stand_in_says_on_every_page_that_it_is_one(simulating: None, client: Any) -> None:
    assert "This is a stand-in" in client.get("/docs").text
    assert "This is a stand-in" in client.get("/sign-in").text
