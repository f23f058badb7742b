"""`trigger create | update | list | show | enable | disable | rotate | delete`: webhooks and schedules.

The URL of a webhook is its credential; it is printed here because that is what was asked for.
"""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from sqlalchemy import Connection, Row

from orqo import callbacks, clock, definition, schedules, triggers, workflows
from orqo.cli import asking, destinations, output
from orqo.cli.arguments import PROGRAM, Refused, json_value, number, verb, verbs
from orqo.cli.opening import Opened, opened
from orqo.errors import Conflict, Invalid

ORIGIN = "cli"
DEFAULT_NAME = "webhook"
EXAMPLE = """{"name": "Ada"}"""


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    create = verb(commands, "create", _create, "Make a webhook for a workflow and print its URL, or a schedule")
    create.add_argument("workflow", metavar="WORKFLOW")
    create.add_argument("--name", help=f"what it is called (default: {DEFAULT_NAME}, {DEFAULT_NAME}-2 …)")
    _add_schedule(create, otherwise=" (default: {})")
    purpose = "Change a trigger's name, its callbacks, when a schedule fires, or what a webhook asks of requests (that as a whole)"
    update = verb(commands, "update", _update, purpose)
    update.add_argument("id", type=number, metavar="ID")
    update.add_argument("--name", help="what it is called from now on")
    _add_schedule(update, otherwise="; without it that stays")
    for one in (create, update):
        one.add_argument("--callback", type=destinations.destination, action="append", metavar="URL[=EVENTS]", help=destinations.HELP)
        asking.add(one)
    update.add_argument("--no-callbacks", action="store_true", help="remove the callbacks that were made here")
    update.add_argument("--no-options", action="store_true", help="ask nothing of requests any more: no signature, no filter, no limits")
    verb(commands, "list", _list, "List the triggers, without their URLs")
    for name, run, purpose in (
        ("show", _show, "Show a trigger with its URL and a command that fires it"),
        ("enable", _enable, "Let a trigger fire again"),
        ("disable", _disable, "Answer 409 to every call of a trigger"),
        ("rotate", _rotate, "Give a trigger a new URL; the old one is unknown from now on"),
        ("delete", _delete, "Delete a trigger with its callbacks; its runs stay"),
    ):
        verb(commands, name, run, purpose).add_argument("id", type=number, metavar="ID")


def _add_schedule(parser: argparse.ArgumentParser, *, otherwise: str) -> None:
    when = 'fire by itself, at the times of five fields of cron such as "15 2 * * 1-5"'
    parser.add_argument("--schedule", metavar="CRON", help=when)
    parser.add_argument("--timezone", metavar="ZONE", help="of the schedule, such as Europe/Paris" + otherwise.format("UTC"))
    parser.add_argument(
        "--input", type=json_value, default=None, metavar="JSON", help="what a scheduled run is given" + otherwise.format("null")
    )


def curl(url: str) -> str:
    """Give the command that fires a webhook, as it works when pasted."""
    return f"curl -d {shlex.quote(EXAMPLE)} {url}"


