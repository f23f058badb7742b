"""The control of a stage's processes, with processes that do not want to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orqo import stages
from orqo.stages import process
from stage_context import make_context, make_stage, reachable_folder

PROJECT_DIR = Path(__file__).resolve().parent.parent
NEVER_ENDS = "sleep 300"
DOUBLE_FORK = "(setsid sh -c 'sleep 300 & sleep 300' >/dev/null 2>&1 &) &"
IGNORES_SIGTERM = "trap '' TERM; while :; do sleep 300; done"
HOLDS_THE_PIPE = "sleep 300 &"
MEMORY_PROGRAM = """
import re, sys
from pathlib import Path
from orqo import stages
from stage_context import make_context, make_stage

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

warm = stages.execute(make_context(Path(sys.argv[1]), make_stage("command", ["true"])))
before = peak_kib()
result = stages.execute(make_context(Path(sys.argv[1]), make_stage("script", sys.argv[2])))
print(len(result.output), len(result.stderr), result.truncated, type(result).__name__, peak_kib() - before)
"""


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with reachable_folder() as folder:
        (folder / "7").mkdir()
        yield folder / "7"


def run_script(run_dir: Path, script: str, **changes: Any) -> stages.Result:
    return stages.execute(make_context(run_dir, make_stage("script", script), **changes))


def alive_in(run_dir: Path) -> list[int]:
    """Find processes by their environment, whoever their parent is."""
    mark = f"ORQO_RUN_DIR={run_dir}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = entry.read_bytes()
        except OSError:
            continue
        if mark in content.split(b"\0"):
            found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(NEVER_ENDS, id="never-ends"),
        pytest.param(f"setsid {NEVER_ENDS} & {NEVER_ENDS}", id="new-session"),
        pytest.param(f"{DOUBLE_FORK}\n{NEVER_ENDS}", id="double-fork"),
        pytest.param(f'setsid sh -c "{IGNORES_SIGTERM}" & {IGNORES_SIGTERM}', id="ignores-sigterm"),
        pytest.param(f"{HOLDS_THE_PIPE} {NEVER_ENDS}", id="holds-the-pipe"),
        pytest.param("while :; do echo more; done", id="writes-for-ever"),
        pytest.param("kill -STOP $$", id="stops-itself"),
    ],
)
def test_time_out_leaves_no_process(run_dir: Path, script: str) -> None:
    began = time.monotonic()

    result = run_script(run_dir, script, within_s=0.3)

    assert isinstance(result, stages.Failed)
    assert result.reason == "timeout"
    assert time.monotonic() - began < 5.3
    assert alive_in(run_dir) == []


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo done; sleep 300 &", id="holds-the-pipe"),
        pytest.param(f"echo done; {DOUBLE_FORK}", id="double-fork"),
        pytest.param(f'echo done; setsid sh -c "{IGNORES_SIGTERM}" &', id="ignores-sigterm"),
    ],
)
def test_end_of_command_leaves_no_process(run_dir: Path, script: str) -> None:
    began = time.monotonic()

    result = run_script(run_dir, script)

    assert isinstance(result, stages.Completed)
    assert result.output == b"done"
    assert time.monotonic() - began < 2
    assert alive_in(run_dir) == []


def test_last_words_of_the_background_are_waited_for(run_dir: Path) -> None:
    result = run_script(run_dir, "(sleep 0.03; echo late) & echo early")

    assert isinstance(result, stages.Completed)
    assert result.output == b"early\nlate"


def test_process_that_forks_and_flees_all_the_time_is_caught(run_dir: Path) -> None:
    flees = "import os\nwhile True:\n    if os.fork(): os._exit(0)\n"

    result = stages.execute(make_context(run_dir, make_stage("command", [sys.executable, "-c", flees]), stage_user="root"))

    assert isinstance(result, stages.Completed)
    assert alive_in(run_dir) == []


def test_command_is_asked_to_end_before_it_is_killed(run_dir: Path) -> None:
    result = run_script(run_dir, "trap 'echo cleaned; exit 0' TERM; sleep 300 & wait", within_s=0.3)

    assert isinstance(result, stages.Failed)
    assert (result.reason, result.output) == ("timeout", b"cleaned")


@pytest.mark.parametrize(("why", "asks_first"), [("stopped", True), ("lease_lost", False), ("shutdown", False)])
def test_cancelled_command_is_gone_at_once(run_dir: Path, why: str, asks_first: bool) -> None:
    began = time.monotonic()

    result = run_script(run_dir, "trap 'echo asked; exit 0' TERM; sleep 300 & wait", cancelled=lambda: why)

    assert isinstance(result, stages.Failed)
    assert (result.reason, result.retryable) == ("cancelled", False)
    assert result.output == (b"asked" if asks_first else b"")
    assert time.monotonic() - began < 1.5
    assert alive_in(run_dir) == []


def test_fault_while_asking_leaves_no_process(run_dir: Path) -> None:
    def fail() -> str | None:
        raise OSError("the database is gone")

    with pytest.raises(OSError, match="database"):
        run_script(run_dir, NEVER_ENDS, cancelled=fail)

    assert alive_in(run_dir) == []


def test_fast_command_is_not_asked_whether_it_is_cancelled(run_dir: Path) -> None:
    asked: list[str] = []

    result = run_script(run_dir, "true", cancelled=lambda: asked.append("asked"))

    assert isinstance(result, stages.Completed)
    assert asked == []


def test_other_children_are_left_alone(run_dir: Path) -> None:
    other = subprocess.Popen(["sleep", "300"])
    try:
        run_script(run_dir, "sleep 300 &")

        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_status_of_other_children_is_not_taken(run_dir: Path) -> None:
    other = subprocess.Popen(["false"])
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)

    run_script(run_dir, "(sleep 0.01 &); sleep 0.5")

    assert other.wait() == 1


def test_orphans_are_reaped_while_the_command_runs(run_dir: Path) -> None:
    # What other tests left unwaited for would be the first that is looked at, and it is not this command's.
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass

    result = run_script(run_dir, "for i in 1 2 3 4 5; do (true &); done; sleep 0.7; ps -o stat= --ppid $PPID | grep -c Z; true")

    assert isinstance(result, stages.Completed)
    assert result.output == b"0"


@pytest.mark.parametrize(
    ("script", "output", "stderr"),
    [
        pytest.param("head -c 1073741824 /dev/zero", 262144, 0, id="stdout"),
        pytest.param("head -c 268435456 /dev/zero >&2", 0, 16384, id="stderr"),
    ],
)
def test_endless_output_costs_little_memory(run_dir: Path, script: str, output: int, stderr: int) -> None:
    env = os.environ | {"PYTHONPATH": f"{PROJECT_DIR}:{PROJECT_DIR / 'tests'}"}

    measured = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM, run_dir, script], env=env, capture_output=True, text=True, check=True)

    kept, kept_stderr, truncated, kind, grown_kib = measured.stdout.split()
    assert (int(kept), int(kept_stderr), truncated, kind) == (output, stderr, str(output > 0), "Completed")
    assert int(grown_kib) < 20 * 1024


def test_last_words_on_stderr_are_kept(run_dir: Path) -> None:
    result = run_script(run_dir, "seq 1 100000 >&2; echo 'no such branch' >&2; exit 4")

    assert isinstance(result, stages.Failed)
    assert len(result.stderr) == 16384
    assert result.stderr.endswith(b"100000\nno such branch\n")
    assert result.detail == "the command ended with exit status 4: no such branch"


def test_works_without_pidfd(run_dir: Path) -> None:
    program = (
        "import os, sys; del os.pidfd_open\n"
        "from pathlib import Path\nfrom orqo import stages\nfrom stage_context import make_context, make_stage\n"
        "print(stages.execute(make_context(Path(sys.argv[1]), make_stage('script', 'exec 1>&- 2>&-; sleep 0.1'))).exit_code)"
    )
    env = os.environ | {"PYTHONPATH": f"{PROJECT_DIR}:{PROJECT_DIR / 'tests'}"}

    done = subprocess.run([sys.executable, "-c", program, run_dir], env=env, capture_output=True, text=True, check=True)

    assert done.stdout == "0\n"


def test_descriptors_are_given_back(run_dir: Path) -> None:
    run_script(run_dir, "true")
    before = len(os.listdir("/proc/self/fd"))

    for script in ("true", "sleep 300 &", "exit 1"):
        run_script(run_dir, script)
    stages.execute(make_context(run_dir, make_stage("command", ["no-such-program"])))

    assert len(os.listdir("/proc/self/fd")) == before


def test_becoming_a_subreaper_again_does_nothing() -> None:
    process.become_subreaper()

    process.become_subreaper()
