"""The service as its operators run it (`orqo serve`), a Valkey beside it, and the faults that befall both.

Knows processes by /proc alone. A fault is a method; faults.py decides which and when.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from ports import free_port as free_port

from chaos import database

ROOT = Path(__file__).resolve().parents[2]
RETRIES = ",".join(["300ms"] * 4 + ["1s"] * 60)


@dataclass
class World:
    """One box in a folder of its own."""

    folder: Path
    valkey_argv: list[str]
    database_url: str = ""
    workers: int = 12
    port: int = field(default_factory=free_port)
    # So soon a killed worker's run is free again: its machine sees that the process is gone.
    dead_max_s: float = 15.0
    service: subprocess.Popen[bytes] | None = None
    valkey: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def socket_path(self) -> Path:
        return self.folder / "valkey.sock"

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(ROOT),
            "ORQO_DATA": str(self.data),
            "ORQO_PORT": str(self.port),
            "ORQO_WORKERS": str(self.workers),
            "ORQO_CALLBACK_RETRIES": RETRIES,
            "ORQO_ALLOWED_NETWORKS": "127.0.0.0/8",
            "ORQO_STAGE_USER": "root" if os.geteuid() == 0 else "nobody",
            "ORQO_STOP_TIMEOUT": "2s",
            "ORQO_EXAMPLE": "0",
            "ORQO_WEB_PROCESSES": "2",
            # The checker looks at every run there was.
            "ORQO_KEEP_RUNS": str(10**8),
            "REDIS_URL": f"unix://{self.socket_path}",
            "DATABASE_URL": self.database_url,
        }

    # ── running it ──────────────────────────────────────────────────────────────────────────────────────────────────

    def cli(self, *words: str) -> Any:
        """Run a command and give its JSON."""
        argv = [sys.executable, "-m", "orqo", *words, "--json"]
        done = subprocess.run(argv, env=self.env, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self) -> None:
        """Start Valkey and the service, and wait until it is ready."""
        self.start_valkey()
        with self.log.open("ab") as log:
            self.service = subprocess.Popen([sys.executable, "-m", "orqo", "serve"], env=self.env, cwd=self.folder, stdout=log, stderr=log)
        self.wait_ready()

    def wait_ready(self, within_s: float = 60) -> None:
        until = time.monotonic() + within_s
        while not self._is_ready():
            assert time.monotonic() < until, f"not ready within {within_s} s: {self.log}"
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.url + "/readyz", timeout=3).status_code == 200
        return False

    def stop(self) -> float:
        """Stop everything as an operator does; gives the seconds that the service took."""
        began = time.monotonic()
        if self.service:
            self.service.terminate()
            self.service.wait(timeout=60)
            self.service = None
        took_s = time.monotonic() - began
        self.stop_valkey()
        return took_s

    def start_valkey(self) -> None:
        (self.folder / "valkey").mkdir(exist_ok=True)
        self.valkey = subprocess.Popen(self.valkey_argv)
        while not self._valkey(b"PING\r\n").startswith(b"+PONG"):
            time.sleep(0.01)

    def stop_valkey(self) -> None:
        if self.valkey:
            self.valkey.send_signal(signal.SIGCONT)
            self.valkey.kill()
            self.valkey.wait()

    def _valkey(self, command: bytes) -> bytes:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket_path))
            connection.sendall(command)
            return connection.recv(64)
        return b""

    # ── looking at it ───────────────────────────────────────────────────────────────────────────────────────────────

    def connect(self) -> Any:
        """Open the database to look at it."""
        return database.Postgres(self.database_url) if self.database_url else database.open_file(self.data / "orqo.db")

    def processes(self) -> dict[str, list[int]]:
        """Give the living processes by what they are: web, child (workers and the dispatcher)."""
        found: dict[str, list[int]] = {"web": [], "child": []}
        for pid in children().get(self.service.pid, []) if self.service else ():
            kind = "web" if name_of(pid).startswith("orqo-web") else "child" if is_background(pid) else None
            if kind:
                found[kind].append(pid)
        return found

    def dispatcher(self) -> list[int]:
        """Give the child that is the dispatcher."""
        return [pid for pid in self.processes()["child"] if name_of(pid).startswith("orqo-dispatch")]

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def kill(self, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def freeze(self, pid: int, seconds: float) -> None:
        """Stop a process for a while."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def is_writable(self) -> bool:
        """Tell whether nobody keeps SQLite's only write lock."""
        return bool(self.database_url) or database.is_free(self.data / "orqo.db")

    def flush_valkey(self) -> None:
        self._valkey(b"FLUSHALL\r\n")

    def restart_valkey(self, *, down_s: float, empty: bool) -> None:
        """Kill Valkey and start it again, with its files or with none."""
        self.stop_valkey()
        time.sleep(down_s)
        if empty:
            shutil.rmtree(self.folder / "valkey")
        self.start_valkey()

    def freeze_valkey(self, seconds: float) -> None:
        assert self.valkey
        self.valkey.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.valkey.send_signal(signal.SIGCONT)

    def lock_database(self, seconds: float) -> None:
        """Let nobody write for a while; on PostgreSQL all connections are lost besides."""
        if self.database_url:
            database.lock_server(self.database_url, seconds)
        else:
            database.lock_file(self.data / "orqo.db", seconds)


def children() -> dict[int, list[int]]:
    tree: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    tree.setdefault(int(fields[1]), []).append(int(entry.name))
    return tree


def is_background(pid: int) -> bool:
    """Tell whether a process is a worker or the dispatcher."""
    return name_of(pid).startswith(("orqo-worker-", "orqo-dispatch"))


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""
