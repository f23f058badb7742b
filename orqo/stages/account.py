"""The account that commands run as.

Owns the change of user from root to the stage user. Never decides which user that is.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import platform
import pwd
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orqo.stages.result import CannotRun

# setgroups, setresgid, setresuid: the system calls themselves change the calling thread alone, libc's wrappers all threads.
SYSTEM_CALLS = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}


@dataclass(frozen=True)
class Account:
    """A user that is not ours: its ids and its home, None where there is no such folder."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str | None


@lru_cache(maxsize=16)
def stage_account(name: str) -> Account | None:
    """Give the account to change to; None where commands run as the service's own user. CannotRun for an unknown user."""
    if os.geteuid() != 0 or name == "root":
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise CannotRun(f"there is no user {name!r} on this box: set ORQO_STAGE_USER to one that exists") from None
    groups = tuple(os.getgrouplist(name, found.pw_gid))
    return Account(name, found.pw_uid, found.pw_gid, groups, found.pw_dir if os.path.isdir(found.pw_dir) else None)


def start(account: Account | None, argv: list[bytes], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as `account`; OSError as `subprocess.Popen`.

    `Popen(user=…)` copies the whole worker (fork), which takes three times as long as all the rest of `true`. A thread of
    its own that gives up root for good and then starts the process needs no copy (vfork), and no way back to root.
    """
    if account is None:
        return subprocess.Popen(argv, **options)
    numbers = SYSTEM_CALLS.get(platform.machine()) if sys.maxsize > 2**32 else None
    if numbers is None:
        return subprocess.Popen(argv, user=account.uid, group=account.gid, extra_groups=account.groups, **options)
    return _in_thread(lambda: _lowered(account, numbers, lambda: subprocess.Popen(argv, **options)))


def _in_thread(start_process: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    started: list[subprocess.Popen[bytes]] = []
    faults: list[BaseException] = []
    done = _thread.allocate_lock()

    def run() -> None:
        try:
            started.append(start_process())
        except BaseException as fault:  # It is the caller's, who waits for this thread and raises it again.
            faults.append(fault)
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(run, ())  # threading.Thread takes 80 µs more, a tenth of `true`
    done.acquire()
    if faults:
        raise faults[0]
    return started[0]


def _lowered(
    account: Account, numbers: tuple[int, int, int], start_process: Callable[[], subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    set_groups, set_gids, set_uids = numbers
    groups = (ctypes.c_uint32 * len(account.groups))(*account.groups)
    _system_call(set_groups, ctypes.c_size_t(len(account.groups)), groups)
    _system_call(set_gids, *[ctypes.c_size_t(account.gid)] * 3)
    _system_call(set_uids, *[ctypes.c_size_t(account.uid)] * 3)
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3:
        raise CannotRun(f"commands cannot be run as the user {account.name}: the change of user had no effect")
    return start_process()


def _system_call(number: int, *arguments: Any) -> None:
    if _libc().syscall(ctypes.c_long(number), *arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise CannotRun(f"commands cannot be run as ORQO_STAGE_USER: {reason}; start the service as that user instead")


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
