"""Look-ups, the choice of the address, connecting and TLS, each against the faults that it has in the field."""

from __future__ import annotations

import ipaddress
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orqo.outbound import Client
from receiver import LOOPBACK, OK, Serve, answered, answers, drips, failed, keeps_alive, receivers, send


@pytest.fixture
def serve() -> Iterator[Serve]:
    with receivers() as start:
        yield start


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(allowed_networks=LOOPBACK)
    yield made
    made.close()


def test_name_that_changes_between_look_ups_is_looked_up_once(serve: Serve) -> None:
    canary = serve(answers(OK))
    # The first answer is allowed and nobody listens there; a second look-up would reach the canary.
    looked_up = iter(["127.9.9.9", "127.0.0.1", "127.0.0.1"])

    def rebinding(host: str, port: int, **_: int) -> Any:
        return socket.getaddrinfo(next(looked_up), port, type=socket.SOCK_STREAM)

    client = Client(allowed_networks=[ipaddress.ip_network("127.9.9.9/32")], resolve=rebinding)

    first = failed(send(client, canary.url(host="rebind.example")))
    second = failed(send(client, canary.url(host="rebind.example")))

    assert (first.reason, first.sent) == ("refused", False)
    assert (second.reason, second.sent) == ("address_refused", False)
    assert canary.connections == 0


def test_only_the_allowed_ones_of_many_addresses_are_tried(serve: Serve) -> None:
    receiver = serve(answers(OK))
    tried = ["10.0.0.1", "127.9.9.9", "127.0.0.1"]

    def resolve(host: str, port: int, **_: int) -> Any:
        return [entry for address in tried for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)]

    answer = answered(send(Client(allowed_networks=LOOPBACK, resolve=resolve), receiver.url(host="many.example"), timeout_s=2))

    assert answer.status == 200


def test_resolver_that_gives_a_name_for_an_address_is_refused(serve: Serve) -> None:
    receiver = serve(answers(OK))

    def resolve(host: str, port: int, **_: int) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("localhost", port))]

    answer = failed(send(Client(resolve=resolve), receiver.url(host="odd.example")))

    assert answer.reason == "address_refused"
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "fault",
    [socket.gaierror(socket.EAI_NONAME, "Name or service not known"), TimeoutError(110, "Connection timed out"), UnicodeError("label")],
    ids=lambda fault: type(fault).__name__,
)
def test_name_that_cannot_be_looked_up_is_told(fault: Exception) -> None:
    def resolve(host: str, port: int, **_: int) -> Any:
        raise fault

    answer = failed(send(Client(resolve=resolve), "http://nobody.example/"))

    assert (answer.reason, answer.sent) == ("dns", False)
    assert "nobody.example" in answer.detail


def test_slow_look_up_ends_at_the_deadline_and_delays_nobody_else(serve: Serve) -> None:
    receiver = serve(answers(OK))
    release = threading.Event()

    def slow(host: str, port: int, **settings: int) -> Any:
        if host == "slow.example":
            release.wait(30)
        return socket.getaddrinfo("127.0.0.1", port, **settings)

    client = Client(allowed_networks=LOOPBACK, resolve=slow)

    started = time.monotonic()
    answer = failed(send(client, "http://slow.example/", timeout_s=0.3))
    elapsed_s = time.monotonic() - started
    answered(send(client, receiver.url(host="quick.example")))
    release.set()

    assert (answer.reason, answer.sent) == ("timeout", False)
    assert "looking up the name" in answer.detail
    assert elapsed_s < 0.6


