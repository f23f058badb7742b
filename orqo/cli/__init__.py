"""The command line: which commands there are, and how a fault is told.

Owns the exit status (0 ok, 1 failed, 2 usage) and stderr. Of the modules beside it only the one that the command names
is imported: a command that needs no database must not wait for SQLAlchemy.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from orqo.cli.arguments import PROGRAM, Parser, Refused

__all__ = ["guarded", "main"]

INTERRUPTED, PIPE_CLOSED = 130, 141
LISTING = "List them with: "
# Each word, what it is for, and the module that has its `add(parser)`.
WORDS: dict[str, tuple[str, str]] = {
    "serve": ("start everything and keep it running: what `make run` does", "service"),
    "worker": ("run the workers and the dispatcher alone", "service"),
    "dev": ("a box to test a client against: temporary, on loopback, with the workflows of a folder, failing on demand", "dev"),
    "listen": ("receive, verify and print callbacks, for development", "listen"),
    "login-link": ("make a one-time link that signs a browser in to the dashboard", "login"),
    "doctor": ("check this box and say what to do", "doctor"),
    "workflow": ("apply, validate, list, show, disable, enable, delete workflows", "workflow"),
    "token": ("create, list, revoke API tokens", "token"),
    "trigger": ("create, update, list, show, enable, disable, rotate, delete triggers", "trigger"),
    "callback": ("list callbacks; show a secret, pause, resume, test", "callback"),
    "run": ("start, list, show, tail, stop, answer, rerun runs", "run"),
    "delivery": ("list, show, redeliver deliveries", "delivery"),
    "request": ("list, show, replay what the endpoints received", "request"),
    "db": ("make, upgrade, back up, restore, prune or move the database", "db"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command line says and give the exit status; everything that a user can cause is one line on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(given))


def guarded(command: Callable[[], int]) -> int:
    """Call a command and tell its faults; Ctrl-C and a reader that went away end it quietly."""
    # Log lines are for the service, which says where they go; a command tells its faults itself.
    logging.getLogger("orqo").addHandler(logging.NullHandler())
    try:
        status = command()
        sys.stdout.flush()
        return status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # What is still in the buffer would be written at exit, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as fault:
        return _tell(fault)


def _interrupted() -> int:
    """End as a program that Ctrl-C ends: by the signal itself, so that a script around it ends too; a shell shows 130.

    Python does the same by itself where the interrupt passed through an import, so a status of our own would not be reliable.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return INTERRUPTED


def _run(given: list[str]) -> int:
    if any(not _is_text(argument) for argument in given):
        print("orqo: an argument is not UTF-8 text", file=sys.stderr)
        return 2
    end = given.index("--") if "--" in given else len(given)
    words = [word for word in given[:end] if word != "--json"] + given[end:]
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shall not end a command.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = _parser(words).parse_args(words)
    arguments.json = len(words) < len(given)
    act: Callable[[argparse.Namespace], int] = arguments.act
    return act(arguments)


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Give the parser of all words, with the details of the one that was given."""
    parser = Parser(prog=PROGRAM, description="orqo's command line.", epilog="Every command takes --json and --help.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="word", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), "")
    for word, (purpose, module) in WORDS.items():
        one = commands.add_parser(word, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False)
        if word == chosen:
            importlib.import_module(f"orqo.cli.{module}").add(one, word)
    return parser


def _tell(fault: Exception) -> int:
    """Tell a fault on stderr and give the exit status; a traceback only where it was asked for."""
    lines = _lines(fault)
    debug = os.environ.get("ORQO_LOG_LEVEL") == "debug"
    if lines is None and debug:
        raise fault
    for line in lines or [f"orqo: this is a fault of orqo's own ({type(fault).__name__}); ORQO_LOG_LEVEL=debug shows where"]:
        print(line, file=sys.stderr)
    return fault.status if isinstance(fault, Refused) else 1


def _lines(fault: Exception) -> list[str] | None:
    """Give the lines that tell a fault to people, None where it is a bug of ours."""
    from orqo.config import ConfigError
    from orqo.errors import Problem
    from orqo.processes import CannotStart

    if isinstance(fault, Refused):
        return list(fault.lines)
    if isinstance(fault, ConfigError):
        return [f"orqo: {each}" for each in fault.faults]
    if isinstance(fault, Problem):
        # Shared with the API, which names the command alone.
        return ["orqo: " + fault.detail.replace(LISTING, f"{LISTING}{PROGRAM} ")]
    if isinstance(fault, CannotStart) or type(fault).__name__ == "SchemaMismatch":
        return [f"orqo: {fault}"]
    if isinstance(fault, OSError) and fault.strerror:
        return [f"orqo: {fault.filename}: {fault.strerror}" if fault.filename else f"orqo: {fault.strerror}"]
    return None
