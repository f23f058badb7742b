"""Whatever is sent to the three endpoints is answered below 500, and leaves no memory behind.

Hypothesis makes the requests; they go to the WSGI application itself, as a server hands them over.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import event

from support import TestBox, application

PARTS, REQUESTS = (10, 10_200) if os.environ.get("ORQO_TEST_FULL") else (1, 1_500)
BATCH = 20
GROWTH_MAX_BYTES = 50 * 2**20
BEGINNING: dict[str, int] = {}

# Our own list of what breaks programs, by kind: NUL and controls, halves of pairs as bytes, right-to-left, markup, paths, numbers.
NAUGHTY = [
    "", " ", "\0", "\x7f", "\t\r\n", "null", "true", "NaN", "-0", "1e999", "9" * 400, "0x10", "None", "undefined", "__proto__",
    "'; DROP TABLE runs; --", "<script>alert(1)</script>", "{{7*7}}", "${secrets.HOOK}", "$(id)", "`id`", "%00", "%n%n%s",
    "../../etc/passwd",
    "\u202eabc", "\ufeff", "\u00e9\u0301", "\U0001f468\u200d\U0001f469", "\ud7ff", "i\u0307", "\u1e9e", "A" * 5000, "\\u0000",
    "%ed%a0%80", "a=b&c=d", "=",
]  # fmt: skip
LATIN = [text.encode().decode("latin-1") for text in NAUGHTY] + ["\xff\xfe", "\xc3(", "\xed\xa0\x80"]
BODIES = [
    b"", b"{", b"[" * 2000, b'{"a":' * 500, b"\xff\xfe{\x00}\x00", b'{"a": 1, "a": 2}', b'"\\ud800"', b"1" * 5000, b"a=1&a=2&%00=%ff",
    b"payload=%7B%7D",
    b"payload={", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n", b"--x\r\n" * 300, b"--x\r\n\r\n--x--",
    b"\x1f\x8b\x08\x00", b"\0" * 100,
    b'{"workflow_id": 1}', b'{"workflow": "hello", "input": {"a": [1, 2]}}', b'{"workflow_id": 1, "metadata": []}',
    b'{"workflow_id": 1e308}',
    b'{"workflow_id": 1, "callback_url": "http://[::1"}', b'{"status": "completed", "workflow_run_id": 1}',
    b'{"type": "url_verification", "challenge": 1}',
]  # fmt: skip
TYPES = [
    "", "application/json", "application/json; charset=utf-16", "text/plain", "text/plain; charset=\xff", "text/html; charset=idna",
    "text/x; charset=hex",
    "text/plain; charset=undefined", "text/plain; charset=a\0b", "application/x-www-form-urlencoded", "multipart/form-data",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=\xff", "multipart/form-data; boundary=" + "x" * 300, "image/png", "application/ld+json", ";;;",
    "a/b/c", "/",
]  # fmt: skip
HEADERS = [
    "AUTHORIZATION", "IDEMPOTENCY_KEY", "CONTENT_ENCODING", "TRANSFER_ENCODING", "X_GITHUB_EVENT", "X_GITHUB_DELIVERY",
    "X_HUB_SIGNATURE_256",
    "X_SLACK_SIGNATURE", "X_SLACK_REQUEST_TIMESTAMP", "STRIPE_SIGNATURE", "WEBHOOK_ID", "WEBHOOK_TIMESTAMP", "WEBHOOK_SIGNATURE",
    "X_FORWARDED_FOR",
    "X_REQUEST_ID", "PREFER", "COOKIE", "HOST", "USER_AGENT", "EXPECT", "RANGE", "X_SIG", "X_HTTP_METHOD_OVERRIDE",
]  # fmt: skip
QUERIES = ["", "token=x", "a=%ff&a=%00&=&&", "hub.mode=subscribe&hub.challenge=1&hub.verify_token=%ff", "token=orqo_" + "a" * 43]
VALUES = st.sampled_from(LATIN) | st.text(st.characters(max_codepoint=255), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAUGHTY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAUGHTY), inner, max_size=3),
    max_leaves=6,
)
WRITTEN = JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
BODY = st.sampled_from(BODIES) | st.binary(max_size=60) | WRITTEN
REQUEST = st.tuples(
    st.integers(0, 9),
    st.sampled_from(["POST"] * 20 + ["GET", "GET", "HEAD", "PUT", "X" * 30]),
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(HEADERS), VALUES, max_size=3),
    st.sampled_from(QUERIES) | VALUES,
    BODY,
    st.sampled_from([None, None, None, "", "0", "5", "-1", "x", "9" * 30, "1048577"]),
)

BATCHES = st.lists(REQUEST, min_size=BATCH, max_size=BATCH)
MANY = examples(
    max_examples=REQUESTS // BATCH, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)

TRIGGERS = """
name: open
triggers:
  - {name: bare}
  - {name: github, webhook: {signature: github, secret: "${secrets.HOOK}"}}
  - {name: slack, webhook: {signature: slack, secret: "${secrets.HOOK}"}}
  - {name: stripe, webhook: {signature: stripe, secret: "${secrets.HOOK}", previous_secret: "${secrets.HOOK_2}"}}
  - {name: standard, webhook: {signature: standard-webhooks, secret: "${secrets.HOOK}", verify_token: "${secrets.HOOK}"}}
  - name: token
    webhook: {signature: {header: X-Sig, algorithm: plain}, secret: "${secrets.HOOK}", networks: [127.0.0.0/8], max_body: 2KiB}
  - name: picky
    webhook: {response: {json: {text: "${input.a?} ${trigger.headers.x-request-id?} ${run.url}"}}}
    filter: {any: [{input: {exists: true}}, {input.a.b: {regex: "^(a+)+$"}}, {"trigger.query.token": {in: [x, null, {a: 1}]}}]}
