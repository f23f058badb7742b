"""The callbacks of docs/recipes/callbacks.md, each against a receiver that wants what the real one wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from inbox import Arrived, Inbox, inbox
from orqo.config import PROJECT_DIR
from support import Service, wait_for

PUSH = {"after": "c0ffee", "repository": {"name": "site", "owner": {"login": "ada"}}}


@pytest.fixture
def receiver() -> Iterator[Inbox]:
    with inbox() as made:
        yield made


@pytest.fixture
def settings(settings: dict[str, str], receiver: Inbox) -> dict[str, str]:
    """The secrets that the recipes name."""
    secrets = {"SLACK_URL": receiver.url("/services/T0/B0/key"), "GITHUB_TOKEN": "ghp_secret", "OTHER_HOOK": receiver.url("/hook")}
    return settings | {f"ORQO_SECRET_{name}": value for name, value in secrets.items()}


@pytest.fixture
def told(service: Service, receiver: Inbox) -> Callable[[str, Any], Arrived]:
    """Run a recipe with an input and give what its receiver got."""

    def run(name: str, given: Any) -> Arrived:
        text = (PROJECT_DIR / "examples" / "callbacks" / f"{name}.yaml").read_text(encoding="utf-8")
        service.box.apply(text.replace("https://api.github.com", receiver.base))
        requests.post(service.url + service.box.hook(name), json=given, timeout=5).raise_for_status()
        return wait_for(lambda: receiver.arrived and receiver.arrived[0], what="the callback")  # type: ignore[no-any-return]

    return run


def test_slack_gets_a_text(told: Callable[[str, Any], Arrived]) -> None:
    arrived = told("slack-message", None)

    assert arrived.path == "/services/T0/B0/key"
    assert set(arrived.json) == {"text"}
    assert arrived.json["text"].startswith("Run 1 of slack-message failed in work: ")
    assert "the disk is full" in arrived.json["text"]


def test_github_gets_a_status_of_the_commit(told: Callable[[str, Any], Arrived]) -> None:
    arrived = told("github-status", PUSH)

    assert arrived.path == "/repos/ada/site/statuses/c0ffee"
    assert arrived.headers["authorization"] == "Bearer ghp_secret"
    assert (arrived.json["state"], arrived.json["context"]) == ("success", "orqo")


def test_the_token_goes_where_the_file_says_whatever_the_payload_says(told: Callable[[str, Any], Arrived]) -> None:
    hostile = {"after": "x", "repository": {"name": "../../evil", "owner": {"login": "a@evil.example.com"}}}

    arrived = told("github-status", hostile)

    assert arrived.path == "/repos/a%40evil.example.com/..%2F..%2Fevil/statuses/x"


def test_another_orqo_gets_the_result_as_input(told: Callable[[str, Any], Arrived]) -> None:
    arrived = told("another-orqo", None)

    assert arrived.path == "/hook"
    assert arrived.json == {"from": "another-orqo", "run": 1, "result": {"answer": 42}}
    assert arrived.headers["webhook-id"]


def test_no_secret_is_stored(service: Service, told: Callable[[str, Any], Arrived]) -> None:
    told("github-status", PUSH)

    wait_for(lambda: service.box.rows("SELECT id FROM deliveries WHERE status = 'delivered'"))
    assert not [row for row in service.box.rows("SELECT url, headers, body FROM deliveries") if "ghp_secret" in str(dict(row))]
