"""A real HTTP receiver on loopback that keeps what arrives and answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Arrived:
    """One request: header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Inbox:
    """What arrived, and the (status, headers) still to be answered with; 204 when none is left.

    `on_request` is called with each request before it is answered.
    """

    base: str = ""
    arrived: list[Arrived] = field(default_factory=list)
    delay_s: float = 0.0
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    on_request: Callable[[Arrived], object] | None = None

    def url(self, path: str = "/done") -> str:
        return self.base + path


@contextmanager
def inbox() -> Iterator[Inbox]:
    """Give a receiver that listens until the end."""
    box = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            box.arrived.append(Arrived(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            if box.on_request:
                box.on_request(box.arrived[-1])
            time.sleep(box.delay_s)
            status, headers = box.answers.pop(0) if box.answers else (204, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if status != 204:
                self.wfile.write(b"answered by the inbox")

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    box.base = f"http://127.0.0.1:{server.server_port}"
    try:
        yield box
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
