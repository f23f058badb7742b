"""`request list | show | replay`: what the endpoints received, and why it came to nothing."""

from __future__ import annotations

import argparse

from orqo import clock, replays, requestlog, workflows
from orqo.cli import output
from orqo.cli.arguments import count, number, verb, verbs
from orqo.cli.opening import Opened, opened
from orqo.errors import NotFound
from orqo.hooks import Gate
from orqo.models import Verdict
from orqo.secretstore import SecretStore


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the commands."""
    commands = verbs(parser)
    listing = verb(commands, "list", _list, "List the requests that the endpoints received, newest first")
    listing.add_argument("--workflow", metavar="NAME", help="only those to one workflow's webhooks")
    listing.add_argument("--trigger", type=number, metavar="ID", help="only those to one webhook")
    listing.add_argument("--endpoint", choices=("callback", "trigger", "hook"), help="only those to one endpoint")
    listing.add_argument("--verdict", choices=[str(verdict) for verdict in Verdict], help="only those that came to this")
    listing.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")
    show = verb(commands, "show", _show, "Show a request: its verdict and why, headers, body, and a curl command that sends it again")
    show.add_argument("id", type=number, metavar="ID")
    again = verb(commands, "replay", _replay, "Send a refused or ignored request through its webhook once more")
    again.add_argument("id", type=number, metavar="ID")
    again.add_argument("--anyway", action="store_true", help="run it although its signature does not fit; the run notes that")


def _list(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        workflow_id = workflows.named(connection, arguments.workflow).id if arguments.workflow else None
        listed = requestlog.list_all(
            connection,
            endpoint=arguments.endpoint,
            verdict=arguments.verdict,
            workflow_id=workflow_id,
            trigger_id=arguments.trigger,
            limit=arguments.limit,
        )
    if arguments.json:
        output.as_json(listed)
        return 0
    headings = ("ID", "AT", "ENDPOINT", "WORKFLOW", "TRIGGER", "SIZE", "ANSWER", "VERDICT", "RUN", "REASON")
    keys = ("id", "received_at", "endpoint", "workflow", "trigger", "size", "status_code", "verdict", "run_id", "reason")
    output.table(headings, [tuple(row[key] for key in keys) for row in listed], nothing="There are no requests.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with opened() as box, box.database.read() as connection:
        row = requestlog.find(connection, arguments.id)
        if row is None:
            raise NotFound(f"There is no request {arguments.id}. List them with: request list")
        url = _url(box, row.endpoint)
    shown = requestlog.shown(row) | {"curl": requestlog.as_curl(row, url)}
    if arguments.json:
        output.as_json(shown)
        return 0
    single = ("id", "endpoint", "received_at", "workflow", "trigger", "verdict", "reason", "status_code", "run_id", "replay_of")
    output.fields({name.replace("_", " "): shown[name] for name in (*single, "method", "remote", "size")})
    for name, value in shown["query"]:
        output.say(f"?{name}={value}")
    for name, value in shown["headers"].items():
        output.say(f"{name}: {value}")
    print()
    output.result(shown["body"])
    print()
    if url == "$URL":
        where = box.hint(f"trigger show {row.trigger_id}") if row.trigger_id else "its trigger is gone"
        output.say(f"# $URL is the webhook's: {where}")
    output.say(shown["curl"])
    return 0


def _url(box: Opened, endpoint: str) -> str:
    """Give where the request went; of a webhook only a variable, for its URL is a credential."""
    return "$URL" if endpoint == "hook" else f"{box.config.base_url}/api/v1/{endpoint}"


def _replay(arguments: argparse.Namespace) -> int:
    with opened() as box:
        gate = Gate(box.database, SecretStore.from_config(box.config), box.config.base_url)
        outcome = replays.replay(gate, arguments.id, anyway=arguments.anyway, now=clock.now())
        if outcome.verdict == Verdict.ACCEPTED:
            box.wake_workers()
    if arguments.json:
        output.as_json({"id": arguments.id, "verdict": str(outcome.verdict), "workflow_run_id": outcome.run_id, "reason": outcome.reason})
    elif outcome.run_id is not None:
        already = ", which there was already" if outcome.verdict == Verdict.DUPLICATE else ""
        output.say(f"Request {arguments.id} is run {outcome.run_id}{already}.")
    else:
        output.say(f"Request {arguments.id} starts no run: {outcome.reason or outcome.verdict}.")
    return 0 if outcome.run_id is not None else 1
