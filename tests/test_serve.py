"""The supervisor, on small stand-in programs and a real Valkey: starts, restarts, stops, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port
from redis import Redis

from orqo import serve, valkey
from orqo.config import Config
from support import wait_for

ROOT = Path(__file__).resolve().parent.parent

RUNNER = """
import json, os, sys
from orqo import serve
from orqo.config import Config

config = Config.from_environ()
code = json.loads(os.environ["STAND_INS"])

def prepare():
    print("prepared", serve.__name__, flush=True)
    if os.environ.get("PREPARE_FAILS"):
        raise serve.CannotStart("The database is of another release: run db upgrade.")

def be_worker():
    exec(code["worker"], {})
    return 0

how = {"main": be_worker} if os.environ.get("FORKED") else {"argv": (sys.executable, "-c", code["worker"])}
worker = serve.Program("worker", stop_timeout_s=config.stop_timeout_s, **how)

def programs(sockets):
    # The stand-in for web is a program of its own, which opens the port itself.
    for one in sockets:
        one.close()
    web = serve.Program("web", (sys.executable, "-c", code["web"]), ready=lambda: serve.is_up(config), stop_timeout_s=3, head_start_s=0.5)
    return [web, worker]

sys.exit(serve.run(
    config,
    programs=programs,
    prepare=prepare,
    on_ready=lambda: print("everything is ready", flush=True),
))
"""

NOTES = """
import os, signal, subprocess, sys, time
from pathlib import Path

def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{name} {text} {os.getpid()}\\n")

def end(number, frame):
    note(signal.Signals(number).name)
    sys.exit(0)
"""
WEB = f"""{NOTES}
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *arguments):
        pass

name = "web"
note("started")
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["ORQO_PORT"])), Handler).serve_forever()
"""
WORKER = f"""{NOTES}
name = "worker"
note("started")
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
while True:
    time.sleep(60)
"""
STUCK_WORKER = WORKER.replace("sys.exit(0)", "pass")
# Leaves a process in a session of its own, and a dead one, both without a parent.
FORKING_WORKER = WORKER.replace(
    "while True",
    """
script = 'sleep 1000 & echo $! > "$NOTES.stray"; (sleep 0.1; exit 3) & sleep 0.05'
subprocess.run(["setsid", "sh", "-c", script])
while True""",
)


@dataclass
class Box:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def notes(self) -> list[list[str]]:
        """What the stand-ins noted: [name, what, pid]."""
        file = self.folder / "notes"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def pids(self) -> list[int]:
        """Every process that was ever started here, Valkey included."""
        return [int(pid) for _, what, pid in self.notes() if what == "started"] + valkey_pids(self.data)

    def started(self, name: str) -> int:
        """The process of that name that was started last."""
        if name == "valkey":
            return valkey_pids(self.data)[-1]
        return next(int(pid) for who, what, pid in reversed(self.notes()) if (who, what) == (name, "started"))

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, self.log()
            time.sleep(0.01)


def valkey_pids(data: Path) -> list[int]:
    """The servers that work in its folder valkey."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.readlink() == data / "valkey" and alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


StartBox = Callable[..., Box]


@pytest.fixture
def start_box(tmp_path: Path) -> Iterator[StartBox]:
    started: list[Box] = []

    def start(*, web: str = WEB, worker: str = WORKER, ready: bool = True, python: str = sys.executable, **env: str) -> Box:
        port = int(env.get("ORQO_PORT", free_port()))
        settings = {
            "PYTHONPATH": str(ROOT),
            "ORQO_PORT": str(port),
            "ORQO_DATA": str(tmp_path / "data"),
            "NOTES": str(tmp_path / "notes"),
            "STAND_INS": json.dumps({"web": web, "worker": worker}),
        }
        inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        with open(tmp_path / "log", "ab") as log:
            argv = [python, "-c", RUNNER]
            process = subprocess.Popen(argv, env=inherited | settings | env, stdout=log, stderr=log, start_new_session=True)
        box = Box(process, tmp_path, port)
        started.append(box)
        if ready:
            box.wait_for(lambda: box.log().count("everything is ready") == len(started))
            box.wait_for(lambda: [name for name, *_ in box.notes()].count("worker") >= len(started))
        return box

    yield start
    for box in started:
        box.process.kill()
        box.process.wait()
    with suppress(OSError):
        # A killed supervisor leaves its socket's folder to the next start.
        valkey.shut_down((tmp_path / "data" / "redis.url").read_text())
    if (stray := tmp_path / "notes.stray").exists():
        with suppress(ProcessLookupError):
            os.kill(int(stray.read_text()), signal.SIGKILL)
    if started:
        # They share a folder, and die with their supervisors.
        started[0].wait_for(lambda: not any(alive(pid) for pid in started[0].pids()))


