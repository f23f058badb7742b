"""How many runs of one key are under way: queued in order, skipped, or replaced; several workers never exceed the limit."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, executor, flow, runs
from orqo.errors import Busy, Invalid
from orqo.models import RunStatus
from support import Service, TestBox, wait_for

DONE = runs.StageEnd(output=b"done", output_kind="text")


def apply(box: TestBox, rule: str = "", stage: str = "stub: {}", key: str = "${input.k}") -> None:
    box.apply(f"name: busy\nconcurrency: {{key: '{key}'{', ' + rule if rule else ''}}}\nstages:\n  - {{name: one, {stage}}}\n")


def accept(box: TestBox, *keys: str) -> list[int]:
    return [box.accept("busy", input={"k": key}) for key in keys]


def claim(box: TestBox) -> runs.Claim | None:
    return runs.claim(box.box, owner="w", now=clock.now())


def finish(box: TestBox, held: runs.Claim) -> None:
    output = runs.Output(b"", "text")
    runs.finish(box.box, held, DONE, flow.End(RunStatus.COMPLETED), output, elapsed_ms=1, next_owner=None, now=clock.now())


def statuses(box: TestBox) -> list[str]:
    return [row["status"] for row in box.rows("SELECT status FROM runs ORDER BY id")]


# ── queue ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_of_one_key_go_one_after_another_in_order_and_others_pass_them(box: TestBox) -> None:
    apply(box)
    accept(box, "a", "a", "b", "a")
    order = []

    first, other = claim(box), claim(box)
    nothing = claim(box)
    assert first is not None and other is not None and nothing is None
    finish(box, first)
    while (held := claim(box)) is not None:
        order.append(held.run.id)
        finish(box, held)

    assert (first.run.id, other.run.id, order) == (1, 3, [2, 4])


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_as_many_are_under_way_as_the_limit_says(box: TestBox, limit: int) -> None:
    apply(box, f"limit: {limit}")
    accept(box, *"aaaaa")

    held = [claim(box) for _ in range(5)]

    assert [each is not None for each in held] == [True] * limit + [False] * (5 - limit)


def test_a_run_that_waits_keeps_its_place(box: TestBox, worker: executor.Worker) -> None:
    apply(box, stage="approval: {message: m}")
    accept(box, "a", "a")

    executor.work()

    assert statuses(box) == ["waiting", "pending"]


@pytest.mark.parametrize("end", ["stop the first", "lose the first", "fail the first by a fault"])
def test_whatever_ends_a_run_lets_the_next_go(box: TestBox, worker: executor.Worker, end: str) -> None:
    apply(box, stage="command: ['true']" if end == "lose the first" else "stub: {}")
    first, second = accept(box, "a", "a")
    if end == "stop the first":
        runs.stop(box.box, first, now=clock.now())
    else:
        assert claim(box) is not None
        with box.database.transaction() as connection:
            connection.execute(text("UPDATE runs SET lease_until = 1 WHERE status = 'running'"))
            if end == "fail the first by a fault":
                connection.execute(text("UPDATE runs SET trigger_facts = 'broken' WHERE id = 1"))
        runs.sweep(box.box, stale_s=2.0, now=clock.now())

    executor.work()

    assert box.rows("SELECT status FROM runs WHERE id = :id", id=second) == [{"status": "completed"}]


def test_a_held_run_can_be_stopped(box: TestBox) -> None:
    apply(box)
    first, second = accept(box, "a", "a")

    assert runs.stop(box.box, second, now=clock.now()) == "stopped"

    assert (box.run(first)["status"], box.rows("SELECT held FROM runs WHERE id = 2")) == ("pending", [{"held": 0}])


def test_held_runs_ring_no_bell(box: TestBox) -> None:
    apply(box)
    accept(box, "a", "a")
    assert claim(box) is not None

    with box.database.read() as connection:
        assert runs.pending(connection, "") == (False, False)
    assert runs.sweep(box.box, stale_s=-1.0, now=clock.now()).stale is False


def test_the_key_counts_within_its_workflow(box: TestBox) -> None:
    apply(box)
    box.apply("name: other\nconcurrency: {key: a}\nstages:\n  - {name: one, stub: {}}\n")
    accept(box, "a")
    box.accept("other")

    assert [claim(box) is not None for _ in range(2)] == [True, True]


def test_the_key_may_look_up_what_is_not_there_only_with_a_mark(box: TestBox) -> None:
    apply(box)
    with pytest.raises(Invalid, match="concurrency"):
        box.accept("busy", input={})
    apply(box, key="${input.k?}")

    box.accept("busy", input={})

    assert box.rows("SELECT concurrency_key FROM runs") == [{"concurrency_key": ""}]


def test_many_workers_never_exceed_the_limit_starve_nobody_and_keep_the_order(box: TestBox) -> None:
    """Six workers, three keys with a limit of two, sixty runs: counted while they run."""
    apply(box, "limit: 2")
    ids = accept(box, *(key for _ in range(20) for key in "abc"))
    lock = threading.Lock()
    going: dict[str, int] = {}
    most: dict[str, int] = {}
    began: dict[str, list[int]] = {"a": [], "b": [], "c": []}

    def work() -> None:
        while (held := claim(box)) is not None or box.rows("SELECT 1 FROM runs WHERE finished_at IS NULL LIMIT 1"):
            if held is None:
                time.sleep(0.01)
                continue
            key = held.run.concurrency_key
            with lock:
                going[key] = going.get(key, 0) + 1
                most[key] = max(most.get(key, 0), going[key])
                began[key].append(held.run.id)
            time.sleep(0.03)
            with lock:
                going[key] -= 1
            finish(box, held)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert statuses(box) == ["completed"] * len(ids)
    assert set(most.values()) <= {1, 2}
    # Two of one key may be noted in either order; nobody is overtaken by more than one.
    for key in "abc":
        assert all(abs(began[key].index(each) - place) <= 2 for place, each in enumerate(sorted(began[key])))


def test_real_workers_keep_the_limit(service: Service) -> None:
    apply(service.box, stage="command: [sleep, '0.2']")
    ids = accept(service.box, *"aaaa")
    service.box.bell.wake_workers()

    wait_for(lambda: all(service.box.run(each)["finished_at"] for each in ids), within_s=20)

    spans = sorted((service.box.run(each)["started_at"], service.box.run(each)["finished_at"]) for each in ids)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


# ── skip ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skip_refuses_a_further_run_until_there_is_room(box: TestBox) -> None:
    apply(box, "when_busy: skip")
    accept(box, "a")

    with pytest.raises(Busy):
        accept(box, "a")
    accept(box, "b")
    held = claim(box)
    assert held is not None
    finish(box, held)

    assert accept(box, "a")
    assert len(statuses(box)) == 3


def test_skip_is_409_at_trigger_and_ignored_at_a_webhook(client: Any, box: TestBox) -> None:
    apply(box, "when_busy: skip")
    accept(box, "a")
    given = {"headers": {"Authorization": f"Bearer {box.token('trigger')}"}, "json": {"workflow": "busy", "input": {"k": "a"}}}

    at_trigger = client.post("/api/v1/trigger", **given)
    at_hook = client.post(box.hook("busy"), json={"k": "a"})

    assert at_trigger.status_code == 409
    assert "'a'" in at_trigger.get_json()["detail"]
    assert (at_hook.status_code, at_hook.get_json()["status"]) == (200, "ignored")
    assert len(statuses(box)) == 1
    assert [row["verdict"] for row in box.rows("SELECT verdict FROM requests ORDER BY id")] == ["refused", "ignored"]


def test_a_replay_is_answered_as_the_first_time_however_busy_it_is(client: Any, box: TestBox) -> None:
    apply(box, "when_busy: skip")
    headers = {"Authorization": f"Bearer {box.token('trigger')}", "Idempotency-Key": "k"}
    given = {"headers": headers, "json": {"workflow": "busy", "input": {"k": "a"}}}

    first, again = client.post("/api/v1/trigger", **given), client.post("/api/v1/trigger", **given)

    assert (first.status_code, again.status_code) == (201, 200)


# ── replace ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["stub: {}", "delay: 1h", "approval: {message: m}"], ids=["pending", "delayed", "asking"])
def test_replace_stops_the_older_and_runs_the_newer(box: TestBox, worker: executor.Worker, stage: str) -> None:
    apply(box, "when_busy: replace", stage)
    accept(box, "a", "b")
    if stage != "stub: {}":
        executor.work()

    accept(box, "a")
    executor.work()

    after = "completed" if stage == "stub: {}" else "waiting"
    assert statuses(box) == ["stopped", after, after]
    assert box.rows("SELECT id FROM waits WHERE status = 'open' AND run_id = 1") == []


def test_replace_ends_a_running_run_before_the_newer_begins(service: Service) -> None:
    box = service.box
    apply(box, "when_busy: replace", "command: [sleep, '30']")
    (first,) = accept(box, "a")
    box.bell.wake_workers()
    wait_for(lambda: box.run(first)["status"] == "running")
    began = time.monotonic()

    (second,) = accept(box, "a")
    box.bell.wake_workers()
    wait_for(lambda: box.run(second)["status"] == "running", within_s=10)

    assert box.run(first)["status"] == "stopped"
    assert time.monotonic() - began < 10
    assert box.run(first)["finished_at"] <= box.run(second)["started_at"]


def test_replace_with_a_limit_keeps_the_newest(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "limit: 2, when_busy: replace", "delay: 1h")
    for _ in range(4):
        accept(box, "a")
        executor.work()

    assert statuses(box) == ["stopped", "stopped", "waiting", "waiting"]


def test_the_newest_of_many_replaced_while_one_is_running_is_the_one_that_runs(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "when_busy: replace")
    accept(box, "a")
    held = claim(box)
    assert held is not None
    accept(box, "a", "a", "a")
    assert runs.renew(box.box, held, elapsed_ms=1) is True
    runs.finish(box.box, held, DONE, flow.End(RunStatus.STOPPED), runs.Output(None, None), elapsed_ms=1, next_owner=None, now=clock.now())

    executor.work()

    assert statuses(box) == ["stopped", "stopped", "stopped", "completed"]
