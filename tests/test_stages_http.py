"""The http stage against a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orqo import stages
from orqo.stages import http
from stage_context import make_context, make_roots, make_stage

FORM = "application/x-www-form-urlencoded"


class Server(ThreadingHTTPServer):
    """Answers what it is told to and keeps what it received."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: some of the clients here leave before they are answered."""

    def will_answer(self, body: bytes = b"", *, status: int = 200, delay_s: float = 0.0, **headers: str) -> None:
        self.status, self.body, self.delay_s = status, body, delay_s
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append({"method": self.command, "path": self.path, "headers": self.headers, "body": body})
        time.sleep(self.server.delay_s)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def request(spec: dict[str, Any], tmp_path: Path, *, stage: dict[str, Any] | None = None, **changes: Any) -> stages.Result:
    return stages.execute(make_context(tmp_path, make_stage("http", spec, **(stage or {})), **changes))


def completed(result: stages.Result) -> stages.Completed:
    assert isinstance(result, stages.Completed), result
    return result


def failed(result: stages.Result) -> stages.Failed:
    assert isinstance(result, stages.Failed), result
    return result


@pytest.mark.parametrize(
    ("content_type", "body", "output", "kind"),
    [
        pytest.param("application/json", b'{ "a": "\\u00e9" }', '{"a":"é"}'.encode(), "json", id="json"),
        pytest.param("application/problem+json; charset=utf-8", b"[1]", b"[1]", "json", id="plus-json"),
        pytest.param("application/json", b"{oops", b"{oops", "text", id="no-json-after-all"),
        pytest.param("text/plain", b'{"a": 1}\n', b'{"a": 1}', "text", id="text"),
        pytest.param("application/octet-stream", b"\xff\n", b"\xff\n", "bytes", id="bytes"),
        pytest.param("application/json", b"", b"", "text", id="nothing"),
    ],
)
def test_output_is_what_the_content_type_says(
    server: Server, tmp_path: Path, content_type: str, body: bytes, output: bytes, kind: str
) -> None:
    server.will_answer(body, Content_Type=content_type)

    result = completed(request({"url": server.url}, tmp_path))

    assert (result.output, result.output_kind) == (output, kind)
    assert result.response is not None
    assert (result.response["status"], result.response["headers"]["content-type"]) == (200, content_type)


def test_answer_is_cut_at_max_output(server: Server, tmp_path: Path) -> None:
    server.will_answer(b"[" + b"1," * 1000 + b"1]", Content_Type="application/json")

    result = completed(request({"url": server.url}, tmp_path, stage={"max_output_bytes": 4}))

    assert (result.output, result.output_kind, result.truncated) == (b"[1,1", "text", True)


def test_data_stay_within_their_place_in_the_url(server: Server, tmp_path: Path) -> None:
    roots = make_roots(input={"name": "a/b?c#d&é", "tags": ["x y", 2], "none": None})
    spec = {
        "url": server.url + "/repos/${input.name}/x?first=${input.name}#part",
        "query": {"q": "${input.name}", "tag": "${input.tags}", "none": "${input.none}", "gone": "${input.gone?}", "n": "1"},
    }

    completed(request(spec, tmp_path, roots=roots))

    name = "a%2Fb%3Fc%23d%26%C3%A9"
    assert server.received[0]["path"] == f"/repos/{name}/x?first={name}&q={name}&tag=x%20y&tag=2&n=1"


@pytest.mark.parametrize(
    ("spec", "content_type", "body"),
    [
        pytest.param({"json": {"a": "${input}", "b": "say ${input.é}"}}, "application/json", '{"a":{"é":[1]},"b":"say [1]"}', id="json"),
        pytest.param({"json": None}, "application/json", "null", id="json-null"),
        pytest.param({"form": {"a": "x&y ${input.é}", "b": "${input.no?}"}}, FORM, "a=x%26y%20%5B1%5D", id="form"),
        pytest.param({"body": "é ${input}"}, "text/plain; charset=utf-8", 'é {"é":[1]}', id="body"),
        pytest.param({"body": "<a/>", "headers": {"content-type": "text/xml"}}, "text/xml", "<a/>", id="own-type"),
    ],
)
def test_body_is_written_as_asked(server: Server, tmp_path: Path, spec: dict[str, Any], content_type: str, body: str) -> None:
    completed(request({"method": "POST", "url": server.url} | spec, tmp_path, roots=make_roots(input={"é": [1]})))

    received = server.received[0]
    assert (received["method"], received["body"].decode()) == ("POST", body)
    assert received["headers"].get_all("Content-Type") == [content_type]


