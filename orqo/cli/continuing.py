"""`run answer | rerun`: what makes a run go on, or another begin where it was."""

from __future__ import annotations

import argparse
import getpass
from typing import Any

from orqo import clock, runs
from orqo.cli import output
from orqo.cli.arguments import Refused, json_value, number, verb
from orqo.cli.opening import opened


def add(commands: Any) -> None:
    """Declare the commands."""
    answer = verb(commands, "answer", _answer, "Answer the stage that a run waits at")
    answer.add_argument("id", type=number, metavar="ID")
    answer.add_argument("stage", metavar="STAGE")
    answer.add_argument("outcome", metavar="OUTCOME", nargs="?", help="one of the stage's outcomes, such as approved")
    answer.add_argument("--output", type=json_value, default=None, metavar="JSON", help="what the stage gives")
    answer.add_argument("--error", metavar="TEXT", help="fail the stage, for this reason")
    rerun = verb(commands, "rerun", _rerun, "Repeat a run on its workflow's newest version")
    rerun.add_argument("id", type=number, metavar="ID")
    rerun.add_argument("--from", dest="from_stage", metavar="STAGE", help="go on from this stage; the outputs before it are inherited")


def _answer(arguments: argparse.Namespace) -> int:
    if arguments.error is not None and (arguments.outcome is not None or arguments.output is not None):
        raise Refused("orqo: --error fails the stage, which then has neither an outcome nor an output", status=2)
    status = "completed" if arguments.error is None else "failed"
    given = runs.Answer(status, arguments.output, arguments.outcome, arguments.error and arguments.error[: runs.ERROR_MAX])
    with opened() as box:
        with box.database.transaction() as connection:
            wait = runs.wait_of(connection, arguments.id, arguments.stage)
            answered = runs.answer(box.box, connection, wait, given, by=f"{_user()} (command line)", now=clock.now())
        box.wake_workers()
    if arguments.json:
        output.as_json({"workflow_run_id": answered.run_id, "status": "received"} | ({"duplicate": True} if answered.duplicate else {}))
    else:
        output.say(f"Run {arguments.id} goes on." if not answered.duplicate else f"Run {arguments.id} was answered so already.")
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # An account without a name, as containers have.
        return "somebody"


def _rerun(arguments: argparse.Namespace) -> int:
    with opened() as box:
        with box.database.transaction() as connection:
            made = runs.rerun(box.box, connection, arguments.id, from_stage=arguments.from_stage, origin="cli", now=clock.now())
            shown = runs.show(connection, made)
        box.wake_workers()
        if arguments.json:
            output.as_json(shown)
        else:
            output.say(f"Run {made} repeats run {arguments.id}. To see it happen: {box.hint(f'run tail {made}')}")
    return 0