def test_one_hanging_name_holds_one_look_up_however_many_wait(serve: Serve) -> None:
    release, asked = threading.Event(), []

    def slow(host: str, port: int, **settings: int) -> Any:
        asked.append(host)
        release.wait(30)
        return []

    client = Client(resolve=slow)
    waiting = [threading.Thread(target=send, args=(client, "http://slow.example/"), kwargs={"timeout_s": 0.3}) for _ in range(100)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    release.set()

    assert asked == ["slow.example"]


def test_exhausted_look_ups_are_told_and_logged(caplog: pytest.LogCaptureFixture, serve: Serve) -> None:
    receiver = serve(answers(OK))
    release = threading.Event()

    def slow(host: str, port: int, **settings: int) -> Any:
        release.wait(30)
        return []

    client = Client(allowed_networks=LOOPBACK, resolve=slow)
    waiting = [
        threading.Thread(target=send, args=(client, f"http://slow{number}.example/"), kwargs={"timeout_s": 0.2}) for number in range(64)
    ]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()

    with caplog.at_level(logging.WARNING):
        answer = failed(send(client, "http://one-more.example/", timeout_s=0.2))
    literal = answered(send(client, receiver.url()))
    release.set()

    assert (answer.reason, answer.sent) == ("dns", False)
    assert "64 look-ups" in answer.detail
    assert "exhausted" in caplog.text
    assert literal.status == 200


def test_cancelling_ends_a_look_up() -> None:
    release = threading.Event()

    def slow(host: str, port: int, **_: int) -> Any:
        release.wait(30)
        return []

    client = Client(resolve=slow)
    stop_at = time.monotonic() + 0.3

    answer = failed(send(client, "http://slow.example/", timeout_s=10, cancelled=lambda: time.monotonic() > stop_at))
    release.set()

    assert (answer.reason, answer.sent) == ("cancelled", False)
    assert answer.duration_ms < 700


def full_backlog() -> tuple[socket.socket, list[socket.socket]]:
    """Give a listener that leaves further connections unanswered, as a dropped packet does."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(4)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(listening.getsockname())
    return listening, waiting


def test_connect_that_gets_no_answer_ends_at_the_deadline(client: Client) -> None:
    listening, waiting = full_backlog()

    started = time.monotonic()
    answer = failed(send(client, f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout_s=0.4))
    elapsed_s = time.monotonic() - started
    for sock in [*waiting, listening]:
        sock.close()

    assert (answer.reason, answer.sent) == ("timeout", False)
    assert "connecting" in answer.detail
    assert elapsed_s < 0.8


def test_silent_address_leaves_time_for_the_next(serve: Serve) -> None:
    receiver = serve(answers(OK))
    silent, waiting = full_backlog()
    ports = iter([silent.getsockname()[1], receiver.port])

    def resolve(host: str, port: int, **_: int) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    answer = answered(send(Client(allowed_networks=LOOPBACK, resolve=resolve), "http://two.example/", timeout_s=1))
    for sock in [*waiting, silent]:
        sock.close()

    assert answer.status == 200


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CA and certificates of it: good, expired, for another name; and one that signed itself."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl command is missing: TLS faults are not tested")
    folder = tmp_path_factory.mktemp("tls")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    for name, names, days in [
        ("good", "DNS:localhost,IP:127.0.0.1", "2"),
        ("expired", "DNS:localhost", "-1"),
        ("other", "DNS:other.example", "2"),
    ]:
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext", "-days", days]
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    run("req", "-x509", *key, "-keyout", "self.key", "-out", "self.pem", "-subj", "/CN=localhost", "-days", "2")
    return folder


def server_context(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def to_loopback(host: str, port: int, **_: int) -> Any:
    return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST."])
def test_tls_is_verified_by_the_given_bundle(serve: Serve, certificates: Path, host: str) -> None:
    receiver = serve(keeps_alive, server_context(certificates, "good"))
    client = Client(allowed_networks=LOOPBACK, ca_bundle=str(certificates / "ca.pem"), resolve=to_loopback)

    for _ in range(3):
        answered(send(client, receiver.url(scheme="https", host=host), body=b"x" * 100_000))

    assert (receiver.connections, len(receiver.requests)) == (1, 3)


@pytest.mark.parametrize(
    ("name", "host", "word"),
    [
        ("self", "localhost", "self-signed"),
        ("expired", "localhost", "expired"),
        ("other", "localhost", "not valid for 'localhost'"),
        ("other", "127.0.0.1", "not valid for '127.0.0.1'"),
    ],
)
def test_bad_certificate_is_refused_unsent(serve: Serve, certificates: Path, name: str, host: str, word: str) -> None:
    receiver = serve(keeps_alive, server_context(certificates, name))
    client = Client(allowed_networks=LOOPBACK, ca_bundle=str(certificates / "ca.pem"))

    answer = failed(send(client, receiver.url(scheme="https", host=host)))

    assert (answer.reason, answer.sent) == ("tls", False)
    assert word in answer.detail
    assert receiver.requests == []


@pytest.mark.parametrize("guarded", [True, False])
def test_unknown_issuer_is_refused_and_the_setting_named(serve: Serve, certificates: Path, guarded: bool) -> None:
    receiver = serve(keeps_alive, server_context(certificates, "good"))

    answer = failed(send(Client(allowed_networks=LOOPBACK), receiver.url(scheme="https"), guarded=guarded))

    assert (answer.reason, answer.sent) == ("tls", False)
    assert "ORQO_CA_BUNDLE" in answer.detail
    assert receiver.requests == []


def test_certificate_counts_for_the_name_whatever_the_address(serve: Serve, certificates: Path) -> None:
    receiver = serve(keeps_alive, server_context(certificates, "other"))

    client = Client(allowed_networks=LOOPBACK, ca_bundle=str(certificates / "ca.pem"), resolve=to_loopback)

    answer = answered(send(client, receiver.url(scheme="https", host="other.example")))

    assert answer.status == 200
    assert f"Host: other.example:{receiver.port}".encode() in receiver.requests[0]


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        pytest.param(lambda sock, receiver: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "tls", id="plain HTTP"),
        pytest.param(lambda sock, receiver: None, "tls", id="closes at once"),
        pytest.param(lambda sock, receiver: receiver.closing.wait(20), "timeout", id="hangs"),
        pytest.param(drips(b"\x16\x03\x03\x40\x00", b"\x02", reads=False), "timeout", id="drips"),
    ],
)
def test_handshake_that_fails_is_told_unsent(client: Client, serve: Serve, play: Any, reason: str) -> None:
    receiver = serve(play)

    started = time.monotonic()
    answer = failed(send(client, receiver.url(scheme="https"), timeout_s=0.6))
    elapsed_s = time.monotonic() - started

    assert (answer.reason, answer.sent) == (reason, False)
    assert elapsed_s < 1.0


def test_tls_header_drip_ends_at_the_deadline(serve: Serve, certificates: Path) -> None:
    receiver = serve(drips(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"), server_context(certificates, "good"))
    client = Client(allowed_networks=LOOPBACK, ca_bundle=str(certificates / "ca.pem"))

    answer = failed(send(client, receiver.url(scheme="https"), timeout_s=0.6, cancelled=lambda: False))

    assert (answer.reason, answer.sent) == ("timeout", True)
    assert answer.duration_ms < 1000


def test_bundle_that_cannot_be_read_is_told_when_the_client_is_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ORQO_CA_BUNDLE"):
        Client(ca_bundle=str(tmp_path / "none.pem"))
