"""POST /api/v1/trigger against the real server: the contract, row by row, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import requests

from http_api import Answer, check_problem, raw, request, runs_of
from orqo import clock, tokens, workflows
from support import Service, TestBox, locked, sqlite_only

PATH = "/api/v1/trigger"
JSON = "application/json"


@pytest.fixture(scope="module")
def token(web: Service) -> str:
    """A token of scope trigger."""
    return web.box.token("trigger")


@pytest.fixture
def nothing_happens(web: Service) -> Iterator[None]:
    """The number of runs stays what it was."""
    before = runs_of(web.box)
    yield
    assert runs_of(web.box) == before


def post(web: Service, token: str | None, body: Any, *, path: str = PATH, **headers: str) -> Answer:
    """Send a body, JSON unless it is bytes already."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    known = {"Content_Type": JSON} | ({"Authorization": f"Bearer {token}"} if token else {})
    return raw(web, request("POST", path, data, **(known | headers)))


# ── accepted ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_started_and_the_answer_is_the_documented_one(web: Service, token: str) -> None:
    answer = post(web, token, {"workflow_id": 1, "input": {"name": "Ada"}})

    run_id = answer.json["workflow_run_id"]
    assert (answer.status, answer.json) == (201, {"workflow_run_id": run_id, "status": "started"})
    assert answer.headers["content-type"] == JSON
    assert answer.headers["location"] == f"/api/v1/runs/{run_id}"
    assert web.box.run(run_id)["input"] == {"name": "Ada"}


@pytest.mark.parametrize("value", [None, False, 0, 1.5, -(2**63), 2**64 - 1, "", "é\0😀", [], {}, {"a": [{"b": None}]}])
def test_any_json_is_an_input(web: Service, token: str, value: Any) -> None:
    answer = post(web, token, {"workflow_id": 1, "input": value})

    assert answer.status == 201
    assert web.box.run(answer.json["workflow_run_id"])["input"] == value


def test_the_default_input_is_null(web: Service, token: str) -> None:
    assert web.box.run(post(web, token, {"workflow_id": 1}).json["workflow_run_id"])["input"] is None


def test_extension_fields_do_not_change_the_answer(web: Service, token: str) -> None:
    wanted = {"workflow": "hello", "metadata": {"ref": 1}, "callback_url": "https://example.com/done"}

    answer = post(web, token, wanted)

    assert (answer.status, set(answer.json)) == (201, {"workflow_run_id", "status"})
    run = web.box.run(answer.json["workflow_run_id"])
    assert (run["metadata"], run["workflow_id"]) == ({"ref": 1}, 1)


def test_a_request_names_several_callbacks_and_their_events(web: Service, token: str) -> None:
    wanted = {
        "workflow_id": 1,
        "callback_url": "https://example.com/end",
        "callbacks": [{"url": "https://example.com/each", "events": ["output", "waiting"]}, {"url": "https://example.com/${input.x}"}],
    }

    answer = post(web, token, wanted)

    kept = web.box.rows("SELECT callbacks FROM runs WHERE id = :id", id=answer.json["workflow_run_id"])[0]["callbacks"]
    ends = ["completed", "failed", "stopped"]
    assert [(one["url"].rpartition("/")[2], one["events"]) for one in json.loads(kept)] == [
        ("end", ends),
        ("each", ["output", "waiting"]),
        ("${input.x}", ends),
    ]


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json", "text/json"]
)
def test_types_that_are_json(web: Service, token: str, content_type: str) -> None:
    assert post(web, token, {"workflow_id": 1}, Content_Type=content_type).status == 201


def test_a_body_in_chunks_is_read_whole(web: Service, token: str) -> None:
    body = b'{"workflow_id": 1, "input": "in pieces"}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:20], body[20:])) + b"0\r\n\r\n"

    answer = post(web, token, chunks, Transfer_Encoding="chunked")

    assert web.box.run(answer.json["workflow_run_id"])["input"] == "in pieces"


