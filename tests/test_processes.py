"""Forked processes: what they have of their parent's and what not, and what is known of their end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orqo.config import PROJECT_DIR

BEGIN = """
import json, os, signal, sys, time
from pathlib import Path
from orqo import processes

def fork(main, **changes):
    return processes.fork(main, **{"name": "orqo-test", "orphan_signal": signal.SIGKILL, **changes})
"""


def parent(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a process that forks: one of its own, for the tests' has threads."""
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code, str(folder)], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=20, check=False
    )


def test_a_fork_has_a_name_a_session_and_an_environment_of_its_own_and_none_of_our_files(tmp_path: Path) -> None:
    code = """
def main():
    found = {"name": Path("/proc/self/comm").read_text().strip(), "env": dict(os.environ)}
    found |= {"leads": os.getsid(0) == os.getpid(), "stdin": os.readlink("/proc/self/fd/0")}
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    found["files"] = [os.readlink(link) for link in links if os.path.exists(link) and "opened" in os.readlink(link)]
    print(json.dumps(found))

with open(sys.argv[1] + "/opened", "w"), open(sys.argv[1] + "/said", "w") as said, open(sys.argv[1] + "/told", "w") as told:
    fork(main, env={"ONLY": "this"}, outputs=(said.fileno(), told.fileno())).wait()
"""

    ended = parent(code, tmp_path)

    expected = {"name": "orqo-test", "env": {"ONLY": "this"}, "leads": True, "stdin": "/dev/null", "files": []}
    assert (ended.stdout, ended.stderr) == ("", "")
    assert json.loads((tmp_path / "said").read_text()) == expected


@pytest.mark.parametrize(
    ("main", "status", "told"),
    [
        pytest.param("lambda: 7", 7, "", id="a status"),
        pytest.param("lambda: 1 / 0", 1, "ZeroDivisionError: division by zero\n", id="a fault"),
        pytest.param("lambda: sys.exit('orqo: mend it')", 1, "orqo: mend it\n", id="a sentence"),
        pytest.param("lambda: sys.exit(3)", 3, "", id="an exit"),
        pytest.param("lambda: sys.exit()", 0, "", id="an exit with nothing"),
        pytest.param("lambda: os.kill(os.getpid(), 9)", -9, "", id="a signal"),
    ],
)
def test_a_fork_ends_as_a_program_would(main: str, status: int, told: str, tmp_path: Path) -> None:
    ended = parent(f"print(fork({main}).wait())", tmp_path)

    assert (ended.stdout, ended.stderr.splitlines(keepends=True)[-1:]) == (f"{status}\n", [told] if told else [])


def test_a_fork_is_ended_by_a_signal_that_its_parent_handles(tmp_path: Path) -> None:
    code = """
handled = []
signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
child = fork(lambda: time.sleep(60))
# At once: the child has not shed our handler yet.
child.terminate()
print(child.wait(), handled)
"""

    assert parent(code, tmp_path).stdout == f"{-signal.SIGTERM} []\n"


def test_what_has_ended_is_known_and_no_longer_signalled(tmp_path: Path) -> None:
    code = """
child = fork(lambda: 5)
while child.poll() is None:
    time.sleep(0.01)
child.kill()
print(child.returncode, child.poll(), child.wait())
"""

    assert parent(code, tmp_path).stdout == "5 5 5\n"


def test_a_fork_dies_with_its_parent(tmp_path: Path) -> None:
    code = """
processes.adopt_orphans()

def main():
    print(fork(lambda: time.sleep(60)).pid, flush=True)
    return 0

fork(main).wait()
print(os.wait()[0])
"""

    pid, orphan = parent(code, tmp_path).stdout.split()

    assert pid == orphan
