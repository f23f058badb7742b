"""The HTTP server: waitress, made to drain on SIGTERM and to tell its own errors as problem+json.

Owns sockets, threads and limits on bytes. Never knows a route, and never lets a path reach a log: paths hold tokens.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, WSGITask

from orqo import errors, listening
from orqo.config import Config

DRAIN_S = 10.0
# A connection this young may carry a request that has not arrived yet.
QUIET_S = 0.25
LOOK_S, IDLE_LOOK_S = 1.0, 30.0
CONNECTION_LIMIT = 1000
HEADERS_MAX_BYTES = 32768
# Above the application's own limit, so that it is the application that answers the usual "too large", after its token check.
BODY_SLACK_BYTES = 65536
REASONS = {400: "Bad Request", 413: "Content Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error"}

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
log = logging.getLogger("orqo.web")


def serve(app: WSGIApplication, config: Config, sockets: list[socket.socket] | None = None) -> int:
    """Listen and answer until SIGTERM or SIGINT, then answer what is in flight, for ten seconds at most; give the exit status.

    The environ of each request has `orqo.draining`, a function that says whether the server is going away:
    whoever waits on a client's behalf asks it. Without `sockets` that listen already it opens its own; a taken port ends the
    process with one line.
    """
    try:
        sockets = sockets or listening.open_sockets(config.host, config.port)
    except listening.CannotListen as fault:
        print(f"orqo: {fault}", file=sys.stderr, flush=True)
        return 1
    server = Server(app, sockets, threads=config.threads, body_max_bytes=config.body_max_bytes)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log.info("listening host=%s port=%d pid=%d", config.host, config.port, os.getpid())
    server.run()
    return 0


class Server:
    """One waitress on given sockets, with our limits; `run` blocks, `stop` may come from a signal handler or a thread."""

    def __init__(self, app: WSGIApplication, sockets: list[socket.socket], *, threads: int, body_max_bytes: int) -> None:
        _quieten_waitress()
        _allow_open_files(2 * CONNECTION_LIMIT)
        self.draining = threading.Event()
        self._map: dict[int, Any] = {}
        create_server(
            _with_draining(app, self.draining.is_set),
            map=self._map,
            sockets=sockets,
            threads=threads,
            connection_limit=CONNECTION_LIMIT,
            channel_timeout=20,
            cleanup_interval=5,
            max_request_header_size=HEADERS_MAX_BYTES,
            max_request_body_size=body_max_bytes + BODY_SLACK_BYTES,
            # A thousand slow bodies may so hold 64 MB of memory; what is longer waits in a temporary file.
            inbuf_overflow=65536,
            ident=None,
            expose_tracebacks=False,
            log_socket_errors=False,
            # The application knows ORQO_TRUSTED_PROXIES; nothing else of ours reads what proxies say.
            clear_untrusted_proxy_headers=False,
        )
        self._listening = len(self._map)
        self._listeners = [one for one in self._map.values() if isinstance(one, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = Channel
            listener.draining = self.draining

    def run(self) -> None:
        """Serve until `stop`, then drain."""
        while not self.draining.is_set():
            # Without a connection there is none to be closed for its silence; `stop` pulls the trigger.
            idle = len(self._map) == self._listening
            # poll, not select: select raises on descriptors above 1023, which 1,000 connections reach.
            wasyncore.poll2(IDLE_LOOK_S if idle else LOOK_S, self._map)
        self._drain()

    def stop(self) -> None:
        """Begin to drain."""
        self.draining.set()
        self._listeners[0].pull_trigger()

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        for listener in self._listeners:
            _accept_waiting(listener)
            # The listener's own close() would also close the pipe by which threads say that an answer is ready.
            wasyncore.dispatcher.close(listener)
        while time.monotonic() < until and self._channels():
            wasyncore.poll2(0.05, self._map)
            for channel in self._channels():
                channel.close_if_idle()

    def _channels(self) -> list[Channel]:
        return [one for one in self._map.values() if isinstance(one, Channel)]


class Parser(HTTPRequestParser):
    """waitress's parser, without its exceptions that end a connection without an answer."""

    def parse_header(self, header_plus: bytes) -> None:
        """Read the request line and the headers; ParsingError on whatever cannot be read."""
        try:
            super().parse_header(header_plus)
        except ValueError as fault:
            # A Content-Length of 5,000 digits, or a request line with half an IPv6 address.
            raise ParsingError("the request line or Content-Length is invalid") from fault
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            # Where a proxy in front believes the one and we the other, one client's body is another client's request.
            raise ParsingError("it has both Content-Length and Transfer-Encoding")


