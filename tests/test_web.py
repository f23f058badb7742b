"""The HTTP server on real sockets: limits, its own errors, slow clients, draining."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hook-token-that-no-log-may-show"

# Echoes the body; /slow takes a second, /broken raises, /wait waits until the server drains.
APP = """
import logging, time
from orqo import web
from orqo.config import Config

def app(environ, start_response):
    path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
    if path == "/slow":
        time.sleep(1)
    while path == "/wait" and not environ["orqo.draining"]():
        time.sleep(0.01)
    if path.startswith("/broken"):
        raise RuntimeError("broken on purpose")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

logging.basicConfig(level=logging.DEBUG)
raise SystemExit(web.serve(app, Config.from_environ()))
"""


@dataclass
class Web:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        found += connection.recv(65536)
    return found


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, body


@contextmanager
def running_web(folder: Path) -> Iterator[Web]:
    (folder / "app.py").write_text(APP)
    port = free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT), "ORQO_PORT": str(port), "ORQO_BODY_MAX_BYTES": "1000", "ORQO_THREADS": "8"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, folder / "app.py"], env=env, stderr=log)
    try:
        web = Web(process, port, folder / "log")
        until = time.monotonic() + 10
        while b"listening" not in web.log.read_bytes():
            assert time.monotonic() < until and process.poll() is None, web.log.read_text()
            time.sleep(0.01)
        yield web
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with running_web(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture
def own_web(tmp_path: Path) -> Iterator[Web]:
    with running_web(tmp_path) as server:
        yield server


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "bad chunk size": (CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n", 400, "malformed"),
    "chunk longer than said": (CHUNKED + b"2\r\nhello\r\n0\r\n\r\n", 400, "malformed"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "malformed"),
    "negative length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "malformed"),
    "length of 5000 digits": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "malformed"),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "malformed"),
    "half an address": (b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
    "unknown transfer coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "malformed"),
    "header too long": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 431, "headers-too-large"),
    "body too long": (post("/", b"a" * 200_000), 413, "too-large"),
    "chunked body too long": (CHUNKED + b"30d40\r\n" + b"a" * 200_000 + b"\r\n0\r\n\r\n", 413, "too-large"),
    "application raises": (post("/broken", b""), 500, "server-fault"),
}


@pytest.mark.parametrize(("request_bytes", "status", "slug"), REFUSED.values(), ids=REFUSED)
def test_own_errors_are_problem_json(web: Web, request_bytes: bytes, status: int, slug: str) -> None:
    answer = parsed(web.ask(request_bytes))

    problem = json.loads(answer[2])
    assert (answer[0], answer[1]["content-type"], answer[1]["connection"]) == (status, "application/problem+json", "close")
    assert (problem["status"], problem["type"], problem["error"]) == (status, f"urn:orqo:problem:{slug}", problem["detail"])
    assert "server" not in answer[1]


def test_refusal_reaches_a_client_that_sends_its_whole_body_first(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"a" * 1_000_000)

        answer = parsed(read_all(connection))

    assert answer[0] == 413


def test_an_answer_leaves_in_one_piece(web: Web) -> None:
    for _ in range(20):
        with web.connect() as connection:
            connection.sendall(post("/", b"abc"))

            assert parsed(connection.recv(65536))[2] == b"abc"


def test_refusal_quotes_nothing_of_the_request(web: Web) -> None:
    answer = web.ask(b"GET / HTTP/1.1\r\n Authorization: Bearer orqo_secret\r\n\r\n")

    assert parsed(answer)[0] == 400
    assert b"orqo_secret" not in answer


def test_answer_names_no_server_and_connection_stays_open(web: Web) -> None:
    with web.connect() as connection:
        for body in (b"one", b"two"):
            connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = parsed(read_until(connection, body))

            assert (answer[0], answer[2]) == (200, body)
            assert "server" not in answer[1] and "connection" not in answer[1]


def test_paths_reach_no_log(own_web: Web) -> None:
    own_web.ask(post(f"/broken/{TOKEN}", b""))
    with own_web.connect() as connection:
        # A client that is gone before its answer.
        connection.sendall(f"POST /slow?{TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    time.sleep(1.2)

    log = own_web.log.read_text()
    assert "RuntimeError: broken on purpose" in log
    assert "while serving a request" in log
    assert TOKEN not in log


def test_half_closed_client_is_answered(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(post("/", b"hello"))
        connection.shutdown(socket.SHUT_WR)

        answer = parsed(read_all(connection))

    assert (answer[0], answer[2]) == (200, b"hello")


def test_body_that_ends_early_never_reaches_the_application(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        connection.shutdown(socket.SHUT_WR)

        answer = read_all(connection)

    assert answer == b"" or parsed(answer)[0] == 400


def test_slow_clients_stall_nobody(web: Web) -> None:
    slow_headers = [web.connect() for _ in range(100)]
    slow_bodies = [web.connect() for _ in range(100)]
    half_closed = [web.connect() for _ in range(20)]
    for one in slow_headers:
        one.sendall(b"POST / HTTP/1.1\r\nHo")
    for one in slow_bodies + half_closed:
        one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhel")
    for one in half_closed:
        one.shutdown(socket.SHUT_WR)

    began = time.monotonic()
    answers = [parsed(web.ask(post("/", b"quick")))[2] for _ in range(50)]
    took_s = time.monotonic() - began

    for one in slow_headers + slow_bodies + half_closed:
        one.close()
    assert answers == [b"quick"] * 50
    assert took_s < 1.0


def test_idle_connections_leave_room(web: Web) -> None:
    idle = [web.connect() for _ in range(900)]

    answer = parsed(web.ask(post("/", b"hello")))

    for one in idle:
        one.close()
    assert answer[2] == b"hello"


def test_sigterm_answers_what_is_in_flight_and_exits_0(own_web: Web) -> None:
    with ExitStack() as opened:
        working, half_sent, unread, waiting, idle = (opened.enter_context(own_web.connect()) for _ in range(5))
        working.sendall(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
        half_sent.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        unread.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb")
        own_web.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        half_sent.sendall(b"world")

        answers = {
            name: parsed(read_all(one)) for name, one in [("working", working), ("half", half_sent), ("unread", unread), ("wait", waiting)]
        }

        assert [(status, body) for status, _, body in answers.values()] == [(200, b"a"), (200, b"helloworld"), (200, b"b"), (200, b"")]
        # What was sent with the signal may have been answered just before it; the other three cannot have been.
        assert [answers[name][1].get("connection") for name in ("working", "half", "wait")] == ["close"] * 3
        assert read_all(idle) == b""
        assert own_web.process.wait(5) == 0


def test_sigterm_refuses_new_connections_at_once(own_web: Web) -> None:
    with own_web.connect() as working:
        working.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        own_web.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)

        with pytest.raises(ConnectionRefusedError):
            own_web.connect()


def test_connections_not_yet_accepted_at_sigterm_are_answered(own_web: Web) -> None:
    own_web.process.send_signal(signal.SIGSTOP)
    waiting = [own_web.connect() for _ in range(50)]
    for one in waiting:
        one.sendall(post("/", b"hello"))
    own_web.process.send_signal(signal.SIGTERM)
    own_web.process.send_signal(signal.SIGCONT)

    answers = [parsed(read_all(one))[2] for one in waiting]

    for one in waiting:
        one.close()
    assert answers == [b"hello"] * 50
    assert own_web.process.wait(5) == 0


@pytest.mark.full
def test_drain_ends_at_its_bound(own_web: Web) -> None:
    with own_web.connect() as stuck:
        stuck.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        time.sleep(0.1)
        began = time.monotonic()
        own_web.process.send_signal(signal.SIGTERM)

        status = own_web.process.wait(15)

    assert status == 0
    assert 9 < time.monotonic() - began < 11


def test_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = os.environ | {"PYTHONPATH": str(ROOT), "ORQO_PORT": str(taken.getsockname()[1])}

        ended = subprocess.run([sys.executable, "-c", APP], env=env, capture_output=True, text=True, timeout=20)

    assert ended.returncode == 1
    assert re.fullmatch(r"orqo: Cannot listen on 127\.0\.0\.1 port \d+: Address already in use: .*ORQO_PORT\.\n", ended.stderr)
