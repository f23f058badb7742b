"""The kind `command`: a program with its arguments, no shell.

Owns what a program of a stage is given (arguments, environment, input, folder) and what its end means; `script` uses
the same. Never runs a shell on anything that a request can influence.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orqo import jsontext, lookup
from orqo.stages import process
from orqo.stages.account import Account, stage_account
from orqo.stages.context import Context, cancelled, timed_out
from orqo.stages.handover import Handover
from orqo.stages.result import CannotRun, Completed, Failed, Result, as_text

STDERR_SHOWN = 200
STRING_MAX_BYTES = 128 * 1024 - 64
TOO_LONG = "is too long for this system: pass large data by stdin or ORQO_INPUT_FILE"


def execute(context: Context) -> Result:
    """Run the argument list of the stage, each `${…}` within its own argument."""
    return run_program(context, arguments(context.stage.spec, context.roots))


def arguments(template: list[str], roots: Mapping[str, Any]) -> list[str]:
    """Render the argument list.

    Raises CannotRun where an argument that begins with a `${…}` turns out to be an option: `--output=file` in a title
    would otherwise be obeyed. A literal `--` before it says that no options follow.
    """
    argv = [lookup.render_text(argument, roots) for argument in template]
    for position, (written, value) in enumerate(zip(template, argv, strict=True)):
        if written.startswith("${") and value.startswith("-") and "--" not in template[1:position]:
            raise CannotRun(
                f"argument {position} ({written}) begins with '-', so the program would take it for an option:"
                " put a literal -- before it in `command`, or pass it by `env`"
            )
    return argv


def run_program(context: Context, argv: list[str]) -> Result:
    """Run a program with the stage's input, environment and limits; CannotRun where it cannot be started."""
    account = stage_account(context.stage_user)
    cwd = _working_folder(context)
    arguments = [_bytes(argument, f"argument {position}") for position, argument in enumerate(argv)]
    _give_run_folder(context.run_dir, account)
    with Handover(context, account) as handover:
        command = process.Command(arguments, _environment(context, account, handover), cwd, handover.stdin, account)
        limits = process.Limits(context.deadline, context.cancelled, context.stage.max_output_bytes)
        try:
            ended = process.run(command, limits)
        except process.CannotStart as failure:
            raise CannotRun(_start_fault(failure.fault, argv[0], cwd, account)) from failure
        return _result(context, ended, handover)


def _working_folder(context: Context) -> str:
    workdir = context.stage.workdir
    if workdir is None:
        return str(context.run_dir)
    if context.base_dir is None and not os.path.isabs(workdir):
        raise CannotRun(f"workdir {workdir!r} is relative, but this workflow comes from no file: write an absolute path")
    return os.path.join(context.base_dir or "/", workdir)


def _give_run_folder(run_dir: Path, account: Account | None) -> None:
    if account is not None and os.stat(run_dir).st_uid != account.uid:
        os.chown(run_dir, account.uid, account.gid)


def _environment(context: Context, account: Account | None, handover: Handover) -> dict[bytes, bytes]:
    """Give the whole environment: nothing else of the service's may get to a stage, its secrets above all."""
    own = os.environ
    home = own.get("HOME") if account is None else account.home
    written = {name: lookup.render_text(value, context.roots) for name, value in context.stage.env.items()}
    variables = {
        "PATH": own.get("PATH", os.defpath),
        "HOME": home or str(context.run_dir),
        "LANG": own.get("LANG", "C.UTF-8"),
        "TZ": own.get("TZ", "UTC"),
        **written,
        "ORQO_RUN_ID": str(context.run_id),
        "ORQO_RUN_DIR": str(context.run_dir),
        "ORQO_WORKFLOW": context.workflow,
        "ORQO_STAGE": context.stage.name,
        "ORQO_INPUT_FILE": handover.input_path,
        "ORQO_OUTCOME_FILE": handover.outcome_path,
    }
    return {name.encode(): _bytes(value, f"the variable {name}") for name, value in variables.items()}


