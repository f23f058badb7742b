"""Several machines: each a group of processes with an ORQO_DATA of its own that reaches PostgreSQL and Valkey through links.

A machine loses its power (everything that is its own is killed at once) or its network (its links are cut), and comes back.
Calls go through a balancer, as they would.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from chaos.network import Link, State, to_port, to_unix
from chaos.world import ROOT, World, children, free_port, is_background

WEB_HOSTS = 2
AGAIN_AFTER_S = 0.5


@dataclass
class Host:
    """One machine: its program, its folder, its links. `is_down`: it has no power."""

    name: str
    program: str
    data: Path
    port: int
    links: tuple[Link, Link]
    process: subprocess.Popen[bytes] | None = None
    is_down: bool = False
    trouble: threading.Lock = field(default_factory=threading.Lock)

    def pids(self) -> list[int]:
        """Give all that runs there, by what stands in its environment: stages too, whatever their parents are now."""
        mark = os.fsencode(self.data) + b"/"
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in Path(entry.path, "environ").read_bytes().replace(b"\0", b"/"):
                        found.append(int(entry.name))
        return found


@dataclass
class Hosts(World):
    """`count` machines, two of them web. Whoever looks at the database from outside reaches it directly."""

    count: int = 5
    workers: int = 4
    # What another machine's sweep goes by is the lease.
    dead_max_s: float = 45.0
    key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    hosts: list[Host] = field(default_factory=list)
    _balancer: Link | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _keeper: threading.Thread | None = None

    @property
    def env(self) -> dict[str, str]:
        # The address that all are told is the balancer's.
        return super().env | {"ORQO_KEY": self.key, "ORQO_BASE_URL": self.url}

    # ── running it ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start Valkey, all machines and the balancer, and wait until each is ready."""
        self.start_valkey()
        self.cli("db", "init")
        for number in range(1, self.count + 1):
            self.hosts.append(self._host(number))
        ports = [host.port for host in self.hosts[:WEB_HOSTS]]
        self._balancer = Link([to_port(port) for port in ports], socket.create_server(("127.0.0.1", self.port), backlog=256))
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()
        self.wait_ready()

    def _host(self, number: int) -> Host:
        role, program = ("web", "app.py") if number <= WEB_HOSTS else ("worker", "worker.py")
        data = self.folder / f"{role}-{number}"
        data.mkdir(mode=0o711)
        folder = parse_qs(urlsplit(self.database_url).query)["host"][0]
        links = Link([to_unix(f"{folder}/.s.PGSQL.5432")]), Link([to_unix(str(self.socket_path))])
        return Host(f"{role}-{number}", program, data, free_port(), links)

    def _is_ready(self) -> bool:
        """Tell whether the balancer's web is ready and every machine with workers has some."""
        groups = [[pid for pid in host.pids() if is_background(pid)] for host in self.hosts[WEB_HOSTS:]]
        return all(len(group) > self.workers for group in groups) and super()._is_ready()

    def _keep(self) -> None:
        """Start again what ended on a machine that has power, as its init does."""
        while not self._over.wait(AGAIN_AFTER_S):
            for host in self.hosts:
                with host.trouble:
                    if not host.is_down and (host.process is None or host.process.poll() is not None):
                        self._start(host)

    def _start(self, host: Host) -> None:
        name = urlsplit(self.database_url).path.lstrip("/")
        own = {
            "ORQO_DATA": str(host.data),
            "ORQO_PORT": str(host.port),
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{host.links[0].port}/{name}?sslmode=disable&gssencmode=disable",
            "REDIS_URL": f"redis://127.0.0.1:{host.links[1].port}",
        }
        with self.log.open("ab") as log:
            argv = [sys.executable, str(ROOT / host.program)]
            host.process = subprocess.Popen(argv, env=self.env | own, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> float:
        """Stop everything; gives the seconds that the machines took."""
        began = time.monotonic()
        self._over.set()
        if self._keeper:
            self._keeper.join()
        for host in self.hosts:
            if host.process:
                host.process.terminate()
        for host in self.hosts:
            if host.process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    host.process.wait(timeout=30)
            _kill_all(host)
            for link in host.links:
                link.close()
        took_s = time.monotonic() - began
        if self._balancer:
            self._balancer.close()
        self.stop_valkey()
        return took_s

    # ── looking at it ───────────────────────────────────────────────────────────────────────────────────────────────

    def processes(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"web": [], "child": []}
        tree = children()
        for host in self.hosts:
            if host.process and not host.is_down:
                found["web"] += [host.process.pid] if host.program == "app.py" else []
                found["child"] += [pid for pid in tree.get(host.process.pid, []) if is_background(pid)]
        return found

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def power_off(self, host: Host, seconds: float, *, silently: bool) -> None:
        """Kill all that runs on a machine, as a power cut does. `silently`: the servers hear nothing of it before it is back."""
        with host.trouble:
            host.is_down = True
        if silently:
            _be(host, State.SILENT)
        _kill_all(host)
        time.sleep(seconds)
        _be(host, State.CLOSED)
        time.sleep(0.1)
        _be(host, State.WHOLE)
        with host.trouble:
            host.is_down = False

    def cut_off(self, host: Host, seconds: float, *, silently: bool) -> None:
        """Let a machine reach neither database nor Valkey for a while; its processes go on."""
        _be(host, State.SILENT if silently else State.CLOSED)
        time.sleep(seconds)
        _be(host, State.WHOLE)


def _be(host: Host, state: State) -> None:
    for link in host.links:
        link.be(state)


def _kill_all(host: Host) -> None:
    while pids := host.pids():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if host.process:
            host.process.poll()
        time.sleep(0.01)
