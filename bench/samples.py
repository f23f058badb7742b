"""What a running service uses, by the kernel's word: memory and descriptors of each of its processes, bytes of its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Used:
    """What one process uses."""

    rss_mb: float
    pss_mb: float
    descriptors: int


def processes(supervisor: int) -> dict[int, Used]:
    """Give what a process and each below it uses; those that end meanwhile are left out."""
    found: dict[int, Used] = {}
    for pid in _tree(supervisor):
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            rss, pss = (next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")) for name in ("Rss", "Pss"))
            found[pid] = Used(rss, pss, len(os.listdir(f"/proc/{pid}/fd")))
    return found


def _tree(supervisor: int) -> Iterator[int]:
    found = [supervisor]
    for pid in found:
        yield pid
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]


def name_of(pid: int) -> str:
    """Give the words of a process' command line that tell it from others."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return " ".join(Path(word).name for word in words[:4] if word).strip()


def folder_mb(folder: Path) -> float:
    """Give what a file, or the files below a folder, take of the disk."""
    blocks = 0 if folder.is_dir() else folder.stat().st_blocks
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                blocks += os.lstat(os.path.join(path, name)).st_blocks
    return blocks * 512 / 1e6