def _bytes(text: str, what: str) -> bytes:
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise CannotRun(f"{what} holds half of a surrogate pair, which is no character") from None
    if b"\0" in encoded:
        raise CannotRun(f"{what} holds a NUL character, which no program can be given: pass the data by stdin")
    # Linux takes 128 KiB a string, whatever their sum (MAX_ARG_STRLEN).
    if len(encoded) >= STRING_MAX_BYTES:
        raise CannotRun(f"{what} {TOO_LONG}")
    return encoded


def _start_fault(fault: OSError, program: str, cwd: str, account: Account | None) -> str:
    user = f"the user {account.name}" if account else "the service's user"
    if fault.filename == cwd and program != cwd:
        if fault.errno == errno.EACCES:
            return f"{user} may not enter the working folder {cwd}: open it to that user, or change ORQO_STAGE_USER"
        return f"the working folder {cwd} cannot be entered ({os.strerror(fault.errno or 0)}): make it, or change `workdir`"
    reasons = {
        errno.ENOENT: _not_found(program, cwd),
        errno.EACCES: _not_allowed(program, user),
        errno.ENOEXEC: f"{program} is no program: begin it with a line such as #!/bin/sh",
        errno.E2BIG: f"all arguments and variables together: this {TOO_LONG}",
    }
    return reasons.get(fault.errno or 0, f"{program} cannot be started: {os.strerror(fault.errno or 0)}")


def _not_allowed(program: str, user: str) -> str:
    # The system says "not allowed" too where a folder of PATH is closed to the user and no other one has the program.
    if "/" not in program:
        return f"there is no program {program!r} on PATH that {user} may execute: install it for all users, or write its whole path"
    return f"{user} may not execute {program}: make it executable (chmod +x) and readable for that user"


def _not_found(program: str, cwd: str) -> str:
    if "/" not in program:
        return f"there is no program {program!r} on PATH: install it, or write its whole path"
    if os.path.exists(os.path.join(cwd, program)):
        return f"the interpreter that the first line of {program} names does not exist"
    return f"there is no file {os.path.join(cwd, program)}: a path with a slash is relative to `workdir`"


def _result(context: Context, ended: process.Ended, handover: Handover) -> Result:
    output, kind = as_text(ended.stdout, truncated=ended.truncated)
    captured: dict[str, Any] = {"output": output, "output_kind": kind, "truncated": ended.truncated, "stderr": ended.stderr}
    if ended.why == "timeout":
        return timed_out(context, **captured)
    if ended.why is not None:
        return cancelled(ended.why, **captured)
    if ended.returncode != 0:
        return Failed("stage_failed", _exit_detail(ended), exit_code=_exit_code(ended.returncode), **captured)
    try:
        outcome = handover.outcome()
        output, kind = _parsed(context, ended) if context.stage.output == "json" else (output, kind)
    except CannotRun as fault:
        return Failed("stage_failed", fault.detail, exit_code=0, retryable=False, **captured)
    return Completed(output, kind, ended.truncated, outcome=outcome, exit_code=0, stderr=ended.stderr)


def _parsed(context: Context, ended: process.Ended) -> tuple[bytes, str]:
    if ended.truncated:
        raise CannotRun(f"the output is longer than max_output ({context.stage.max_output_bytes} bytes), so it is no whole JSON")
    try:
        return jsontext.dump(jsontext.parse(ended.stdout)).encode("utf-8"), "json"
    except ValueError as fault:
        raise CannotRun(f"the stage says `output: json`, but its output is not JSON: {fault}") from None


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode  # as every shell shows it


def _exit_detail(ended: process.Ended) -> str:
    if ended.returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was ended by {names.get(-ended.returncode, f'signal {-ended.returncode}')}"
    else:
        how = f"ended with exit status {ended.returncode}"
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"the command {how}" + (f": {lines[-1].strip()[:STDERR_SHOWN]}" if lines else "")
