"""The files of deploy/ with the programs that they are for, on loopback; skipped, visibly, where such a program is not installed."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from orqo.config import PROJECT_DIR
from support import Service, TestBox, free_port, running, wait_for

DEPLOY = PROJECT_DIR / "deploy"


def nginx(folder: Path, port: int, upstream: str) -> list[str]:
    """Write the site with this test's ports and certificate, and give the command."""
    site = (DEPLOY / "nginx.conf").read_text().replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace("127.0.0.1:8000", upstream)
    site = site.replace("    listen [::]:443 ssl;\n", "").replace("/etc/letsencrypt/live/orqo.example.com", str(folder))
    main = f"events {{}}\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nhttp {{\n{site}}}\n"
    (folder / "nginx.conf").write_text(main)
    return ["nginx", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, upstream: str) -> list[str]:
    """Write the site with this test's ports and certificate, and give the command."""
    tls = f"\ttls {folder}/fullchain.pem {folder}/privkey.pem\n\tbind 127.0.0.1\n"
    site = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8000", upstream)
    site = site.replace("orqo.example.com {\n", f"https://orqo.example.com:{port} {{\n{tls}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + site)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(params=[pytest.param(program, marks=pytest.mark.full, id=program.__name__) for program in (nginx, caddy)])
def proxied(request: pytest.FixtureRequest, box: TestBox, settings: dict[str, str], tmp_path: Path) -> Iterator[tuple[Service, int]]:
    """The web process behind a proxy that has our file: the service, and the proxy's port."""
    program = request.param.__name__
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=orqo.example.com -keyout privkey.pem -out fullchain.pem"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, capture_output=True, check=True)
    settings["ORQO_TRUSTED_PROXIES"] = "127.0.0.1/32"
    port = free_port()
    with running(box, settings, tmp_path / "log", "app") as service, (tmp_path / "proxy.log").open("wb") as log:
        argv = request.param(tmp_path, port, f"127.0.0.1:{settings['ORQO_PORT']}")
        process = subprocess.Popen(argv, env={"HOME": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, stdout=log, stderr=log)
        try:
            wait_for(lambda: listens(port), within_s=20, what=(tmp_path / "proxy.log").read_text())
            yield service, port
        finally:
            process.terminate()
            process.wait(timeout=20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname="orqo.example.com")


def ask(port: int, path: str, body: bytes, *headers: str) -> tuple[int, bytes]:
    """POST once and give the status and the answer's body."""
    with connect(port) as made:
        made.sendall(head(path, len(body), *headers) + body)
        answer = b""
        while part := made.recv(65536):
            answer += part
    status, _, body = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), body


def head(path: str, length: int, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: orqo.example.com", "Connection: close", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def test_a_request_passes_whole_and_its_sender_is_the_one_that_the_proxy_saw(proxied: tuple[Service, int]) -> None:
    service, port = proxied
    body = json.dumps({"text": "x" * 900_000}).encode()

    status, _ = ask(port, service.box.hook(), body, "X-Forwarded-For: 203.0.113.9")

    assert status == 201
    run = service.box.run(1)
    assert len(run["input"]["text"]) == 900_000
    assert service.box.rows("SELECT remote FROM requests") == [{"remote": "127.0.0.1"}]


def test_a_body_over_the_limit_is_413(proxied: tuple[Service, int]) -> None:
    service, port = proxied

    assert ask(port, service.box.hook(), b'"' + b"x" * 1_200_000 + b'"')[0] == 413


def test_a_slow_body_is_read_by_the_proxy(proxied: tuple[Service, int]) -> None:
    service, port = proxied
    body = b'{"slow": true}'
    with connect(port) as slow:
        slow.sendall(head(service.box.hook(), len(body)) + body[:5])
        # The service itself has not heard of it: no connection of the proxy's lies open there.
        time.sleep(0.5)
        assert established(int(service.env["ORQO_PORT"])) == 0
        assert requests.get(service.url + "/healthz", timeout=5).status_code == 200
        slow.sendall(body[5:])
        assert b" 201 " in slow.recv(65536).splitlines()[0]


def established(port: int) -> int:
    """Count the connections to a port of loopback."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[2] == f"0100007F:{port:04X}" and fields[3] == "01" for fields in lines)


def test_a_long_answer_is_waited_for(proxied: tuple[Service, int]) -> None:
    service, port = proxied
    token = service.box.token("trigger", "read")
    body = b'{"workflow": "hello"}'

    # Nobody works here, so the answer comes when the patience is over.
    status, answer = ask(port, "/api/v1/trigger", body, f"Authorization: Bearer {token}", "Prefer: wait=3")

    assert status == 201
    assert json.loads(answer)["workflow_run_id"] == 1


def test_the_unit_is_what_systemd_understands() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")

    done = subprocess.run(["systemd-analyze", "verify", DEPLOY / "orqo.service"], capture_output=True, text=True, check=False)

    # That our program does not lie in /opt here is all that it finds.
    found = [line for line in done.stderr.splitlines() if "orqo.service" in line and "is not executable" not in line]
    assert found == []
