"""What the words on a command line are read as: ids, counts, JSON, durations; and how a command is declared.

Owns the reading of single arguments: what cannot be read is a fault of usage. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

PROGRAM = ".venv/bin/python -m orqo"
LARGEST_ID = 2**63 - 1
LONGEST = timedelta(days=36500)
Run = Callable[[argparse.Namespace], int]


class Refused(Exception):
    """A command cannot do what was asked; `lines` go to stderr as they are. `status` 2: it was asked wrongly."""

    def __init__(self, *lines: str, status: int = 1) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.status = status


class Parser(argparse.ArgumentParser):
    """A parser whose faults are told as all others are, below the line that says how a command is written."""

    def error(self, message: str) -> NoReturn:
        """Tell a fault of usage and end with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"orqo: {message}\n")


def verbs(parser: argparse.ArgumentParser) -> Any:
    """Give what the commands of a noun are added to."""
    return parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)


def verb(commands: Any, name: str, run: Run, purpose: str) -> argparse.ArgumentParser:
    """Add one command: its name, what it does, and what it is for in a few words."""
    added: argparse.ArgumentParser = commands.add_parser(name, help=purpose, description=f"{purpose}.", allow_abbrev=False)
    return declare(added, run)


def declare(parser: argparse.ArgumentParser, run: Run) -> argparse.ArgumentParser:
    """Make a parser that of a command."""
    # main() takes --json out wherever it stands; here it is for --help alone.
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(act=run)
    return parser


def number(text: str) -> int:
    """Read the id of a thing."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= LARGEST_ID:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an id: write a whole number from 1")
    return int(text)


def count(text: str) -> int:
    """Read how many."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 100_000 or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: write a whole number from 1 to 100000")
    return int(text)


def json_value(text: str) -> Any:
    """Read strict JSON, as the API does."""
    from orqo import jsontext

    try:
        return jsontext.parse(text.encode())
    except jsontext.NotJson as fault:
        raise argparse.ArgumentTypeError(f"this is not JSON: {fault}") from fault


def duration(text: str) -> timedelta:
    """Read `30d`, `12h`, `15m`."""
    from orqo.config import duration_s

    try:
        read = timedelta(seconds=duration_s(text))
    except (ValueError, OverflowError) as fault:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: write a number and a unit, such as 12h or 30d") from fault
    if not timedelta(0) < read <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: write a duration of at most {LONGEST.days}d")
    return read