def test_a_used_token_is_seen_to_be_used(web: Service, token: str) -> None:
    post(web, token, {"workflow_id": 1})

    assert web.box.rows("SELECT last_used_at FROM api_tokens WHERE token_hash = :h", h=tokens.digest(token))[0]["last_used_at"]


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CREDENTIALS = {
    "none": {},
    "empty": {"Authorization": ""},
    "no token": {"Authorization": "Bearer"},
    "basic": {"Authorization": "Basic b3JxbzpvcnFv"},
    "unknown": {"Authorization": f"Bearer orqo_{'a' * 43}"},
    "short": {"Authorization": "Bearer orqo_abc"},
    "two": {"Authorization": f"Bearer orqo_{'a' * 43} orqo_{'b' * 43}"},
    "beyond ascii": {"Authorization": f"Bearer orqo_{'é' * 43}"},
    "huge": {"Authorization": f"Bearer {'a' * 20000}"},
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", CREDENTIALS)
def test_without_a_known_token_there_is_401(web: Service, name: str) -> None:
    answer = post(web, None, {"workflow_id": 1}, **CREDENTIALS[name])

    check_problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith('Bearer realm="orqo"')


@pytest.mark.usefixtures("nothing_happens")
def test_a_token_in_the_query_is_not_read(web: Service, token: str) -> None:
    check_problem(post(web, None, {"workflow_id": 1}, path=f"{PATH}?token={token}"), 401)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_token_that_was_ended_is_401(web: Service, how: str) -> None:
    past = clock.now() - timedelta(seconds=1)
    ended = web.box.token("admin", **({"expires_at": past} if how == "expired" else {}))
    if how == "revoked":
        with web.box.database.transaction() as connection:
            token_id = web.box.rows("SELECT max(id) AS id FROM api_tokens")[0]["id"]
            tokens.revoke(connection, token_id, now=clock.now())

    answer = post(web, ended, {"workflow_id": 1})

    check_problem(answer, 401)
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("scopes", [("read",), ("write", "callback", "read")])
def test_a_token_without_the_scope_is_403(web: Service, scopes: tuple[str, ...]) -> None:
    assert "trigger" in check_problem(post(web, web.box.token(*scopes), {"workflow_id": 1}), 403)["detail"]


@pytest.mark.usefixtures("nothing_happens")
def test_nobody_without_a_token_learns_what_is_wrong_with_a_body(web: Service) -> None:
    for body in (b"{", b"[" * 100_000, b"x" * 900_000):
        check_problem(post(web, None, body), 401)


# ── which workflow ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("wanted", [{"workflow_id": 999}, {"workflow_id": 2**63 - 1}, {"workflow": "nope"}])
def test_an_unknown_workflow_is_404(web: Service, token: str, wanted: Any) -> None:
    check_problem(post(web, token, wanted), 404)


@pytest.mark.usefixtures("nothing_happens")
def test_a_workflow_outside_the_tokens_list_is_404_with_the_same_words(web: Service) -> None:
    limited = web.box.token("trigger", workflow_ids=[999])

    outside, unknown = (check_problem(post(web, limited, {"workflow_id": each}), 404)["detail"] for each in (1, 998))

    assert outside.replace(" 1 ", " 998 ") == unknown


@pytest.fixture
def disabled(web: Service) -> Iterator[None]:
    """The workflow hello is disabled meanwhile."""
    for enabled in (False, True):
        with web.box.database.transaction() as connection:
            workflows.set_enabled(connection, "hello", enabled=enabled, now=clock.now())
        if not enabled:
            yield


@pytest.mark.usefixtures("nothing_happens", "disabled")
def test_a_disabled_workflow_is_409(web: Service, token: str) -> None:
    check_problem(post(web, token, {"workflow_id": 1}), 409)


# ── the body ────────────────────────────────────────────────────────────────────────────────────────────────────────

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no json": b"workflow_id=1",
    "cut": b'{"workflow_id": 1',
    "nan": b'{"workflow_id": 1, "input": NaN}',
    "1e999": b'{"workflow_id": 1, "input": 1e999}',
    "lone surrogate": b'{"workflow_id": 1, "input": "\\ud800"}',
    "lone surrogate in a key": b'{"workflow_id": 1, "input": {"\\udc00": 1}}',
    "invalid utf-8": b'{"workflow_id": 1, "input": "\xff"}',
    "byte-order mark": b'\xef\xbb\xbf{"workflow_id": 1}',
    "utf-16": '{"workflow_id": 1}'.encode("utf-16"),
    "5,000 digits": b'{"workflow_id": 1, "input": ' + b"9" * 5000 + b"}",
    "a 5,000-digit id": b'{"workflow_id": ' + b"1" * 5000 + b"}",
    "duplicate keys": b'{"workflow_id": 1, "workflow_id": 1}',
    "duplicate keys deep down": b'{"workflow_id": 1, "input": [{"a": 1, "a": 1}]}',
    "100,000 brackets": b'{"workflow_id": 1, "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 open brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "nul": b"\0",
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_400(web: Service, token: str, name: str) -> None:
    check_problem(post(web, token, MALFORMED[name]), 400)


INVALID: dict[str, tuple[Any, str]] = {
    "missing": ({}, "/workflow_id"),
    "missing with input": ({"input": 1}, "/workflow_id"),
    "a string": ({"workflow_id": "1"}, "/workflow_id"),
    "true": ({"workflow_id": True}, "/workflow_id"),
    "null": ({"workflow_id": None}, "/workflow_id"),
    "a float": ({"workflow_id": 1.5}, "/workflow_id"),
    "a list": ({"workflow_id": [1]}, "/workflow_id"),
    "zero": ({"workflow_id": 0}, "/workflow_id"),
    "negative": ({"workflow_id": -1}, "/workflow_id"),
    "huge": ({"workflow_id": 2**63}, "/workflow_id"),
    "as large as can be": ({"workflow_id": 2**64 - 1}, "/workflow_id"),
    "a huge float": (b'{"workflow_id": 1e300}', "/workflow_id"),
    "no object": ([1], ""),
    "a text": ("1", ""),
    "unknown field": ({"workflow_id": 1, "inputs": {}}, "/inputs"),
    "unknown field to be escaped": ({"workflow_id": 1, "a/b~c": 1}, "/a~1b~0c"),
    "metadata no object": ({"workflow_id": 1, "metadata": []}, "/metadata"),
    "metadata too many": ({"workflow_id": 1, "metadata": {str(n): n for n in range(51)}}, "/metadata"),
    "metadata too large": ({"workflow_id": 1, "metadata": {"a": "x" * 17000}}, "/metadata"),
    "callback_url no text": ({"workflow_id": 1, "callback_url": 7}, "/callback_url"),
    "callback_url ftp": ({"workflow_id": 1, "callback_url": "ftp://example.com/"}, "/callback_url"),
    "callback_url no host": ({"workflow_id": 1, "callback_url": "http:///x/y"}, "/callback_url"),
    "callback_url bad port": ({"workflow_id": 1, "callback_url": "http://a:99999/"}, "/callback_url"),
    "callback_url bad ip": ({"workflow_id": 1, "callback_url": "http://[::1/"}, "/callback_url"),
    "callback_url newline": ({"workflow_id": 1, "callback_url": "http://a/\nx"}, "/callback_url"),
    "callbacks no list": ({"workflow_id": 1, "callbacks": {}}, "/callbacks"),
    "callbacks too many": ({"workflow_id": 1, "callbacks": [{"url": "https://a.example/"}] * 11}, "/callbacks"),
    "callbacks without url": ({"workflow_id": 1, "callbacks": [{"events": ["output"]}]}, "/callbacks/0/url"),
    "callbacks ftp": ({"workflow_id": 1, "callbacks": [{"url": "https://a.example/"}, {"url": "ftp://a.example/"}]}, "/callbacks/1/url"),
    "callbacks event": ({"workflow_id": 1, "callbacks": [{"url": "https://a.example/", "events": ["ended"]}]}, "/callbacks/0/events/0"),
    "callbacks no event": ({"workflow_id": 1, "callbacks": [{"url": "https://a.example/", "events": []}]}, "/callbacks/0/events"),
    "callbacks own body": ({"workflow_id": 1, "callbacks": [{"url": "https://a.example/", "json": {}}]}, "/callbacks/0/json"),
    "other name": ({"workflow_id": 1, "workflow": "other"}, "/workflow"),
    "name in capitals": ({"workflow": "HELLO"}, "/workflow"),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", INVALID)
def test_a_body_that_does_not_fit_is_422_with_a_pointer(web: Service, token: str, name: str) -> None:
    body, pointer = INVALID[name]

    problem = check_problem(post(web, token, body), 422)

    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert all(error["detail"] for error in problem["errors"])


def test_a_problem_never_quotes_what_was_sent(web: Service, token: str) -> None:
    answer = post(web, token, {"workflow_id": "hunter2hunter2", "metadata": "hunter2hunter2"})

    assert b"hunter2" not in answer.body


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"])
def test_another_content_type_is_415(web: Service, token: str, content_type: str) -> None:
    check_problem(post(web, token, {"workflow_id": 1}, Content_Type=content_type), 415)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "x" * 300])
