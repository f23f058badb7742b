"""One exchange's clock, and sockets that obey it.

Owns the total deadline, the poll for cancellation and the limit of bytes, checked before each wait for the network.
Never knows names, addresses or HTTP. What goes wrong is raised as `Ended`, which outbound.py turns into a value.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

POLL_S = 0.15
WAIT_MAX_S = 60.0
TLS_RECORD_BYTES = 16384
UNKNOWN_ISSUER = (18, 19, 20, 21)  # OpenSSL's X509_V_ERR_*: self-signed, or signed by nobody that is trusted


class Ended(Exception):
    """The exchange is over without an answer; `reason` is one of outbound.Failure's, `detail` a sentence without secrets."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Exchange:
    """One request and its answer: how long it may still take, whether it was called off, and how far it came.

    `sent` turns true once a byte of the request may have reached the receiver, `at_end` once the receiver has closed,
    `reused` where the connection had carried another exchange before.
    """

    def __init__(self, *, timeout_s: float, received_max_bytes: int, cancelled: Callable[[], bool] | None = None) -> None:
        self.started = time.monotonic()
        self.timeout_s = timeout_s
        self.doing = "beginning"
        self.sent = False
        self.reused = False
        self.at_end = False
        self._left_bytes = received_max_bytes
        self._cancelled = cancelled
        self._poll_at = self.started

    @property
    def left_s(self) -> float:
        """The seconds until the deadline; negative after it."""
        return self.started + self.timeout_s - time.monotonic()

    @property
    def elapsed_ms(self) -> int:
        """The milliseconds since the exchange began."""
        return round((time.monotonic() - self.started) * 1000)

    def wait_s(self) -> float:
        """Give how long the network may be waited for before asking again; Ended when time is up or the caller has had enough."""
        left_s = self.left_s
        if left_s <= 0:
            raise Ended("timeout", f"not done within {self.timeout_s:g} s, still {self.doing}")
        if self._cancelled is None:
            return min(left_s, WAIT_MAX_S)
        now = time.monotonic()
        if now >= self._poll_at:
            self._poll_at = now + POLL_S
            if self._cancelled():
                raise Ended("cancelled", f"called off while {self.doing}")
        return min(left_s, self._poll_at - now)

    def received(self, count: int) -> None:
        """Count bytes from the receiver; Ended when it sends more than any answer of the allowed size can need."""
        self.at_end = self.at_end or count == 0
        self._left_bytes -= count
        if self._left_bytes < 0:
            # http.client reads a chunk of size "-1", and trailers without end, for as long as there is something to read.
            raise Ended("malformed", "the answer's framing takes far more bytes than its body may have")


class PatientSocket(socket.socket):
    """A socket whose every send and receive ends when its exchange does, however slowly the other side drips.

    Python's own socket timeout starts again with each byte: 2 s held 12 s against a receiver that dripped its headers.
    """

    exchange: Exchange
    opened_at: float
    touched_at: float

    def begin(self, exchange: Exchange) -> None:
        """Obey `exchange` from now on."""
        self.exchange = exchange
        self.touched_at = exchange.started

    def patiently(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Try `operation` until it is done or the exchange is over."""
        while True:
            self.settimeout(self.exchange.wait_s())
            try:
                return operation(*arguments)
            except TimeoutError:
                continue

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything; Ended `cut` where the connection is gone.

        The one OSError that comes out says that the receiver has closed midway: it may have answered before it did.
        """
        self.exchange.doing = "sending the request"
        view = memoryview(data).cast("B")
        while view:
            # One TLS record at most: a receiver cannot read a record that came in part, so that a failure in the first
            # one is certain not to have delivered anything.
            piece = view[:TLS_RECORD_BYTES]
            try:
                view = view[self.patiently(super().send, piece) :]
            except OSError as fault:
                if self.exchange.sent and isinstance(fault, BrokenPipeError | ConnectionResetError):
                    raise
                raise Ended("cut", f"the connection broke while {self.exchange.doing}: {why(fault)}") from fault
            self.exchange.sent = True
        self.exchange.doing = "waiting for the answer"

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive what there is; Ended `cut` or `tls` where the connection breaks, `malformed` where it never stops."""
        try:
            count = int(self.patiently(super().recv_into, buffer, nbytes or len(buffer)))
        except OSError as fault:
            reason = "tls" if isinstance(fault, ssl.SSLError) else "cut"
            raise Ended(reason, f"the connection broke while {self.exchange.doing}: {why(fault)}") from fault
        self.touched_at = time.monotonic()
        self.exchange.received(count)
        return count


class PatientTlsSocket(PatientSocket, ssl.SSLSocket):
    """The same over TLS."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands within the exchange's time."""
        self.patiently(super().do_handshake)


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Give a context that verifies certificates and names by the file or folder `ca_bundle`; OSError where it cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = PatientTlsSocket
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(ca_bundle) else "cafile": ca_bundle})
    except OSError as fault:
        raise OSError(f"ORQO_CA_BUNDLE: {ca_bundle} holds no certificates that can be read: {why(fault)}") from fault
    return context


def why(fault: BaseException | None) -> str:
    """Give the system's own words for a fault: messages of libraries hold whole URLs, these do not."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        hint = " (ORQO_CA_BUNDLE names a file of certificates to trust instead)" if fault.verify_code in UNKNOWN_ISSUER else ""
        return f"{fault.verify_message.rstrip('.')}{hint}"
    if isinstance(fault, ssl.SSLError):
        return (fault.reason or "the other side closed").replace("_", " ").lower()
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return type(fault).__name__
