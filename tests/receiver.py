"""Receivers on loopback that misbehave as they are told to, and what tests say about an exchange with one."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orqo.outbound import Answer, Client, Failure

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REASONS = {"refused", "timeout", "dns", "tls", "address_refused", "cut", "malformed", "cancelled", "bad_url"}


class Receiver:
    """A server on loopback that plays what it is given on each connection, and keeps what it read."""

    def __init__(self, play: Callable[[socket.socket, Receiver], None], context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.closing = threading.Event()
        self._play = play
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/", *, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def read_request(self, sock: socket.socket) -> bool:
        """Read one request with its body; False where the client has closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            body += sock.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return True

    def close(self) -> None:
        if self.closing.is_set():
            return
        self.closing.set()
        # Only a shutdown wakes the thread that accepts; a close alone leaves it, and the port, behind.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._play(sock, self)
        except OSError:
            pass  # The client has had enough.
        finally:
            sock.close()


Play = Callable[[socket.socket, Receiver], None]
Serve = Callable[..., Receiver]


def answers(*answer: bytes) -> Play:
    """Answer one request with these pieces, then close."""

    def play(sock: socket.socket, receiver: Receiver) -> None:
        receiver.read_request(sock)
        for piece in answer:
            sock.sendall(piece)

    return play


def keeps_alive(sock: socket.socket, receiver: Receiver) -> None:
    """Answer every request on the connection."""
    while receiver.read_request(sock):
        sock.sendall(OK)


def drips(start: bytes, piece: bytes, pause_s: float = 0.05, *, reads: bool = True) -> Play:
    """Answer with `start`, then with `piece` again and again."""

    def play(sock: socket.socket, receiver: Receiver) -> None:
        if reads:
            receiver.read_request(sock)
        sock.sendall(start)
        while not receiver.closing.wait(pause_s):
            sock.sendall(piece)

    return play


def hangs(sock: socket.socket, receiver: Receiver) -> None:
    receiver.read_request(sock)
    receiver.closing.wait(20)


def reset(sock: socket.socket) -> None:
    """Close so that the other side gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


@contextmanager
def receivers() -> Iterator[Serve]:
    """Give a function that starts a receiver; all of them are closed at the end."""
    made: list[Receiver] = []

    def start(play: Any, context: ssl.SSLContext | None = None) -> Receiver:
        made.append(Receiver(play, context))
        return made[-1]

    yield start
    for receiver in made:
        receiver.close()


def send(client: Client, url: str, **changes: Any) -> Answer | Failure:
    arguments: dict[str, Any] = {
        "method": "POST",
        "url": url,
        "headers": {"Content-Type": "application/json"},
        "body": b'{"a": 1}',
        "guarded": True,
        "timeout_s": 3,
        "max_bytes": 1000,
    }
    return client.send(**(arguments | changes))


def failed(answer: Answer | Failure) -> Failure:
    assert isinstance(answer, Failure), answer
    assert answer.reason in REASONS
    return answer


def answered(answer: Answer | Failure) -> Answer:
    assert isinstance(answer, Answer), answer
    return answer
