"""`delivery list | show | redeliver`: the outbox, and what came of each attempt."""

from __future__ import annotations

import argparse
import shlex
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from orqo import clock, deliveries, jsontext
from orqo.cli import output
from orqo.cli.arguments import Refused, count, duration, number, verb, verbs
from orqo.cli.opening import opened
from orqo.db import Database
from orqo.models import DeliveryStatus
from orqo.secretstore import SecretStore


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    listing = verb(commands, "list", _list, "List the deliveries, newest first")
    listing.add_argument("--status", choices=[str(status) for status in DeliveryStatus], help="only those that stand so")
    listing.add_argument("--run", type=number, metavar="ID", help="only those of one run")
    listing.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")
    show = verb(commands, "show", _show, "Show a delivery: its attempts and what is sent")
    show.add_argument("id", type=number, metavar="ID")
    show.add_argument("--curl", action="store_true", help="print the curl line that sends it by hand, signed now")
    again = verb(commands, "redeliver", _redeliver, "Send deliveries once more: the same ids and the same bytes")
    again.add_argument("id", type=number, metavar="ID", nargs="?", help="one delivery")
    again.add_argument("--callback", type=number, metavar="ID", help="all dead ones of a callback")
    again.add_argument("--since", type=duration, metavar="DURATION", help="all dead ones of the last 2h, 3d …; goes with --callback")
    again.add_argument("--until", type=duration, metavar="DURATION", help="only those that were dead so long ago: 1h, 2d …")


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        listed = deliveries.list_all(connection, status=arguments.status, run_id=arguments.run, limit=arguments.limit)
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "RUN", "EVENT", "STATUS", "ATTEMPTS", "URL")
    keys = ("id", "workflow_run_id", "event", "status", "attempts", "url")
    output.table(headings, [tuple(row[key] for key in keys) for row in listed], nothing="There are no deliveries.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        row = deliveries.get(connection, arguments.id)
        attempts = deliveries.attempts_of(connection, arguments.id)
        key = box.key if arguments.curl else b""
    if arguments.curl:
        print(_curl(row, SecretStore.from_config(box.config), key))
        return 0
    shown = deliveries.shown(row)
    body = _body(row.body)
    if arguments.json:
        output.as_json(shown | {"history": attempts, "body": body})
        return 0
    output.fields({name.replace("_", " "): value for name, value in shown.items()})
    print()
    keys = ("number", "started_at", "duration_ms", "status_code", "reason", "detail")
    rows = [tuple(attempt[key] for key in keys) for attempt in attempts]
    output.table(("ATTEMPT", "AT", "MS", "ANSWER", "CAME TO", "DETAIL"), rows, nothing="It was not attempted yet.")
    for attempt in attempts:
        if attempt["excerpt"]:
            print()
            output.fields({f"answer to attempt {attempt['number']}": attempt["excerpt"]})
    print()
    output.result(body)
    return 0


def _redeliver_dead(arguments: argparse.Namespace) -> int:
    now = clock.now()
    since, until = (now - each if each else None for each in (arguments.since, arguments.until))
    wanted = {"callback_id": arguments.callback, "since": since, "until": until or now}
    ids: list[int] = []
    with opened() as box:
        # A batch is a commit: ten thousand in one would keep everybody else from writing for seconds.
        while batch := _batch(box.database, wanted, now):
            ids += batch
    if arguments.json:
        output.as_json([{"id": each, "status": str(DeliveryStatus.PENDING)} for each in ids])
    else:
        output.say(f"{len(ids)} deliveries are sent again.")
    return 0


def _batch(database: Database, wanted: dict[str, Any], now: datetime) -> list[int]:
    with database.transaction() as connection:
        return deliveries.redeliver_dead(connection, **wanted, now=now)


def _curl(row: Row[Any], secrets: SecretStore, key: bytes) -> str:
    """Give the line that sends a delivery as the dispatcher would. It holds its secrets: it is for a terminal."""
    url, headers = deliveries.request_of(row, secrets, key, now=clock.now())
    words = ["curl", "-X", "POST", *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}"))]
    return shlex.join([*words, "--data-binary", row.body.decode("utf-8"), url])


def _body(data: bytes) -> Any:
    """Give the frozen bytes as JSON, which they are unless rendering failed."""
    return jsontext.value_of(data, "json") if data else None


def _redeliver(arguments: argparse.Namespace) -> int:
    if (arguments.id is None) == (arguments.callback is arguments.since is arguments.until is None):
        raise Refused("orqo: say which: an ID, or --callback ID, --since DURATION, --until DURATION or several of them", status=2)
    if arguments.id is None:
        return _redeliver_dead(arguments)
    with opened() as box, box.database.transaction() as connection:
        deliveries.redeliver(connection, arguments.id, now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "status": str(DeliveryStatus.PENDING)})
    else:
        output.say(f"Delivery {arguments.id} is sent again.")
    return 0
