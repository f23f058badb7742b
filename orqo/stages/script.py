"""The kind `script`: lines for `/bin/sh`.

Owns nothing but how the shell is called. The script is passed on as it stands in the file: data reach it by stdin,
ORQO_INPUT_FILE and the environment, never by substitution. It is plain `/bin/sh` without options: a script that shall
end at its first fault says `set -e`.
"""

from __future__ import annotations

from orqo.stages.command import run_program
from orqo.stages.context import Context
from orqo.stages.result import Result


def execute(context: Context) -> Result:
    """Run the script of the stage; its `$0` is the stage's name, so that the shell's messages name it."""
    return run_program(context, ["/bin/sh", "-c", context.stage.spec, context.stage.name])
