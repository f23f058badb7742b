"""`db init | upgrade | backup | restore | prune | copy`: what is done to the database as a whole."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from orqo import backup, clock, copying, db, instance, retention, serve
from orqo.cli import output
from orqo.cli.arguments import Refused, verb, verbs
from orqo.cli.opening import opened
from orqo.config import Config
from orqo.db import Database

KEY_HINT = "instance.key in ORQO_DATA goes to every machine"


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    verb(commands, "init", _init, "Make the database and the instance key where there are none")
    verb(commands, "upgrade", _upgrade, "Bring the database to this release's version, after a backup beside it")
    saving = verb(commands, "backup", _backup, "Write database and instance key into one file, mode 0600; the service may run")
    saving.add_argument("file", metavar="FILE", type=Path, help="the file; one that is there is replaced")
    restoring = verb(commands, "restore", _restore, "Put a backup into an empty data folder; the service must not run")
    restoring.add_argument("file", metavar="FILE", type=Path, help="what `db backup` wrote")
    verb(commands, "prune", _prune, "Delete now what ORQO_KEEP_DAYS and ORQO_KEEP_RUNS say is kept no longer")

    moving = verb(commands, "copy", _copy, "Copy a box's data from SQLite to an empty PostgreSQL database and compare every row")
    moving.add_argument("source", metavar="SQLITE_URL", help="sqlite:////path/to/orqo.db (four slashes: the path is absolute)")
    moving.add_argument("target", metavar="POSTGRESQL_URL", help="postgresql://user@host/name, or - : what DATABASE_URL says")


def _init(arguments: argparse.Namespace) -> int:
    config = Config.from_environ()
    # The database and the key are the service's alone.
    os.umask(0o077)
    serve.make_data_folder(config.data)
    database = Database.open(config.database_url)
    try:
        made = db.initialise(database)
        db.check_version(database)
        instance.establish(database, config, now=clock.now())
    finally:
        database.close()
    where = str(config.database_path or "the database of DATABASE_URL")
    if arguments.json:
        output.as_json({"made": made, "version": db.SCHEMA_VERSION})
    else:
        output.say(f"{where} is made." if made else f"{where} is there already, of version {db.SCHEMA_VERSION}; nothing was changed.")
    return 0


def _upgrade(arguments: argparse.Namespace) -> int:
    config = Config.from_environ()
    database = Database.open(config.database_url)
    try:
        done = upgraded(config, database)
        db.check_version(database)
    finally:
        database.close()
    if arguments.json:
        output.as_json({"version": db.SCHEMA_VERSION, "migrations": done})
    else:
        output.say(f"The database has version {db.SCHEMA_VERSION}; {len(done)} migration{'' if len(done) == 1 else 's'} ran.")
    return 0


def upgraded(config: Config, database: Database) -> list[int]:
    """Run the migrations that are missing, after a backup; gives their versions."""
    version = db.version_of(database)
    if version is not None and version < db.SCHEMA_VERSION:
        backup.before_upgrade(config, version)
    return db.upgrade(database)


def _backup(arguments: argparse.Namespace) -> int:
    size = backup.save(Config.from_environ(), arguments.file)
    if arguments.json:
        output.as_json({"file": str(arguments.file), "bytes": size})
    else:
        output.say(f"{arguments.file} holds the database and the instance key: {size} bytes. Secrets and run folders are not in it.")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    config = Config.from_environ()
    os.umask(0o077)
    serve.make_data_folder(config.data)
    with serve.locked(config.data):
        backup.restore(config, arguments.file)
    if arguments.json:
        output.as_json({"database": str(config.database_path)})
    else:
        output.say(f"{config.database_path} is restored. Start the service: what was pending then goes on.")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    with opened() as box:
        limits, folder = retention.Limits(box.config.keep_days, box.config.keep_runs), box.config.data / "runs"
        rows = 0
        while gone := retention.prune(box.database, limits, folder, now=clock.now()):
            rows += gone
        folders = retention.prune_folders(box.database, folder)
    if arguments.json:
        output.as_json({"rows": rows, "folders": folders})
    else:
        output.say(f"{rows} rows and {folders} run folders were deleted.")
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    # A password in a command line is visible to every user of the machine.
    target = Config.from_environ().database_url if arguments.target == "-" else arguments.target
    tables: dict[str, int] = {}
    try:
        rows = copying.copy(arguments.source, target, say=tables.__setitem__)
    except copying.CannotCopy as fault:
        raise Refused(f"orqo: {fault} Nothing was kept in the target.") from fault
    if arguments.json:
        output.as_json({"rows": rows, "tables": tables})
    else:
        output.say(f"{rows} rows of {len(tables)} tables are copied and were compared one by one. Keep the instance key: {KEY_HINT}.")
    return 0