stages: [{name: a, stub: {}}]
"""
NAMES = ("bare", "github", "slack", "stripe", "standard", "token", "picky")


@pytest.fixture(name="settings")
def with_secrets(settings: dict[str, str]) -> dict[str, str]:
    """A box with the secrets that its triggers name."""
    return settings | {"ORQO_SECRET_HOOK": "whsec_aGVsbG8gd29ybGQ=", "ORQO_SECRET_HOOK_2": "other"}


@MANY
@given(BATCHES)
def generate_only(_batch: Any) -> None:
    """Make as many requests as a part sends, and send none."""


def environ(path: str, request: tuple[Any, ...], token: str) -> dict[str, Any]:
    """Give what a WSGI server hands over for a request; its Content-Length may lie, as a client's may."""
    _, method, kind, headers, query, body, length = request
    made: dict[str, Any] = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(body)) if length is None else length,
        "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http", "wsgi.version": (1, 0),
        "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
    }  # fmt: skip
    made |= {f"HTTP_{name}": value for name, value in headers.items()}
    if path.endswith(("trigger", "callback")) and "HTTP_AUTHORIZATION" not in made:
        made["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return made


def answered(app: Any, request_environ: dict[str, Any]) -> tuple[int, bytes]:
    seen: list[str] = []
    chunks = app(request_environ, lambda status, headers, exc_info=None: seen.append(status))
    body = b"".join(chunks)
    getattr(chunks, "close", lambda: None)()
    return int(seen[0].split()[0]), body


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("part", range(PARTS))
def test_no_request_is_answered_500_and_none_leaves_memory_behind(box: TestBox, part: int) -> None:
    with application(box.config) as app:
        statuses, took_s, growth = sent_everything(box, app)

    print(f"{statuses.total()} requests in {took_s:.0f} s: {dict(sorted(statuses.items()))}, {growth / 2**20:.0f} MB more")
    assert statuses.total() >= REQUESTS * 0.98
    assert {200, 201, 400, 401, 405, 415, 422} <= set(statuses)
    assert growth <= GROWTH_MAX_BYTES


def sent_everything(box: TestBox, app: Any) -> tuple[Counter[int], float, int]:
    """Send all there is; gives how often each status was answered, the seconds it took and by how many bytes memory grew."""
    box.apply(TRIGGERS)
    token = box.token("admin")
    paths = [box.hook("open", name) for name in NAMES] + ["/api/v1/trigger", "/api/v1/callback", "/api/v1/hooks/" + "x" * 43]
    statuses: Counter[int] = Counter()
    # Its durability is not what is asked here, and a commit for each of the refusals is most of the time.
    quick(app)

    @MANY
    @given(BATCHES)
    def send(batch: list[tuple[Any, ...]]) -> None:
        for request in batch:
            status, body = answered(app, environ(paths[request[0]], request, token))
            statuses[status] += 1
            assert status < 500 or status == 503, (paths[request[0]].rpartition("/")[0], request, body)

    for _ in range(40):
        answered(app, environ(paths[0], (0, "POST", "application/json", {}, "", b"{}", None), token))
    gc.collect()
    if not BEGINNING:
        # What hypothesis takes for itself, some 90 MB, is taken before; what the first part begins with counts for all of them.
        generate_only()
        gc.collect()
        BEGINNING["bytes"] = resident_bytes()
    before, began = BEGINNING["bytes"], time.monotonic()
    send()
    gc.collect()
    return statuses, time.monotonic() - began, resident_bytes() - before


def quick(app: Any) -> None:
    """Let this application's database not wait for the disk."""

    database = app.extensions["orqo"].database

    @event.listens_for(database.engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF" if database.is_sqlite else "SET synchronous_commit = off")
        connection.commit()

    database.engine.dispose()
