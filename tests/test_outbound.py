"""What goes out, and what becomes of every kind of answer: real servers on loopback."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqo.outbound import Answer, Client, Failure
from receiver import LOOPBACK, OK, REASONS, Receiver, Serve, answered, answers, failed, hangs, keeps_alive, receivers, reset, send


@pytest.fixture
def serve() -> Iterator[Serve]:
    with receivers() as start:
        yield start


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(allowed_networks=LOOPBACK)
    yield made
    made.close()


# What goes out


def test_request_arrives_as_given(client: Client, serve: Serve) -> None:
    receiver = serve(answers(OK))

    headers = {"X-Title": "caf\u00e9 ", "content-length": "99", "Transfer-Encoding": "chunked"}
    answer = answered(send(client, receiver.url("/a%20b?c=d#e"), headers=headers))

    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a%20b?c=d HTTP/1.1"
    assert f"Host: 127.0.0.1:{receiver.port}".encode() in lines
    assert "X-Title: caf\u00e9".encode() in lines
    assert [line for line in lines if line.lower().startswith(b"content-length")] == [b"Content-Length: 8"]
    assert b"transfer-encoding" not in head.lower()
    assert b"Accept-Encoding: identity" in lines
    assert b"User-Agent: orqo" in lines
    assert body == b'{"a": 1}'
    assert (answer.status, answer.body, answer.truncated) == (200, b"ok", False)
    assert answer.headers["content-length"] == "2"


def test_given_headers_replace_our_own_in_any_case(client: Client, serve: Serve) -> None:
    receiver = serve(answers(OK))

    answered(send(client, receiver.url(), headers={"user-agent": "mine", "HOST": "other.example"}))

    head = receiver.requests[0].lower()
    assert head.count(b"user-agent:") == 1
    assert b"user-agent: mine" in head
    assert head.count(b"host:") == 1


@pytest.mark.parametrize(
    "headers",
    [{"X-A": "a\r\nX-B: b"}, {"X-A": "a\nb"}, {"X-A": "a\x00b"}, {"X A": "a"}, {"X-A:": "a"}, {"": "a"}, {"X-\u00e9": "a"}, {"X\nY": "a"}],
    ids=ascii,
)
def test_header_that_http_does_not_allow_is_refused_unsent(client: Client, serve: Serve, headers: dict[str, str]) -> None:
    receiver = serve(answers(OK))

    answer = failed(send(client, receiver.url(), headers=headers))

    assert (answer.reason, answer.sent) == ("bad_url", False)
    assert receiver.connections == 0


def test_user_info_is_sent_as_basic_authorization_and_never_shown(client: Client, serve: Serve) -> None:
    receiver = serve(answers(OK))

    answered(send(client, f"http://user:pass@127.0.0.1:{receiver.port}/"))

    assert b"Authorization: Basic dXNlcjpwYXNz" in receiver.requests[0]


def test_environment_proxies_and_netrc_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    receiver, proxy = serve(answers(OK)), serve(answers(OK))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url())

    answered(send(Client(allowed_networks=LOOPBACK), receiver.url()))

    assert proxy.connections == 0
    assert b"authorization" not in receiver.requests[0].lower()


def test_cookies_are_not_kept(client: Client, serve: Serve) -> None:
    receiver = serve(answers(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))

    send(client, receiver.url())
    send(client, receiver.url())

    assert b"cookie" not in receiver.requests[1].lower()


def test_international_name_is_looked_up_in_its_ascii_form(serve: Serve) -> None:
    receiver = serve(answers(OK))
    asked: list[str] = []

    def resolve(host: str, port: int, **_: int) -> Any:
        asked.append(host)
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

    answered(send(Client(allowed_networks=LOOPBACK, resolve=resolve), receiver.url(host="b\u00fccher.example")))

    assert asked == ["xn--bcher-kva.example"]


# Size


def test_body_over_the_limit_is_cut_there(client: Client, serve: Serve) -> None:
    written = []

    def gigabyte(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1024):
            sock.sendall(b"x" * 2**20)
            written.append(2**20)

    receiver = serve(gigabyte)

    answer = answered(send(client, receiver.url(), max_bytes=16384))

    assert (answer.body, answer.truncated) == (b"x" * 16384, True)
    assert sum(written) < 64 * 2**20


@pytest.mark.parametrize(("size", "truncated"), [(0, False), (99, False), (100, False), (101, True)])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_limit_is_exact(client: Client, serve: Serve, size: int, truncated: bool, framing: str) -> None:
    body = b"x" * size
    chunked = b"".join(b"1\r\nx\r\n" for _ in range(size)) + b"0\r\n\r\n"
    sent = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (size, body),
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
    }[framing]

    answer = answered(send(client, serve(answers(sent)).url(), max_bytes=100))

    assert (answer.body, answer.truncated) == (body[:100], truncated)


def test_compressed_body_is_not_decoded(client: Client, serve: Serve) -> None:
    bomb = gzip.compress(b"\x00" * 200_000_000, 1)[:900_000]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)

    answer = answered(send(client, serve(answers(head, bomb)).url(), max_bytes=2_000_000))

    assert answer.body == bomb


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", id="chunk of size -1"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunk size without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", id="trailer without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", id="header without end"),
        pytest.param(b"", id="status line without end"),
    ],
)
def test_framing_without_end_is_not_kept(client: Client, serve: Serve, start: bytes) -> None:
    written = []

    def flood(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        sock.sendall(start)
        for _ in range(1024):
            sock.sendall(b"1" * 2**20)
            written.append(2**20)

    answer = failed(send(client, serve(flood).url()))

    assert (answer.reason, answer.sent) == ("malformed", True)
    assert sum(written) < 64 * 2**20


# Where it may go


def test_guarded_request_reaches_no_private_address(serve: Serve) -> None:
    receiver = serve(answers(OK))

    answer = failed(send(Client(), receiver.url()))

    assert (answer.reason, answer.sent) == ("address_refused", False)
    assert "127.0.0.1" in answer.detail
    assert "ORQO_ALLOWED_NETWORKS" in answer.detail
    assert receiver.connections == 0


def test_unguarded_request_goes_anywhere(serve: Serve) -> None:
    receiver = serve(answers(OK))

    answered(send(Client(), receiver.url(), guarded=False))


def test_guarded_request_does_not_reuse_an_unguarded_connection(serve: Serve) -> None:
    receiver = serve(keeps_alive)
    client = Client()
    answered(send(client, receiver.url(), guarded=False))

    answer = failed(send(client, receiver.url(), guarded=True))

    assert answer.reason == "address_refused"
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_an_answer_and_is_not_followed(client: Client, serve: Serve, status: int) -> None:
    canary = serve(answers(OK))
    receiver = serve(answers(f"HTTP/1.1 {status} Moved\r\nLocation: {canary.url()}\r\nContent-Length: 0\r\n\r\n".encode()))

    answer = answered(send(client, receiver.url()))

    assert answer.status == status
    assert answer.headers["location"] == canary.url()
    assert canary.connections == 0


# Broken answers


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"hello\r\n\r\n", id="garbage"),
        pytest.param(b"\x00\xff\xfe garbage", id="bytes"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="status is a word"),
        pytest.param(b"HTTP/1.1 99999 OK\r\n\r\n", id="status is huge"),
        pytest.param(b"HTTP/1.1 -20 OK\r\n\r\n", id="status is negative"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="interim status"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", id="another protocol agreed"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n", id="huge header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n", id="too many headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + b" " * 9000, id="chunk size is a word"),
    ],
)
def test_answer_that_is_not_http_is_malformed(client: Client, serve: Serve, sent: bytes) -> None:
    answer = failed(send(client, serve(answers(sent)).url()))

    assert (answer.reason, answer.sent) == ("malformed", True)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK", id="within the status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-A: b\r\n", id="within the headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", id="within the body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", id="within a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", id="before the last chunk"),
    ],
)
def test_answer_that_is_cut_is_told(client: Client, serve: Serve, sent: bytes) -> None:
    answer = failed(send(client, serve(answers(sent)).url()))

    assert (answer.reason, answer.sent) == ("cut", True)


def test_reset_after_receipt_is_told(client: Client, serve: Serve) -> None:
    def play(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        reset(sock)

    answer = failed(send(client, serve(play).url()))

    assert (answer.reason, answer.sent) == ("cut", True)


def test_answer_before_the_request_was_read_is_an_answer(client: Client, serve: Serve) -> None:
    def too_large(sock: socket.socket, receiver: Receiver) -> None:
        sock.recv(10)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(2**20):
            pass

    answer = answered(send(client, serve(too_large).url(), body=b"x" * 3_000_000))

    assert answer.status == 413


def test_nobody_listens_is_refused_unsent(client: Client, serve: Serve) -> None:
    receiver = serve(answers(OK))
    receiver.close()

    answer = failed(send(client, receiver.url("/secret?key=s3cret")))

    assert (answer.reason, answer.sent) == ("refused", False)
    assert answer.detail == f"127.0.0.1:{receiver.port} cannot be reached: Connection refused"


HOSTILE = st.text(alphabet="HTP/1.02345 OK\r\n:;,-chunkedTransfer\x00\x85", max_size=300).map(str.encode)


@given(sent=st.one_of(st.binary(max_size=300), HOSTILE))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length:"]
)
def test_any_answer_is_a_value(client: Client, fuzzing: list[bytes], fuzzed: Receiver, start: bytes, sent: bytes) -> None:
    fuzzing[:] = [start + sent]

    answer = send(client, fuzzed.url())

    assert isinstance(answer, Answer) or answer.reason in REASONS
    assert isinstance(answer, Failure) or all(value.isprintable() for value in answer.headers.values())


@pytest.fixture
def fuzzing() -> list[bytes]:
    return []


@pytest.fixture
def fuzzed(serve: Serve, fuzzing: list[bytes]) -> Receiver:
    return serve(lambda sock, receiver: answers(*fuzzing)(sock, receiver))


@given(
    url=st.one_of(
        st.text(),
        st.text().map("http://".__add__),
        st.text(alphabet="ht p:/@[]%.#?\\0123456789abcdefx\u00e9\uff11-_*&=\x00\n").map("http://".__add__),
        st.from_regex(r"https?://([a-z]{0,3}@)?\[?[0-9a-fx:.%]{0,12}\]?(:[0-9]{0,6})?(/.*)?", fullmatch=True),
    ),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    method=st.one_of(st.sampled_from(["GET", "POST", "HEAD"]), st.text(max_size=5)),
    body=st.one_of(st.none(), st.binary(max_size=5)),
)
@settings(max_examples=300, deadline=None)
def test_any_request_is_a_value(url: str, headers: dict[str, str], method: str, body: bytes | None) -> None:
    answer = NOWHERE.send(method=method, url=url, headers=headers, body=body, guarded=True, timeout_s=0.5, max_bytes=10)

    assert isinstance(answer, Failure)
    assert answer.reason in REASONS
    assert not answer.sent


def _nobody(host: str, port: int, **_: int) -> Any:
    host.encode("idna")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


NOWHERE = Client(resolve=_nobody)


# Reuse


def test_connection_is_reused(client: Client, serve: Serve) -> None:
    receiver = serve(keeps_alive)

    for _ in range(20):
        answered(send(client, receiver.url()))

    assert (receiver.connections, len(receiver.requests)) == (1, 20)


@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["closed", "reset"])
def test_connection_that_was_closed_while_idle_is_replaced(client: Client, serve: Serve, close: Any) -> None:
    def once(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        sock.sendall(OK)
        close(sock)

    receiver = serve(once)

    statuses = []
    for _ in range(5):
        statuses.append(answered(send(client, receiver.url())).status)
        time.sleep(0.02)

    assert statuses == [200] * 5
    assert len(receiver.requests) == 5


@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["closed", "reset"])
def test_request_that_a_closing_receiver_got_is_not_sent_again(client: Client, serve: Serve, close: Any) -> None:
    """Whether it acted upon it nobody knows: that is for the caller to decide."""

    def once_then_swallow(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        sock.sendall(OK)
        receiver.read_request(sock)
        close(sock)

    receiver = serve(once_then_swallow)
    answered(send(client, receiver.url()))

    answer = failed(send(client, receiver.url()))

    assert (answer.reason, answer.sent) == ("cut", True)
    assert (receiver.connections, len(receiver.requests)) == (1, 2)


def test_request_that_found_its_connection_dead_is_sent_on_another(client: Client, serve: Serve) -> None:
    sockets: list[socket.socket] = []

    def play(sock: socket.socket, receiver: Receiver) -> None:
        sockets.append(sock)
        while receiver.read_request(sock):
            sock.sendall(OK)

    receiver = serve(play)
    answered(send(client, receiver.url()))

    def just_before_sending() -> bool:
        """Break the connection after it was found alive."""
        if len(sockets) == 1:
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            sockets.pop().shutdown(socket.SHUT_RD)
            time.sleep(0.05)
        return False

    answer = answered(send(client, receiver.url(), cancelled=just_before_sending))

    assert answer.status == 200
    assert (receiver.connections, len(receiver.requests)) == (2, 2)


def test_connection_that_was_idle_for_long_is_not_used(client: Client, serve: Serve) -> None:
    receiver = serve(keeps_alive)
    answered(send(client, receiver.url()))

    time.sleep(1.1)
    answered(send(client, receiver.url()))

    assert receiver.connections == 2


def test_connection_with_an_unread_body_is_not_reused(client: Client, serve: Serve) -> None:
    def play(sock: socket.socket, receiver: Receiver) -> None:
        while receiver.read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + b"%050d" % len(receiver.requests))

    receiver = serve(play)

    first = answered(send(client, receiver.url(), max_bytes=10))
    second = answered(send(client, receiver.url(), max_bytes=50))

    assert first.truncated
    assert second.body == b"%050d" % 2
    assert receiver.connections == 2


def test_head_and_no_content_leave_the_connection_usable(client: Client, serve: Serve) -> None:
    def play(sock: socket.socket, receiver: Receiver) -> None:
        while receiver.read_request(sock):
            is_head = receiver.requests[-1].startswith(b"HEAD")
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" if is_head else b"HTTP/1.1 204 No Content\r\n\r\n")

    receiver = serve(play)

    statuses = [answered(send(client, receiver.url(), method=method, body=None)).status for method in ("HEAD", "GET", "HEAD", "DELETE")]

    assert statuses == [200, 204, 200, 204]
    assert receiver.connections == 1


def test_threads_do_not_mix_their_answers(client: Client, serve: Serve) -> None:
    def echo(sock: socket.socket, receiver: Receiver) -> None:
        while True:
            data = b""
            while not data.endswith(b"."):
                more = sock.recv(65536)
                if not more:
                    return
                data += more
            body = data.rpartition(b"\r\n\r\n")[2]
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    receiver, wrong = serve(echo), []

    def work(number: int) -> None:
        for turn in range(20):
            body = b"%d-%d." % (number, turn)
            if answered(send(client, receiver.url(), body=body, timeout_s=10)).body != body:
                wrong.append(body)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# What is shown


def test_details_and_logs_hold_no_path_query_or_credentials(client: Client, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    plays = [answers(b""), answers(b"garbage\r\n"), answers(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"), hangs]

    with caplog.at_level(logging.DEBUG):
        told = [
            send(client, f"http://us3r:pa55@127.0.0.1:{serve(play).port}/p4th?qu3ry=1", headers={"X-Key": "s3cret"}, timeout_s=0.3)
            for play in plays
        ]

    shown = repr([answer.detail for answer in told if isinstance(answer, Failure)]) + caplog.text
    assert not any(word in shown for word in ("us3r", "pa55", "p4th", "qu3ry", "s3cret"))
