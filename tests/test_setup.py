"""Set-up on a fresh machine: `make` and setup.sh in a copy of the project, with more and less of what they need."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "var", "__pycache__", "tests", "bench")
TOOLS = ("sh", "make", "cat", "cmp", "cp", "mv", "rm", "ls", "grep", "sed", "expand", "env", "dirname", "sleep")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project in a folder with spaces and a name of 150 characters."""
    folder = tmp_path / ("a folder with spaces, a ' and an ü ".ljust(149, "x"))
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH that has the machine's tools but no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return folder


def make(folder: Path, *arguments: str, path: Path | None = None, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHON" and not name.startswith(("MAKE", "ORQO_"))}
    if path:
        env["PATH"] = str(path)
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)


def fake_python(folder: Path, *, fails: str) -> None:
    """A python3 that is this one, except that the modules in `fails` (a pattern of the shell) do not work."""
    script = f'#!/bin/sh\ncase "$*" in {fails}) echo "No module" >&2; exit 1;; esac\nexec "{os.path.realpath(sys.executable)}" "$@"\n'
    (folder / "python3").write_text(script)
    (folder / "python3").chmod(0o755)


def test_help_is_the_default_and_lists_every_target() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    listed = make(ROOT).stdout

    assert re.findall(r"^  make (\S+) +\S", listed, re.MULTILINE) == targets
    assert {"help", "run", "test", "test-full", "lint", "bench", "chaos", "clean"} <= set(targets)


@pytest.mark.parametrize(
    "name",
    ["requirements.txt", "requirements-dev.txt", "requirements-postgresql.txt", "requirements-metrics.txt", "requirements-bench.txt"],
)
def test_every_requirement_is_pinned_and_no_index_is_named(name: str) -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pins = [line for line in lines if line and line != "-r requirements.txt"]

    assert [pin for pin in pins if not re.match(r"[a-z0-9.-]+==[0-9][a-z0-9.]*(;|$)", pin)] == []
    assert "://" not in (ROOT / name).read_text() and "--" not in (ROOT / name).read_text()


def test_missing_python_is_one_line(copy: Path, tools: Path) -> None:
    ended = make(copy, "run", path=tools)

    assert ended.returncode != 0
    assert ended.stderr.splitlines()[0].startswith("orqo: Python 3.11 or newer is needed and there is none on PATH: install it")
    assert len(ended.stderr.splitlines()) == 2 and "make: ***" in ended.stderr.splitlines()[1]


def test_python_given_by_name_must_be_one(copy: Path, tools: Path) -> None:
    ended = make(copy, "run", "PYTHON=/no/such/python", path=tools)

    assert ended.stderr.splitlines()[0] == "orqo: PYTHON=/no/such/python is not a Python 3.11 or newer."


def test_missing_venv_module_names_what_to_install(copy: Path, tools: Path) -> None:
    fake_python(tools, fails='*ensurepip*|"-m venv"*|"-m pip"*|"-m virtualenv"*')

    ended = make(copy, "run", path=tools)

    assert ended.returncode != 0
    assert "orqo: python3 cannot make virtual environments here" in ended.stderr
    assert "apt install python3-venv" in ended.stderr
    assert not (copy / ".venv").exists()


def test_unchanged_requirements_are_not_installed_again(copy: Path, tools: Path) -> None:
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(copy / "requirements.txt", copy / ".venv/installed-requirements.txt")

    ended = subprocess.run(["sh", "setup.sh", "requirements.txt"], cwd=copy, env={"PATH": str(tools)}, capture_output=True, timeout=20)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def installed(folder: Path) -> str:
    """What the folder's environment can import."""
    code = "import flask, flask_sqlalchemy, sqlalchemy, rq, redis, requests, waitress; print('all there')"
    python = folder / ".venv/bin/python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip()


def run_setup(folder: Path, requirements: str = "requirements.txt", **changes: str) -> subprocess.CompletedProcess[str]:
    argv = ["sh", "setup.sh", requirements]
    return subprocess.run(argv, cwd=folder, env=os.environ | changes, capture_output=True, text=True, timeout=300)


@pytest.mark.full
def test_environment_is_made_without_ensurepip(copy: Path, tools: Path) -> None:
    fake_python(tools, fails='*ensurepip*|"-m venv .venv"')

    ended = run_setup(copy, PATH=str(tools))

    assert ended.returncode == 0, ended.stderr
    assert installed(copy) == "all there"


@pytest.mark.full
def test_interrupted_set_up_is_repaired(copy: Path) -> None:
    for pause_s in (0.2, 2.5, 6.0):
        process = subprocess.Popen(["sh", "setup.sh", "requirements.txt"], cwd=copy, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(pause_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    ended = run_setup(copy)

    assert ended.returncode == 0, ended.stderr
    assert installed(copy) == "all there"


@pytest.mark.full
def test_changed_requirements_are_installed(copy: Path) -> None:
    run_setup(copy)
    with open(copy / "requirements.txt", "a") as file:
        file.write("iniconfig==2.3.1\n")

    run_setup(copy)

    assert list(copy.glob(".venv/lib/python*/site-packages/iniconfig"))


@pytest.mark.full
@pytest.mark.parametrize("account", ["own", "other"])
def test_make_run_serves_from_nothing(copy: Path, account: str) -> None:
    """As this user, and as an unprivileged one where this is root."""
    if account == "other" and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if not (ROOT / "orqo" / "__main__.py").exists():
        pytest.skip("there is no `python -m orqo` yet")
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if account == "other" else []
    if become:
        open_to_others(copy)
    port = free_port()
    env = os.environ | {"ORQO_PORT": str(port), "HOME": str(copy), "PIP_NO_CACHE_DIR": "1"}
    with open(copy / "log", "w") as log:
        process = subprocess.Popen([*become, "make", "run"], cwd=copy, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 240
        while f"listening on http://127.0.0.1:{port}" not in (copy / "log").read_text():
            assert process.poll() is None and time.monotonic() < until, (copy / "log").read_text()
            time.sleep(0.1)
    finally:
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)

    assert time.monotonic() - began < 12
    assert not (copy / "var/redis.url").exists()


def open_to_others(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.root):
            parent.chmod(parent.stat().st_mode | 0o111)
