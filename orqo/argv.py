"""Which arguments of a command are program text, so that no payload may stand in them.

Owns the table of interpreters and their options. Never knows look-ups or workflow files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Interpreter:
    """A program that takes code as an argument: its names, the options that announce code, those after which none comes."""

    names: re.Pattern[str]
    code: re.Pattern[str]
    ends: re.Pattern[str] | None = None
    subcommands: tuple[str, ...] = ()
    user_first: bool = False


def _interpreter(names: str, code: str, ends: str = "", subcommands: tuple[str, ...] = (), *, user_first: bool = False) -> Interpreter:
    return Interpreter(re.compile(names), re.compile(code), re.compile(ends) if ends else None, subcommands, user_first)


# Short options may be joined (-lc, -ne), so a code option is looked for within a group; letters that take a value of
# their own (-W of python, -M of perl, …) end the search in it, or -Mfeature would read as -e.
INTERPRETERS = (
    _interpreter(r"(?:ba|da|z|k|mk|a|ya|pdk|lk|fi|c|tc|r|rba)?sh[\d.]*|nu|xonsh|elvish", r"[-+][A-Za-z]*c|--commands?|--init-command"),
    _interpreter(r"pwsh|powershell", r"(?i)--?(?:c|com.*|e|ec|en.*)$"),
    _interpreter(r"su|runuser|script|flock", r"-[A-Za-z]*c|--command|--session-command", user_first=True),
    _interpreter(r"(?:python|pypy)[\d.]*\w?|ipython[\d.]*", r"-[^WXm\W]*c", r"-[^WXc\W]*m"),
    _interpreter(r"perl[\d.]*|raku", r"-[^IMmFDx\W]*[eE]"),
    _interpreter(r"j?ruby[\d.]*|irb", r"-[^IrCEFKTWx\W]*e"),
    _interpreter(r"node(?:js)?[\d.]*|bun|qjs|tsx|ts-node|deno", r"-[^rC\W]*[ep]|--eval|--print", subcommands=("eval",)),
    _interpreter(r"php[\d.]*", r"-[^cdfnStz\W]*[rBRE]|--run|--process-(?:begin|code|end)"),
    _interpreter(r"lua[\d.]*|luajit[\d.]*|osascript|R|Rscript|elixir|groovy|scala|clojure|bb|julia|ghc|guile", r"-[eE]|--eval|--print"),
    _interpreter(r"tclsh|wish|expect", r"-c"),
    _interpreter(r"env", r"-[^uC\W]*S|--split-string"),
)


# An option whose letters are only known at the run: it could become the one that announces code.
OPEN_OPTION = re.compile(r"[-+][A-Za-z-]*\$\{")


def code_argument(argv: Sequence[str]) -> int | None:
    """Give the index of the first argument that is or announces program text, else None: `sh -c …`, `env FOO=1 perl -ne …`.

    An interpreter is looked for at every position, for it may stand behind `env`, `timeout`, `xargs` and the like.
    """
    # Each interpreter whose options may still follow, and whether the argument before was an option.
    reading: dict[Interpreter, bool] = {}
    for index, argument in enumerate(argv):
        if any(_is_code(interpreter, argument) for interpreter in reading):
            return index
        reading = {each: _is_option(argument) for each, after in reading.items() if _goes_on(each, argument, after_option=after)}
        named = _named(argument)
        if named:
            reading[named] = reading.get(named, False)
    return None


def _named(argument: str) -> Interpreter | None:
    name = PurePosixPath(argument).name
    return next((each for each in INTERPRETERS if each.names.fullmatch(name)), None)


def _is_code(interpreter: Interpreter, argument: str) -> bool:
    return bool(interpreter.code.match(argument) or OPEN_OPTION.match(argument)) or argument in interpreter.subcommands


def _is_option(argument: str) -> bool:
    return argument[:1] in ("-", "+")


def _goes_on(interpreter: Interpreter, argument: str, *, after_option: bool) -> bool:
    """Say whether options of the interpreter may follow this argument.

    What follows an option may be its value; any other word is a script's name, and the rest is for the script.
    """
    if argument == "--" or (interpreter.ends and interpreter.ends.match(argument)):
        return False
    return _is_option(argument) or after_option or interpreter.user_first
