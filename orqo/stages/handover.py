"""What a command is handed (its input) and hands back (the label of its outcome), as files.

Owns the two files and their removal. They lie in memory where there is a folder for that (on a disk they took a tenth of
the time of `true`), else, or when large, beside the run's folder; not in it, for `git clone … .` wants it empty. The input
is also the command's stdin: a file can be left unread, whatever its size, and blocks nobody.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from orqo import lookup
from orqo.stages.account import Account
from orqo.stages.context import Context
from orqo.stages.result import CannotRun

OUTCOME_MAX_CHARACTERS = 64
NO_PLAIN_FILE = "ORQO_OUTCOME_FILE is no plain file of the stage's user any more: write the label into it"
MEMORY_FOLDER = "/dev/shm"
MEMORY_MAX_BYTES = 64 * 1024
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
STAGE_KEYS = ("output", "outcome", "status")


class Handover:
    """The files of one execution: `stdin` is the input, open for reading; both paths exist while it is entered."""

    def __init__(self, context: Context, account: Account | None) -> None:
        self.input_path = ""
        self.outcome_path = ""
        self.stdin = -1
        self._account = account
        self._content = input_json(context)
        self._folder = str(context.run_dir.parent)

    def __enter__(self) -> Handover:
        if len(self._content) <= MEMORY_MAX_BYTES:
            with suppress(OSError):
                return self._made(MEMORY_FOLDER)
        try:
            return self._made(self._folder)
        except OSError as fault:
            raise CannotRun(f"the stage's input cannot be written beside the run's folder: {fault.strerror}") from fault

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
        _remove(self.input_path)
        _remove(self.outcome_path)

    def outcome(self) -> str | None:
        """Read the label that the command wrote, None where it wrote none; CannotRun for anything that is no label.

        The file is the command's: it may be a link or a pipe by now, so neither is followed or waited for.
        """
        try:
            found = os.lstat(self.outcome_path)
            if stat.S_ISREG(found.st_mode) and found.st_size == 0:
                return None
            fd = os.open(self.outcome_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            raise CannotRun(NO_PLAIN_FILE) from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != (self._account.uid if self._account else os.geteuid()):
                raise CannotRun(NO_PLAIN_FILE)
            return _label(os.read(fd, 4 * OUTCOME_MAX_CHARACTERS + 2))
        finally:
            os.close(fd)

    def _made(self, folder: str) -> Handover:
        path = f"{folder}/{_prefix(self._folder)}{os.urandom(8).hex()}"
        self.input_path, self.outcome_path = f"{path}.input", f"{path}.outcome"
        try:
            self.stdin = self._create(self.input_path)
            self._fill(self.stdin)
            os.close(self._create(self.outcome_path))
        except OSError:
            self.__exit__(None, None, None)
            raise
        return self

    def _create(self, path: str) -> int:
        fd = os.open(path, CREATE, 0o600)
        if self._account is not None:
            os.fchown(fd, self._account.uid, self._account.gid)
        return fd

    def _fill(self, fd: int) -> None:
        # Written by position, so that whoever reads the same descriptor begins at its beginning.
        written = 0
        while written < len(self._content):
            written += os.pwrite(fd, memoryview(self._content)[written:], written)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed workers left behind of runs whose folders lie in `folder`; only while none of its workers runs."""
    for place in (MEMORY_FOLDER, str(folder)):
        for path in glob.glob(f"{glob.escape(place)}/{_prefix(str(folder))}*"):
            _remove(path)


def input_json(context: Context) -> bytes:
    """Give `{"run", "input", "trigger", "stages": {name: {"output", "outcome", "status"}}}`; no secrets.

    An output that cannot be read (cut at its limit) is null and `output_unreadable` says why.
    """
    roots = context.roots
    shown = {
        "run": roots.get("run"),
        "input": roots.get("input"),
        "trigger": roots.get("trigger"),
        "stages": {name: _stage(stage) for name, stage in (roots.get("stages") or {}).items()},
    }
    return ENCODER.encode(shown).encode("utf-8", "replace")


@lru_cache(maxsize=16)
def _prefix(folder: str) -> str:
    # Several services may share the folder in memory: the name says whose file it is.
    return f".orqo-{zlib.crc32(os.fsencode(folder)):08x}-"


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:  # The command made a folder of it.
        shutil.rmtree(path, ignore_errors=True)


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    shown = {key: stage.get(key) for key in STAGE_KEYS}
    if isinstance(shown["output"], lookup.Unreadable):
        shown["output_unreadable"] = shown["output"].reason
    return shown


def _plain(value: Any) -> Any:
    return None if isinstance(value, lookup.Unreadable) else str(value)


def _label(content: bytes) -> str | None:
    try:
        label = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise CannotRun("ORQO_OUTCOME_FILE holds no UTF-8 text: write one label into it") from None
    if len(label) > OUTCOME_MAX_CHARACTERS or not label.isprintable():
        raise CannotRun(f"ORQO_OUTCOME_FILE holds more than one label of at most {OUTCOME_MAX_CHARACTERS} characters on one line")
    return label or None


# Made once: json.dumps with arguments of one's own makes an encoder each time.
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)
