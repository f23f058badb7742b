"""POST /api/v1/callback and GET /api/v1/runs/<id> against the real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import standardwebhooks

from http_api import Answer, check_problem, raw, request, runs_of
from orqo import clock, flow, runs, signing
from orqo.models import RunStatus
from support import Service

PATH = "/api/v1/callback"
JSON = "application/json"
EVENT = {
    "type": "run.completed",
    "timestamp": "2026-01-02T03:04:05.678Z",
    "workflow_run_id": 42,
    "status": "completed",
    "data": {"output": 1},
}


@pytest.fixture
def nothing_kept(web: Service) -> Iterator[None]:
    """Neither a run nor a received event is written."""

    def count() -> tuple[int, int]:
        return runs_of(web.box), len(web.box.rows("SELECT id FROM requests WHERE endpoint = 'callback' AND webhook_id IS NOT NULL"))

    before = count()
    yield
    assert count() == before


def signed(web: Service, body: bytes, *, message_id: str = "msg_1", late_s: int = 0, url: str = "", key: bytes = b"") -> dict[str, str]:
    """Sign as this box signs callbacks to itself."""
    secret = signing.derived_secret(key or web.box.key, url or web.url + PATH)
    return signing.callback_headers([signing.secret_bytes(secret)], message_id=message_id, timestamp=int(time.time()) - late_s, body=body)


def post(web: Service, body: Any, *, query: str = "", **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return raw(web, request("POST", PATH + query, data, **({"Content_Type": JSON} | headers)))


def post_signed(web: Service, body: Any, **options: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("-", "_"): value for name, value in signed(web, data, **options).items()}
    return post(web, data, **headers)


# ── signed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_that_this_box_signed_is_kept_once(web: Service) -> None:
    first, again = (post_signed(web, EVENT, message_id="msg_once") for _ in range(2))

    assert (first.status, first.json) == (200, {"workflow_run_id": 42, "status": "received"})
    assert (again.status, again.json) == (200, {"workflow_run_id": 42, "status": "received", "duplicate": True})
    kept = web.box.rows("SELECT * FROM requests WHERE webhook_id = 'msg_once'")
    assert [(json.loads(row["body"]), row["run_id"]) for row in kept] == [(EVENT, 42)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_each_name_of_the_box_itself_is_taken(web: Service, host: str) -> None:
    assert post_signed(web, EVENT, message_id=f"msg_{host}", url=f"http://{host}:{web.env['ORQO_PORT']}{PATH}").status == 200


def test_what_the_oracle_signs_is_taken(web: Service) -> None:
    body, now = json.dumps(EVENT), clock.now()
    secret = signing.derived_secret(web.box.key, web.url + PATH)
    signature = standardwebhooks.Webhook(secret).sign("msg_oracle", now, body)
    headers = {"webhook-id": "msg_oracle", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}

    assert requests.post(web.url + PATH, data=body, headers=headers | {"Content-Type": JSON}, timeout=5).status_code == 200


UNSIGNED: dict[str, dict[str, Any]] = {
    "another key": {"key": b"k" * 32},
    "another url": {"url": "http://receiver.example/api/v1/callback"},
    "too old": {"late_s": 400},
    "from the future": {"late_s": -400},
}


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("name", UNSIGNED)
def test_what_was_not_signed_by_this_box_now_is_401(web: Service, name: str) -> None:
    answer = post_signed(web, EVENT, **UNSIGNED[name])

    check_problem(answer, 401)
    assert answer.headers["www-authenticate"]


@pytest.mark.usefixtures("nothing_kept")
def test_a_host_header_does_not_choose_the_secret(web: Service) -> None:
    url = "http://receiver.example/api/v1/callback"
    data = json.dumps(EVENT).encode()
    headers = {name.replace("-", "_"): value for name, value in signed(web, data, url=url).items()}
    forged = request("POST", PATH, data, Content_Type=JSON, **headers).replace(b"Host: x", b"Host: receiver.example")

    check_problem(raw(web, forged), 401)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("change", [b" ", b"x"])
def test_a_changed_body_is_401(web: Service, change: bytes) -> None:
    data = json.dumps(EVENT).encode()
    headers = {name.replace("-", "_"): value for name, value in signed(web, data).items()}

    check_problem(post(web, data + change, **headers), 401)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    "headers",
    [{}, {"webhook_id": "a"}, {"webhook_id": "a", "webhook_timestamp": "x", "webhook_signature": "v1,x"}, {"Authorization": "Basic eDp5"}],
)
def test_without_any_proof_there_is_401_and_nothing_is_stored(web: Service, headers: dict[str, str]) -> None:
    check_problem(post(web, EVENT, **headers), 401)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"{", 400, None),
        (b"[" * 100_000, 400, None),
        ({"status": "completed"}, 422, "/workflow_run_id"),
        ({"workflow_run_id": 42}, 422, "/status"),
        ({"workflow_run_id": "42", "status": "completed"}, 422, "/workflow_run_id"),
        ({"workflow_run_id": True, "status": "completed"}, 422, "/workflow_run_id"),
        ({"workflow_run_id": 2**63, "status": "completed"}, 422, "/workflow_run_id"),
        ([], 422, ""),
    ],
)
def test_a_signed_body_that_does_not_fit_is_refused(web: Service, body: Any, status: int, pointer: str | None) -> None:
    problem = check_problem(post_signed(web, body, message_id="msg_bad"), status)

    assert pointer is None or pointer in [error["pointer"] for error in problem["errors"]]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("token", ["a" * 43, "abc", "x" * 5000])
def test_an_unknown_wait_token_is_404(web: Service, token: str) -> None:
    check_problem(post(web, {"status": "completed"}, Authorization=f"Bearer {token}"), 404)
    check_problem(post(web, {"status": "completed"}, query=f"?token={token}"), 404)


@pytest.mark.usefixtures("nothing_kept")
def test_a_wait_token_goes_before_a_signature(web: Service) -> None:
    data = json.dumps(EVENT).encode()
    headers = {name.replace("-", "_"): value for name, value in signed(web, data, message_id="msg_both").items()}

    check_problem(post(web, data, Authorization="Bearer abc", **headers), 404)


@pytest.mark.usefixtures("nothing_kept")
def test_an_api_token_must_be_known_and_have_the_scope(web: Service) -> None:
    report = {"workflow_run_id": 1, "status": "completed"}

    check_problem(post(web, report, Authorization=f"Bearer orqo_{'a' * 43}"), 401)
    check_problem(post(web, report, Authorization=f"Bearer {web.box.token('trigger', 'read', 'write')}"), 403)


@pytest.mark.usefixtures("nothing_kept")
def test_an_api_token_in_the_query_is_no_api_token(web: Service) -> None:
    check_problem(post(web, {"workflow_run_id": 1, "status": "completed"}, query=f"?token={web.box.token('callback')}"), 404)


def test_a_report_on_a_run_that_waits_for_none_says_so(web: Service) -> None:
    token, run_id = web.box.token("callback"), web.box.accept()
    report = {"workflow_run_id": run_id, "status": "completed"}

    check_problem(post(web, report, Authorization=f"Bearer {token}"), 409)
    check_problem(post(web, {"status": "completed"}, Authorization=f"Bearer {token}"), 422)
    check_problem(post(web, {**report, "workflow_run_id": 999_999}, Authorization=f"Bearer {token}"), 404)
    runs.stop(web.box.box, run_id, now=clock.now())
    check_problem(post(web, report, Authorization=f"Bearer {token}"), 410)


def test_a_token_learns_nothing_of_a_run_outside_its_list(web: Service) -> None:
    limited, run_id = web.box.token("callback", "read", workflow_ids=[999]), web.box.accept()

    for each in (run_id, 999_999):
        answer = post(web, {"workflow_run_id": each, "status": "completed"}, Authorization=f"Bearer {limited}")
        assert check_problem(answer, 404)["detail"].replace(str(each), "N") == "There is no run N."


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_another_method_is_405(web: Service, method: str) -> None:
    answer = raw(web, request(method, PATH, b"{}"))

    check_problem(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_large_or_encoded_body_is_refused(web: Service) -> None:
    check_problem(post(web, b"x" * 1048577), 413)
    check_problem(post(web, b"x", Content_Encoding="gzip"), 415)


# ── reading a run ───────────────────────────────────────────────────────────────────────────────────────────────────


def get(web: Service, path: str, token: str | None = None) -> Answer:
    return raw(web, request("GET", path, **({"Authorization": f"Bearer {token}"} if token else {})))


def finish(web: Service, run_id: int, output: runs.Output) -> None:
    """Complete a run with this output, as a worker does."""
    held = runs.claim(web.box.box, owner="w", now=clock.now())
    while held is not None and held.run.id != run_id:
        held = runs.claim(web.box.box, owner="w", now=clock.now())
    assert held is not None
    end = runs.StageEnd(output=output.data, output_kind=output.kind)
    runs.finish(web.box.box, held, end, flow.End(RunStatus.COMPLETED), output, elapsed_ms=1, next_owner=None, now=clock.now())


def test_a_run_is_shown_as_it_is(web: Service) -> None:
    run_id = web.box.accept(input={"é": 1})
    finish(web, run_id, runs.Output(b"\xff\0", "bytes"))

    answer = get(web, f"/api/v1/runs/{run_id}", web.box.token("read"))

    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert answer.json == web.box.run(run_id)
    assert (answer.json["input"], answer.json["output"], answer.json["status"]) == ({"é": 1}, {"base64": "/wA="}, "completed")


def test_reading_wants_a_token_of_scope_read_and_the_workflow(web: Service) -> None:
    run_id = web.box.accept()
    path = f"/api/v1/runs/{run_id}"

    check_problem(get(web, path), 401)
    check_problem(get(web, path, web.box.token("trigger", "write", "callback")), 403)
    outside = check_problem(get(web, path, web.box.token("read", workflow_ids=[999])), 404)
    absent = check_problem(get(web, "/api/v1/runs/999999", web.box.token("read")), 404)
    assert outside["detail"].replace(str(run_id), "999999") == absent["detail"]


@pytest.mark.parametrize("run_id", ["0", "-1", "1.0", "abc", "9" * 19, "9" * 5000, "%00", "1/"])
def test_what_is_no_run_is_404(web: Service, run_id: str) -> None:
    check_problem(get(web, f"/api/v1/runs/{run_id}", web.box.token("read")), 404)


def test_reading_does_not_wait_for_a_writer(web: Service) -> None:
    run_id, token = web.box.accept(), web.box.token("read")
    # The first use of a token in a minute is noted, which is a write of its own.
    assert get(web, f"/api/v1/runs/{run_id}", token).status == 200

    with web.box.database.transaction():
        began = time.monotonic()

        assert get(web, f"/api/v1/runs/{run_id}", token).status == 200

        assert time.monotonic() - began < 1
