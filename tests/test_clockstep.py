"""The wall clock is set by an hour: what was planned happens after the same time as before, neither at once nor an hour late."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox import inbox
from orqo import clock, clockstep, executor
from support import TestBox, running, sqlite_only, wait_for

pytestmark = sqlite_only
HOUR = timedelta(hours=1)
NOW = clock.from_text("2026-03-01T12:00:00.000Z")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: apt install gcc libc6-dev")
needs_uptime = pytest.mark.skipif(clock.boot_seconds() < clockstep.BOOTING_S + 30, reason="this machine booted a moment ago")


def planned(box: TestBox, **minutes: int) -> None:
    """Write a delivery for each name, due so many minutes from NOW."""
    run_id = box.accept()
    with box.database.transaction() as connection:
        for name, minute in minutes.items():
            due = clock.to_text(NOW + timedelta(minutes=minute))
            values = {"name": name, "run_id": run_id, "due": due}
            connection.execute(
                text(
                    "INSERT INTO deliveries"
                    " (webhook_id, run_id, channel, sequence, event, url, host, body, status, next_attempt_at, created_at)"
                    " VALUES (:name, :run_id, :name, 1, 'run.completed', '[]', '', '', 'pending', :due, :due)"
                ),
                values,
            )


def follow(box: TestBox, step: timedelta) -> dict[str, float]:
    """Set the clock; gives the minutes from the new now to each delivery."""
    now = NOW + step
    with box.database.transaction() as connection:
        clockstep.follow(connection, step, now=now)
    rows = box.rows("SELECT webhook_id, next_attempt_at FROM deliveries")
    return {row["webhook_id"]: (clock.from_text(row["next_attempt_at"]) - now) / timedelta(minutes=1) for row in rows}


def test_set_forward_what_was_not_due_is_as_far_away_as_before(box: TestBox) -> None:
    planned(box, overdue=-5, soon=1, later=59)

    assert follow(box, HOUR) == {"overdue": -65, "soon": 1, "later": 59}


def test_set_forward_what_lies_beyond_comes_early_and_not_late(box: TestBox) -> None:
    planned(box, tomorrow=24 * 60)

    assert follow(box, HOUR) == {"tomorrow": 23 * 60}


def test_set_back_what_was_due_is_due_still(box: TestBox) -> None:
    planned(box, overdue=-5, soon=1, tomorrow=24 * 60)

    assert follow(box, -HOUR) == {"overdue": -5, "soon": 1, "tomorrow": 24 * 60}


def test_set_back_a_wait_keeps_its_length_and_a_schedule_is_reckoned_anew(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: slow\ntriggers: [{name: n, schedule: '* * * * *', timezone: UTC}]\nstages: [{name: a, wait: {timeout: 10m}}]\n")
    box.accept("slow")
    executor.work()
    before = clock.from_text(box.rows("SELECT wake_at FROM runs")[0]["wake_at"])
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET next_fire_at = '2099-01-01T00:00:00.000Z'"))
        clockstep.follow(connection, -HOUR, now=clock.now() - HOUR)

    after = clock.from_text(box.rows("SELECT wake_at FROM runs")[0]["wake_at"])

    assert after == before - HOUR
    assert box.rows("SELECT deadline_at FROM waits")[0]["deadline_at"] == clock.to_text(after)
    assert [row["next_fire_at"] for row in box.rows("SELECT next_fire_at FROM triggers")] == [None]


def test_a_clock_that_runs_is_not_one_that_was_set() -> None:
    assert clockstep.WallClock().stepped() is None


# ── real processes, a real step ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    """The file whose seconds are added to the wall clock of processes with `faked` in their environment."""
    made = tmp_path / "clock"
    made.write_text("0")
    return made


@pytest.fixture
def faked(tmp_path: Path, setting: Path) -> dict[str, str]:
    library = tmp_path / "wallclock.so"
    source = Path(__file__).with_name("wallclock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "WALLCLOCK_FILE": str(setting)}


@needs_compiler
def test_the_step_is_of_the_wall_clock_alone(faked: dict[str, str], setting: Path) -> None:
    setting.write_text("-3600")
    script = "import time; print(int(time.time()), int(time.clock_gettime(time.CLOCK_BOOTTIME)))"

    told = subprocess.run([sys.executable, "-c", script], env=os.environ | faked, capture_output=True, text=True, check=True)

    wall, boot = map(int, told.stdout.split())
    assert clock.now().timestamp() - wall == pytest.approx(3600, abs=5)
    assert clock.boot_seconds() - boot == pytest.approx(0, abs=5)


@needs_compiler
@needs_uptime
@pytest.mark.parametrize("step", ["-3600", "3600"], ids=["back", "forward"])
def test_a_retry_comes_in_its_time_whatever_the_clock_says(
    box: TestBox, settings: dict[str, str], faked: dict[str, str], setting: Path, tmp_path: Path, step: str
) -> None:
    with inbox() as done:
        done.answers = [(500, {}), (500, {})]
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{}}}}]\n")
        changed = settings | faked | {"ORQO_CALLBACK_RETRIES": "3s,100s"}
        with running(box, changed, tmp_path / "service.log", "worker", "app") as service:
            box.accept("told")
            wait_for(lambda: box.rows("SELECT id FROM attempts"), what="the first attempt")
            setting.write_text(step)
            # Three seconds after the first, not an hour later.
            wait_for(lambda: len(box.rows("SELECT id FROM attempts")) == 2, within_s=20, what="the second attempt")
            setting.write_text("0")
            wait_for(lambda: service.log.read_text().count("step=clock") == 2, what="both steps are noticed")

            planned_at = clock.from_text(box.rows("SELECT next_attempt_at FROM deliveries")[0]["next_attempt_at"])

            # A hundred seconds after the second (± 10 %), not at once and not in an hour.
            assert 60 < (planned_at - clock.now()).total_seconds() < 111
            assert len(done.arrived) == 2