class ProblemTask(ErrorTask):
    """Answers what never reaches the application."""

    def execute(self) -> None:
        """Write the problem that fits waitress's error."""
        problem = problem_of(self.request.error.code, self.request.error.body, self.channel.adj.max_request_body_size - BODY_SLACK_BYTES)
        body = json.dumps(problem.as_dict()).encode()
        self.status = f"{problem.status} {REASONS[problem.status]}"
        self.response_headers.append(("Content-Type", "application/problem+json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.refused = True
        self.write(body)


class AnswerTask(WSGITask):
    """An answer of the application; the last one on its connection when the server is draining."""

    def build_response_header(self) -> bytes:
        """Tell the client not to send another request where this server would not read it."""
        if self.channel.server.draining.is_set():
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header

    def write(self, data: bytes) -> None:
        """Send the header in one piece with the first bytes of the body: one system call less, and the client is woken once."""
        if self.wrote_header:
            super().write(data)
            return
        self.channel.gathered = []
        try:
            super().write(data)
        finally:
            parts, self.channel.gathered = self.channel.gathered, None
        self.channel.write_soon(b"".join(parts))


class Channel(HTTPChannel):
    """One connection. After a refusal it reads on and discards, else the client's unsent body makes TCP drop our answer."""

    task_class = AnswerTask
    error_task_class = ProblemTask
    parser_class = Parser
    close_when_flushed: bool
    refused = False
    discarding = False
    # What is to be sent in one piece, while it comes.
    gathered: list[bytes] | None = None

    def write_soon(self, data: Any) -> int:
        """Send bytes, or keep them for the piece that is being put together; give how many."""
        if self.gathered is None:
            return int(super().write_soon(data))
        self.gathered.append(data)
        return len(data)

    def readable(self) -> bool:
        """Say whether bytes are wanted."""
        return self.discarding or bool(super().readable())

    def handle_read(self) -> None:
        """Read; what comes after a refusal is thrown away until the client closes or `channel_timeout` has passed."""
        if not self.discarding:
            super().handle_read()
        elif not self.will_close:
            try:
                self.recv(65536)
            except OSError:
                self.handle_close()

    def handle_write(self) -> None:
        """Flush; after a refusal close our half only."""
        ending = self.refused and self.close_when_flushed
        if ending:
            self.close_when_flushed = False
        super().handle_write()
        if ending and not self.total_outbufs_len and self.connected:
            self.discarding = True
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.handle_close()
        elif ending:
            self.close_when_flushed = True

    def close_if_idle(self) -> None:
        """Close where no request is being received, worked on or answered."""
        busy = self.requests or self.request is not None or self.total_outbufs_len or self.close_when_flushed
        if not busy and time.time() - self.last_activity >= QUIET_S:
            self.will_close = True


def problem_of(code: int, reason: str, body_max_bytes: int) -> errors.Problem:
    """Give the problem for one of waitress's own errors.

    What waitress quotes of the request is cut: it may be a credential.
    """
    if code == 413:
        return errors.TooLarge(f"The body is over the limit of {body_max_bytes} bytes (ORQO_BODY_MAX_BYTES): send less.")
    if code == 431:
        return errors.HeadersTooLarge(f"The request line and headers are over the limit of {HEADERS_MAX_BYTES} bytes: send less.")
    if code in (400, 501):
        fault = reason.partition(' "')[0].rstrip(".")
        return errors.Malformed(f"The request is not valid HTTP/1.1 ({fault}): mend the client.")
    return errors.ServerFault("The server failed to answer this request: its log says why.")


def _accept_waiting(listener: Any) -> None:
    """Take the connections that the kernel has already accepted: closing the listener would reset them."""
    before = -1
    while before < len(listener.active_channels):
        before = len(listener.active_channels)
        listener.handle_accept()


def _with_draining(app: WSGIApplication, draining: Callable[[], bool]) -> WSGIApplication:
    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["orqo.draining"] = draining
        return app(environ, start_response)

    return wrapped


def _quieten_waitress() -> None:
    logger = logging.getLogger("waitress")
    if _without_path not in logger.filters:
        logger.addFilter(_without_path)
    # It warns of every request that waits for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def _without_path(record: logging.LogRecord) -> bool:
    """Cut the path off "Exception while serving /api/v1/hooks/<token>"."""
    before, found, _ = str(record.msg).partition(" while serving ")
    if found:
        record.msg, record.args = f"{before} while serving a request", ()
    return True


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
