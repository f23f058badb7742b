"""This box: its row in the database, its key, the API token that the environment pins.

Owns the table instance. Never starts a process.
"""

from __future__ import annotations

import hmac
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from orqo import clock, tokens
from orqo.config import Config, ConfigError
from orqo.db import Database
from orqo.errors import Conflict
from orqo.models import ApiToken, Instance
from orqo.secretstore import instance_key, key_check

OTHER_KEY = (
    "The instance key is not the one that this database was made with. Set ORQO_KEY, or put back the file instance.key, "
    "from this box's backup: with another key no webhook URL and no callback signature would be the same."
)


def establish(database: Database, config: Config, *, now: datetime) -> bytes:
    """Give the instance key after making sure that it is this database's; makes both sides at the first start.

    Also makes the API token of ORQO_API_TOKEN exist and notes ORQO_WORKFLOWS. Raises ConfigError.
    """
    with database.transaction() as connection:
        row = connection.execute(select(Instance.key_check)).one_or_none()
        key = instance_key(config, make=row is None)
        if row is None:
            values = {"id": 1, "key_check": key_check(key), "created_at": clock.to_text(now)}
            connection.execute(insert(Instance).values(values))
        elif not hmac.compare_digest(row.key_check, key_check(key)):
            raise ConfigError([OTHER_KEY])
        _note_folder(connection, config)
        if config.api_token:
            _pin_api_token(connection, config.api_token, now)
    return key


def checked_key(database: Database, config: Config) -> bytes:
    """Give the instance key of an established box. Raises ConfigError where it is absent or another."""
    key = instance_key(config, make=False)
    with database.read() as connection:
        kept = connection.execute(select(Instance.key_check)).scalar()
    if kept is None or not hmac.compare_digest(kept, key_check(key)):
        raise ConfigError([OTHER_KEY if kept else "This database belongs to no box yet: start the service once"])
    return key


def _pin_api_token(connection: Connection, token: str, now: datetime) -> None:
    """Make a known token exist, with scope admin; a revoked one stays revoked."""
    if not tokens.API_TOKEN.fullmatch(token):
        raise ConfigError(["ORQO_API_TOKEN: write orqo_ and 43 of A-Z, a-z, 0-9, - and _; token create prints one"])
    if connection.execute(select(ApiToken.id).where(ApiToken.token_hash == tokens.digest(token))).scalar() is None:
        tokens.create(connection, name="ORQO_API_TOKEN", scopes=["admin"], token=token, now=now)


def _note_folder(connection: Connection, config: Config) -> None:
    """Note ORQO_WORKFLOWS as the service has it: commands are often run without the service's environment."""
    folder = str(config.workflows) if config.workflows else None
    if connection.execute(select(Instance.workflows_folder)).scalar() != folder:
        connection.execute(update(Instance).values(workflows_folder=folder))


def workflows_folder(connection: Connection) -> str | None:
    """Give the folder whose files alone say what workflows are (ORQO_WORKFLOWS), None where they are edited here."""
    return connection.execute(select(Instance.workflows_folder)).scalar()


def check_editable(connection: Connection) -> None:
    """Raise Conflict where the files of a folder alone say what workflows there are."""
    folder = workflows_folder(connection)
    if folder is not None:
        raise Conflict(f"Workflows come from the files in {folder} (ORQO_WORKFLOWS): change the file there.")


def claim_example(connection: Connection, *, now: datetime) -> bool:
    """Tell, once in a box's life, that the example is to be made now."""
    first = update(Instance).where(Instance.example_made_at.is_(None)).values(example_made_at=clock.to_text(now))
    return connection.execute(first).rowcount == 1
