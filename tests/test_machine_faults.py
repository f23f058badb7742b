"""The machine's own faults, each with the real thing: a full disk, no more open files, a read-only folder, an unwell Redis.

Whatever happens, what was answered 201 is there, what cannot be accepted is 503, and all goes on once the machine is well.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from redis import Redis

from orqo import valkey
from orqo.config import PROJECT_DIR
from support import Service, TestBox, fresh_box, running, sqlite_only, wait_for

UNFINISHED = "SELECT id FROM runs WHERE status != 'completed'"


def post(service: Service, hook: str, size: int = 10) -> requests.Response:
    return requests.post(service.url + hook, json={"name": "x" * size}, timeout=30)


# ── disks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(settings: dict[str, str]) -> Iterator[Path]:
    """The data folder as a disk of its own, 6 MiB large."""
    data = Path(settings["ORQO_DATA"])
    data.mkdir(mode=0o711)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=711", "tmpfs", data], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield data
    subprocess.run(["umount", "--lazy", data], check=True)


@sqlite_only
def test_a_full_disk_costs_nothing_that_was_accepted_and_is_503_until_there_is_room(
    settings: dict[str, str], small_disk: Path, tmp_path: Path
) -> None:
    # The watermark would refuse long before: this is what happens where somebody else fills the disk below it.
    settings["ORQO_DISK_FREE_MIN"] = "0"
    filler = small_disk / "filler"
    with fresh_box(settings) as box, running(box, settings, tmp_path / "log", "app", "worker") as service:
        hook, accepted, statuses = box.hook(), [], []
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 2**20))
        while statuses[-3:] != [503] * 3:
            answer = post(service, hook, 50_000)
            statuses.append(answer.status_code)
            accepted += [answer.json()["workflow_run_id"]] if answer.status_code == 201 else []
        refused = answer.headers.get("Retry-After"), answer.json()["detail"]

        filler.unlink()
        accepted.append(
            wait_for(lambda: (answer := post(service, hook)).status_code == 201 and answer.json()["workflow_run_id"], within_s=30)
        )
        wait_for(lambda: not box.rows(UNFINISHED), within_s=60, what="all runs complete")

        assert len(accepted) > 1
        assert set(statuses) == {201, 503}
        assert refused[0] is not None and "disk" in refused[1]
        assert [row["id"] for row in box.rows("SELECT id FROM runs ORDER BY id")] == accepted
        assert box.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@sqlite_only
@pytest.mark.parametrize("program", ["app.py", pytest.param("worker.py", marks=pytest.mark.full)])
def test_a_read_only_folder_is_one_line(settings: dict[str, str], small_disk: Path, program: str) -> None:
    with fresh_box(settings):
        pass
    # Refused where anything of the box is still open for writing.
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    ended = subprocess.run(
        [sys.executable, PROJECT_DIR / program],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    logged, told = ended.stderr.splitlines()[:-1], ended.stderr.splitlines()[-1]
    assert re.fullmatch("orqo: The database cannot be written or read now .*", told)
    assert all("level=WARNING step=metrics" in line for line in logged)


# ── open files ──────────────────────────────────────────────────────────────────────────────────────────────────────


@sqlite_only
def test_with_64_open_files_what_was_accepted_is_there_and_the_rest_waits(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], **settings}
    service = Service(box, env, log=tmp_path / "log")
    with service.log.open("ab") as log, ExitStack() as idle:
        argv = ["prlimit", "--nofile=64:64", sys.executable, str(PROJECT_DIR / "app.py")]
        service.processes["app"] = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        try:
            service.wait_ready(path="/healthz")
            hook = box.hook()
            accepted = [post(service, hook).json()["workflow_run_id"] for _ in range(3)]
            for _ in range(120):
                idle.enter_context(socket.create_connection(("127.0.0.1", int(env["ORQO_PORT"])), timeout=5))
            with pytest.raises(requests.RequestException):
                requests.get(service.url + "/healthz", timeout=2)
            idle.close()
            answer = wait_for(lambda: (answer := post(service, hook)).status_code == 201 and answer, within_s=60, what="it is well again")
            accepted.append(answer.json()["workflow_run_id"])
        finally:
            service.stop("app")

    assert [row["id"] for row in box.rows("SELECT id FROM runs ORDER BY id")] == accepted


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class OwnRedis:
    """A server of this test's own."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.url = url
        folder.mkdir()
        self.argv = [*valkey.command(valkey.needed_program(), folder=folder, socket_path=valkey.socket_of(url)), *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.argv)
        wait_for(lambda: valkey._ask(valkey.socket_of(self.url), b"PING\r\n"), what="it answers")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def redis_folder() -> Iterator[Path]:
    with valkey.socket_folder() as folder:
        yield folder


@pytest.mark.parametrize(
    "fault", ["out of memory", *(pytest.param(name, marks=pytest.mark.full) for name in ("wants a password", "gone at the start"))]
)
def test_an_unwell_redis_keeps_nothing_from_being_accepted_and_all_is_done_when_it_is_well(
    settings: dict[str, str], redis_folder: Path, tmp_path: Path, fault: str
) -> None:
    options = {"out of memory": ["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"], "wants a password": ["--requirepass", "secret"]}
    server = OwnRedis(redis_folder / "data", valkey.url_of(redis_folder / "s"), *options.get(fault, []))
    settings["REDIS_URL"] = server.url
    try:
        if fault != "gone at the start":
            server.start()
        if fault == "out of memory":
            fill(server.url)
        with fresh_box(settings) as box, running(box, settings, tmp_path / "log", "app") as service:
            service.start("worker")
            hook = box.hook()
            assert [post(service, hook).status_code for _ in range(5)] == [201] * 5
            assert requests.get(service.url + "/readyz", timeout=5).status_code == 503

            make_well(server, fault)
            wait_for(lambda: not box.rows(UNFINISHED), within_s=60, what=f"all runs complete: {service.log.read_text()[-3000:]}")
            service.wait_ready(within_s=60)
    finally:
        server.stop()


def fill(url: str) -> None:
    client = Redis.from_url(url)
    with pytest.raises(Exception, match="maxmemory"):
        for number in range(10_000):
            client.set(f"filler-{number}", "x" * 4096)
    client.close()


def make_well(server: OwnRedis, fault: str) -> None:
    if fault == "gone at the start":
        server.start()
        return
    client = Redis.from_url(server.url, password="secret" if fault == "wants a password" else None)
    client.config_set(*{"out of memory": ("maxmemory", "0"), "wants a password": ("requirepass", "")}[fault])
    client.close()
