"""A steady load on a running service: starts by both endpoints and looks at pages, at a rate; and the receiver of its callbacks."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

# One of so many calls is a look at a page or a list.
LOOK_EVERY = 10
LOOKS = (
    "/", "/live", "/runs", "/workflows", "/workflows/soak/runs", "/deliveries", "/api/v1/runs", "/api/v1/deliveries", "/api/v1/requests",
)  # fmt: skip
THREADS = 4
TIMEOUT_S = 20.0


class Receiver:
    """Takes callbacks and answers 204; keeps which runs told that they are completed, and what else came."""

    def __init__(self) -> None:
        self.completed: Counter[int] = Counter()
        self.others: Counter[str] = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        """Count one event."""
        event = json.loads(body)
        if event["type"] == "run.completed":
            self.completed[event["workflow_run_id"]] += 1
        else:
            self.others[event["type"]] += 1

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Load:
    """Calls at a rate by some threads. `starts` are what a run is started with: path, headers and body, in turn."""

    base: str
    starts: list[Mapping[str, Any]]
    headers: Mapping[str, str]
    session: str
    rate: float
    accepted: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    _taken_ms: list[float] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)
    _began: float = 0.0

    def start(self) -> None:
        """Begin to call."""
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End once the calls under way are answered."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def latencies(self) -> list[float]:
        """Give what each start since the last question took, in ms, shortest first."""
        taken, self._taken_ms = self._taken_ms, []
        return sorted(taken)

    def _call(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._stopping.is_set():
                number = next(self._numbers)
                if self._stopping.wait(max(0.0, self._began + number / self.rate - time.monotonic())):
                    return
                try:
                    self._look(session, number) if number % LOOK_EVERY == 0 else self._start(session, number)
                except requests.RequestException as fault:
                    self.faults[type(fault).__name__] += 1

    def _start(self, session: requests.Session, number: int) -> None:
        given = self.starts[number % len(self.starts)]
        headers = {**given["headers"], "Idempotency-Key": f"soak-{number}"} if number % 3 == 0 else given["headers"]
        began = time.perf_counter()
        answer = session.post(self.base + given["path"], json=given["body"], headers=headers, timeout=TIMEOUT_S)
        self._taken_ms.append((time.perf_counter() - began) * 1000)
        if answer.status_code == 201:
            self.accepted.append(answer.json()["workflow_run_id"])
        else:
            self.faults[f"{answer.status_code} of a start"] += 1

    def _look(self, session: requests.Session, number: int) -> None:
        path = LOOKS[number // LOOK_EVERY % len(LOOKS)]
        credential = {"headers": self.headers} if path.startswith("/api") else {"cookies": {"orqo_session": self.session}}
        answer = session.get(self.base + path, timeout=TIMEOUT_S, **credential)
        if answer.status_code != 200:
            self.faults[f"{answer.status_code} of {path}"] += 1
