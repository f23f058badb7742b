"""The total deadline and cancellation, whatever the receiver drips."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orqo.deadline import Ended, Exchange, PatientSocket
from orqo.outbound import Client
from receiver import LOOPBACK, OK, Serve, answers, drips, failed, hangs, receivers, reset, send


@pytest.fixture
def serve() -> Iterator[Serve]:
    with receivers() as start:
        yield start


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(allowed_networks=LOOPBACK)
    yield made
    made.close()


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(hangs, id="hang"),
        pytest.param(drips(b"", b"H"), id="status drip"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"), id="header drip"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), id="headers without end"),
        pytest.param(drips(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"), id="interim answers without end"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"a"), id="body drip"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\n\r\n", b"a"), id="body drip without a length"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"), id="chunk drip"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"), id="chunk size drip"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"), id="trailer drip"),
    ],
)
def test_total_deadline_holds_whatever_the_receiver_does(client: Client, serve: Serve, play: Any) -> None:
    receiver = serve(play)

    started = time.monotonic()
    answer = failed(send(client, receiver.url(), timeout_s=0.3))
    elapsed_s = time.monotonic() - started

    assert (answer.reason, answer.sent) == ("timeout", True)
    assert 0.28 < elapsed_s < 0.7
    assert 280 <= answer.duration_ms <= 700


def test_receiver_that_reads_nothing_holds_no_longer_than_the_deadline(client: Client, serve: Serve) -> None:
    receiver = serve(lambda sock, receiver: receiver.closing.wait(20))

    started = time.monotonic()
    answer = failed(send(client, receiver.url(), body=b"x" * 30_000_000, timeout_s=0.5))

    assert (answer.reason, answer.sent) == ("timeout", True)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_no_time_is_a_failure(client: Client, serve: Serve, timeout_s: float) -> None:
    answer = failed(send(client, serve(answers(OK)).url(), timeout_s=timeout_s))

    assert (answer.reason, answer.sent) == ("timeout", False)


@pytest.mark.parametrize("play", [hangs, drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.01)], ids=["hang", "drip"])
def test_cancelling_ends_the_exchange_within_a_quarter_of_a_second(client: Client, serve: Serve, play: Any) -> None:
    receiver, asked_at = serve(play), [time.monotonic()]

    def cancelled() -> bool:
        asked_at.append(time.monotonic())
        return len(asked_at) > 4

    answer = failed(send(client, receiver.url(), timeout_s=10, cancelled=cancelled))

    assert (answer.reason, answer.sent) == ("cancelled", True)
    assert max(later - earlier for earlier, later in itertools.pairwise(asked_at)) <= 0.25


def test_broken_connection_says_whether_anything_was_taken() -> None:
    """Nothing taken is the one case in which a request may be sent again without a thought."""
    listening = socket.create_server(("127.0.0.1", 0))
    sock = PatientSocket(socket.AF_INET, socket.SOCK_STREAM)
    sock.connect(listening.getsockname())
    exchange = Exchange(timeout_s=2, received_max_bytes=100)
    sock.begin(exchange)
    reset(listening.accept()[0])
    time.sleep(0.05)

    with pytest.raises(Ended) as ended:
        sock.sendall(b"POST / HTTP/1.1")

    sock.close()
    listening.close()
    assert (ended.value.reason, exchange.sent) == ("cut", False)
