"""`token create | list | revoke`: API tokens. A token is printed once, when it is made."""

from __future__ import annotations

import argparse

from orqo import clock, tokens, workflows
from orqo.cli import output
from orqo.cli.arguments import PROGRAM, duration, number, verb, verbs
from orqo.cli.opening import opened


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    create = verb(commands, "create", _create, "Make an API token and print it, this once")
    create.add_argument("name", metavar="NAME", help="what it is for, for people")
    allowed = f"what it may do ({', '.join(tokens.SCOPES)}; default: {' '.join(tokens.DEFAULT_SCOPES)}); again for each"
    create.add_argument("--scope", action="append", choices=tokens.SCOPES, metavar="SCOPE", help=allowed)
    create.add_argument("--workflow", action="append", metavar="NAME", help="a workflow that it may use (default: all); again for each")
    create.add_argument("--expires", type=duration, metavar="DURATION", help="how long it is valid, such as 30d (default: for ever)")
    verb(commands, "list", _list, "List the API tokens, without the tokens themselves")
    revoke = verb(commands, "revoke", _revoke, "End a token for good")
    revoke.add_argument("id", type=number, metavar="ID")


def _create(arguments: argparse.Namespace) -> int:
    now = clock.now()
    scopes = arguments.scope or tokens.DEFAULT_SCOPES
    with opened() as box, box.database.transaction() as connection:
        wanted = [workflows.named(connection, name).id for name in arguments.workflow] if arguments.workflow else None
        expires_at = now + arguments.expires if arguments.expires else None
        made = tokens.create(connection, name=arguments.name, scopes=scopes, now=now, workflow_ids=wanted, expires_at=expires_at)
    token_id, token = made
    held = [scope for scope in tokens.SCOPES if scope in scopes]
    if arguments.json:
        output.as_json({"id": token_id, "name": arguments.name, "scopes": held, "token": token})
    else:
        output.say(f"Token {token_id} ({arguments.name}) may: {' '.join(held)}. It is shown this once:")
        print(token)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        listed = tokens.list_all(connection)
        names = {workflow["id"]: workflow["name"] for workflow in workflows.list_all(connection)}
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "NAME", "SCOPES", "WORKFLOWS", "CREATED", "LAST USED", "EXPIRES", "REVOKED")
    rows = [
        (
            token["id"],
            token["name"],
            token["scopes"],
            "all" if token["workflow_ids"] is None else [names.get(id_, str(id_)) for id_ in token["workflow_ids"]],
            token["created_at"],
            token["last_used_at"],
            token["expires_at"],
            token["revoked_at"],
        )
        for token in listed
    ]
    output.table(headings, rows, nothing=f"There are no API tokens. To make one: {PROGRAM} token create NAME")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        tokens.revoke(connection, arguments.id, now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "revoked": True})
    else:
        output.say(f"Token {arguments.id} is revoked.")
    return 0
