"""The forms of REDIS_URL against real servers: a password, TLS, and Sentinels that name another server after a failover."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import support
from orqo import redisurl, valkey
from orqo.queue import Bell
from support import TestBox, free_port, running, wait_for

PASSWORD = "p@ss/word"
QUOTED = "p%40ss%2Fword"
NAME = "main"


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a Valkey on a port of loopback, or a Sentinel where a configuration file is the first option."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [*valkey.needed_program(), *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen([*command, "--logfile", str(folder / "log")])
    try:
        wait_for(lambda: accepts(port), what=f"a server on {port}")
        yield port, process
    finally:
        process.kill()
        process.wait()


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def rings(url: str) -> bool:
    """Tell whether a bell at this URL can be rung."""
    bell = Bell(url, "test")
    try:
        return bell.is_reachable() and bell.wake_workers()
    finally:
        bell.close()


# ── a password, TLS ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_password_opens_and_without_it_redis_is_down(tmp_path: Path) -> None:
    with server(tmp_path / "a", "--requirepass", PASSWORD) as (port, _):
        assert rings(f"redis://:{QUOTED}@127.0.0.1:{port}")
        assert not rings(f"redis://127.0.0.1:{port}")
        assert not rings(f"redis://:wrong@127.0.0.1:{port}")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*request, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@contextmanager
def tls_before(port: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """Speak TLS before a server that was built without it, as stunnel does; gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, context, port), daemon=True).start()
        yield listening.getsockname()[1]


def _accept(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):
        while True:
            plain, _ = listening.accept()
            try:
                outer = context.wrap_socket(plain, server_side=True)
            except OSError:
                # Who does not trust the certificate goes away in mid-handshake.
                plain.close()
                continue
            inner = socket.create_connection(("127.0.0.1", port))
            for source, sink in ((outer, inner), (inner, outer)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        each.close()


def test_tls_is_spoken_and_the_certificate_is_looked_at(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with server(tmp_path / "a", "--requirepass", PASSWORD) as (inner, _), tls_before(inner, certificate) as port:
        trusted = f"rediss://:{QUOTED}@127.0.0.1:{port}?ssl_ca_certs={certificate[0]}"

        assert rings(trusted)
        assert not rings(f"rediss://:{QUOTED}@127.0.0.1:{port}")


# ── Sentinels ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def sentinels(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server, its replica and a Sentinel over them; gives the URL and the first server's process."""
    with ExitStack() as stack:
        secret = ("--requirepass", PASSWORD, "--primaryauth", PASSWORD)
        first, process = stack.enter_context(server(folder / "first", *secret))
        stack.enter_context(server(folder / "second", *secret, "--replicaof", "127.0.0.1", str(first), "--repl-diskless-sync-delay", "0"))
        config = folder / "sentinel.conf"
        timing = f"sentinel down-after-milliseconds {NAME} 300\nsentinel failover-timeout {NAME} 2000\n"
        config.write_text(f"sentinel monitor {NAME} 127.0.0.1 {first} 1\nsentinel auth-pass {NAME} {PASSWORD}\n{timing}")
        port, _ = stack.enter_context(server(folder / "sentinel", str(config), "--sentinel"))
        with redisurl.client(f"redis://127.0.0.1:{port}") as asked:
            knows_replica = lambda: asked.execute_command("SENTINEL", "REPLICAS", NAME)  # noqa: E731
            wait_for(lambda: any("ok" in str(each) or "slave" in str(each) for each in knows_replica()), within_s=20)
        # The first Sentinel of the list is one that is down.
        yield f"redis+sentinel://:{QUOTED}@127.0.0.1:{free_port()},127.0.0.1:{port}/{NAME}", process


@pytest.mark.full
def test_after_a_failover_workers_are_woken_at_the_new_server(tmp_path: Path, settings: dict[str, str]) -> None:
    with sentinels(tmp_path) as (url, first):
        settings["REDIS_URL"] = url
        with support.fresh_box(settings) as box, running(box, settings, tmp_path / "service.log", "app", "worker"):
            assert box.bell.is_reachable()
            ended(box, box.accept())

            first.kill()
            first.wait()
            wait_for(box.bell.is_reachable, within_s=30)

            ended(box, box.accept())


def ended(box: TestBox, run_id: int) -> None:
    box.bell.wake_workers()
    wait_for(lambda: box.run(run_id)["status"] == "completed", within_s=30)


@pytest.mark.parametrize(
    ("rest", "login"),
    [
        ("a:1,b/main/3", {"db": 3}),
        (":p%40w@a/main", {"db": 0, "password": "p@w"}),
        ("u:p@a/main?ssl_ca_certs=/x", {"db": 0, "username": "u", "password": "p", "ssl_ca_certs": "/x"}),
    ],
    ids=["database", "password", "user and query"],
)
def test_the_parts_of_a_sentinel_url_are_told_apart(rest: str, login: dict[str, object]) -> None:
    pool = redisurl.client(f"redis+sentinel://{rest}").connection_pool

    assert login.items() <= pool.connection_kwargs.items()
    assert pool.service_name == "main"
