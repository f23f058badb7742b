"""The box that a command works on: found by ORQO_DATA and DATABASE_URL, as the service finds it.

Owns the opening of the database for a command. Never makes one.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from orqo import db, instance, runs, workflows
from orqo.cli.arguments import PROGRAM
from orqo.config import PROJECT_DIR, SETTINGS, Config
from orqo.db import Database

DEFAULT_PORT = int(SETTINGS["port"].default)


@dataclass(frozen=True)
class Opened:
    """An open box. Its key is read when it is asked for: most commands do without."""

    config: Config
    database: Database

    @cached_property
    def key(self) -> bytes:
        """The instance key; ConfigError where it is absent or another's."""
        return instance.checked_key(self.database, self.config)

    @cached_property
    def box(self) -> runs.Box:
        """What the run's state machine wants to know."""
        return runs.Box(self.database, workflows.Definitions(), self.config.base_url)

    def hint(self, command: str) -> str:
        """Give a command of ours as it works when pasted."""
        return hint(self.config, command)

    def wake_workers(self) -> None:
        """Tell the workers that a run waits, best effort: without Redis the sweep finds it within seconds."""
        from orqo.queue import Bell

        bell = Bell.of(self.config, self.key)
        bell.wake_workers()
        bell.close()


@contextmanager
def opened() -> Iterator[Opened]:
    """Open this box's database. Raises ConfigError, SchemaMismatch where there is none, Unavailable."""
    config = Config.from_environ()
    database = Database.open(config.database_url)
    try:
        db.check_version(database)
        yield Opened(config, database)
    finally:
        database.close()


def hint(config: Config, command: str) -> str:
    """Give a command of ours as it works when pasted, from the project's folder."""
    where = "" if config.data == PROJECT_DIR / "var" else f"ORQO_DATA={shlex.quote(str(config.data))} "
    # What is printed of a URL depends on the port, and another box may listen on the usual one.
    port = "" if config.port == DEFAULT_PORT else f"ORQO_PORT={config.port} "
    return f"{where}{port}{PROGRAM} {command}"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