def url_in(box: Box) -> str:
    return (box.data / "redis.url").read_text().strip()


def test_starts_everything_and_says_where_it_listens(start_box: StartBox) -> None:
    box = start_box()

    assert box.log() == (f"prepared orqo.serve\norqo: listening on http://127.0.0.1:{box.port} (Ctrl-C stops)\neverything is ready\n")
    assert [name for name, what, _ in box.notes() if what == "started"].count("worker") == 1
    assert valkey.answers(valkey.socket_of(url_in(box)))


@pytest.mark.parametrize("env", [{}, {"FORKED": "1"}])
def test_children_are_told_where_redis_is(start_box: StartBox, env: dict[str, str]) -> None:
    box = start_box(worker=WORKER.replace('"started"', 'os.environ["REDIS_URL"]'), **env)

    assert ["worker", url_in(box)] in [line[:2] for line in box.notes()]


def test_data_is_closed_to_others(start_box: StartBox) -> None:
    box = start_box()

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (box.data, *box.data.iterdir())}
    socket_path = valkey.socket_of(url_in(box))
    assert modes.pop("data") in (0o700, 0o711)
    assert modes == {"lock": 0o600, "redis.url": 0o600, "valkey": 0o700}
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert len(os.fsencode(socket_path)) <= 107


def test_given_redis_is_used_and_none_started(start_box: StartBox) -> None:
    box = start_box(worker=WORKER.replace('"started"', 'os.environ["REDIS_URL"]'), REDIS_URL="redis://127.0.0.1:1/0")

    assert ["worker", "redis://127.0.0.1:1/0"] in [line[:2] for line in box.notes()]
    assert not (box.data / "redis.url").exists() and not valkey_pids(box.data)


@pytest.mark.parametrize(("name", "env"), [("web", {}), ("worker", {}), ("worker", {"FORKED": "1"}), ("valkey", {})])
def test_what_is_killed_is_started_again(start_box: StartBox, name: str, env: dict[str, str]) -> None:
    box = start_box(**env)
    before = box.started(name)

    os.kill(before, signal.SIGKILL)

    box.wait_for(lambda: name == "valkey" or box.started(name) != before)
    box.wait_for(lambda: serve.is_up(Config.from_environ({"ORQO_PORT": str(box.port)})))
    box.wait_for(lambda: valkey.answers(valkey.socket_of(url_in(box))))
    assert f"orqo: {name} was killed by signal 9; it is started again in 0.2 s\n" in box.log()
    assert box.log().count("everything is ready") == 1


def test_data_in_valkey_survives_its_death(start_box: StartBox) -> None:
    box = start_box()
    path = valkey.socket_of(url_in(box))
    ask(path, b"SET kept yes\r\n")
    before = box.started("valkey")

    os.kill(before, signal.SIGKILL)
    box.wait_for(lambda: valkey_pids(box.data) not in ([], [before]) and valkey.answers(path))

    assert ask(path, b"GET kept\r\n") == b"$3\r\nyes\r\n"


def ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(request)
        return connection.recv(100)


def test_restarts_come_ever_slower(start_box: StartBox) -> None:
    box = start_box(worker=NOTES + "name = 'worker'; note('started'); sys.exit(4)")

    box.wait_for(lambda: "again in 0.8 s" in box.log())

    pauses = re.findall(r"worker ended with exit status 4; it is started again in (\S+) s", box.log())
    assert pauses == ["0.2", "0.4", "0.8"]


