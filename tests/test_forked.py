"""The service as one parent and its forks: what is loaded before the first, who comes back after a kill, what all of them share."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from sqlalchemy import Integer, bindparam, select

from orqo import description, yamlfile
from orqo.config import PROJECT_DIR
from orqo.db import sqlite_module
from orqo.prepared import Prepared, compile_all
from support import Service, TestBox, wait_for

LOADED = """
import json, os, sys
from orqo.cli import starting
from orqo import forked, metrics
forked.load()
before = set(sys.modules)
print(json.dumps({"threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")) - 4,
                  "loaded": ["flask" in before, "rq" in before, "prometheus_client" in before or not metrics.are_available()],
                  "counts": metrics.FOLDER_VARIABLE in os.environ}))
"""


@pytest.fixture
def whole(box: TestBox, settings: dict[str, str], tmp_path: Path) -> Iterator[tuple[Service, subprocess.Popen[bytes]]]:
    """The whole service with one web process, and its parent."""
    with running(box, settings, tmp_path) as both:
        yield both


@contextmanager
def running(box: TestBox, settings: dict[str, str], folder: Path, **changes: str) -> Iterator[tuple[Service, subprocess.Popen[bytes]]]:
    """Run the whole service as `serve` does, with two workers; gives it and its parent."""
    ours = {"ORQO_WEB_PROCESSES": "1", "ORQO_WORKERS": "2", "ORQO_EXAMPLE": "0", **changes}
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings, **ours}
    service = Service(box, env, log=folder / "service.log")
    with service.log.open("ab") as log:
        parent = subprocess.Popen([sys.executable, "-m", "orqo", "serve"], env=env, stdout=log, stderr=log, cwd=PROJECT_DIR)
    try:
        service.wait_ready()
        yield service, parent
    finally:
        parent.terminate()
        assert parent.wait(timeout=30) == 0, service.log.read_text()


def test_redis_outlives_those_who_use_it(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings, "ORQO_WORKERS": "2", "ORQO_EXAMPLE": "0"}
    service = Service(box, {name: value for name, value in env.items() if name != "REDIS_URL"}, log=tmp_path / "service.log")
    box.apply("name: slow\nstages: [{name: one, script: 'sleep 2'}]\n")
    with service.log.open("ab") as log:
        parent = subprocess.Popen([sys.executable, "-m", "orqo", "serve"], env=service.env, stdout=log, stderr=log, cwd=PROJECT_DIR)
    service.wait_ready()
    run_id = requests.post(service.url + box.hook("slow"), timeout=5).json()["workflow_run_id"]
    wait_for(lambda: box.run(run_id)["status"] == "running")

    parent.terminate()

    assert parent.wait(timeout=30) == 0
    assert "unreachable" not in service.log.read_text() and "connect" not in service.log.read_text()
    assert box.run(run_id)["status"] == "completed"


def forks(parent: int) -> dict[str, int]:
    """Give the process ids of a parent's children by name."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in pids}


def sockets_of(pid: int) -> set[str]:
    """Give the sockets that a process has open, by their inodes."""
    targets = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return {target[8:-1] for target in targets if target.startswith("socket:[")}


