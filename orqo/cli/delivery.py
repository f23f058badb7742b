"""`delivery list | show | redeliver`: the outbox, and what came of each attempt."""

from __future__ import annotations

import argparse
from typing import Any

from orqo import clock, deliveries, jsontext
from orqo.cli import output
from orqo.cli.arguments import count, number, verb, verbs
from orqo.cli.opening import opened
from orqo.models import DeliveryStatus


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    listing = verb(commands, "list", _list, "List the deliveries, newest first")
    listing.add_argument("--status", choices=[str(status) for status in DeliveryStatus], help="only those that stand so")
    listing.add_argument("--run", type=number, metavar="ID", help="only those of one run")
    listing.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")
    show = verb(commands, "show", _show, "Show a delivery: its attempts and what is sent")
    show.add_argument("id", type=number, metavar="ID")
    again = verb(commands, "redeliver", _redeliver, "Send a delivery once more: the same id and the same bytes")
    again.add_argument("id", type=number, metavar="ID")


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
    print()
    output.result(body)
    return 0


def _body(data: bytes) -> Any:
    """Give the frozen bytes as JSON, which they are unless rendering failed."""
    return jsontext.value_of(data, "json") if data else None


def _redeliver(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.transaction() as connection:
        deliveries.redeliver(connection, arguments.id, now=clock.now())
    if arguments.json:
        output.as_json({"id": arguments.id, "status": str(DeliveryStatus.PENDING)})
    else:
        output.say(f"Delivery {arguments.id} is sent again.")
    return 0
