"""A server of models on loopback that speaks `/v1/chat/completions` and answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@dataclass(frozen=True)
class Reply:
    """One answer of the server: a status, a JSON body, headers; `after_s` is how long it takes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


def says(text: str | None, *, usage: Any = USAGE, finish_reason: str = "stop", **message: Any) -> Reply:
    """Give a completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    return Reply({"id": "c-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def chooses(outcome: str, answer: str = "because") -> Reply:
    return says(json.dumps({"answer": answer, "outcome": outcome}))


def refuses(status: int, message: str = "no", **headers: str) -> Reply:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "type": "error"}}, status, told)


@dataclass
class ModelServer:
    """What was asked, as (headers, JSON); the replies still to give, then what `otherwise` makes of a request."""

    base_url: str = ""
    replies: list[Reply] = field(default_factory=list)
    asked: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    otherwise: Callable[[Any], Reply] = lambda request: says("an answer")

    @property
    def messages(self) -> list[tuple[str, str]]:
        """The messages of the newest request."""
        return [(each["role"], each["content"]) for each in self.asked[-1][1]["messages"]]


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Give a server that listens until the end."""
    made = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append(({name.lower(): value for name, value in self.headers.items()}, request))
            known = self.path == "/v1/chat/completions"
            reply = (made.replies.pop(0) if made.replies else made.otherwise(request)) if known else refuses(404, "no such path")
            time.sleep(reply.after_s)
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    made.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