def test_web_that_cannot_start_ends_everything(start_box: StartBox) -> None:
    box = start_box(web="raise SystemExit(7)", ready=False)

    status = box.process.wait(15)

    assert status == 1
    assert "orqo: web ended with exit status 7 at each of 5 starts; what it wrote above says why.\n" in box.log()
    assert not any(alive(pid) for pid in box.pids())


@pytest.mark.parametrize("env", [{}, {"FORKED": "1"}])
def test_sigterm_stops_web_then_worker_then_valkey(start_box: StartBox, env: dict[str, str]) -> None:
    box = start_box(**env)
    pids, socket_path = box.pids(), valkey.socket_of(url_in(box))

    box.process.terminate()

    assert box.process.wait(5) == 0
    assert [(name, what) for name, what, _ in box.notes()[2:]] == [("web", "SIGTERM"), ("worker", "SIGTERM")]
    assert len(pids) == 3 and not any(alive(pid) for pid in pids)
    assert not (box.data / "redis.url").exists() and not socket_path.parent.exists()
    assert box.log().endswith("orqo: stopping\n")


def test_ctrl_c_reaches_the_supervisor_alone(start_box: StartBox) -> None:
    box = start_box()

    os.killpg(box.process.pid, signal.SIGINT)

    assert box.process.wait(5) == 0
    assert {what for _, what, _ in box.notes()} == {"started", "SIGTERM"}


def test_worker_that_does_not_end_is_killed_at_its_bound(start_box: StartBox) -> None:
    box = start_box(worker=STUCK_WORKER, ORQO_STOP_TIMEOUT="1s")
    pids, began = box.pids(), time.monotonic()

    # timeout(1) and others signal a process and then its group: that is one Ctrl-C, not two.
    for _ in range(3):
        box.process.send_signal(signal.SIGINT)
        time.sleep(0.1)

    assert box.process.wait(5) == 0
    assert 1.0 <= time.monotonic() - began < 2.0
    assert "orqo: worker did not end in time and is killed\n" in box.log()
    assert not any(alive(pid) for pid in pids)


def test_second_ctrl_c_ends_everything_at_once(start_box: StartBox) -> None:
    box = start_box(worker=STUCK_WORKER, ORQO_STOP_TIMEOUT="30s")
    pids = box.pids()
    box.process.send_signal(signal.SIGINT)
    time.sleep(0.7)

    box.process.send_signal(signal.SIGINT)

    assert box.process.wait(2) == 0
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("env", [{}, {"FORKED": "1"}])
def test_killed_supervisor_takes_everything_along_and_next_start_works(start_box: StartBox, env: dict[str, str]) -> None:
    first = start_box(**env)
    pids, old_folder = first.pids(), valkey.socket_of(url_in(first)).parent
    first.process.kill()
    first.process.wait()

    second = start_box(ORQO_PORT=str(first.port))

    second.wait_for(lambda: not any(alive(pid) for pid in pids))
    assert valkey.answers(valkey.socket_of(url_in(second)))
    assert not old_folder.exists()


