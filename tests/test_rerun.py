"""Run again: the same input on the newest version, whole or from a stage with what came before inherited."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, executor, runs, workflows
from orqo.config import PROJECT_DIR
from orqo.errors import Conflict, Invalid, NotFound
from support import TestBox

FLAKY = """
name: three
stages:
  - {name: one, stub: {output: {n: '${input.n}'}}}
  - {name: two, stub: {FAIL}}
  - {name: three, stub: {output: 'one said ${stages.one.output.n}, two ${stages.two.output}'}}
"""
BROKEN, MENDED = FLAKY.replace("FAIL", "fail: 'not yet'"), FLAKY.replace("FAIL", "output: mended")


def failed(box: TestBox, **changes: Any) -> int:
    """Make a run that ended failed at its second stage."""
    box.apply(BROKEN)
    run_id = box.accept("three", **({"input": {"n": 7}} | changes))
    executor.work()
    assert box.run(run_id)["status"] == "failed"
    return run_id


def rerun(box: TestBox, run_id: int, from_stage: str | None = None) -> int:
    with box.database.transaction() as connection:
        return runs.rerun(box.box, connection, run_id, from_stage=from_stage, origin="cli", now=clock.now())


def stages(box: TestBox, run_id: int) -> list[tuple[str, str, bool]]:
    return [(s["name"], s["status"], s.get("inherited", False)) for s in box.run(run_id)["stages"]]


def test_a_whole_rerun_takes_the_same_input_and_the_newest_version_and_names_its_origin(box: TestBox, worker: executor.Worker) -> None:
    old = failed(box, metadata={"who": "me"})
    box.apply(MENDED)

    new = rerun(box, old)
    executor.work()

    ended = box.run(new)
    assert (ended["status"], ended["output"]) == ("completed", "one said 7, two mended")
    assert (ended["rerun_of"], ended["input"], ended["metadata"]) == (old, {"n": 7}, {"who": "me"})
    assert stages(box, new) == [("one", "completed", False), ("two", "completed", False), ("three", "completed", False)]
    assert "rerun_of" not in box.run(old) and box.run(old)["status"] == "failed"


@pytest.mark.parametrize(
    ("from_stage", "inherited"), [("two", ["one"]), ("one", [])], ids=["from the second stage", "from the first: whole, but says so"]
)
def test_from_a_stage_the_earlier_outputs_are_inherited_and_not_executed_again(
    box: TestBox, worker: executor.Worker, from_stage: str, inherited: list[str]
) -> None:
    old = failed(box)
    # What the first stage would give now differs, so that an execution would be seen.
    box.apply(MENDED.replace("{n: '${input.n}'}", "{n: new}"))

    new = rerun(box, old, from_stage)
    executor.work()

    said = 7 if inherited else "new"
    assert box.run(new)["output"] == f"one said {said}, two mended"
    assert [name for name, _, is_inherited in stages(box, new) if is_inherited] == inherited
    assert [name for name, _, _ in stages(box, new)] == ["one", "two", "three"]


def test_a_skipped_stage_is_executed_where_a_rerun_begins_with_it(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: picky\nstages:\n  - {name: one, stub: {}}\n  - {name: two, stub: {output: 2}, when: {input.go: true}}\n")
    old = box.accept("picky")
    executor.work()

    new = rerun(box, old, "two")
    executor.work()

    assert (stages(box, old)[1][1], stages(box, new)[1][1], box.run(new)["output"]) == ("skipped", "completed", 2)


def test_an_inherited_stage_keeps_its_times_and_the_new_one_counts_from_one(box: TestBox, worker: executor.Worker) -> None:
    old = failed(box)
    box.apply(MENDED)

    new = rerun(box, old, "two")
    executor.work()

    before, after = box.run(old)["stages"], box.run(new)["stages"]
    assert after[0] == before[0] | {"inherited": True}
    assert (after[1]["pass"], after[1]["attempts"]) == (1, 1)


def test_a_rerun_survives_a_lost_worker(box: TestBox, worker: executor.Worker) -> None:
    old = failed(box)
    box.apply(MENDED)
    new = rerun(box, old, "two")
    held = runs.claim(box.box, owner="dead", now=clock.now())
    assert held is not None and (held.run.id, held.stage.name, len(held.history)) == (new, "two", 1)
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET lease_until = 1 WHERE status = 'running'"))
    runs.sweep(box.box, stale_s=2.0, now=clock.now())

    executor.work()

    assert box.run(new)["output"] == "one said 7, two mended"


def test_a_rerun_may_be_run_again(box: TestBox, worker: executor.Worker) -> None:
    old = failed(box)
    second = rerun(box, old, "two")
    executor.work()
    box.apply(MENDED)

    third = rerun(box, second, "two")
    executor.work()

    assert (box.run(third)["output"], box.run(third)["rerun_of"]) == ("one said 7, two mended", second)


def test_a_rerun_tells_whom_the_first_one_told_and_fires_no_trigger(box: TestBox, worker: executor.Worker) -> None:
    box.hook("hello")
    run_id = box.accept("hello", trigger_id=1, callbacks=[{"url": "http://192.0.2.1/", "events": ["completed"]}])
    executor.work()

    rerun(box, run_id)
    executor.work()

    assert box.rows("SELECT fired_count FROM triggers")[0]["fired_count"] == 1
    assert len(box.rows("SELECT id FROM deliveries WHERE event = 'run.completed'")) == 2


@pytest.mark.parametrize(
    ("stage", "words"), [("nowhere", "has no stage nowhere"), ("three", "never reached stage three")], ids=["unknown", "not reached"]
)
def test_a_stage_that_cannot_be_gone_on_from_is_refused_and_leaves_no_run(
    box: TestBox, worker: executor.Worker, stage: str, words: str
) -> None:
    old = failed(box)

    with pytest.raises(Invalid, match=words):
        rerun(box, old, stage)

    assert len(box.rows("SELECT id FROM runs")) == 1


def test_an_unfinished_run_is_not_gone_on_from_but_may_be_run_again_whole(box: TestBox) -> None:
    run_id = box.accept()

    with pytest.raises(Conflict, match="has not ended"):
        rerun(box, run_id, "greet")

    assert box.run(rerun(box, run_id))["rerun_of"] == run_id


def test_what_is_gone_or_disabled_is_not_run_again(box: TestBox, worker: executor.Worker) -> None:
    old = failed(box)
    with pytest.raises(NotFound):
        rerun(box, 999)
    with box.database.transaction() as connection:
        workflows.set_enabled(connection, "three", enabled=False, now=clock.now())
    with pytest.raises(Conflict, match="disabled"):
        rerun(box, old)
    with box.database.transaction() as connection:
        workflows.delete(connection, "three", now=clock.now())
    with pytest.raises(Conflict, match="deleted"):
        rerun(box, old)


def test_a_loop_is_inherited_up_to_the_last_pass(box: TestBox, worker: executor.Worker) -> None:
    box.apply("""
