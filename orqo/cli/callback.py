"""`callback list | secret | pause | resume | test`: where events go, and whether they arrive."""

from __future__ import annotations

import argparse

from orqo import callbacks, clock, signing, trial, workflows
from orqo.cli import output
from orqo.cli.arguments import PROGRAM, Refused, number, verb, verbs
from orqo.cli.opening import opened

EXCERPT_CHARACTERS = 200


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    verb(commands, "list", _list, "List the callbacks that files and commands configured")
    secret = verb(commands, "secret", _secret, "Show the secret that a callback to this URL is signed with by default")
    secret.add_argument("url", metavar="URL", help="exactly as it is configured")
    pause = verb(commands, "pause", _pause, "Hold the deliveries of a callback until it is resumed")
    pause.add_argument("id", type=number, metavar="ID")
    resume = verb(commands, "resume", _resume, "Let the deliveries of a paused callback go on")
    resume.add_argument("id", type=number, metavar="ID")
    test = verb(commands, "test", _test, "Send a signed event of type run.test now and say what came of it")
    test.add_argument("id", type=number, metavar="ID")


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        listed = callbacks.list_all(connection)
        names = {workflow["id"]: workflow["name"] for workflow in workflows.list_all(connection)}
    # Those of a deleted workflow stay for their deliveries.
    listed = [row for row in listed if row["workflow_id"] in names]
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "WORKFLOW", "TRIGGER", "EVENTS", "PAUSED", "URL")
    rows = [(row["id"], names[row["workflow_id"]], row["trigger_id"], row["events"], row["paused_at"], row["url"]) for row in listed]
    how = f"{PROGRAM} trigger create WORKFLOW --callback URL"
    output.table(headings, rows, nothing=f"There are no callbacks. A workflow's file makes them, or: {how}")
    for row in listed:
        if row["paused_at"]:
            output.note(f"callback {row['id']} is paused: {row['pause_reason']} To let it go on: {PROGRAM} callback resume {row['id']}")
    return 0


def _secret(arguments: argparse.Namespace) -> int:
    with opened() as box:
        secret = signing.derived_secret(box.key, arguments.url)
        with box.database.read() as connection:
            configured = callbacks.to_url(connection, arguments.url)
    if arguments.json:
        output.as_json({"url": arguments.url, "secret": secret})
    else:
        print(secret)
    for row in configured:
        if row.secret:
            output.note(f"callback {row.id} to this URL is signed with secrets.{row.secret} instead.")
    return 0


def _pause(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        callbacks.get(connection, arguments.id)
        callbacks.pause(connection, arguments.id, reason="Paused by hand.", now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "paused": True})
    else:
        output.say(f"Callback {arguments.id} is paused; its deliveries wait. To let them go on: {PROGRAM} callback resume {arguments.id}")
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        callbacks.resume(connection, arguments.id, now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "paused": False})
    else:
        output.say(f"Callback {arguments.id} goes on; what waited is sent now.")
    return 0


def _test(arguments: argparse.Namespace) -> int:
    with opened() as box:
        outcome = trial.send(trial.Ground(box.config, box.database, box.key), arguments.id, now=clock.now())
    if arguments.json:
        output.as_json(trial.told(arguments.id, outcome))
        return 0 if outcome.delivered else 1
    if not outcome.delivered:
        excerpt = output.clean(outcome.excerpt[:EXCERPT_CHARACTERS]) if outcome.excerpt else ""
        said = f" It said: {excerpt}" if excerpt else ""
        raise Refused(f"orqo: not delivered to callback {arguments.id} ({outcome.reason}): {output.clean(outcome.detail)}{said}")
    output.say(f"Delivered to callback {arguments.id}: the receiver answered {outcome.status_code} in {outcome.duration_ms} ms.")
    return 0
