"""What precedes every start of the service: a database of this release's version, the instance key, once the example.

Run by `serve` as a process of its own; says on stdout, as one JSON object, how the example is started and, where a `link`
is asked for, how one signs in to the dashboard.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from orqo import apply, callbacks, clock, db, definition, instance, people, received, triggers, workflows
from orqo.cli import guarded
from orqo.cli.db import upgraded
from orqo.cli.opening import hint, is_loopback
from orqo.cli.trigger import curl
from orqo.config import PROJECT_DIR, Config
from orqo.db import Database
from orqo.folder import Folder, bad_files
from orqo.secretstore import SecretStore

EXAMPLE_FILE = PROJECT_DIR / "examples" / "hello.yaml"
WORKFLOW, TRIGGER = "hello", "example"


def prepare(config: Config, *, link: bool = False) -> dict[str, str]:
    """Make this box ready to serve; the second time it changes nothing but that `link` makes one more sign-in link.

    Gives `{"curl", "list", "show"}`, commands that work as pasted, or nothing where the example is not there; and `link`.
    Raises ConfigError, SchemaMismatch, Unavailable.
    """
    database = Database.open(config.database_url)
    try:
        if not db.initialise(database):
            upgraded(config, database)
        db.check_version(database)
        key = instance.establish(database, config, now=clock.now())
        _make_example(database, config, key)
        _follow_address(database, config)
        _read_folder(database, config, key)
        return _commands(database, config, key) | (_sign_in(database, config) if link else {})
    finally:
        database.close()


def _make_example(database: Database, config: Config, key: bytes) -> None:
    """At the first start ever, on loopback and unless told not to, make the example; a workflow of its name stays as it is."""
    now = clock.now()
    with database.transaction() as connection:
        first = instance.claim_example(connection, now=now)
        if not first or not config.example or config.workflows or not is_loopback(config.host) or workflows.find(connection, WORKFLOW):
            return
        parsed = definition.parse(EXAMPLE_FILE.read_text(encoding="utf-8"), folder=EXAMPLE_FILE.parent)
        saved = apply.apply(connection, parsed, key=key, now=now)
        trigger_id = next(row["id"] for row in triggers.list_all(connection) if row["workflow_id"] == saved.id)
        callback = callbacks.definition(own_callback_url(config), definition.EVENTS)
        callbacks.add(connection, workflow_id=saved.id, trigger_id=trigger_id, callback=callback, origin="cli", now=now)


def _follow_address(database: Database, config: Config) -> None:
    """Where the service answers at another address than when it made the example, let the example's callback lead there."""
    now, own = clock.now(), own_callback_url(config)
    with database.transaction() as connection:
        example = _example(connection)
        mine = [row for row in callbacks.list_all(connection, limit=100_000) if example and row["trigger_id"] == example["id"]]
        for row in mine:
            if row["url"] != own and _was_own(row["url"]) and callbacks.get(connection, row["id"]).origin == "cli":
                callbacks.remove(connection, row["id"], now=now)
                follows = callbacks.definition(own, row["events"])
                where = {"workflow_id": row["workflow_id"], "trigger_id": row["trigger_id"]}
                callbacks.add(connection, **where, callback=follows, origin="cli", now=now)


def _was_own(url: str) -> bool:
    """Tell whether this is the kind of address that the example's callback is made with: /callback on loopback."""
    parts = urlsplit(url)
    return parts.path == received.CALLBACK_PATH and is_loopback(parts.hostname or "")


def _read_folder(database: Database, config: Config, key: bytes) -> None:
    """Apply the files of ORQO_WORKFLOWS before the first request comes, and say which of them are bad."""
    if config.workflows is None:
        return
    Folder(database, config.workflows, key=key, secrets=SecretStore.from_config(config)).look(now=clock.now())
    with database.read() as connection:
        lines = [line for bad in bad_files(connection) for line in bad.lines]
    for line in lines:
        print(f"orqo: {config.workflows}: {line}", file=sys.stderr)


def own_callback_url(config: Config) -> str:
    """Give the URL under which this box reaches its own /callback and knows its own signature."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    local = f"http://{host}:{config.port}{received.CALLBACK_PATH}"
    # Behind a proxy the base URL may lead around the world, or nowhere from here.
    return local if local in received.own_urls(config) else config.base_url + received.CALLBACK_PATH


def _commands(database: Database, config: Config, key: bytes) -> dict[str, str]:
    with database.read() as connection:
        found = _example(connection)
        if found is None:
            return {}
        url = triggers.url_of(triggers.get(connection, found["id"]), key, config.base_url)
    if url is None:
        return {}
    return {"curl": curl(url), "list": hint(config, "run list"), "show": hint(config, f"trigger show {found['id']}")}


def _sign_in(database: Database, config: Config) -> dict[str, str]:
    with database.transaction() as connection:
        return {"link": people.link_url(config.base_url, people.make_link(connection, now=clock.now()))}


def _example(connection: Any) -> dict[str, Any] | None:
    enabled = (row for row in triggers.list_all(connection, limit=100_000) if row["enabled"])
    return next((row for row in enabled if (row["workflow"], row["name"]) == (WORKFLOW, TRIGGER)), None)


def main(*, link: bool = False) -> int:
    """Prepare the box that the environment names; give the exit status. Faults are told on stderr."""
    os.umask(0o077)
    return guarded(lambda: _say(prepare(Config.from_environ(), link=link)))


def _say(found: dict[str, str]) -> int:
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
