"""The one guarded HTTP client, for callbacks and `http` stages.

Owns what may be sent where, for how long, and how much of the answer is kept. Redirects are never followed, proxies,
cookies and .netrc never used, compressed bodies never decoded. A failure is a value; nothing is tried twice once a byte is out.
"""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import certifi
import urllib3
from requests import PreparedRequest, Request, RequestException, Response
from requests.adapters import HTTPAdapter

from orqo.addresses import Network, address_allowed
from orqo.deadline import Ended, Exchange, PatientSocket, tls_context
from orqo.dial import Dialler, Names, Resolve
from orqo.outgoing import check_request, merged_headers, retry_after_s, shown_template, shown_url

__all__ = ["Answer", "Client", "Failure", "address_allowed", "retry_after_s", "shown_template", "shown_url"]

# urllib3 logs whole URLs with their query strings, at debug for each request and at warning for odd headers.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

IDLE_MAX_S = 1.0
AGE_MAX_S = 60.0
RECEIVERS_MAX = 64
IDLE_PER_RECEIVER = 16
READ_BYTES = 65536
HEADERS_MAX_BYTES = 8 * 2**20

# urllib3 has no argument that reaches a connection with each request; all of an exchange happens in its caller's thread.
CURRENT: ContextVar[Exchange] = ContextVar("exchange")


@dataclass(frozen=True)
class Answer:
    """What the receiver answered, whatever its status. Header names are in lower case; `body` is at most `max_bytes`, as received."""

    status: int
    headers: dict[str, str]
    body: bytes
    truncated: bool
    duration_ms: int


@dataclass(frozen=True)
class Failure:
    """Why there is no whole answer.

    `reason`: refused | timeout | dns | tls | address_refused | cut | malformed | cancelled | bad_url. `sent` is False only
    where certainly no byte of the request reached the receiver. `detail` holds a host and a port at most, never a URL.
    """

    reason: str
    detail: str
    duration_ms: int
    sent: bool


