"""`serve` and `worker`: the service's processes."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import socket
import sys
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from orqo import processes
from orqo.cli.arguments import declare
from orqo.config import Config
from orqo.processes import CannotStart

if TYPE_CHECKING:
    from orqo import serve

SERVE = (
    "Make or upgrade the database, start an embedded Valkey where REDIS_URL is unset, then web and worker, and start again what dies. "
    "At the first start ever, on loopback, it makes the workflow hello (ORQO_EXAMPLE=0: not)."
)


def add(parser: argparse.ArgumentParser, word: str) -> None:
    """Declare `serve` or `worker`."""
    if word == "serve":
        parser.description = SERVE
    declare(parser, _serve if word == "serve" else _worker)


def _worker(_arguments: argparse.Namespace) -> int:
    from orqo import pool

    return pool.main()


def _serve(_arguments: argparse.Namespace) -> int:
    from orqo import serve

    config = Config.from_environ()
    start = Start(config)
    return serve.run(config, programs=start.programs, prepare=start.prepare, on_ready=start.tell)


@dataclass
class Start:
    """What a start prepares, and what it can say once everything is up."""

    config: Config
    found: dict[str, Any] = field(default_factory=dict)
    key: bytes = b""
    sockets: list[socket.socket] = field(default_factory=list)

    def programs(self, sockets: list[socket.socket]) -> list[serve.Program]:
        """Give the service's programs: forks of this process, which `prepare` loads what they share into."""
        from orqo import serve

        self.sockets = sockets
        return serve.programs_of(self.config, self._be, sockets)

    def prepare(self) -> None:
        """Make the box ready in a process of its own, for no engine may cross a fork; meanwhile load what is forked later."""
        # A sixth of the imports' time goes into looking for garbage that they do not make.
        gc.disable()
        from orqo.cli import starting

        link = sys.stdout.isatty()
        with TemporaryFile("w+") as said, TemporaryFile("w+") as told:
            # In a session of its own: what a Ctrl-C ends is the service, not the making of its database.
            preparing = processes.fork(
                lambda: starting.main(link=link),
                name="orqo-prepare",
                orphan_signal=signal.SIGTERM,
                outputs=(said.fileno(), told.fileno()),
            )
            from orqo import forked

            forked.load()
            status = preparing.wait()
            said.seek(0)
            told.seek(0)
            if status != 0:
                raise CannotStart(told.read().strip().removeprefix("orqo: ") or f"the preparation ended with exit status {status}")
            self.found = json.load(said)
        self.key = forked.settle(self.config)

    def _be(self, name: str) -> int:
        from orqo import forked

        return forked.main(name, self.key, self.sockets)

    def tell(self) -> None:
        """Say how one signs in and how a run is started. The URLs are credentials: only a terminal is shown them."""
        if "link" in self.found:
            print(f"orqo: sign in to the dashboard, once and within 15 minutes:\n\n  {self.found['link']}\n", flush=True)
        if "show" not in self.found:
            return
        if sys.stdout.isatty():
            curl, listing = self.found["curl"], self.found["list"]
            print(f"orqo: start a run from another terminal:\n\n  {curl}\n\nand see it:\n\n  {listing}\n", flush=True)
        else:
            print(f"orqo: how to start a run says: {self.found['show']}", flush=True)