def listening_on(port: int) -> set[str]:
    """Give the inodes of the sockets that listen on a port of IPv4."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def test_what_is_loaded_before_the_first_fork_has_neither_threads_nor_files_and_does_not_count() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=PROJECT_DIR, check=True, capture_output=True, text=True)

    assert json.loads(done.stdout) == {"threads": 1, "files": 0, "loaded": [True, True, True], "counts": False}


def test_each_process_comes_back_by_itself_and_the_service_goes_on(whole: tuple[Service, subprocess.Popen[bytes]]) -> None:
    service, parent = whole
    names = {"orqo-web-1", "orqo-worker-1", "orqo-worker-2", "orqo-dispatcher"}
    before = wait_for(lambda: set(found := forks(parent.pid)) == names and found)

    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    after = wait_for(lambda: set(found := forks(parent.pid)) == names and not set(found.values()) & set(before.values()) and found)
    assert set(after) == names
    service.wait_ready()
    answer = requests.post(service.url + service.box.hook("hello"), timeout=5)
    run_id = answer.json()["workflow_run_id"]
    wait_for(lambda: service.box.run(run_id)["status"] == "completed", what="the run ends")


def test_whoever_comes_while_web_starts_again_waits_and_is_not_refused(whole: tuple[Service, subprocess.Popen[bytes]]) -> None:
    service, parent = whole
    hook = service.url + service.box.hook("hello")

    answers = []
    for _ in range(3):
        os.kill(forks(parent.pid)["orqo-web-1"], signal.SIGKILL)
        answers.append(requests.post(hook, timeout=20).status_code)
        wait_for(lambda: "orqo-web-1" in forks(parent.pid))

    assert answers == [201] * 3


def test_what_a_killed_web_process_counted_stays_counted(whole: tuple[Service, subprocess.Popen[bytes]]) -> None:
    service, parent = whole
    reader = {"Authorization": f"Bearer {service.box.token('read')}"}

    def counted() -> float:
        text = requests.get(f"{service.url}/metrics", headers=reader, timeout=20).text
        return float(re.findall(r'orqo_http_requests_total\{.*hooks.*status="201"} (\S+)', text)[0])

    for _ in range(3):
        requests.post(service.url + service.box.hook("hello"), timeout=20)
    before = counted()
    os.kill(forks(parent.pid)["orqo-web-1"], signal.SIGKILL)
    requests.post(service.url + service.box.hook("hello"), timeout=20)

    assert (before, counted()) == (3, 4)


def test_of_two_web_processes_one_answers_while_the_other_is_frozen(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    with running(box, settings, tmp_path, ORQO_WEB_PROCESSES="2") as (service, parent):
        wait_for(lambda: {"orqo-web-1", "orqo-web-2"} <= set(forks(parent.pid)))
        hook = service.url + box.hook("hello")
        answers = []
        for name in ("orqo-web-1", "orqo-web-2"):
            os.kill(forks(parent.pid)[name], signal.SIGSTOP)
            answers += [requests.post(hook, timeout=20).status_code for _ in range(5)]
            os.kill(forks(parent.pid)[name], signal.SIGCONT)

    assert answers == [201] * 10


def test_a_stand_in_has_one_web_process(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    with running(box, settings, tmp_path, ORQO_WEB_PROCESSES="2", ORQO_SIMULATE="1") as (_, parent):
        # It is forked last.
        wait_for(lambda: "orqo-dispatcher" in forks(parent.pid))

        assert {name for name in forks(parent.pid) if "web" in name} == {"orqo-web-1"}


def test_only_web_has_the_sockets_that_the_parent_listens_on(whole: tuple[Service, subprocess.Popen[bytes]]) -> None:
    service, parent = whole
    # A fork has its name before it sheds what is its parent's, and the dispatcher is the last.
    wait_for(lambda: "orqo-dispatcher" in forks(parent.pid))
    wait_for(lambda: not sockets_of(forks(parent.pid)["orqo-dispatcher"]) & listening_on(int(service.env["ORQO_PORT"])))
    names = {pid: name for name, pid in forks(parent.pid).items()} | {parent.pid: "parent"}

    found = {name for pid, name in names.items() if sockets_of(pid) & listening_on(int(service.env["ORQO_PORT"]))}

    assert found == {"parent", "orqo-web-1"}


def test_a_description_is_kept_as_json_until_its_file_changes(tmp_path: Path) -> None:
    file, kept = tmp_path / "api.yaml", tmp_path / "__pycache__"
    file.write_text("a: [1, 'x', {b: null}]\n")
    # Nothing can be kept where there is no such folder.
    assert description.read(file) == {"a": [1, "x", {"b": None}]}

    kept.mkdir()
    assert [description.read(file), description.read(file)] == [{"a": [1, "x", {"b": None}]}] * 2
    (only,) = kept.iterdir()
    only.write_text('{"from": "here"}')
    assert description.read(file) == {"from": "here"}
    only.write_text('{"spoilt"')
    assert description.read(file) == {"a": [1, "x", {"b": None}]}
    file.write_text("a: other\n")
    assert description.read(file) == {"a": "other"}


def test_the_kept_json_says_what_the_description_says() -> None:
    description.read(description.OPENAPI_FILE)

    assert description.read(description.OPENAPI_FILE) == yamlfile.read(description.OPENAPI_FILE.read_text(encoding="utf-8")).value


def test_a_statement_that_was_compiled_before_the_fork_needs_no_compiler_after_it(box: TestBox) -> None:
    if not box.database.is_sqlite:
        pytest.skip("PostgreSQL's driver is given statements by SQLAlchemy")
    statement = Prepared(select((bindparam("number", type_=Integer) + 1).label("next")), "number")

    compile_all(box.database.engine.dialect)

    driver, without_compiler = sqlite_module().connect(":memory:"), SimpleNamespace(loaded_dbapi=sqlite_module())
    assert statement.first_of(driver, without_compiler, {"number": 4}).next == 5  # type: ignore[arg-type]
    driver.close()


def test_workers_count_into_their_parents_files(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    script = """
import os, signal, sys
from pathlib import Path
from orqo import metrics, processes

def main():
    metrics.join(Path(sys.argv[1]), "worker")
    return 0 if os.environ.get(metrics.FOLDER_VARIABLE) == folder else 1

metrics.begin(Path(sys.argv[1]), "worker")
folder = os.environ[metrics.FOLDER_VARIABLE]
sys.exit(processes.fork(main, name="test", orphan_signal=signal.SIGKILL, env={}).wait())
"""

    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT_DIR, check=True)
