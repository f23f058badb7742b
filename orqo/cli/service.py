"""`serve` and `worker`: the service's processes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from orqo.cli.arguments import declare
from orqo.config import PROJECT_DIR, Config
from orqo.processes import CannotStart

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
    return serve.run(config, prepare=start.prepare, on_ready=start.tell)


@dataclass
class Start:
    """What a start prepares, and what it can say once everything is up."""

    config: Config
    found: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the box ready in a process of its own: the supervisor stays up for months and shall not hold SQLAlchemy."""
        path = os.pathsep.join([str(PROJECT_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])
        argv = [sys.executable, "-m", "orqo.cli.starting", *(["--link"] if sys.stdout.isatty() else [])]
        env = {**os.environ, "PYTHONPATH": path}
        # In a session of its own: what a Ctrl-C ends is the service, not the making of its database.
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode != 0:
            raise CannotStart(done.stderr.strip().removeprefix("orqo: ") or f"the preparation ended with exit status {done.returncode}")
        self.found = json.loads(done.stdout)

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