def _create(arguments: argparse.Namespace) -> int:
    now, asked = clock.now(), _options(arguments)
    with opened() as box:
        key = box.key
        asking.check_secrets(box.config, asked)
        with box.database.transaction() as connection:
            workflow = workflows.named(connection, arguments.workflow)
            usual = "schedule" if arguments.schedule else DEFAULT_NAME
            name = arguments.name if arguments.name is not None else _free_name(connection, workflow.id, usual)
            made = triggers.create(connection, workflow_id=workflow.id, name=name, key=key, origin=ORIGIN, now=now, options=asked)
            row = triggers.get(connection, made)
            _set_callbacks(connection, row, arguments.callback or [])
        shown = _with_url(box, row)
    if arguments.json:
        output.as_json({name: shown[name] for name in ("id", "workflow", "name", "token", "url")})
    elif arguments.schedule:
        output.say(f"Trigger {made} ({name}) starts {workflow.name}:")
        _print_times(row)
    else:
        output.say(f"Trigger {made} ({name}) starts {workflow.name}. Its URL is its only credential:")
        _print_url(shown["url"])
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what a new trigger is, in the stored form; Refused where a file could not say the same."""
    if arguments.schedule is None:
        if arguments.timezone is not None or arguments.input is not None:
            raise Refused("orqo: --timezone and --input belong to --schedule", status=2)
        return asking.options(arguments)
    return _schedule(arguments, arguments.schedule, zone=arguments.timezone, value=arguments.input)


def _schedule(arguments: argparse.Namespace, expression: str, *, zone: str | None, value: Any) -> dict[str, Any]:
    if asking.given(arguments):
        raise Refused("orqo: a schedule is asked for by nobody: it takes neither a signature nor a filter nor limits", status=2)
    try:
        return definition.parse_schedule(expression, zone=zone, value=value).options
    except Invalid as fault:
        raise Refused(*(f"orqo: {each.detail}" for each in fault.errors)) from fault


def _print_times(row: Row[Any]) -> None:
    """Print when a schedule fires next."""
    times = [(each["local"], each["at"]) for each in schedules.next_times(row, now=clock.now())]
    output.table(("NEXT", "UTC"), times, nothing="It never fires.")


def _free_name(connection: Connection, workflow_id: int, wanted: str) -> str:
    taken = {row["name"] for row in triggers.list_all(connection, limit=100_000) if row["workflow_id"] == workflow_id}
    names = (wanted if index == 1 else f"{wanted}-{index}" for index in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _set_callbacks(connection: Connection, row: Row[Any], wanted: list[tuple[str, tuple[str, ...]]]) -> None:
    """Make the callbacks of a trigger that were made here exactly the wanted ones."""
    version_id = workflows.get(connection, row.workflow_id).version_id
    checked = destinations.checked(wanted, workflows.definition_of(connection, version_id))
    callbacks.configure(connection, workflow_id=row.workflow_id, trigger_id=row.id, wanted=checked, origin=ORIGIN, now=clock.now())


def _update(arguments: argparse.Namespace) -> int:
    replaced = arguments.callback or ([] if arguments.no_callbacks else None)
    times = any(value is not None for value in (arguments.schedule, arguments.timezone, arguments.input))
    asked = {} if arguments.no_options else asking.options(arguments) if asking.given(arguments) and not times else None
    if arguments.name is None and replaced is None and asked is None and not times:
        how = "give --name, --callback, --no-callbacks, --schedule, --no-options, or what it shall ask (--signature, --filter …)"
        raise Refused(f"orqo: nothing to change: {how}", status=2)
    with opened() as box, box.database.transaction() as connection:
        row = triggers.get(connection, arguments.id)
        if arguments.name is not None:
            triggers.rename(connection, arguments.id, name=arguments.name)
        if replaced is not None:
            _set_callbacks(connection, row, replaced)
        if times:
            asked = _rescheduled(arguments, row)
        if asked is not None:
            asking.check_secrets(box.config, asked)
            triggers.set_options(connection, arguments.id, options=asked)
    return _tell(arguments, "is changed")


def _rescheduled(arguments: argparse.Namespace, row: Row[Any]) -> dict[str, Any]:
    """Give what a schedule is from now on: of expression, zone and input that which is not named stays."""
    if row.kind != "schedule":
        raise Conflict(f"Trigger {row.id} is a {row.kind} and stays one. Make another trigger.")
    kept = json.loads(row.options)
    expression = kept["schedule"] if arguments.schedule is None else arguments.schedule
    zone = kept["timezone"] if arguments.timezone is None else arguments.timezone
    return _schedule(arguments, expression, zone=zone, value=kept["input"] if arguments.input is None else arguments.input)


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        listed = triggers.list_all(connection)
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "WORKFLOW", "NAME", "KIND", "ENABLED", "FIRED", "LAST FIRED")
    keys = ("id", "workflow", "name", "kind", "enabled", "fired_count", "last_fired_at")
    rows = [tuple(row[key] for key in keys) for row in listed]
    output.table(headings, rows, nothing=f"There are no triggers. To make one: {PROGRAM} trigger create WORKFLOW")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        found = triggers.get(connection, arguments.id)
        shown = _with_url(box, found)
        own = [row for row in callbacks.list_all(connection, limit=100_000) if row["trigger_id"] == arguments.id]
    if arguments.json:
        times = {"next_times": schedules.next_times(found, now=clock.now())} if found.kind == "schedule" else {}
        output.as_json(shown | {"callbacks": own} | times)
        return 0
    keys = ("id", "workflow", "name", "kind", "enabled", "origin", "options", "fired_count", "last_fired_at", "created_at")
    output.fields({key.replace("_", " "): shown[key] for key in keys})
    for row in own:
        output.say(f"callback {row['id']}: {row['url']} on {' '.join(row['events'])}")
    if found.kind == "schedule":
        _print_times(found)
    elif shown["url"] is None:
        output.say("The token is pinned in the workflow's file and not known here: the URL is the one that the file's token makes.")
    else:
        _print_url(shown["url"])
    return 0


def _with_url(box: Opened, row: Row[Any]) -> dict[str, Any]:
    token, url = triggers.token_of(row, box.key), triggers.url_of(row, box.key, box.config.base_url)
    return triggers.shown(row) | {"token": token, "url": url}


def _print_url(url: str) -> None:
    print(f"\n  {url}\n\n  {curl(url)}")


def _enable(arguments: argparse.Namespace) -> int:
    return _set_enabled(arguments, enabled=True)


def _disable(arguments: argparse.Namespace) -> int:
    return _set_enabled(arguments, enabled=False)


def _set_enabled(arguments: argparse.Namespace, *, enabled: bool) -> int:
    with opened() as box, box.database.transaction() as connection:
        triggers.set_enabled(connection, arguments.id, enabled=enabled)
    return _tell(arguments, "is enabled" if enabled else "is disabled")


def _rotate(arguments: argparse.Namespace) -> int:
    with opened() as box:
        key = box.key
        with box.database.transaction() as connection:
            triggers.rotate(connection, arguments.id, key=key)
            shown = _with_url(box, triggers.get(connection, arguments.id))
    if arguments.json:
        output.as_json({name: shown[name] for name in ("id", "workflow", "name", "token", "url")})
    else:
        output.say(f"Trigger {arguments.id} has a new URL; the old one is unknown from now on:")
        _print_url(shown["url"])
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        callbacks.remove_those_of_trigger(connection, arguments.id, now=clock.now())
        triggers.remove(connection, arguments.id)
    if arguments.json:
        output.as_json({"id": arguments.id, "deleted": True})
    else:
        output.say(f"Trigger {arguments.id} is deleted.")
    return 0


def _tell(arguments: argparse.Namespace, state: str) -> int:
    """Print a trigger after a change, as `trigger list` shows it."""
    if not arguments.json:
        output.say(f"Trigger {arguments.id} {state}.")
        return 0
    with opened() as box, box.database.read() as connection:
        output.as_json(triggers.shown(triggers.get(connection, arguments.id)))
    return 0
