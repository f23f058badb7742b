"""`workflow apply | validate | list | show | disable | enable | delete`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from orqo import apply, clock, instance, workflows
from orqo.cli import asking, files, output
from orqo.cli.arguments import PROGRAM, Refused, verb, verbs
from orqo.cli.files import Parsed
from orqo.cli.opening import Opened, opened
from orqo.errors import Conflict, Invalid

PRUNE = "delete the workflows that were applied from DIR and that no file there defines any more; their runs stay"


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    applying = verb(commands, "apply", _apply, "Make workflows what their files say, all of them or none")
    applying.add_argument("paths", nargs="+", metavar="FILE|DIR", help="a workflow file, or a folder of them (*.yaml, *.yml)")
    applying.add_argument("--prune", action="store_true", help=PRUNE)
    validate = verb(commands, "validate", _validate, "Check workflow files and change nothing")
    validate.add_argument("paths", nargs="+", metavar="FILE")
    verb(commands, "list", _list, "List the workflows")
    for name, run, purpose in (
        ("show", _show, "Show a workflow's file as it was applied last"),
        ("disable", _disable, "Refuse every new run of a workflow; runs that exist go on"),
        ("enable", _enable, "Let a workflow be started again"),
        ("delete", _delete, "Take a workflow away; its runs stay readable, and unfinished ones go on"),
    ):
        verb(commands, name, run, purpose).add_argument("name", metavar="NAME")


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _validate(arguments: argparse.Namespace) -> int:
    results = files.parsed(files.named(arguments.paths))
    if arguments.json:
        output.as_json(
            [{"file": str(one.path), "valid": not one.faults, "errors": [fault.as_dict() for fault in one.faults]} for one in results]
        )
    else:
        for one in results:
            if one.definition:
                output.say(f"{one.path}: workflow {one.definition.name} is valid")
    _refuse_faults(results, "")
    return 0


def _refuse_faults(results: Sequence[Parsed], consequence: str) -> None:
    faults = files.lines(results)
    if faults:
        raise Refused(*faults, *([f"orqo: {consequence}"] if consequence else []))


def _apply(arguments: argparse.Namespace) -> int:
    folders = [Path(path) for path in arguments.paths if Path(path).is_dir()]
    if arguments.prune and not folders:
        raise Refused("orqo: --prune needs a folder: it deletes what was applied from there and has no file any more", status=2)
    results = files.parsed(files.named(arguments.paths))
    _refuse_faults(results, "nothing was applied")
    with opened() as box:
        key = box.key
        with box.database.transaction() as connection:
            instance.check_editable(connection)
            for trigger in (each for one in results if one.definition for each in one.definition.triggers):
                asking.check_secrets(box.config, trigger.options)
            saved = [_saved(connection, one, key) for one in results]
            told = [line for one in results if one.definition for line in apply.warnings(connection, one.definition)]
            deleted = _pruned(connection, folders, keep={one.name for one in saved}) if arguments.prune else []
    for line in told:
        print(output.clean(f"orqo: warning: {line}"), file=sys.stderr)
    if arguments.json:
        output.as_json([{"id": one.id, "name": one.name, "version": one.version} for one in saved])
        return 0
    for one in saved:
        state = f"version {one.version}" if one.changed else f"unchanged, version {one.version}"
        output.say(f"{one.name} (id {one.id}): {state}")
    for name in deleted:
        output.say(f"{name}: deleted, for its file is gone")
    return 0


def _saved(connection: Connection, one: Parsed, key: bytes) -> workflows.Saved:
    """Apply one file within the transaction of all; its faults name the file and end them all."""
    assert one.definition is not None
    try:
        return apply.apply(connection, one.definition, key=key, now=clock.now())
    except (Invalid, Conflict) as fault:
        raise Refused(f"{one.path}: {fault.detail}", "orqo: nothing was applied") from fault


def _pruned(connection: Connection, folders: Sequence[Path], *, keep: set[str]) -> list[str]:
    """Delete the workflows whose newest version came from one of the folders and that are not to be kept; gives their names."""
    whole = {str(folder.resolve()) for folder in folders}
    gone = []
    for row in workflows.list_all(connection, limit=100_000):
        version_id = workflows.get(connection, row["id"]).version_id
        if row["name"] not in keep and workflows.definition_of(connection, version_id).folder in whole:
            workflows.delete(connection, row["id"], now=clock.now())
            gone.append(row["name"])
    return gone


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────────────


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        listed = workflows.list_all(connection)
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "NAME", "VERSION", "ENABLED", "UPDATED")
    rows = [tuple(row[key] for key in ("id", "name", "version", "enabled", "updated_at")) for row in listed]
    output.table(headings, rows, nothing=f"There are no workflows. To make one: {PROGRAM} workflow apply FILE")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        shown = _shown(connection, arguments.name)
    if arguments.json:
        output.as_json(shown)
        return 0
    state = "enabled" if shown["enabled"] else "disabled"
    # A comment, so that what is printed is a workflow file again.
    output.say(f"# id {shown['id']}, version {shown['version']}, {state}")
    print(shown["source"].rstrip("\n"))
    return 0


def _shown(connection: Connection, name: str) -> dict[str, Any]:
    row = workflows.named(connection, name)
    told = {"id": row.id, "name": row.name, "version": workflows.number_of(connection, row.version_id), "enabled": bool(row.enabled)}
    return told | {"updated_at": row.updated_at, "source": workflows.source_of(connection, row.version_id)}


def _enable(arguments: argparse.Namespace) -> int:
    with opened() as box:
        return _set_enabled(box, arguments, enabled=True)


def _disable(arguments: argparse.Namespace) -> int:
    with opened() as box:
        return _set_enabled(box, arguments, enabled=False)


def _set_enabled(box: Opened, arguments: argparse.Namespace, *, enabled: bool) -> int:
    with box.database.transaction() as connection:
        row = workflows.named(connection, arguments.name)
        workflows.set_enabled(connection, row.id, enabled=enabled, now=clock.now())
    return _told(arguments, row, {"enabled": enabled}, f"Workflow {row.name} is {'enabled' if enabled else 'disabled'}.")


def _delete(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        instance.check_editable(connection)
        row = workflows.named(connection, arguments.name)
        workflows.delete(connection, row.id, now=clock.now())
    return _told(arguments, row, {"deleted": True}, f"Workflow {row.name} is deleted; its runs stay readable.")


def _told(arguments: argparse.Namespace, row: Any, state: dict[str, Any], sentence: str) -> int:
    if arguments.json:
        output.as_json({"id": row.id, "name": row.name} | state)
    else:
        output.say(sentence)
    return 0
