"""What tests of the API share: raw requests, and what every problem must look like."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from support import Service, TestBox

KEYS = ("type", "title", "status", "detail", "error")


@dataclass(frozen=True)
class Answer:
    """An answer as it came off the wire; `status` 0: the connection was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def raw(service: Service, data: bytes, *, end: bool = False, timeout_s: float = 15) -> Answer:
    """Send bytes on a fresh connection and read the answer to its end; `end` closes our half after them."""
    with socket.create_connection(("127.0.0.1", int(service.env["ORQO_PORT"])), timeout=timeout_s) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return read(connection)


def read(connection: socket.socket) -> Answer:
    """Read one answer by its Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return Answer(0, {}, data)
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return Answer(int(lines[0].split()[1]), headers, body)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Give the bytes of a request; in header names `_` stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body and "Content_Length" not in headers and "Transfer_Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def check_problem(answer: Answer, status: int) -> dict[str, Any]:
    """Assert that an answer is the problem of this status, whole; gives it."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json
    assert tuple(problem)[:5] == KEYS
    assert (problem["status"], problem["error"]) == (status, problem["detail"])
    assert problem["detail"].strip()
    assert problem["type"].startswith("urn:orqo:problem:")
    return problem


def runs_of(box: TestBox) -> int:
    """Count the runs."""
    return int(box.rows("SELECT count(*) AS n FROM runs")[0]["n"])
