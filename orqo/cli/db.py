"""`db init | upgrade`: the only commands beside `serve` that make or change the database itself."""

from __future__ import annotations

import argparse
import os

from orqo import clock, db, instance, serve
from orqo.cli import output
from orqo.cli.arguments import verb, verbs
from orqo.config import Config
from orqo.db import Database


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    verb(commands, "init", _init, "Make the database and the instance key where there are none")
    verb(commands, "upgrade", _upgrade, "Bring the database to this release's version")


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
    database = Database.open(Config.from_environ().database_url)
    try:
        done = db.upgrade(database)
        db.check_version(database)
    finally:
        database.close()
    if arguments.json:
        output.as_json({"version": db.SCHEMA_VERSION, "migrations": done})
    else:
        output.say(f"The database has version {db.SCHEMA_VERSION}; {len(done)} migration{'' if len(done) == 1 else 's'} ran.")
    return 0