def test_an_encoded_body_is_415(web: Service, token: str, encoding: str) -> None:
    check_problem(post(web, token, b"\x1f\x8b\x08", Content_Encoding=encoding), 415)


LIMIT = 1048576


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 65536 + 1, 3 * LIMIT], ids=["by one", "over the server's", "far"])
@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
def test_a_body_over_the_limit_is_413(web: Service, token: str, size: int, chunked: bool) -> None:
    body = b'{"workflow_id": 1, "input": "' + b"x" * (size - 31) + b'"}'
    assert len(body) == size
    headers = {"Transfer_Encoding": "chunked"} if chunked else {}
    data = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[: size // 2], body[size // 2 :])) + b"0\r\n\r\n" if chunked else body

    assert "ORQO_BODY_MAX_BYTES" in check_problem(post(web, token, data, **headers), 413)["detail"]


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
def test_a_body_of_exactly_the_limit_is_whole(web: Service, token: str, chunked: bool) -> None:
    body = b'{"workflow_id": 1, "input": "' + b"x" * (LIMIT - 31) + b'"}'
    data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body

    answer = post(web, token, data, **({"Transfer_Encoding": "chunked"} if chunked else {}))

    assert len(web.box.run(answer.json["workflow_run_id"])["input"]) == LIMIT - 31


ENDS = {
    "ends early": (request("POST", PATH, b'{"workflow_id": 1}', Content_Type=JSON, Content_Length="100"), True),
    "ends early but is whole json": (
        request("POST", PATH, b'{"workflow_id": 1, "input": 1}   ', Content_Type=JSON, Content_Length="34"),
        True,
    ),
    "no chunk at all": (request("POST", PATH, b"", Content_Type=JSON, Transfer_Encoding="chunked"), True),
    "chunks without an end": (request("POST", PATH, b'12\r\n{"workflow_id": 1}\r\n', Content_Type=JSON, Transfer_Encoding="chunked"), True),
    "bad chunk size": (request("POST", PATH, b"zz\r\n{}\r\n0\r\n\r\n", Content_Type=JSON, Transfer_Encoding="chunked"), False),
    "negative chunk": (request("POST", PATH, b"-5\r\n{}\r\n0\r\n\r\n", Content_Type=JSON, Transfer_Encoding="chunked"), False),
    "chunk longer than it says": (
        request("POST", PATH, b'5\r\n{"workflow_id": 1}\r\n0\r\n\r\n', Content_Type=JSON, Transfer_Encoding="chunked"),
        False,
    ),
    "length no number": (request("POST", PATH, b"{}", Content_Type=JSON, Content_Length="ten"), False),
    "length negative": (request("POST", PATH, b"{}", Content_Type=JSON, Content_Length="-2"), False),
    "length of 5,000 digits": (request("POST", PATH, b"{}", Content_Type=JSON, Content_Length="9" * 5000), False),
    "gzip as transfer encoding": (request("POST", PATH, b"{}", Content_Type=JSON, Transfer_Encoding="gzip"), True),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", ENDS)
def test_a_body_that_breaks_off_is_400_or_a_closed_connection(web: Service, token: str, name: str) -> None:
    data, ends = ENDS[name]

    answer = raw(web, data.replace(b"Host: x\r\n", f"Host: x\r\nAuthorization: Bearer {token}\r\n".encode()), end=ends)

    assert answer.status in (0, 400, 413)
    if answer.status:
        check_problem(answer, answer.status)


@pytest.mark.usefixtures("nothing_happens")
def test_length_and_chunks_at_once_are_no_second_request(web: Service, token: str) -> None:
    inner = request("POST", PATH, b'{"workflow_id": 1}', Content_Type=JSON, Authorization=f"Bearer {token}")
    smuggled = request("POST", PATH, b"0\r\n\r\n" + inner, Content_Length="5", Transfer_Encoding="chunked", Content_Type=JSON)

    check_problem(raw(web, smuggled, end=True), 400)

    # Were the rest a request of its own, it would be answered by now.
    assert post(web, token, {"workflow_id": 999}).status == 404


# ── other methods and paths ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_405_with_the_one_that_is_taken(web: Service, token: str, method: str) -> None:
    body = b'{"workflow_id": 1}'
    answer = raw(web, request(method, PATH, body, Content_Type=JSON, Authorization=f"Bearer {token}"))

    check_problem(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "path", ["/api/v1/trigger/", "/api/v1//trigger", "/api/v1/triggerz", "/api/v2/trigger", "/api/", "/api/v1/%74rigger/x"]
)
def test_an_unknown_path_is_404(web: Service, token: str, path: str) -> None:
    check_problem(post(web, token, {"workflow_id": 1}, path=path), 404)


# ── idempotency ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_key_and_body_is_the_same_run(web: Service, token: str) -> None:
    first, again = (post(web, token, {"workflow_id": 1, "input": 7}, Idempotency_Key="same") for _ in range(2))

    run_id = first.json["workflow_run_id"]
    assert (first.status, again.status) == (201, 200)
    assert again.json == {"workflow_run_id": run_id, "status": "started", "duplicate": True}
    assert again.headers["idempotent-replayed"] == "true"


def test_the_same_key_with_another_body_is_422_and_no_run(web: Service, token: str) -> None:
    post(web, token, {"workflow_id": 1, "input": 1}, Idempotency_Key="other")
    before = runs_of(web.box)

    check_problem(post(web, token, {"workflow_id": 1, "input": 2}, Idempotency_Key="other"), 422)

    assert runs_of(web.box) == before


def test_a_refused_request_uses_no_key_up(web: Service, token: str) -> None:
    check_problem(post(web, token, {"workflow_id": 999}, Idempotency_Key="mended"), 404)

    assert post(web, token, {"workflow_id": 1}, Idempotency_Key="mended").status == 201


def test_a_key_counts_for_one_token(web: Service, token: str) -> None:
    other = web.box.token("trigger")

    assert [post(web, each, {"workflow_id": 1}, Idempotency_Key="mine").status for each in (token, other)] == [201, 201]


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
def test_a_key_that_cannot_be_used_is_400(web: Service, token: str, key: str) -> None:
    check_problem(post(web, token, {"workflow_id": 1}, Idempotency_Key=key), 400)


def test_twenty_clients_with_one_key_at_once_get_one_run(web: Service, token: str) -> None:
    answers: list[requests.Response] = []
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "twenty"}

    def call() -> None:
        answers.append(requests.post(web.url + PATH, json={"workflow_id": 1}, headers=headers, timeout=15))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["workflow_run_id"] for answer in answers}) == 1


