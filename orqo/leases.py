"""Who holds a lease: a name for this process, and whether the process behind a name is gone.

Owns the form of `lease_owner`. Never reads the database.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from orqo import clock


def owner() -> str:
    """Name this process: boot, pid namespace, pid and start time, so that a used-again pid is another name."""
    pid = os.getpid()
    return f"{clock.boot_id()}/{_pid_namespace()}/{pid}/{_start_time(pid)}"


def is_gone(name: str) -> bool:
    """Tell whether the named process certainly lives no more.

    Only known for processes of this boot and this pid namespace; for all others the lease's own time decides.
    """
    try:
        boot, namespace, pid, started = name.split("/")
        return (boot, namespace) == _here() and _start_time(int(pid)) != started
    except ValueError:
        return False


@lru_cache(maxsize=1)
def _here() -> tuple[str, str]:
    return clock.boot_id(), _pid_namespace()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"


def _start_time(pid: int) -> str:
    """Give the kernel's start time of a process, empty where there is none: a dead or a zombie one runs nothing."""
    try:
        # The command's name may hold spaces and parentheses: what follows the last one is regular.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
