"""A link: what one machine reaches a server through, and what can be cut like a cable.

Knows bytes alone. One thread moves them; whoever uses a link says from outside how it is.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

LOOK_S = 0.02
# A peer that takes nothing for so long is gone: the others of this link do not wait for it.
STUCK_S = 5.0
Connect = Callable[[], socket.socket]


class State(Enum):
    """How a link is: bytes pass; connections end and none is taken; or all seems well and nothing passes."""

    WHOLE = "whole"
    CLOSED = "closed"
    SILENT = "silent"


@dataclass
class Link:
    """Listens on a port of loopback and passes on to the first of its `targets` that takes a connection, in turn."""

    targets: Sequence[Connect]
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=256))
    _state: State = State.WHOLE
    _turn: int = 0
    _peers: dict[socket.socket, socket.socket] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._selector.register(self.listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def be(self, state: State) -> None:
        """Be whole or cut from now on. What came while it was silent passes when it is whole again, late as it is."""
        self._state = state

    def close(self) -> None:
        """End all connections and the listening."""
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._over.is_set():
            if self._state is State.SILENT:
                time.sleep(LOOK_S)
                continue
            if self._state is State.CLOSED:
                self._end_all()
            for key, _ in self._selector.select(LOOK_S):
                if key.fileobj is self.listening:
                    self._accept()
                elif key.fileobj in self._peers:
                    self._pass_on(key.fileobj)
        self._end_all()
        self._selector.close()
        self.listening.close()

    def _accept(self) -> None:
        near, _ = self.listening.accept()
        far = self._connected() if self._state is State.WHOLE else None
        if far is None:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.settimeout(STUCK_S)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connected(self) -> socket.socket | None:
        for _ in self.targets:
            self._turn += 1
            with contextlib.suppress(OSError):
                return self.targets[self._turn % len(self.targets)]()
        return None

    def _pass_on(self, one: socket.socket) -> None:
        try:
            data = one.recv(65536)
            self._peers[one].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._end(one)

    def _end(self, one: socket.socket) -> None:
        for each in (one, self._peers.pop(one)):
            self._peers.pop(each, None)
            self._selector.unregister(each)
            each.close()

    def _end_all(self) -> None:
        while self._peers:
            self._end(next(iter(self._peers)))


def to_unix(path: str) -> Connect:
    """Give what connects to a socket's path."""

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.settimeout(STUCK_S)
            made.connect(path)
        except OSError:
            made.close()
            raise
        return made

    return connect


def to_port(port: int) -> Connect:
    """Give what connects to a port of loopback."""
    return lambda: socket.create_connection(("127.0.0.1", port), timeout=STUCK_S)
