"""The real server under requests that are broken, huge or slow."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from typing import Any

import pytest
import requests

from support import Service, TestBox, wait_for

JSON = {"Content-Type": "application/json"}
PARTS = {"Content-Type": "multipart/form-data; boundary=x"}


def raw(service: Service, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes and give what comes back until the server closes or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", int(service.env["ORQO_PORT"])), timeout=10) as made:
        made.sendall(request)
        if half_close:
            made.shutdown(socket.SHUT_WR)
        made.settimeout(3)
        parts = []
        try:
            while part := made.recv(65536):
                parts.append(part)
        except TimeoutError:
            pass
    return b"".join(parts)


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


def test_broken_bodies_start_no_run(service: Service) -> None:
    path = service.box.hook()
    cases = {
        "truncated": head(path, "Content-Length: 100") + b'{"a": 1}',
        "truncated-chunked": head(path, "Transfer-Encoding: chunked") + b'8\r\n{"a": 1}\r\n',
        "bad-chunk-size": head(path, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        "negative-chunk": head(path, "Transfer-Encoding: chunked") + b"-1\r\n{}\r\n0\r\n\r\n",
        "two-lengths": head(path, "Content-Length: 2", "Content-Length: 3") + b"{} ",
        "signed-length": head(path, "Content-Length: +2") + b"{}",
        "long-length": head(path, "Content-Length: " + "9" * 5000) + b"{}",
        "unknown-coding": head(path, "Transfer-Encoding: xchunked") + b"2\r\n{}\r\n0\r\n\r\n",
        "over-long": head(path, f"Content-Length: {2**20 + 1}") + b" " * (2**20 + 1),
        "over-long-chunked": head(path, "Transfer-Encoding: chunked") + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17 + b"0\r\n\r\n",
        "gzip": head(path, "Content-Encoding: gzip", "Content-Length: 10") + gzip.compress(b" " * 2**20)[:10],
    }

    answers = {name: raw(service, sent, half_close=True).partition(b"\r\n")[0] for name, sent in cases.items()}

    assert service.box.rows("SELECT id FROM runs") == []
    assert all(answer == b"" or b" 4" in answer or b" 501 " in answer for answer in answers.values()), answers
    assert b" 413 " in answers["over-long"] and b" 413 " in answers["over-long-chunked"]
    assert b" 415 " in answers["gzip"]


def test_a_request_smuggled_behind_two_lengths_is_never_answered(service: Service) -> None:
    path = service.box.hook()
    inner = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    sent = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    answer = raw(service, sent + b"0\r\n\r\n" + inner, half_close=True)

    # A proxy that believed Content-Length would have passed the second request on as a part of the first.
    assert re.findall(rb"HTTP/1\.1 [0-9]{3}", answer) == [b"HTTP/1.1 400"]
    assert service.box.rows("SELECT id FROM runs") == []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (gzip.compress(b" " * 50_000_000), JSON | {"Content-Encoding": "gzip"}, 415),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 15_000 + b"--x--", PARTS, 400),
        (b"--x\r\n\r\n\r\n" * 100_000 + b"--x--", PARTS, 400),
        (b"&".join([b"a=1"] * 100_000), {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"[" * 1_000_000, JSON, 400),
        (b'{"a":' * 200_000, JSON, 400),
        (b"9" * 1_000_000, JSON, 400),
        (b'"' + b"\\u0041" * 170_000 + b'"', JSON, 201),
        (b"\\" * 1_000_000, {"Content-Type": "text/plain; charset=idna"}, 400),
    ],
    ids=["gzip-bomb", "parts", "100000-empty-parts", "100000-fields", "deep-list", "deep-object", "long-number", "escapes", "idna"],
)
def test_what_is_costly_to_read_is_answered_at_once(client: Any, box: TestBox, body: bytes, headers: dict[str, str], status: int) -> None:
    path = box.hook()
    began = time.perf_counter()

    answer = client.post(path, data=body, headers=headers)

    assert answer.status_code == status
    assert time.perf_counter() - began < 2


NAUGHTY = [
    *("\0", "\x1b[2J", "\u202e", "\ufeff", "\u00e9", "\U0001f469\u200d\U0001f467", "'; DROP TABLE runs; --", "${secrets.X}", "$(id)"),
    *("../..", "%00", "\r\nX: y", "null", "\U0001d54f" * 1000),
]


@pytest.mark.parametrize("text", NAUGHTY, ids=ascii)
def test_a_naughty_string_arrives_as_it_was_sent(client: Any, box: TestBox, text: str) -> None:
    hook, token = box.hook(), box.token("trigger")
    value = {text: [text, {"a": text}]}
    wanted = {"workflow": "hello", "input": value, "metadata": {"m": text}}

    header = {"X-Request-Id": text.replace("\r\n", "").encode().decode("latin-1")}

    by_hook = client.post(hook, json=value, query_string={"q": text, text: "x"}, headers=header)
    by_token = client.post("/api/v1/trigger", json=wanted, headers={"Authorization": f"Bearer {token}"})
    missing = client.post("/api/v1/hooks/" + text.replace("\0", "")[:50])

    assert (by_hook.status_code, by_token.status_code, missing.status_code) == (201, 201, 404)
    assert [box.run(answer.json["workflow_run_id"])["input"] for answer in (by_hook, by_token)] == [value, value]
    assert box.run(by_token.json["workflow_run_id"])["metadata"] == {"m": text}


def slow_request(path: str, number: int) -> bytes:
    """Give the beginning of a request that stays unfinished: in its body, or in its headers."""
    return head(path, "Content-Length: 1000") + b"{" if number % 2 else f"POST {path} HTTP/1.1\r\nHost: x\r\nX-A: ".encode()


def test_slow_clients_do_not_slow_down_the_others(service: Service) -> None:
    path, port = service.box.hook(), int(service.env["ORQO_PORT"])
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    stop = threading.Event()

    def drip() -> None:
        for number, made in enumerate(slow):
            made.sendall(slow_request(path, number))
        while not stop.wait(0.5):
            for made in slow:
                try:
                    made.sendall(b" ")
                except OSError:
                    continue

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        wait_for(lambda: requests.get(service.url + "/healthz", timeout=5).ok)
        took_s = []
        with requests.Session() as session:
            for number in range(200):
                began = time.perf_counter()
                assert session.post(service.url + path, json={"number": number}, timeout=5).status_code == 201
                took_s.append(time.perf_counter() - began)
    finally:
        stop.set()
        thread.join()
        for made in slow:
            made.close()

    p99 = sorted(took_s)[int(len(took_s) * 0.99)]
    print(json.dumps({"p50_ms": round(sorted(took_s)[100] * 1000), "p99_ms": round(p99 * 1000)}))
    assert p99 <= 0.5