# ── what cannot be stored ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_happens")
def test_a_database_that_is_locked_too_long_is_503(web: Service, token: str) -> None:
    path = web.box.hook()
    calls = [lambda: post(web, token, {"workflow_id": 1}), lambda: raw(web, request("POST", path, b"{}", Content_Type=JSON))]
    with locked(web.box), ThreadPoolExecutor(2) as pool:
        answers = [each.result() for each in [pool.submit(call) for call in calls]]

    for answer in answers:
        check_problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
    assert post(web, token, {"workflow_id": 999}).status == 404


@sqlite_only
def test_a_disk_below_its_watermark_is_503(settings: dict[str, str], request: pytest.FixtureRequest) -> None:
    settings["ORQO_DISK_FREE_MIN"] = "999999GiB"
    box: TestBox = request.getfixturevalue("box")
    client = request.getfixturevalue("client")
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}

    answers = [client.post(PATH, json={"workflow_id": 1}, headers=headers), client.post(box.hook(), json={})]

    for answer in answers:
        assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
        assert answer.headers["Retry-After"]
        assert "ORQO_DISK_FREE_MIN" in answer.json["detail"]
    assert runs_of(box) == 0


# ── strict ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def strict(settings: dict[str, str], request: pytest.FixtureRequest) -> tuple[TestBox, Any]:
    """A box that serves ORQO's own API alone, and a client of it."""
    settings["ORQO_STRICT"] = "1"
    return request.getfixturevalue("box"), request.getfixturevalue("client")


