"""The contract of ORQO's HTTP API as tests of any base URL: this service, a proxy in front of it, or ORQO itself.

    make contract URL=http://127.0.0.1:8000 TOKEN=orqo_… WORKFLOW=1 HOOK=<43 characters>

Each test says whether ORQO documents what it holds, or we infer it. Only starts runs of the workflow that it is given.
Never imports the service.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import requests

URL = os.environ.get("CONTRACT_URL", "").rstrip("/")
TOKEN = os.environ.get("CONTRACT_TOKEN", "")
WORKFLOW = int(os.environ.get("CONTRACT_WORKFLOW") or 1)
HOOK = os.environ.get("CONTRACT_HOOK", "")
STARTED = {"workflow_run_id", "status"}
pytestmark = pytest.mark.skipif(not URL or not TOKEN, reason="say which: make contract URL=… TOKEN=…")
hooked = pytest.mark.skipif(not HOOK, reason="HOOK=<token of a webhook> is not given")


def trigger(body: Any, token: str | None = TOKEN, **headers: str) -> requests.Response:
    sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}) | headers
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(f"{URL}/api/v1/trigger", data=data, headers=sent, timeout=30, allow_redirects=False)


def hook(data: bytes = b"", token: str = HOOK, **headers: str) -> requests.Response:
    return requests.post(f"{URL}/api/v1/hooks/{token}", data=data, headers=headers, timeout=30, allow_redirects=False)


def check_started(answer: requests.Response) -> None:
    """Assert that an answer says that a run was started, with at least what the contract says and a number that is one."""
    assert answer.status_code == 201, answer.text
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    assert answer.json().keys() >= STARTED
    assert answer.json()["status"] == "started"
    assert type(answer.json()["workflow_run_id"]) is int and answer.json()["workflow_run_id"] > 0


def check_refused(answer: requests.Response, status: int) -> None:
    """Assert that an answer refuses, in JSON that says why."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].partition(";")[0] in ("application/json", "application/problem+json")
    assert answer.json()["error"]


# ── documented by ORQO ──────────────────────────────────────────────────────────────────────────────────────────────


def test_documented_a_workflow_is_started_by_its_number() -> None:
    check_started(trigger({"workflow_id": WORKFLOW, "input": {"text": "contract"}}))


@hooked
@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", None),
        (b'{"a": 1}', "application/json"),
        (b"a=1", "application/x-www-form-urlencoded"),
        (b"text", "text/plain"),
        (b"\xff\x00", "image/png"),
    ],
    ids=["none", "json", "form", "text", "bytes"],
)
def test_documented_a_webhook_takes_any_body(data: bytes, content_type: str | None) -> None:
    check_started(hook(data, **({"Content-Type": content_type} if content_type else {})))


@pytest.mark.parametrize("token", ["A" * 43, "short", "A" * 44, "%2e%2e"])
def test_documented_an_unknown_webhook_is_404(token: str) -> None:
    assert hook(token=token).status_code == 404


@hooked
def test_documented_the_answer_of_a_webhook_has_these_two_members() -> None:
    assert hook(b"{}", **{"Content-Type": "application/json"}).json().keys() == STARTED


# ── inferred ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "text", "\u2603", [], [1], {}, {"a": {"b": []}}], ids=repr)
def test_inferred_any_json_is_an_input(value: Any) -> None:
    check_started(trigger({"workflow_id": WORKFLOW, "input": value}))


def test_inferred_an_input_may_be_left_out() -> None:
    check_started(trigger({"workflow_id": WORKFLOW}))


def test_inferred_each_start_is_another_run() -> None:
    first, second = (trigger({"workflow_id": WORKFLOW}).json()["workflow_run_id"] for _ in range(2))

    assert first != second


@pytest.mark.parametrize("token", [None, "wrong", "orqo_" + "A" * 43], ids=["none", "no-token", "unknown"])
def test_inferred_without_a_valid_token_it_is_401(token: str | None) -> None:
    answer = trigger({"workflow_id": WORKFLOW}, token)

    check_refused(answer, 401)
    assert "WWW-Authenticate" in answer.headers


def test_inferred_an_unknown_workflow_is_404() -> None:
    check_refused(trigger({"workflow_id": 2**53 - 1}), 404)


@pytest.mark.parametrize("body", [b"", b"{", b"nothing", b'{"workflow_id": 1', b"\xff"], ids=repr)
def test_inferred_what_is_no_json_is_400(body: bytes) -> None:
    check_refused(trigger(body), 400)


@pytest.mark.parametrize("body", [{}, [], None, {"workflow_id": "1"}, {"workflow_id": 0}, {"workflow_id": None}, {"input": 1}], ids=repr)
def test_inferred_a_body_that_does_not_fit_is_422(body: Any) -> None:
    check_refused(trigger(body), 422)


@pytest.mark.parametrize("path", ["trigger", "callback"])
def test_inferred_another_method_is_405(path: str) -> None:
    assert requests.get(f"{URL}/api/v1/{path}", timeout=30, allow_redirects=False).status_code == 405


def test_inferred_a_callback_from_nobody_is_401() -> None:
    answer = requests.post(f"{URL}/api/v1/callback", json={"workflow_run_id": 1, "status": "completed"}, timeout=30)

    check_refused(answer, 401)


def test_inferred_a_callback_with_an_unknown_token_is_404() -> None:
    headers = {"Authorization": "Bearer " + "A" * 43}
    answer = requests.post(f"{URL}/api/v1/callback", json={"status": "completed"}, headers=headers, timeout=30)

    check_refused(answer, 404)
