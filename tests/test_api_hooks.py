"""POST /api/v1/hooks/<token> against the real server: any body becomes the input, and a wrong token learns nothing."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from http_api import Answer, check_problem, raw, request, runs_of
from orqo import clock, triggers, workflows
from support import Service

LIMIT = 1048576


@pytest.fixture(scope="module")
def path(web: Service) -> str:
    """The path of a webhook of the workflow hello."""
    return web.box.hook()


@pytest.fixture
def nothing_happens(web: Service) -> Iterator[None]:
    """The number of runs stays what it was."""
    before = runs_of(web.box)
    yield
    assert runs_of(web.box) == before


def post(web: Service, path: str, body: bytes = b"", **headers: str) -> Answer:
    return raw(web, request("POST", path, body, **headers))


def input_of(web: Service, answer: Answer) -> Any:
    assert answer.status == 201, answer
    return web.box.run(answer.json["workflow_run_id"])["input"]


def test_the_answer_is_the_documented_one(web: Service, path: str) -> None:
    answer = post(web, path, b'{"a": 1}', Content_Type="application/json")

    run_id = answer.json["workflow_run_id"]
    assert (answer.status, answer.json) == (201, {"workflow_run_id": run_id, "status": "started"})
    run = web.box.run(run_id)
    assert (run["workflow"], run["trigger_id"], run["input"]) == ("hello", 1, {"a": 1})


# ── body → input ────────────────────────────────────────────────────────────────────────────────────────────────────

FORM = "application/x-www-form-urlencoded"
MULTIPART = (
    b"--b\r\nContent-Disposition: form-data; name=title\r\n\r\nH\xc3\xa9llo\r\n"
    b'--b\r\nContent-Disposition: form-data; name="log"; filename="../a.txt"\r\nContent-Type: text/plain\r\n\r\nline\r\n'
    b"--b\r\nContent-Disposition: form-data; name=tag\r\n\r\none\r\n--b\r\nContent-Disposition: form-data; name=tag\r\n\r\ntwo\r\n--b--\r\n"
)
BODIES: dict[str, tuple[str | None, bytes, Any]] = {
    "nothing": (None, b"", None),
    "nothing, said to be json": ("application/json", b"", None),
    "json": ("application/json", b'{"a": [1, null]}', {"a": [1, None]}),
    "json with a charset": ("application/json; charset=utf-8", '"é"'.encode(), "é"),
    "json null": ("application/json", b"null", None),
    "any */json": ("text/json", b"[1]", [1]),
    "+json": ("application/vnd.github+json", b'{"a": 1}', {"a": 1}),
    "cloudevents": ("application/cloudevents+json; charset=UTF-8", b"{}", {}),
    "form": (FORM, b"a=1&b=two+words&c=%C3%A9&d=", {"a": "1", "b": "two words", "c": "é", "d": ""}),
    "form with a field twice": (FORM, b"a=1&a=2", {"a": ["1", "2"]}),
    "form payload": (FORM, b"payload=%7B%22a%22%3A%201%7D", {"a": 1}),
    "form payload that is no json": (FORM, b"payload=hello", {"payload": "hello"}),
    "form payload that is bad json": (FORM, b"payload=%7B%22a%22%3A1%2C%22a%22%3A1%7D", {"payload": '{"a":1,"a":1}'}),
    "form payload among others": (FORM, b"payload=%7B%7D&x=1", {"payload": "{}", "x": "1"}),
    "form payload twice": (FORM, b"payload=1&payload=2", {"payload": ["1", "2"]}),
    "curl -d object": (FORM, b'{"a": "b=c&d"}', {"a": "b=c&d"}),
    "curl -d array": (FORM, b" [1, 2]", [1, 2]),
    "curl -d json beyond ascii": (FORM, '{"a": "é"}'.encode(), {"a": "é"}),
    "curl -d number stays a form": (FORM, b"5", {"5": ""}),
    "curl -d text beyond ascii": (FORM, "name=José".encode(), {"name": "José"}),
    "text": ("text/plain", "é\n".encode(), "é\n"),
    "text in latin-1": ("text/plain; charset=ISO-8859-1", b"\xe9", "é"),
    "text in utf-16": ("text/plain; charset=utf-16", "é".encode("utf-16"), "é"),
    "html": ("text/html", b"<b>", "<b>"),
    "json without a type": (None, b'{"a": 1}', {"a": 1}),
    "text without a type": (None, "{no json é".encode(), "{no json é"),
    "bytes without a type": (None, b"\xff\x00", {"content_type": "application/octet-stream", "size": 2, "base64": "/wA="}),
    "multipart": (
        "multipart/form-data; boundary=b",
        MULTIPART,
        {"title": "Héllo", "log": {"filename": "../a.txt", "size": 4, "content_type": "text/plain"}, "tag": ["one", "two"]},
    ),
    "octets": ("application/octet-stream", b"\x00\xff", {"content_type": "application/octet-stream", "size": 2, "base64": "AP8="}),
    "xml": ("application/xml", b"<a/>", {"content_type": "application/xml", "size": 4, "base64": "PGEvPg=="}),
    "a type that is none": ("????", b"x", {"content_type": "????", "size": 1, "base64": "eA=="}),
    "an image": ("image/png; x=y", b"\x89PNG", {"content_type": "image/png", "size": 4, "base64": "iVBORw=="}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_becomes_the_input(web: Service, path: str, name: str) -> None:
    content_type, body, value = BODIES[name]

    answer = post(web, path, body, **({"Content_Type": content_type} if content_type else {}))

    assert input_of(web, answer) == value


def test_curl_without_a_header_gives_json(web: Service, path: str) -> None:
    sent = subprocess.run(["curl", "-sS", "-d", '{"name": "Ada"}', web.url + path], check=True, capture_output=True)

    assert web.box.run(json.loads(sent.stdout)["workflow_run_id"])["input"] == {"name": "Ada"}


def test_a_large_file_in_a_form_is_counted_and_not_kept(web: Service, path: str) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="big"\r\nContent-Type: application/zip\r\n\r\n'

    answer = post(web, path, head + b"\0" * 900_000 + b"\r\n--b--\r\n", Content_Type="multipart/form-data; boundary=b")

    assert input_of(web, answer) == {"f": {"filename": "big", "size": 900_000, "content_type": "application/zip"}}


def test_a_body_of_the_limit_comes_back_byte_for_byte(web: Service, path: str) -> None:
    body = bytes(range(256)) * (LIMIT // 256)

    kept = input_of(web, post(web, path, body, Content_Type="application/octet-stream"))

    assert base64.b64decode(kept["base64"]) == body


def test_headers_and_query_are_told_without_credentials(web: Service, path: str) -> None:
    answer = post(
        web,
        f"{path}?a=1&a=2&b=%ff",
        b"{}",
        Content_Type="application/json",
        X_GitHub_Event="push",
        Authorization="Bearer hunter2hunter2",
        Cookie="hunter2hunter2",
        X_Hub_Signature_256="sha256=hunter2hunter2",
        X_Gitlab_Token="hunter2hunter2",
    )

    facts = json.loads(web.box.rows("SELECT trigger_facts FROM runs WHERE id = :id", id=answer.json["workflow_run_id"])[0]["trigger_facts"])
    assert facts["name"] == "example"
    assert facts["headers"]["x-github-event"] == "push"
    assert facts["query"]["a"] in ("1", "2", ["1", "2"])
    assert "hunter2" not in json.dumps(facts)


# ── malformed ───────────────────────────────────────────────────────────────────────────────────────────────────────

MALFORMED: dict[str, tuple[str, bytes]] = {
    "json": ("application/json", b"{"),
    "json nan": ("application/json", b"[NaN]"),
    "json 1e999": ("application/json", b"[1e999]"),
    "json surrogate": ("application/json", b'"\\ud800"'),
    "json bytes": ("application/json", b'"\xff"'),
    "json duplicate": ("application/json", b'{"a":1,"a":2}'),
    "json deep": ("application/json", b"[" * 100_000),
    "json 5,000 digits": ("application/json", b"9" * 5000),
    "form bytes": (FORM, b"a=\xff"),
    "form percent": (FORM, b"a=%ff"),
    "form of too many fields": (FORM, b"&".join(b"a=1" for _ in range(2000))),
    "text bytes": ("text/plain", b"\xff"),
    "text of no charset": ("text/plain; charset=klingon", b"x"),
    "text of a codec": ("text/plain; charset=base64", b"eA=="),
    "text in punycode": ("text/plain; charset=punycode", b"x" * 500_000 + b"-" + b"a" * 500_000),
    "text with a nul in its charset": ("text/plain; charset*=utf-8''a%00b", b"x"),
    "multipart without a boundary": ("multipart/form-data", MULTIPART),
    "multipart of another boundary": ("multipart/form-data; boundary=other", MULTIPART),
    "multipart cut": ("multipart/form-data; boundary=b", MULTIPART[:100]),
    "multipart of too many parts": (
        "multipart/form-data; boundary=b",
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" * 2000 + b"--b--\r\n",
    ),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_body_that_is_not_what_it_says_is_400(web: Service, path: str, name: str) -> None:
    content_type, body = MALFORMED[name]

    check_problem(post(web, path, body, Content_Type=content_type), 400)


@pytest.mark.usefixtures("nothing_happens")
def test_an_encoded_body_is_415_and_a_large_one_413(web: Service, path: str) -> None:
    check_problem(post(web, path, b"\x1f\x8b", Content_Encoding="gzip", Content_Type="application/json"), 415)
    check_problem(post(web, path, b"x" * (LIMIT + 1), Content_Type="text/plain"), 413)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))
    check_problem(post(web, path, chunked, Transfer_Encoding="chunked", Content_Type="text/plain"), 413)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "data",
    [
        (b"half", {"Content_Length": "9"}, True),
        (b"4\r\nhalf\r\n", {"Transfer_Encoding": "chunked"}, True),
        (b"zz\r\nhalf\r\n0\r\n\r\n", {"Transfer_Encoding": "chunked"}, False),
    ],
    ids=["shorter than it says", "chunks without an end", "bad chunk"],
)
def test_a_body_that_breaks_off_is_400_or_a_closed_connection(web: Service, path: str, data: tuple[bytes, dict[str, str], bool]) -> None:
    body, headers, ends = data

    answer = raw(web, request("POST", path, body, Content_Type="text/plain", **headers), end=ends)

    assert answer.status in (0, 400)


# ── wrong tokens ────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "another": "a" * 43,
    "empty": "",
    "short": "abc",
    "long": "a" * 44,
    "huge": "a" * 20_000,
    "wrong characters": "!" * 43,
    "a slash": "a" * 21 + "/" + "a" * 21,
    "slashes": "//a//",
    "a coded slash": "a" * 20 + "%2f" + "a" * 20,
    "dots": "../../../etc/passwd",
    "coded dots": "%2e%2e/%2e%2e",
    "nul": "%00" * 43,
    "newline": "a" * 42 + "%0a",
    "unicode": "%C3%A9" * 43,
    "no utf-8": "%ff" * 43,
    "with a query": "a" * 43 + "?token=b",
    "a bare percent": "%",
    "sql": "'%20OR%201=1--",
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("body", [b"", b"{", b"x" * (LIMIT + 1)], ids=["no body", "bad body", "large body"])
def test_a_token_of_any_wrong_shape_gives_the_same_404_bytes(web: Service, body: bytes) -> None:
    answers = {name: post(web, f"/api/v1/hooks/{token}", body, Content_Type="application/json") for name, token in WRONG.items()}

    check_problem(answers["another"], 404)
    told = {(answer.status, answer.body, tuple(sorted(set(answer.headers) - {"date"}))) for answer in answers.values()}
    assert len(told) == 1, {name: answer for name, answer in answers.items() if answer.body != answers["another"].body}


@pytest.mark.usefixtures("nothing_happens")
def test_the_right_token_with_something_after_it_is_a_wrong_one(web: Service, path: str) -> None:
    for wrong in (
        f"{path}/",
        f"{path}/x",
        f"{path}%00",
        f"{path}%20",
        f"{path}%0a",
        path.swapcase().replace("/API/V1/HOOKS", "/api/v1/hooks"),
    ):
        assert post(web, wrong).status == 404


def test_the_right_token_percent_encoded_is_the_right_one(web: Service, path: str) -> None:
    head, _, token = path.rpartition("/")

    assert post(web, f"{head}/%{ord(token[0]):02x}{token[1:]}").status == 201


# ── states ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_happens")
def test_a_disabled_trigger_is_409_whatever_its_workflow(web: Service) -> None:
    path = web.box.hook(name="off")
    trigger_id = web.box.rows("SELECT id FROM triggers WHERE name = 'off'")[0]["id"]
    with web.box.database.transaction() as connection:
        triggers.set_enabled(connection, trigger_id, enabled=False)

    check_problem(post(web, path, b"{", Content_Type="application/json"), 409)
    with switched_off(web):
        check_problem(post(web, path), 409)


@contextmanager
def switched_off(web: Service) -> Iterator[None]:
    """The workflow hello is disabled within."""
    for enabled in (False, True):
        with web.box.database.transaction() as connection:
            workflows.set_enabled(connection, "hello", enabled=enabled, now=clock.now())
        if not enabled:
            yield


@pytest.mark.usefixtures("nothing_happens")
def test_a_disabled_workflow_is_422(web: Service, path: str) -> None:
    with switched_off(web):
        check_problem(post(web, path), 422)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_405_and_tells_nothing_of_the_token(web: Service, path: str, method: str) -> None:
    for each in (path, "/api/v1/hooks/" + "a" * 43):
        answer = raw(web, request(method, each, b"{}"))

        check_problem(answer, 405)
        assert "POST" in answer.headers["allow"]


@pytest.mark.usefixtures("nothing_happens")
def test_get_starts_nothing(web: Service, path: str) -> None:
    known, unknown = (raw(web, request("GET", each)) for each in (path, "/api/v1/hooks/" + "a" * 43))

    check_problem(known, 405)
    assert known.headers["allow"] == "POST"
    assert (known.status, known.body) == (unknown.status, unknown.body)


@pytest.mark.usefixtures("nothing_happens")
def test_head_starts_nothing(web: Service, path: str) -> None:
    assert requests.head(web.url + path, timeout=5).status_code == 405


# ── replays ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_idempotency_key_counts_for_one_trigger(web: Service, path: str) -> None:
    other = web.box.hook(name="other")

    answers = [post(web, each, b"{}", Content_Type="application/json", Idempotency_Key="k") for each in (path, path, other)]

    assert [answer.status for answer in answers] == [201, 200, 201]
    assert answers[1].json == {**answers[0].json, "duplicate": True}
    assert answers[1].headers["idempotent-replayed"] == "true"
    check_problem(post(web, path, b"[]", Content_Type="application/json", Idempotency_Key="k"), 422)
