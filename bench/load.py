"""The load: `python -m bench.load PORT [--connections 16] [--seconds 5] [--rate R] [--good 201] [--close]`, a process of its own.

Reads a JSON object `{"path", "headers", "body"}` from stdin, POSTs it over and over on kept-alive connections and prints a
JSON object: how many were answered as wanted, and a second; the statuses; the latencies in milliseconds. One epoll loop on raw sockets:
it sends some 30,000 requests a second, far more than what it measures. With a rate it sends so many a second at most.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class _Connection:
    """One connection with at most one request under way."""

    def __init__(self, port: int, *, closes: bool) -> None:
        self.address, self.closes = ("127.0.0.1", port), closes
        self.received, self.sent_at = b"", 0.0
        self.open()

    def open(self) -> None:
        self.socket = socket.create_connection(self.address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self.received, self.sent_at = b"", time.perf_counter()
        self.socket.sendall(request)

    def status(self) -> int | None:
        """Read what is there; give the status once the answer is whole."""
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError("the server closed a connection within an answer")
        self.received += part
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        found = LENGTH.search(self.received, 0, end)
        if not found or len(self.received) < end + 4 + int(found[1]):
            return None
        return int(self.received[9:12])


class _Load:
    """A closed loop over some connections, held to a rate where there is one."""

    def __init__(self, request: bytes, options: argparse.Namespace) -> None:
        self.request, self.rate, self.seconds, self.good = request, options.rate, options.seconds, options.good
        self.connections = [_Connection(options.port, closes=options.close) for _ in range(options.connections)]
        self.poll = select.epoll()
        self.by_descriptor: dict[int, _Connection] = {}
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.sent = 0

    def run(self) -> dict[str, Any]:
        for connection in self.connections:
            self._register(connection)
        self.began = time.perf_counter()
        idle, busy = list(self.connections), 0
        while True:
            elapsed = time.perf_counter() - self.began
            over = elapsed >= self.seconds
            while idle and not over and (not self.rate or self.sent < elapsed * self.rate):
                idle.pop().send(self.request)
                self.sent, busy = self.sent + 1, busy + 1
            if over and not busy:
                return self._told(elapsed)
            for descriptor, _ in self.poll.poll(0.0005 if self.rate and idle else 1.0):
                done = self._answered(self.by_descriptor[descriptor])
                if done is not None:
                    idle.append(done)
                    busy -= 1

    def _register(self, connection: _Connection) -> None:
        self.poll.register(connection.socket, select.EPOLLIN)
        self.by_descriptor[connection.socket.fileno()] = connection

    def _answered(self, connection: _Connection) -> _Connection | None:
        status = connection.status()
        if status is None:
            return None
        self.latencies.append((time.perf_counter() - connection.sent_at) * 1000)
        self.statuses[status] += 1
        if connection.closes:
            self.poll.unregister(connection.socket)
            connection.socket.close()
            connection.open()
            self._register(connection)
        return connection

    def _told(self, elapsed: float) -> dict[str, Any]:
        taken = sorted(self.latencies)
        count, good = len(taken), self.statuses[self.good]
        at = {"p50": count // 2, "p95": int(count * 0.95), "p99": int(count * 0.99), "max": count - 1}
        return {"per_s": good / elapsed, "count": good, "statuses": self.statuses, **{name: taken[index] for name, index in at.items()}}


def request_bytes(given: dict[str, Any], *, closes: bool = False) -> bytes:
    """Give the bytes of a POST."""
    body = json.dumps(given["body"]).encode()
    headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **given.get("headers", {})}
    if closes:
        headers["Connection"] = "close"
    lines = [f"POST {given['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def main(arguments: list[str]) -> int:
    """Send, and print what came back."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--good", type=int, default=201, help="the status that counts")
    parser.add_argument("--close", action="store_true")
    options = parser.parse_args(arguments)
    print(json.dumps(_Load(request_bytes(json.load(sys.stdin), closes=options.close), options).run()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