def test_left_over_valkey_is_shut_down_before_its_data_is_opened(start_box: StartBox, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "valkey"
    folder.mkdir(parents=True)
    with valkey.running(folder) as url:
        left_over = valkey_pids(tmp_path / "data")
        (tmp_path / "data" / "redis.url").write_text(url)

        start_box()

        assert len(left_over) == 1 and not alive(left_over[0])


def test_what_a_dead_program_left_behind_is_ended(start_box: StartBox) -> None:
    box = start_box(worker=FORKING_WORKER)
    box.wait_for(lambda: (box.folder / "notes.stray").exists())
    stray = int((box.folder / "notes.stray").read_text())
    assert alive(stray)

    os.kill(box.started("worker"), signal.SIGKILL)

    box.wait_for(lambda: not alive(stray))


def test_adopted_dead_are_buried(start_box: StartBox) -> None:
    box = start_box(worker=FORKING_WORKER)

    time.sleep(0.3)

    own = Path(f"/proc/{box.process.pid}/task/{box.process.pid}/children").read_text().split()
    assert [pid for pid in own if not alive(int(pid))] == []


def test_stop_leaves_no_stray(start_box: StartBox) -> None:
    box = start_box(worker=FORKING_WORKER)
    box.wait_for(lambda: (box.folder / "notes.stray").exists())
    stray = int((box.folder / "notes.stray").read_text())

    box.process.terminate()
    box.process.wait(5)

    assert not alive(stray)


def test_second_supervisor_on_the_same_data_is_refused(start_box: StartBox) -> None:
    first = start_box()

    second = start_box(ready=False)

    assert second.process.wait(5) == 1
    assert first.log().splitlines()[-1] == (
        f"orqo: orqo already runs on the data folder {first.data} (process {first.process.pid}): stop it, or set ORQO_DATA and ORQO_PORT."
    )


def test_taken_port_is_one_line_and_nothing_was_started(start_box: StartBox) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        box = start_box(ready=False, ORQO_PORT=str(taken.getsockname()[1]))

        assert box.process.wait(5) == 1
    assert re.fullmatch(r"orqo: Cannot listen on 127\.0\.0\.1 port \d+: Address already in use: .* set ORQO_PORT\.\n", box.log())
    assert not (box.data / "valkey").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_unusable_address_is_one_line(start_box: StartBox, host: str) -> None:
    box = start_box(ready=False, ORQO_HOST=host)

    assert box.process.wait(20) == 1
    assert box.log().startswith(f"orqo: Cannot listen on {host} port {box.port}: ") and box.log().count("\n") == 1


def test_unwritable_data_folder_is_one_line(start_box: StartBox, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    box = start_box(ready=False, ORQO_DATA=str(tmp_path / "file" / "data"))

    assert box.process.wait(5) == 1
    assert box.log() == f"orqo: Cannot write to the data folder {tmp_path}/file/data: Not a directory: change its owner or set ORQO_DATA.\n"


def test_failed_preparation_is_one_line(start_box: StartBox) -> None:
    box = start_box(ready=False, PREPARE_FAILS="1")

    assert box.process.wait(5) == 1
    assert box.log().endswith("\norqo: The database is of another release: run db upgrade.\n")
    assert not valkey_pids(box.data) and box.notes() == []


def test_absent_redis_is_one_line_and_needs_no_package_to_say_so(start_box: StartBox, tmp_path: Path) -> None:
    # The Python that the environment was made from has none of our packages: the supervisor imports none.
    bare = os.path.realpath(sys.executable)

    box = start_box(ready=False, python=bare, PATH=str(tmp_path))

    assert box.process.wait(5) == 1
    assert box.log() == "orqo: There is no Redis server: install redis-server or valkey-server, or set REDIS_URL.\n"


def test_the_log_of_an_embedded_valkey_is_folded_in_before_it_is_large(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as url, Redis.from_url(url) as client:
        for _ in range(60):
            with client.pipeline(transaction=False) as many:
                for _ in range(1000):
                    many.set("wake", "x" * 100)
                many.execute()

        wait_for(lambda: sum(file.stat().st_size for file in tmp_path.rglob("*.aof")) < 4 * 1024 * 1024, what="the log is folded in")


def test_unreadable_valkey_data_is_set_aside(start_box: StartBox, tmp_path: Path) -> None:
    files = tmp_path / "data" / "valkey" / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("of a release to come")

    box = start_box()

    assert valkey.answers(valkey.socket_of(url_in(box)))
    assert (box.data / "valkey.unreadable" / "appendonlydir").exists()
    assert "Valkey cannot start on" in box.log()


def test_start_is_fast(start_box: StartBox) -> None:
    began = time.monotonic()

    start_box()

    assert time.monotonic() - began < 2


def test_server_on_path_wins_over_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = valkey.find_valkey()
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

        assert valkey.find_valkey() == [str(tmp_path / name)]
        assert valkey.find_valkey() != bundled


def test_long_temporary_folder_does_not_lengthen_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long name " * 10)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with valkey.running(tmp_path) as url:
        assert valkey.answers(valkey.socket_of(url))