class Client:
    """Sends requests, from any number of threads, and keeps connections for reuse. Made after a fork, never before.

    `allowed_networks` is what guarded requests may reach besides public addresses. `ca_bundle` is a file or folder, else
    certifi's; OSError where it cannot be used. `resolve` looks names up as socket.getaddrinfo does, and is called with the
    host, the port and `type`.
    """

    def __init__(
        self,
        *,
        allowed_networks: Sequence[Network] = (),
        ca_bundle: str = "",
        user_agent: str = "orqo",
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        names, tls = Names(resolve), cache(lambda: tls_context(ca_bundle or certifi.where()))
        if ca_bundle:
            # Whoever named it learns of a fault at once; certifi's takes 3.5 MB, which many a process never needs.
            tls()
        self._user_agent = user_agent
        # Two pools: a connection that was opened unguarded is never there for a guarded request to reuse.
        self._guarded = _Adapter(Dialler(names, tls, tuple(allowed_networks)))
        self._open = _Adapter(Dialler(names, tls, None))

    def send(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        guarded: bool,
        timeout_s: float,
        max_bytes: int,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer | Failure:
        """Send one request and give the answer, of whatever status, or the failure; never raises for what a URL or receiver does.

        `timeout_s` covers everything from the look-up to the last byte of the body. `guarded` is for URLs that a request
        can influence. `cancelled` is asked at least every 0.25 s. A body over `max_bytes` is cut there.
        """
        exchange = Exchange(timeout_s=timeout_s, received_max_bytes=HEADERS_MAX_BYTES + 8 * max_bytes, cancelled=cancelled)
        adapter = self._guarded if guarded else self._open
        try:
            request = self._prepared(method, url, headers, body)
            return _exchanged(adapter, request, exchange, max_bytes)
        except Ended as end:
            return Failure(end.reason, end.detail, exchange.elapsed_ms, exchange.sent)

    def close(self) -> None:
        """Close the connections that are kept for reuse."""
        self._guarded.close()
        self._open.close()

    def _prepared(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PreparedRequest:
        check_request(method, url)
        defaults = {"User-Agent": self._user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        try:
            return Request(method, url, headers=merged_headers(defaults, headers), data=body).prepare()
        except (RequestException, urllib3.exceptions.HTTPError, ValueError) as fault:
            raise Ended("bad_url", f"the URL cannot be used ({type(fault).__name__})") from fault


def _exchanged(adapter: _Adapter, request: PreparedRequest, exchange: Exchange, max_bytes: int) -> Answer:
    """Send on a connection that is alive; Ended with what went wrong."""
    token = CURRENT.set(exchange)
    try:
        while True:
            try:
                return _answered(adapter.send(request, stream=True), exchange, max_bytes)
            except Ended as end:
                # A connection that died idle took no byte of the request: it is closed now, and the next one is tried.
                if end.reason != "cut" or exchange.sent or not exchange.reused:
                    raise
                exchange.reused = False
    except (RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as fault:
        raise _ended(fault, exchange) from fault
    finally:
        CURRENT.reset(token)


def _answered(response: Response, exchange: Exchange, max_bytes: int) -> Answer:
    raw = response.raw
    try:
        if exchange.at_end:
            # http.client takes the end of the stream for the end of the headers.
            raise Ended("cut", "the receiver closed the connection within its headers")
        if response.status_code < 200:
            raise Ended("malformed", f"the receiver answered with the interim status {response.status_code}")
        exchange.doing = "reading the answer"
        body = b"".join(_pieces(raw, max_bytes + 1))
        headers = {name.lower(): _printable(value) for name, value in response.headers.items()}
        return Answer(response.status_code, headers, body[:max_bytes], len(body) > max_bytes, exchange.elapsed_ms)
    finally:
        # A body that was read to its end has given its connection back by now; any other connection is of no more use.
        raw.close()


def _pieces(raw: Any, limit_bytes: int) -> Iterator[bytes]:
    while limit_bytes and (piece := raw.read(min(READ_BYTES, limit_bytes), decode_content=False)):
        limit_bytes -= len(piece)
        yield piece


def _printable(value: str) -> str:
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


def _ended(fault: Exception, exchange: Exchange) -> Ended:
    causes = list(_causes(fault))
    # http.client calls a chunk's size that is no number an incomplete read too: the receiver has closed only where the stream ended.
    if exchange.at_end and any(isinstance(cause, http.client.RemoteDisconnected | http.client.IncompleteRead) for cause in causes):
        return Ended("cut", "the receiver closed the connection before its answer was complete")
    return Ended("malformed", f"the answer is not HTTP that can be read ({type(causes[-1]).__name__})")


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__context__


class _Connection(urllib3.connection.HTTPConnection):
    """A connection that is opened by a Dialler and obeys the current exchange."""

    sock: PatientSocket | None

    def __init__(self, host: str, port: int, *, dialler: Dialler, **settings: Any) -> None:
        super().__init__(host, port, **settings)
        self.dialler = dialler
        self.dialled_host = host

    def connect(self) -> None:
        self.sock = self.dialler.dial(self.dialled_host, self.port, CURRENT.get())

    def request(self, *arguments: Any, **named: Any) -> None:
        exchange, sock = CURRENT.get(), self.sock
        if sock is not None and sock.exchange is not exchange:
            # Receivers close idle connections after some seconds, at worst just as a request is under way: then nobody
            # knows whether it was acted upon. An old one is closed too, so that a name's new address is found.
            if exchange.started - sock.touched_at > IDLE_MAX_S or exchange.started - sock.opened_at > AGE_MAX_S:
                self.close()
            else:
                sock.begin(exchange)
                exchange.reused = True
        super().request(*arguments, **named)


class _TlsConnection(_Connection, urllib3.connection.HTTPSConnection):
    """The same over TLS. The name in the certificate is the URL's, whatever address it was found at."""

    def connect(self) -> None:
        super().connect()
        assert self.sock is not None
        self.sock = self.dialler.secure(self.sock, self.host, CURRENT.get())
        self.is_verified = True


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """requests' transport without a session: there is nothing that could follow, remember or read the environment."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        super().__init__(pool_connections=RECEIVERS_MAX, pool_maxsize=IDLE_PER_RECEIVER, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **settings)
        pools: Any = {"http": partial(_Pool, dialler=self._dialler), "https": partial(_TlsPool, dialler=self._dialler)}
        self.poolmanager.pool_classes_by_scheme = pools

    def get_connection_with_tls_context(self, request: PreparedRequest, *_: Any, **__: Any) -> Any:
        return self.poolmanager.connection_from_url(str(request.url))

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Do nothing: the Dialler verifies, always."""
