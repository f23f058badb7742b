"""Opens the sockets that the web server listens on, or says in one sentence why that cannot be.

Owns the binding of host and port. Never accepts a connection.
"""

from __future__ import annotations

import errno
import socket

BACKLOG = 1024
HINTS = {
    errno.EADDRINUSE: "stop what listens there, or set ORQO_PORT",
    errno.EACCES: "set ORQO_PORT to 1024 or above",
    errno.EADDRNOTAVAIL: "set ORQO_HOST to an address of this machine",
}


class CannotListen(Exception):
    """The address cannot be listened on; the text is one sentence for whoever starts the service."""


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of `host`, all or none; CannotListen says which one is taken and what to set."""
    opened: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            opened.append(_listen(family, address))
    except OSError as fault:
        for one in opened:
            one.close()
        hint = HINTS.get(fault.errno or 0, "set ORQO_HOST and ORQO_PORT")
        # getaddrinfo and bind both put their sentence into strerror.
        raise CannotListen(f"Cannot listen on {host} port {port}: {fault.strerror}: {hint}.") from fault
    return opened


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str | int, ...]]]:
    # Python types an address of an unknown family as bytes; TCP over IPv4 and IPv6 has none of those.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))  # type: ignore[arg-type]


def _listen(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart fails for a minute because of connections that are still closing.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one