def test_headers_take_secrets(server: Server, tmp_path: Path) -> None:
    spec = {"url": server.url, "headers": {"Authorization": "Bearer ${secrets.TOKEN}"}}

    completed(request(spec, tmp_path, roots=make_roots(secrets={"TOKEN": "s3cret"})))

    assert server.received[0]["headers"]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
def test_data_cannot_add_a_header(server: Server, tmp_path: Path, value: str) -> None:
    result = failed(request({"url": server.url, "headers": {"X-Title": "t ${input}"}}, tmp_path, roots=make_roots(input=value)))

    assert (result.reason, result.retryable, server.received) == ("stage_failed", False, [])


@pytest.mark.parametrize(
    ("status", "expect", "fits"),
    [
        (204, "2xx", True),
        (404, "2xx", False),
        (404, ["2xx", "404"], True),
        (404, [200, 404], True),
        (201, "200", False),
        (200, 200, True),
        (500, "xxx", True),
        (200, "20", False),
    ],
)
def test_expected_statuses(status: int, expect: Any, fits: bool) -> None:
    assert http.is_expected(status, expect) == fits


def test_unexpected_status_fails_with_the_answer(server: Server, tmp_path: Path) -> None:
    server.will_answer(b'{"message": "no"}', status=404, Content_Type="application/json")

    result = failed(request({"url": server.url}, tmp_path))

    assert (result.reason, result.detail, result.retryable) == ("stage_failed", "the answer's status is 404, expected is 2xx", False)
    assert (result.output, result.output_kind) == (b'{"message":"no"}', "json")
    assert result.response is not None
    assert result.response["status"] == 404


def test_redirect_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.will_answer(status=302, Location=server.url + "/other")

    result = failed(request({"url": server.url}, tmp_path))

    assert "redirects are not followed" in result.detail
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("method", "idempotent", "status", "retryable"),
    [
        ("GET", False, 500, True),
        ("GET", False, 503, True),
        ("HEAD", False, 408, True),
        ("GET", False, 404, False),
        ("POST", False, 500, False),
        ("POST", False, 408, False),
        ("POST", False, 429, True),
        ("POST", False, 502, True),
        ("PUT", False, 503, True),
        ("DELETE", False, 504, True),
        ("POST", False, 400, False),
        ("POST", True, 500, True),
    ],
)
def test_status_says_whether_to_try_again(
    server: Server, tmp_path: Path, method: str, idempotent: bool, status: int, retryable: bool
) -> None:
    server.will_answer(status=status)

    assert failed(request({"method": method, "url": server.url}, tmp_path, stage={"idempotent": idempotent})).retryable == retryable


@pytest.mark.parametrize(("method", "idempotent", "retryable"), [("GET", False, True), ("POST", False, False), ("POST", True, True)])
def test_time_out_is_tried_again_for_reads_alone(server: Server, tmp_path: Path, method: str, idempotent: bool, retryable: bool) -> None:
    server.will_answer(delay_s=0.5)

    result = failed(request({"method": method, "url": server.url}, tmp_path, stage={"idempotent": idempotent}, within_s=0.2))

    assert (result.reason, result.retryable) == ("timeout", retryable)


def test_refused_connection_is_tried_again_for_writes_too(server: Server, tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url

    result = failed(request({"method": "POST", "url": url}, tmp_path))

    assert (result.reason, result.retryable) == ("stage_failed", True)


def test_host_from_data_cannot_reach_the_box(server: Server, tmp_path: Path) -> None:
    result = failed(request({"url": "${input}"}, tmp_path, roots=make_roots(input=server.url)))

    assert (result.reason, result.retryable, server.received) == ("stage_failed", False, [])
    assert "ORQO_ALLOWED_NETWORKS" in result.detail


def test_host_from_a_secret_may_reach_the_box(server: Server, tmp_path: Path) -> None:
    completed(request({"url": "${secrets.URL}"}, tmp_path, roots=make_roots(secrets={"URL": server.url})))


def test_cancelled_request_ends_at_once(server: Server, tmp_path: Path) -> None:
    server.will_answer(delay_s=1)
    began = time.monotonic()

    result = failed(request({"url": server.url}, tmp_path, cancelled=lambda: "stopped" if time.monotonic() > began + 0.1 else None))

    assert (result.reason, result.detail, result.retryable) == ("cancelled", "the run was stopped", False)
    assert time.monotonic() - began < 0.9


def test_retry_after_is_passed_on(server: Server, tmp_path: Path) -> None:
    server.will_answer(json.dumps({}).encode(), status=429, Retry_After="12")

    assert failed(request({"method": "POST", "url": server.url}, tmp_path)).retry_after_s == 12
