"""The machines that execute runs: what each is called over restarts, and when it was last seen.

Owns the table machines, of which retention forgets who was not seen for long, and the file machine.id. The folder is what has the
name, not the host: whoever has ORQO_DATA has the run folders in it. Never decides about a run.
"""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, update

from orqo import clock, db
from orqo.config import Config
from orqo.db import Database
from orqo.errors import Elsewhere
from orqo.models import Machine, Run
from orqo.secretstore import write_new

FILE = "machine.id"
ID_BYTES = 16
BEAT_EVERY_S = 10.0


def identity(config: Config) -> str:
    """Give the id of this ORQO_DATA, empty where no worker ever ran on it: then no run folder lies here either."""
    with suppress(FileNotFoundError):
        return (config.data / FILE).read_text(encoding="ascii").strip()
    return ""


def established(config: Config) -> str:
    """Give the id of this ORQO_DATA, made at random where it has none."""
    if not identity(config):
        write_new(config.data / FILE, secrets.token_hex(ID_BYTES).encode() + b"\n")
    return identity(config)


def seen(database: Database, machine: str) -> None:
    """Note that this machine's workers live. Raises Unavailable."""
    with database.transaction() as connection:
        values = {"name": socket.gethostname(), "seen_at": clock.to_text(present(database, connection))}
        if connection.execute(update(Machine).where(Machine.id == machine).values(values)).rowcount:
            return
        # Two that share the folder may come at once.
        db.only_one_at_a_time(connection, Machine.__tablename__)
        if connection.execute(select(Machine.id).where(Machine.id == machine)).first() is None:
            connection.execute(insert(Machine).values(id=machine, **values))


def present(database: Database, connection: Connection) -> datetime:
    """Give the time by the one clock that all machines share."""
    if database.is_sqlite:
        return clock.now()
    return datetime.fromtimestamp(database.lease_clock(connection).seconds, UTC)


def elsewhere(connection: Connection, machine: str, config: Config) -> str | None:
    """Say where a run's files lie that was bound to this machine; None where they are here, or where it left none."""
    return None if machine in ("", identity(config)) else told(connection, machine)


def check_here(connection: Connection, run_id: int, config: Config) -> None:
    """Raise Elsewhere where a run's files lie on another machine: here it would seem to have none."""
    machine = connection.execute(select(Run.machine).where(Run.id == run_id)).scalar()
    where = elsewhere(connection, machine or "", config)
    if where is not None:
        raise Elsewhere(f"The files of run {run_id} lie on {where}: fetch them there, from its ORQO_DATA or its own web server.")


def told(connection: Connection, machine: str) -> str:
    """Name a machine for people, with the time when it was last seen."""
    row = connection.execute(select(Machine.name, Machine.seen_at).where(Machine.id == machine)).one_or_none()
    if row is None:
        return f"a machine that this database does not know ({machine[:8]})"
    return f"machine {row.name} ({machine[:8]}, last seen at {row.seen_at})"