name: three
stages:
  - {name: one, stub: {output: o}}
  - {name: two, stub: {fail: x}, on_error: one}
""")
    old = box.accept("three")
    executor.work()
    entered = [(s["name"], s["pass"]) for s in box.run(old)["stages"]]

    new = rerun(box, old, "two")

    assert [(s["name"], s["pass"]) for s in box.run(new)["stages"]] == entered


def test_the_api_reruns_with_scope_write(client: Any, box: TestBox, worker: executor.Worker) -> None:
    old = failed(box)
    box.apply(MENDED)
    path = f"/api/v1/runs/{old}/rerun"

    def post(given: Any, *scopes: str) -> Any:
        return client.post(path, json=given, headers={"Authorization": f"Bearer {box.token(*scopes)}"})

    refused, unknown = post({}, "read", "trigger"), post({"from": "nowhere"}, "write")
    made, whole = post({"from": "two"}, "write"), client.post(path, headers={"Authorization": f"Bearer {box.token('write')}"})
    executor.work()

    assert (refused.status_code, unknown.status_code, made.status_code, whole.status_code) == (403, 422, 201, 201)
    assert unknown.get_json()["errors"][0]["pointer"] == "/from"
    new = made.get_json()["id"]
    assert made.headers["Location"] == f"/api/v1/runs/{new}"
    assert (made.get_json()["rerun_of"], box.run(new)["output"]) == (old, "one said 7, two mended")


def test_the_command_line_reruns(box: TestBox, worker: executor.Worker, settings: dict[str, str]) -> None:
    old = failed(box)
    box.apply(MENDED)

    command = [sys.executable, "-m", "orqo", "run", "rerun", str(old), "--from", "two", "--json"]
    said = subprocess.run(command, env={**os.environ, **settings}, cwd=PROJECT_DIR, capture_output=True, text=True)
    executor.work()

    assert said.returncode == 0, said.stderr
    (new,) = box.rows("SELECT id, output FROM runs WHERE rerun_of = :id", id=old)
    assert f'"id": {new["id"]}' in said.stdout
    assert new["output"] == b"one said 7, two mended"