def test_strictly_there_is_no_extension_in_the_answer(strict: tuple[TestBox, Any]) -> None:
    box, client = strict
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}

    answers = [client.post(PATH, json={"workflow_id": 1, "input": 1}, headers=headers), client.post(box.hook(), json=1)]

    for answer in answers:
        assert (answer.status_code, set(answer.json)) == (201, {"workflow_run_id", "status"})
        assert set(answer.headers.keys()) <= {"Content-Type", "Content-Length", "Date", "Server", "Cache-Control"}


@pytest.mark.parametrize("field", ["metadata", "callback_url", "callbacks", "workflow"])
def test_strictly_extension_fields_are_refused_by_name(strict: tuple[TestBox, Any], field: str) -> None:
    box, client = strict
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}

    answer = client.post(PATH, json={"workflow_id": 1, field: {}}, headers=headers)

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json["errors"]] == [f"/{field}"]


# ── nothing that a log should not show ──────────────────────────────────────────────────────────────────────────────


def test_the_log_holds_no_token_and_no_body(web: Service, token: str) -> None:
    post(web, token, {"workflow_id": 1, "input": "hunter2hunter2"})
    raw(web, request("POST", web.box.hook(), b"hunter2hunter2", Content_Type="text/plain"))

    log = web.log.read_text()

    assert "step=accept" in log
    for hidden in (token, web.box.hook().rpartition("/")[2], "hunter2"):
        assert hidden not in log
