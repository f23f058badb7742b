"""Killed on the way into a wait, a child, a model's answer, a turn or a schedule: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

import inbox as inboxes
from inbox import Inbox
from model_server import chooses, model_server
from orqo import clock, crashpoints, executor, runs, schedules
from orqo.config import PROJECT_DIR
from support import TestBox


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with inboxes.inbox() as made:
        yield made


def crash(box: TestBox, settings: dict[str, str], point: str, name: str, act: str = "work") -> None:
    """Accept and execute a run (or be the dispatcher) in a process that ends at the point, and do what the living do then."""
    env = {"PATH": os.environ["PATH"], **settings, crashpoints.VARIABLE: point, "PYTHONPATH": str(PROJECT_DIR)}
    argv = [sys.executable, str(Path(__file__).with_name("crashing.py")), act, name]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, cwd=box.config.data)
    assert done.stdout.split() == ["-9"], done.stderr
    runs.sweep(box.box, stale_s=2.0, now=clock.now())


ASK = "wait: {{request: {{method: POST, url: '{url}', json: {{to: '${{wait.url}}'}}}}}}"


@pytest.mark.parametrize(("point", "asked"), [("wait-before-commit", 1), ("wait-open", 1), ("wait-asked", 2)])
def test_a_wait_is_asked_for_again_with_one_token_and_answered(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, inbox: Inbox, point: str, asked: int
) -> None:
    box.apply(f"name: asks\nstages:\n  - {{name: ask, {ASK.format(url=inbox.url())}}}\n  - {{name: b, stub: {{output: done}}}}\n")
    crash(box, settings, point, "asks")
    executor.work()
    links = [each.json["to"] for each in inbox.arrived]

    with box.database.transaction() as connection:
        wait = runs.find_wait(connection, links[0].partition("token=")[2])
        runs.answer(box.box, connection, wait, runs.Answer("completed"), by="x", now=clock.now())
    executor.work()

    assert (len(links), len(set(links))) == (asked, 1)
    assert len(box.rows("SELECT id FROM waits")) == 1
    assert (box.run(1)["status"], box.run(1)["output"]) == ("completed", "done")


@pytest.mark.parametrize("stage", ["approval: {message: m}", "delay: 1h"])
@pytest.mark.parametrize("point", ["wait-before-commit", "wait-open"])
def test_a_wait_without_a_request_waits_once(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, point: str, stage: str
) -> None:
    box.apply(f"name: waits\ncallbacks: [{{url: 'http://127.0.0.1:1/', events: [waiting]}}]\nstages:\n  - {{name: one, {stage}}}\n")

    crash(box, settings, point, "waits")
    executor.work()

    assert box.rows("SELECT status FROM waits") == [{"status": "open"}]
    assert box.run(1)["status"] == "waiting"
    assert len(box.rows("SELECT id FROM deliveries")) == (1 if "approval" in stage else 0)


@pytest.mark.parametrize("waits", ["true", "false"])
@pytest.mark.parametrize("point", ["child-before-commit", "child-started"])
def test_a_child_is_started_once(box: TestBox, settings: dict[str, str], worker: executor.Worker, point: str, waits: str) -> None:
    box.apply(f"name: parent\nstages:\n  - {{name: call, workflow: {{name: hello, input: {{name: x}}, wait: {waits}}}}}\n")

    crash(box, settings, point, "parent")
    executor.work()

    assert [(row["parent_id"], row["status"]) for row in box.rows("SELECT parent_id, status FROM runs ORDER BY id")] == [
        (None, "completed"),
        (1, "completed"),
    ]


@pytest.mark.parametrize(("point", "asked"), [("stage-started", 1), ("effect-done", 2), ("finish-before-commit", 2), ("finished", 1)])
def test_a_model_is_asked_again_only_where_its_answer_was_lost(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, point: str, asked: int
) -> None:
    with model_server() as server:
        server.replies = [chooses("good" if asked == 1 else "bad"), chooses("good")]
        prompt = f"prompt: {{user: x, model: m, base_url: '{server.base_url}'}}, outcomes: [good, bad]"
        box.apply(f"name: thinks\nstages:\n  - {{name: think, {prompt}}}\n")

        crash(box, settings, point, "thinks")
        executor.work()

    assert len(server.asked) == asked
    assert (box.run(1)["status"], box.run(1)["stages"][0]["outcome"]) == ("completed", "good")


TURNS = "name: turns\nconcurrency: {{key: k, limit: 1{rule}}}\nstages:\n  - {{name: one, stub: {{output: 1}}}}\n"


@pytest.mark.parametrize("point", ["claimed", "effect-done", "finish-before-commit", "finished"])
def test_whoever_waits_for_its_turn_gets_it_though_the_worker_of_the_other_was_killed(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, point: str
) -> None:
    box.apply(TURNS.format(rule=""))
    first = box.accept("turns")

    crash(box, settings, point, "turns")
    between = {row["id"]: (row["status"], row["held"]) for row in box.rows("SELECT id, status, held FROM runs")}
    executor.work()

    assert between[first + 1] == ("pending", int(point != "finished"))
    assert between[first][0] == ("completed" if point == "finished" else "pending")
    assert [row["status"] for row in box.rows("SELECT status FROM runs")] == ["completed", "completed"]


def test_a_run_replaced_while_its_worker_was_killed_is_stopped_and_the_newer_runs(
    box: TestBox, settings: dict[str, str], worker: executor.Worker
) -> None:
    box.apply(TURNS.format(rule=", when_busy: replace"))

    crash(box, settings, "stage-started", "turns")
    newer = box.accept("turns")
    executor.work()

    assert {row["id"]: row["status"] for row in box.rows("SELECT id, status FROM runs")} == {newer - 1: "stopped", newer: "completed"}


@pytest.mark.parametrize(("point", "fired"), [("schedule-before-commit", 0), ("schedule-fired", 1)])
def test_a_schedule_fires_once_though_the_dispatcher_is_killed_as_it_does(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, point: str, fired: int
) -> None:
    box.apply("name: yearly\ntriggers: [{name: t, schedule: '0 0 1 1 *'}]\nstages: [{name: one, stub: {}}]\n")
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET next_fire_at = '2026-01-01T00:00:00.000Z'"))

    crash(box, settings, point, "yearly", "send")
    before = len(box.rows("SELECT id FROM runs"))
    for row in schedules.due(box.database, now=clock.now()):
        schedules.fire(box.database, row, now=clock.now())
    executor.work()

    assert before == fired
    assert [row["status"] for row in box.rows("SELECT status FROM runs")] == ["completed"]
