"""Planted bugs: each a small change of the sources, made in a copy of the tree, that the harness has to catch.

A checker that catches none proves nothing. `caught_by` is what has to turn red: a run of chaos, or tests by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CRASHES, WAITING_CRASHES = "tests/test_crashpoints.py", "tests/test_waiting_crashes.py"


@dataclass(frozen=True)
class Bug:
    """One bug: in which file, what is replaced by what, and what must notice; `runs` 0: no chaos but the tests named."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    runs: int = 0


def killed(points: str) -> tuple[str, ...]:
    return (CRASHES, "-k", points)


BUGS = (
    Bug(
        "acknowledge before commit",
        "orqo/api/answers.py", '        crashpoints.reach("accept-committed")\n', "        return\n",
        tests=killed("web_process"),
    ),
    Bug(
        "commit without the key of the call",
        "orqo/runs/accepting.py", "    if new.replay:\n        _remember(", "    if False:\n        _remember(",
        tests=killed("web_process"), runs=100,
    ),
    Bug(
        "no sweep of lost runs",
        "orqo/runs/sweeping.py", "            for run in lost:\n", "            for run in ():\n",
        tests=killed("effect-done"),
    ),
    Bug(
        "no sweep of lost deliveries",
        "orqo/deliveries.py", "    if not gone:\n        return 0\n", "    return 0\n",
        tests=killed("delivery-sent"),
    ),
    Bug(
        "a command in doubt is repeated",
        "orqo/flow.py", "    if stage.idempotent or", "    if True or stage.idempotent or",
        tests=killed("effect-done"), runs=150,
    ),
    Bug(
        "a delivery is marked before it is sent",
        "orqo/deliveries.py",
        '.values(lease_owner=bindparam("owner")',
        '.values(status="delivered", next_attempt_at=None, lease_owner=bindparam("owner")',
        tests=killed("delivery-claimed"),
    ),
    Bug(
        "a retry has a new id",
        "orqo/deliveries.py", "message_id=delivery.webhook_id", 'message_id=f"msg_{random.random()}"',
        tests=killed("delivery-sent"), runs=100,
    ),
    Bug(
        "callbacks out of order",
        "orqo/callbacks.py", '"next_attempt_at": moment if sendable else None,', '"next_attempt_at": moment,',
        runs=100,
    ),
    Bug(
        "the outbox is not written with the end of the run",
        "orqo/runs/ending.py", "    return tell(box, connection, str(status)", "    return 0 or tell(box, connection, str('none')",
        tests=killed("finished"), runs=100,
    ),
    Bug(
        "no fence",
        "orqo/runs/state.py", 'RUNS.c.fence == bindparam("held_fence")', 'RUNS.c.fence >= 0 * bindparam("held_fence")',
        tests=("tests/test_runs.py", "-k", "fence or lease or lost"),
    ),
    Bug(
        "a lease shorter than its renewal",
        "orqo/runs/state.py", "LEASE_S = 30.0", "LEASE_S = 0.5",
        # Only a stage that is looked at while it takes longer shows it.
        runs=1000,
    ),
    Bug(
        "a claim without its condition",
        "orqo/runs/claiming.py",
        "    run_id, seconds = _next_pending(box, connection)\n",
        "    _, seconds = _next_pending(box, connection)\n"
        "    run_id = connection.execute(select(func.min(RUNS.c.id)).where(RUNS.c.finished_at.is_(None))).scalar()\n"
        "    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(status=RunStatus.PENDING))\n",
        tests=("tests/test_runs.py", "-x"), runs=100,
    ),
    Bug(
        "a wait takes a second answer",
        "orqo/runs/answering.py",
        "    _check_open(wait)\n    _check_outcome(wait, given)\n",
        "    wait = wait if wait.status == WaitStatus.OPEN else wait._replace(status=WaitStatus.ANSWERED)\n"
        "    connection.execute(update(WAITS).where(WAITS.c.id == wait.id).values(status=WaitStatus.OPEN))\n",
        runs=100,
    ),
    Bug(
        "a wait's deadline passes unseen",
        "orqo/runs/sweeping.py", "RUNS.c.wake_at <= clock.to_text(now))", 'RUNS.c.wake_at <= "")',
        tests=("tests/test_waits.py", "-k", "time or delay"),
    ),
    Bug(
        "a child is started for each claim of its parent",
        "orqo/runs/chaining.py", "    if known is not None:\n", "    if known is not None and False:\n",
        tests=(WAITING_CRASHES, "-k", "child"),
    ),
    Bug(
        "a run does not wait its turn",
        "orqo/runs/concurrency.py", '"held": int(going >= rule["limit"])', '"held": 0',
        runs=200,
    ),
    Bug(
        "a schedule fires for whoever saw its time",
        "orqo/schedules.py", "Trigger.options == row.options, seen)", "Trigger.options == row.options)",
        tests=("tests/test_schedules.py", "-k", "several_dispatchers"),
    ),
    Bug(
        "a parent goes on without its child",
        "orqo/runs/waiting.py", "    goes_on = not is_open or (", "    goes_on = True or not is_open or (",
        runs=100,
    ),
    Bug(
        "a run with files goes on anywhere",
        "orqo/runs/recording.py", 'box.machine if end.has_files else ""', '"" if end.has_files else ""',
        tests=("tests/test_machines.py", "-k", "left_to_the_machine"),
    ),
    Bug(
        "a wake-up flag that never expires",
        "orqo/queue.py", "nx=True, ex=WAKE_UP_EXPIRES_S", "nx=True",
        tests=("tests/test_queue.py",), runs=300,
    ),
    Bug(
        "fsync left out",
        "orqo/db.py", '"synchronous=FULL"', '"synchronous=OFF"',
        tests=("tests/test_durability.py",),
    ),
)  # fmt: skip
BY_NAME = {bug.name: bug for bug in BUGS}


def catches(bug: Bug, folder: Path, *, seed: int = 1) -> str | None:
    """Plant a bug in a copy of the tree within `folder` and give what noticed it, None where nothing did."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "var", "__pycache__", "docs", "bench"))
    (tree / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(ROOT / "examples", tree / "examples", dirs_exist_ok=True)
    source = (tree / bug.file).read_text(encoding="utf-8")
    assert source.count(bug.old) == 1, f"{bug.name}: {bug.file} holds the text {source.count(bug.old)} times: plant it anew"
    (tree / bug.file).write_text(source.replace(bug.old, bug.new), encoding="utf-8")
    if bug.tests and _fails(tree, [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *bug.tests]):
        return "a test"
    if bug.runs and _fails(tree, [sys.executable, "-m", "chaos"], RUNS=str(bug.runs), SEED=str(seed), CHAOS_DISCARD="1"):
        return "chaos"
    return None


def _fails(tree: Path, argv: list[str], **settings: str) -> bool:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": f"{tree}:{tree}/tests", **settings}
    done = subprocess.run(argv, cwd=tree, env=env, capture_output=True, check=False, timeout=600)
    # 2 and above are pytest's own faults, such as no tests found: that would be no catch.
    return done.returncode == 1 if "pytest" in argv else done.returncode != 0
