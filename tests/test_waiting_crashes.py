"""A worker killed on the way into a wait or a child: nothing is lost, nothing is started twice, the same token is asked with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inbox as inboxes
from inbox import Inbox
from orqo import clock, crashpoints, executor, runs
from orqo.config import PROJECT_DIR
from support import TestBox


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with inboxes.inbox() as made:
        yield made


def crash(box: TestBox, settings: dict[str, str], point: str, name: str) -> None:
    """Accept a run in a process that ends at the point, and do what the living ones do then."""
    env = {"PATH": os.environ["PATH"], **settings, crashpoints.VARIABLE: point, "PYTHONPATH": str(PROJECT_DIR)}
    argv = [sys.executable, str(Path(__file__).with_name("crashing.py")), "work", name]
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
