"""Receivers of callbacks and http stages: they answer, refuse, hang, drip, cut and vanish, and keep what arrived.

One thread a connection on bare sockets: what a receiver does wrong is decided here byte by byte.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.answering import Answerer, Model

OK, NO = b"HTTP/1.1 204 No Content\r\n\r\n", b"Content-Length: 0\r\n\r\n"
ANSWERS = {
    "500": b"HTTP/1.1 500 Oh\r\n" + NO,
    "429": b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\n" + NO,
    "302": b"HTTP/1.1 302 There\r\nLocation: http://127.0.0.1:9/\r\n" + NO,
    "410": b"HTTP/1.1 410 Gone\r\n" + NO,
}
MOODS = ("ok",) * 12 + ("500", "500", "429", "302", "hang", "drip", "cut", "cut")
HANG_S = 2.0


@dataclass(frozen=True)
class Arrival:
    """One callback that was read whole. `acknowledged` tells whether 2xx was written; `state` is what the file said then."""

    path: str
    at: float
    webhook_id: str
    headers: dict[str, str]
    body: bytes
    acknowledged: bool
    state: str | None

    @property
    def event(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receivers:
    """Three receivers: `steady` always answers 204, `moody` as its mood is, `vanishing` listens now and then."""

    seed: int
    state_of: Callable[[int], str | None]
    answerer: Answerer
    model: Model
    arrivals: list[Arrival] = field(default_factory=list)
    effects: list[tuple[str, str, float]] = field(default_factory=list)
    healed: bool = False
    _ports: dict[str, int] = field(default_factory=dict)
    _sockets: dict[str, socket.socket] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _closed: bool = False

    def open(self) -> dict[str, str]:
        """Start all and give their addresses."""
        for name in ("steady", "moody", "vanishing"):
            self.appear(name)
        return {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}

    def appear(self, name: str) -> None:
        """Listen, on the same port as before."""
        listening = socket.create_server(("127.0.0.1", self._ports.get(name, 0)), backlog=256)
        self._ports[name], self._sockets[name] = listening.getsockname()[1], listening
        threading.Thread(target=self._accept, args=(name, listening), daemon=True).start()

    def vanish(self, name: str) -> None:
        """Listen no more: connections are refused."""
        with contextlib.suppress(OSError):
            self._sockets[name].shutdown(socket.SHUT_RDWR)
        self._sockets[name].close()

    def _accept(self, name: str, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(name, connection), daemon=True).start()

    def _serve(self, name: str, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            connection.settimeout(20)
            while True:
                request = _read(connection)
                if request is None:
                    return
                self._answer(name, connection, *request)

    def _answer(self, name: str, connection: socket.socket, path: str, headers: dict[str, str], body: bytes) -> None:
        if path.startswith("/effect/"):
            _, _, run, stage = path.split("/")
            self.effects.append((run, stage, time.time()))
            connection.sendall(OK)
            return
        if path in ("/ask", "/v1/chat/completions"):
            connection.sendall(self.answerer.asked(body) if path == "/ask" else self.model.answer(body))
            return
        mood = self._mood(name, path, headers["webhook-id"])
        run_id = int(json.loads(body)["workflow_run_id"])
        arrival = Arrival(path, time.time(), headers["webhook-id"], headers, body, mood in ("ok", "cut-late"), self.state_of(run_id))
        self.arrivals.append(arrival)
        self.answerer.told(arrival.event)
        _play(mood, connection)

    def _mood(self, name: str, path: str, webhook_id: str) -> str:
        """Decide how this attempt is answered: by the seed, the delivery's place in the run and the number of the attempt."""
        if path.endswith("/gone"):
            return "410"
        number = self._attempts[webhook_id] = self._attempts.get(webhook_id, 0) + 1
        if name != "moody" or self.healed:
            return "ok"
        return random.Random(f"{self.seed} {len(self.arrivals)} {number}").choice(MOODS)


def _read(connection: socket.socket) -> tuple[str, dict[str, str], bytes] | None:
    """Read one request; None where the sender closed first."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        more = connection.recv(65536)
        if not more:
            return None
        body += more
    return lines[0].split(" ")[1], headers, body


def _play(mood: str, connection: socket.socket) -> None:
    if mood == "ok":
        connection.sendall(OK)
    elif mood in ANSWERS:
        connection.sendall(ANSWERS[mood])
    elif mood == "hang":
        time.sleep(HANG_S)
        raise OSError
    elif mood == "drip":
        for byte in b"HTTP/1.1 200 OK\r\nX-Drip: ":
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        raise OSError
    else:
        raise OSError
