"""Opening connections: look-up, address rule, connect, TLS, each within the exchange's deadline.

Owns the look-ups of names and the choice of the address. Never knows HTTP or why somebody connects.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, cast

from orqo.addresses import Network, address_allowed
from orqo.deadline import Ended, Exchange, PatientSocket, PatientTlsSocket, why

log = logging.getLogger(__name__)

LOOKUPS_MAX = 64
ADDRESSES_MAX = 8

Entry = tuple[Any, Any, int, str, Any]
Resolve = Callable[..., list[Entry]]


class Names:
    """Look-ups that can be given up: each runs in a daemon thread of its own, a bounded number at a time.

    getaddrinfo cannot be interrupted and takes 30 s where a name server is silent. Callers that ask for the same name
    share one look-up, so that one bad name holds one thread however many requests wait for it.
    """

    def __init__(self, resolve: Resolve = socket.getaddrinfo, *, at_most: int = LOOKUPS_MAX) -> None:
        self._resolve = resolve
        self._at_most = at_most
        self._free = threading.Condition()
        self._running: dict[tuple[str, int], Future[list[Entry]]] = {}

    def find(self, host: str, port: int, exchange: Exchange) -> list[Entry]:
        """Give what getaddrinfo gives; Ended `dns`, `timeout` or `cancelled`."""
        try:
            # Numbers, in every spelling that the system reads as an address, need no name server and no thread.
            return cast(list[Entry], socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        except (OSError, ValueError):
            running = self._shared(host, port, exchange)
        while not running.done():
            wait([running], exchange.wait_s())
        try:
            found = running.result()
        except (OSError, ValueError, TypeError) as fault:
            raise Ended("dns", f"the name {host} cannot be looked up: {why(fault)}") from fault
        if not found:
            raise Ended("dns", f"the name {host} has no address")
        return found

    def _shared(self, host: str, port: int, exchange: Exchange) -> Future[list[Entry]]:
        with self._free:
            while True:
                running = self._running.get((host, port))
                if running is None and len(self._running) < self._at_most:
                    running = self._begun(host, port)
                if running is not None:
                    return running
                self._wait_for_thread(exchange)

    def _begun(self, host: str, port: int) -> Future[list[Entry]]:
        running: Future[list[Entry]] = Future()
        try:
            threading.Thread(target=self._look_up, args=(host, port, running), name="look-up", daemon=True).start()
        except RuntimeError as fault:
            raise Ended("dns", f"the name {host} cannot be looked up: the system allows no further thread") from fault
        self._running[host, port] = running
        return running

    def _wait_for_thread(self, exchange: Exchange) -> None:
        """Wait until a look-up ends. That all of them hang is logged, and told as what it is: never a mere time-out."""
        try:
            self._free.wait(exchange.wait_s())
        except Ended as end:
            log.warning("look-ups of names exhausted lookups=%d", self._at_most)
            if end.reason != "timeout":
                raise
            raise Ended("dns", f"all {self._at_most} look-ups of names were waiting for name servers that do not answer") from end

    def _look_up(self, host: str, port: int, running: Future[list[Entry]]) -> None:
        try:
            found: list[Entry] | Exception = self._resolve(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError, TypeError) as fault:
            found = fault
        finally:
            # Before the result is set: whoever asks after that gets a look-up of its own, not this one's old answer.
            with self._free:
                del self._running[host, port]
                self._free.notify_all()
        if isinstance(found, Exception):
            running.set_exception(found)
        else:
            running.set_result(found)


class Dialler:
    """Opens connections to addresses that were judged; `allowed` None lets them go anywhere. `tls` is asked at each use of TLS.

    A name is looked up once, and the socket is given the address that was judged, never the name: an answer that
    changes between two look-ups (DNS rebinding) has no second look-up to change in.
    """

    def __init__(self, names: Names, tls: Callable[[], ssl.SSLContext], allowed: Sequence[Network] | None) -> None:
        self._names = names
        self._tls = tls
        self._allowed = allowed

    def dial(self, host: str, port: int, exchange: Exchange) -> PatientSocket:
        """Connect to `host`; Ended `dns`, `address_refused`, `refused`, `timeout` or `cancelled`."""
        exchange.doing = "looking up the name"
        entries = self._judged(host.strip("[]"), self._names.find(host.strip("[]"), port, exchange))[:ADDRESSES_MAX]
        exchange.doing = "connecting"
        faults: list[OSError] = []
        for left in range(len(entries), 0, -1):
            try:
                # An address that is silent leaves time for the ones after it.
                return _opened(entries[-left], exchange, until=time.monotonic() + exchange.left_s / left)
            except OSError as fault:
                faults.append(fault)
        raise Ended("refused", f"{host}:{port} cannot be reached: {why(faults[-1])}")

    def secure(self, sock: PatientSocket, host: str, exchange: Exchange) -> PatientTlsSocket:
        """Put TLS on `sock` and verify that the certificate is `host`'s; Ended `tls`, `timeout` or `cancelled`, the socket closed."""
        exchange.doing = "agreeing on TLS"
        secured: socket.socket = sock
        try:
            name = host.strip("[]").partition("%")[0]
            secured = self._tls().wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            patient = cast(PatientTlsSocket, secured)
            patient.begin(exchange)
            patient.opened_at = sock.opened_at
            patient.do_handshake()
        except (OSError, ValueError) as fault:
            secured.close()
            raise Ended("tls", f"no trusted TLS connection to {host}: {why(fault)}") from fault
        except Ended:
            secured.close()
            raise
        return patient

    def _judged(self, host: str, entries: list[Entry]) -> list[Entry]:
        if self._allowed is None:
            return entries
        allowed = [entry for entry in entries if address_allowed(str(entry[4][0]), self._allowed)]
        if not allowed:
            address = str(entries[0][4][0])
            which = address if host == address else f"{host} is {address}, which"
            raise Ended("address_refused", f"{which} is not a public address; ORQO_ALLOWED_NETWORKS opens networks to such URLs")
        return allowed


def _opened(entry: Entry, exchange: Exchange, *, until: float) -> PatientSocket:
    """Connect to one address until the monotonic time `until`; OSError where it cannot be reached."""
    family, kind, protocol, _, address = entry
    sock = PatientSocket(family, kind, protocol)
    try:
        sock.begin(exchange)
        sock.opened_at = exchange.started
        sock.setblocking(False)
        _connect(sock, address, exchange, until)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, Ended):
        sock.close()
        raise
    return sock


def _connect(sock: PatientSocket, address: Any, exchange: Exchange, until: float) -> None:
    code = sock.connect_ex(address)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        left_s = min(exchange.wait_s(), until - time.monotonic())
        if left_s <= 0:
            code = errno.ETIMEDOUT
        elif poll.poll(max(1, int(left_s * 1000))):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
