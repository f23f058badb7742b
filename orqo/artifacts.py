"""Artifacts: the files that a run's stages leave under `artifacts/` in its folder, listed and opened.

Owns the way to such a file. What a stage wrote is not trusted: no link is followed, nothing but regular files is opened,
and a type is told only where no browser runs it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from orqo import clock
from orqo.errors import NotFound

FOLDER = "artifacts"
LISTED_MAX = 1000
DEPTH_MAX = 20
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, no-store",
}
"""Of every answer that is such a file, besides Content-Disposition: attachment."""
UNKNOWN_TYPE = "application/octet-stream"
AS_TEXT = (".txt", ".log", ".md", ".yaml", ".yml", ".xml", ".html", ".htm", ".svg", ".js", ".css", ".diff", ".patch")
TYPES = {
    **dict.fromkeys(AS_TEXT, "text/plain"),
    ".json": "application/json",
    ".csv": "text/csv",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".zip": "application/zip",
    ".gz": "application/gzip",
    ".tgz": "application/gzip",
}
"""By the end of a name. What a browser would run (HTML, SVG, scripts) is text here; what is not known is bytes."""


@dataclass(frozen=True)
class Artifact:
    """An opened file; whoever takes it closes it."""

    name: str
    type: str
    size: int
    file: BinaryIO


def list_all(runs_dir: Path, run_id: int) -> list[dict[str, Any]]:
    """Give `{"path", "size", "type", "modified_at"}` of each file, by path; the first 1000."""
    folder = runs_dir / str(run_id) / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = []
    for path, about in _walk(folder, ()):
        found.append(
            {
                "path": path,
                "size": about.st_size,
                "type": type_of(path),
                "modified_at": clock.to_text(datetime.fromtimestamp(about.st_mtime, UTC)),
            }
        )
        if len(found) == LISTED_MAX:
            break
    return found


def type_of(path: str) -> str:
    """Give the media type that a file is told to be."""
    return TYPES.get(PurePosixPath(path).suffix.lower(), UNKNOWN_TYPE)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Give the regular files below a folder, each folder's own in order of name; what is not UTF-8 has no path here."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        # A stage that is still running takes its folder away.
        return
    for entry in entries:
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        steps = (*above, entry.name)
        if stat.S_ISDIR(about.st_mode) and len(steps) < DEPTH_MAX:
            yield from _walk(folder / entry.name, steps)
        elif _is_plain(about) and _is_name(entry.name):
            yield "/".join(steps), about


def _is_plain(about: os.stat_result) -> bool:
    """Tell whether this is a file of its own: a second name of one may be of a file elsewhere."""
    return stat.S_ISREG(about.st_mode) and about.st_nlink == 1


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def opened(runs_dir: Path, run_id: int, path: str) -> Artifact:
    """Open a file by its path as listed; NotFound for whatever else is or is not there.

    Each step is opened within the one before it and no link is followed, so nothing can be swapped on the way.
    """
    steps = path.split("/")
    if len(steps) > DEPTH_MAX or not all(_is_name(step) for step in steps):
        raise NotFound("There is no such file.")
    try:
        file = _opened(runs_dir, [str(run_id), FOLDER, *steps])
    except OSError as fault:
        raise NotFound("There is no such file.") from fault
    about = os.fstat(file.fileno())
    if not _is_plain(about):
        file.close()
        raise NotFound("There is no such file.")
    return Artifact(steps[-1], type_of(path), about.st_size, file)


def _opened(folder: Path, steps: list[str]) -> BinaryIO:
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for index, step in enumerate(steps):
        # Without O_NONBLOCK a pipe that nobody writes to would hold the request for ever.
        kind = os.O_NONBLOCK if index == len(steps) - 1 else os.O_DIRECTORY
        try:
            inner = os.open(step, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=at)
        finally:
            os.close(at)
        at = inner
    return os.fdopen(at, "rb")
