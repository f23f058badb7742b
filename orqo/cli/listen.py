"""`listen [PORT]`: a receiver for development that prints and verifies each callback, and answers what it is told to.

Owns nothing of the box; of it only the key is read, which default signing secrets derive from.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orqo import signing
from orqo.cli import output
from orqo.cli.arguments import Refused, declare

BODY_MAX_BYTES = 16 * 2**20
DEFAULT_PORT = 8025


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the command."""
    declare(parser, _listen)
    parser.add_argument("port", nargs="?", type=_port, default=DEFAULT_PORT, metavar="PORT", help=f"on loopback (default: {DEFAULT_PORT})")
    parser.add_argument("--status", type=_status, default=204, metavar="N", help="answer each callback with this status (default: 204)")
    parser.add_argument("--secret", metavar="whsec_…", help="verify with this secret instead of the one that this box derives from the URL")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError("write a port from 0 to 65535; 0 takes a free one")
    return int(text)


def _status(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 200 <= int(text[:4]) <= 599:
        raise argparse.ArgumentTypeError("write a status from 200 to 599")
    return int(text)


def _listen(arguments: argparse.Namespace) -> int:
    secret_of = (lambda url: arguments.secret) if arguments.secret else _derived()
    server = _bound(arguments.port)
    with server:
        server.RequestHandlerClass = _handler(arguments, secret_of)
        base = f"http://127.0.0.1:{server.server_port}"
        output.note(f"listening on {base}; point a callback at it, as {base}/done. Ctrl-C ends.")
        server.serve_forever()
    return 0


def _bound(port: int) -> ThreadingHTTPServer:
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler)
    except OSError as fault:
        raise Refused(f"orqo: port {port} of 127.0.0.1 cannot be listened on: {fault.strerror}. Choose another: listen PORT") from fault


def _derived() -> Callable[[str], str]:
    """Give how this box derives a URL's secret."""
    from orqo.cli.opening import opened

    with opened() as box:
        key = box.key
    return lambda url: signing.derived_secret(key, url)


def _handler(arguments: argparse.Namespace, secret_of: Callable[[str], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit() or int(length) > BODY_MAX_BYTES:
                self.close_connection = True
                self.send_error(413)
                return
            body = self.rfile.read(int(length))
            told = _told(secret_of, {name.lower(): value for name, value in self.headers.items()}, self.path, body)
            (output.as_json_line if arguments.json else _print)(told)
            self.send_response(arguments.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing: what arrived is printed."""

    return Handler


def _told(secret_of: Callable[[str], str], headers: dict[str, str], path: str, body: bytes) -> dict[str, Any]:
    """Give what arrived and whether it is what this box would have signed for this URL."""
    url = f"http://{headers.get('host', '')}{path}"
    try:
        signing.verify_standard([signing.secret_bytes(secret_of(url))], headers, body, now=int(time.time()))
        verified, reason = True, None
    except signing.SignatureInvalid as fault:
        verified, reason = False, str(fault)
    try:
        event: Any = json.loads(body)
    except ValueError:
        event = body.decode("utf-8", errors="replace")
    return {"webhook_id": headers.get("webhook-id"), "url": url, "verified": verified, "reason": reason, "body": event}


def _print(told: dict[str, Any]) -> None:
    event = told["body"] if isinstance(told["body"], dict) else {}
    verdict = "verified" if told["verified"] else f"NOT VERIFIED: {told['reason']}"
    words = (event.get("type", "-"), f"run {event.get('workflow_run_id', '-')}", event.get("status", "-"), told["webhook_id"], verdict)
    output.say("  ".join(str(word) for word in words))
    for line in json.dumps(told["body"], ensure_ascii=False, indent=2).splitlines():
        output.say(f"    {line}")
