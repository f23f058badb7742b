"""The run's state machine: every transition, every lost race, every crash, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from orqo import clock, db, flow, leases, runs, workflows
from orqo.errors import Conflict, Invalid, NotFound, Unavailable
from orqo.models import RunStatus
from orqo.runs import claiming, state
from support import TestBox, lease_seconds, sqlite_only

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DONE = runs.StageEnd(output=b"done", output_kind="text", exit_code=0)
BROKE = runs.StageEnd(output=b"", output_kind="text", error_reason="stage_failed", error_detail="it broke", exit_code=1, stderr=b"oops")
RESULT = runs.Output(b"done", "text")
COMPLETED = flow.End(RunStatus.COMPLETED)
FAILED = flow.End(RunStatus.FAILED, flow.RunError("stage_failed", "it broke", "one"))

# A stage of each kind that matters after a crash.
STAGES = {
    "command": "{name: one, command: ['true']}",
    "idempotent": "{name: one, command: ['true'], idempotent: true}",
    "stub": "{name: one, stub: {}}",
    "get": "{name: one, http: {url: 'http://127.0.0.1:1/'}}",
    "post": "{name: one, http: {method: POST, url: 'http://127.0.0.1:1/'}}",
}


def workflow(box: TestBox, kind: str = "stub", *, more: str = "") -> int:
    """Apply the workflow `two`, whose first stage is of this kind, and accept a run of it."""
    box.apply(f"name: two\n{more}stages:\n  - {STAGES[kind]}\n  - {{name: two, stub: {{}}}}\n")
    return box.accept("two")


def claim(box: TestBox, *, owner: str = "w1", now: datetime = NOW) -> runs.Claim | None:
    return runs.claim(box.box, owner=owner, now=now)


def claimed(box: TestBox, **options: Any) -> runs.Claim:
    found = claim(box, **options)
    assert found is not None
    return found


def record(box: TestBox, held: runs.Claim, *, go_on: bool = True, end: runs.StageEnd = DONE) -> runs.Claim | None:
    return runs.record(box.box, held, end, held.definition.stages[1], go_on=go_on, elapsed_ms=100, now=NOW)


def fail(box: TestBox, held: runs.Claim, *, wait_s: float | None = 30.0) -> runs.Claim | None:
    return runs.record_failure(box.box, held, BROKE, wait_s=wait_s, elapsed_ms=100, now=NOW)


def finish(box: TestBox, held: runs.Claim, *, verdict: flow.End = COMPLETED, next_owner: str | None = None) -> runs.Claim | None:
    end = DONE if verdict.error is None else BROKE
    return runs.finish(box.box, held, end, verdict, RESULT, elapsed_ms=100, next_owner=next_owner, now=NOW)[1]


def sweep(box: TestBox, *, now: datetime = NOW) -> runs.Swept:
    return runs.sweep(box.box, stale_s=2.0, now=now)


def change(box: TestBox, statement: str, **values: Any) -> None:
    """Make the database look as another process or another boot would have left it."""
    with box.database.transaction() as connection:
        connection.execute(text(statement), values)


def lose(box: TestBox) -> None:
    """Let every lease run out, and sweep."""
    change(box, "UPDATE runs SET lease_until = 1 WHERE status = 'running'")
    sweep(box)


def row(box: TestBox, run_id: int) -> Any:
    return box.rows("SELECT * FROM runs WHERE id = :id", id=run_id)[0]


def stage_rows(box: TestBox, run_id: int) -> list[tuple[str, str, int]]:
    return [(s["name"], s["status"], s["attempts"]) for s in box.run(run_id)["stages"]]


# ── accept ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_accepted_run_is_pending_and_shown_as_the_contract_says(box: TestBox) -> None:
    run_id = box.accept(input={"a": [1, "é\0"]}, metadata={"who": "me"})

    shown = box.run(run_id)

    assert list(shown) == [
        *("id", "workflow_id", "workflow", "status", "input", "output", "error", "metadata"),
        *("trigger_id", "created_at", "started_at", "finished_at", "stages"),
    ]
    assert (shown["status"], shown["input"], shown["metadata"], shown["stages"]) == ("pending", {"a": [1, "é\0"]}, {"who": "me"}, [])
    assert (shown["output"], shown["error"], shown["started_at"], shown["finished_at"]) == (None, None, None, None)


def test_a_rolled_back_accept_leaves_nothing(box: TestBox) -> None:
    with pytest.raises(ZeroDivisionError), box.database.transaction() as connection:
        workflow_row = workflows.get(connection, "hello")
        replay = runs.Replay("token:1", "key:a", "hash")
        runs.accept(connection, runs.NewRun(workflow_row.id, workflow_row.version_id, "api", replay=replay), now=NOW)
        raise ZeroDivisionError

    assert box.rows("SELECT id FROM runs") == box.rows("SELECT key FROM idempotency_keys") == []


def test_firing_a_trigger_is_counted(box: TestBox) -> None:
    box.hook()
    for _ in range(2):
        box.accept(trigger_id=1)

    assert box.rows("SELECT fired_count FROM triggers")[0]["fired_count"] == 2
    assert box.rows("SELECT last_fired_at FROM triggers")[0]["last_fired_at"]


def accept(box: TestBox, key: str = "key:a", body: str | None = "hash", *, scope: str = "token:1", now: datetime = NOW) -> runs.Accepted:
    with box.database.transaction() as connection:
        workflow_row = workflows.get(connection, "hello")
        new = runs.NewRun(workflow_row.id, workflow_row.version_id, "api", replay=runs.Replay(scope, key, body))
        return runs.accept(connection, new, now=now)


def test_the_same_key_and_body_is_one_run_for_24_hours(box: TestBox) -> None:
    first = accept(box)

    again = accept(box, now=NOW + timedelta(hours=23, minutes=59))
    late = accept(box, now=NOW + timedelta(hours=24))
    later = accept(box, now=NOW + timedelta(hours=47))

    assert (first.duplicate, again) == (False, runs.Accepted(first.run_id, duplicate=True))
    assert (late.duplicate, late.run_id) == (False, first.run_id + 1)
    assert later == runs.Accepted(late.run_id, duplicate=True)


def test_the_same_key_with_another_body_is_refused_and_leaves_no_run(box: TestBox) -> None:
    accept(box)

    with pytest.raises(Invalid, match="new key"):
        accept(box, body="other")

    assert len(box.rows("SELECT id FROM runs")) == 1


def test_a_key_counts_within_its_scope(box: TestBox) -> None:
    assert len({accept(box, scope=scope).run_id for scope in ("token:1", "token:2", "trigger:1")}) == 3


def test_a_replay_keeps_counting_after_its_run_failed(box: TestBox) -> None:
    first = accept(box)
    finish(box, claimed(box), verdict=FAILED)

    assert accept(box) == runs.Accepted(first.run_id, duplicate=True)


@pytest.mark.parametrize(("ended", "duplicate"), [("completed", True), ("failed", False), ("stopped", False), (None, True)])
def test_a_vendors_redelivery_starts_anew_only_after_a_failed_or_stopped_run(box: TestBox, ended: str | None, duplicate: bool) -> None:
    first = accept(box, "github:1", None)
    if ended == "stopped":
        runs.stop(box.box, first.run_id, now=NOW)
    elif ended:
        finish(box, claimed(box), verdict=COMPLETED if ended == "completed" else FAILED)

    again = accept(box, "github:1", None)

    assert again.duplicate is duplicate
    assert (again.run_id == first.run_id) is duplicate
    # The new run is the one that counts from now on.
    assert accept(box, "github:1", None) == runs.Accepted(again.run_id, duplicate=True)


def test_twenty_calls_at_once_with_one_key_are_one_run(box: TestBox) -> None:
    answers: list[runs.Accepted] = []
    start = threading.Barrier(20)

    def call() -> None:
        start.wait()
        answers.append(accept(box))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({answer.run_id for answer in answers}) == 1
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 19
    assert len(box.rows("SELECT id FROM runs")) == 1


# ── claim ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_takes_the_run_under_a_lease_and_starts_its_first_stage(box: TestBox) -> None:
    run_id = workflow(box)

    held = claimed(box)

    taken = row(box, run_id)
    assert (taken["status"], taken["lease_owner"], taken["claims"], taken["fence"]) == ("running", "w1", 1, 1)
    assert 0 < taken["lease_until"] - lease_seconds(box) <= runs.LEASE_S
    assert (held.run.id, held.stage.name, held.history) == (run_id, "one", ())
    assert stage_rows(box, run_id) == [("one", "running", 1)]
    assert box.run(run_id)["started_at"] == clock.to_text(NOW)


def test_second_claim_loses(box: TestBox) -> None:
    workflow(box)

    assert [claim(box) is None, claim(box, owner="w2") is None] == [False, True]


def test_many_workers_claim_each_run_once(box: TestBox) -> None:
    ids = {box.accept() for _ in range(20)}
    got: list[int] = []

    def drain() -> None:
        while (held := claim(box)) is not None:
            got.append(held.run.id)

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(got) == sorted(ids)


def test_the_oldest_run_goes_first_and_after_one_lost_worker_keeps_its_place(box: TestBox) -> None:
    first, second, third = (box.accept() for _ in range(3))
    claimed(box)
    lose(box)

    assert [claimed(box).run.id for _ in range(3)] == [first, second, third]


def test_a_run_that_cost_two_workers_lets_others_pass_but_not_for_ever(box: TestBox) -> None:
    first = box.accept()
    for _ in range(2):
        claimed(box)
        lose(box)
    others = [box.accept() for _ in range(52)]

    order = [claimed(box).run.id for _ in range(53)]

    assert (sorted(order), order.index(first)) == ([first, *others], 50)


def test_a_run_that_cost_two_workers_comes_last_of_few(box: TestBox) -> None:
    first, second, third = (box.accept() for _ in range(3))
    for _ in range(2):
        claimed(box)
        lose(box)

    assert [claimed(box).run.id for _ in range(3)] == [second, third, first]


def test_with_nothing_pending_there_is_no_claim(box: TestBox) -> None:
    assert claim(box) is None


def test_a_run_that_a_fault_makes_unusable_holds_no_other_up(box: TestBox) -> None:
    broken = workflow(box)
    good = box.accept()
    change(box, "UPDATE workflow_versions SET definition = '{}' WHERE workflow_id = 2")

    held = claimed(box)

    assert held.run.id == good
    assert box.run(broken)["error"]["reason"] == "fault"


# ── record, finish ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_recording_ends_a_stage_and_starts_the_next(box: TestBox) -> None:
    run_id = workflow(box)

    held = record(box, claimed(box))

    assert held is not None
    assert (held.stage.name, [each.name for each in held.history]) == ("two", ["one"])
    first, second = box.run(run_id)["stages"]
    assert (first["status"], first["output"], first["exit_code"], first["finished_at"]) == ("completed", "done", 0, clock.to_text(NOW))
    assert (second["status"], second["output"], second["finished_at"]) == ("running", None, None)


def test_finishing_writes_the_end_once(box: TestBox) -> None:
    run_id = workflow(box)
    held = record(box, claimed(box))
    assert held is not None

    assert finish(box, held) is None

    shown = box.run(run_id)
    assert (shown["status"], shown["output"], shown["error"], shown["finished_at"]) == ("completed", "done", None, clock.to_text(NOW))
    assert [stage["status"] for stage in shown["stages"]] == ["completed", "completed"]
    taken = row(box, run_id)
    assert (taken["lease_owner"], taken["lease_boot"], taken["lease_until"], taken["running_ms"]) == (None, None, None, 100)
    with pytest.raises(runs.LeaseLost):
        finish(box, held, verdict=FAILED)
    assert box.run(run_id) == shown


def test_finishing_claims_the_next_run_in_the_same_commit(box: TestBox) -> None:
    first, second = box.accept(), box.accept()

    following = finish(box, claimed(box), next_owner="w1")

    assert following is not None
    assert (following.run.id, box.run(first)["status"], box.run(second)["status"]) == (second, "completed", "running")


def test_a_failed_run_says_why_and_where(box: TestBox) -> None:
    run_id = workflow(box)
    finish(box, claimed(box), verdict=FAILED)

    shown = box.run(run_id)

    assert shown["error"] == {"reason": "stage_failed", "detail": "it broke", "stage": "one"}
    stage = shown["stages"][0]
    assert (stage["status"], stage["error"], stage["stderr"]) == (
        "failed",
        {"reason": "stage_failed", "detail": "it broke", "stage": "one"},
        "oops",
    )


def test_a_stage_that_is_entered_again_has_a_row_of_its_own(box: TestBox) -> None:
    run_id = workflow(box)
    held = record(box, claimed(box))
    assert held is not None

    runs.record(box.box, held, DONE, held.definition.stages[0], go_on=True, elapsed_ms=0, now=NOW)

    assert [(s["name"], s["pass"]) for s in box.run(run_id)["stages"]] == [("one", 1), ("two", 1), ("one", 2)]


def test_the_time_under_each_lease_adds_up(box: TestBox) -> None:
    run_id = workflow(box)
    held = claimed(box)
    runs.renew(box.box, held, elapsed_ms=40)
    runs.hand_back(box.box, held, began=True, elapsed_ms=70)

    runs.renew(box.box, claimed(box), elapsed_ms=30)

    assert row(box, run_id)["running_ms"] == 100


# ── the fence ───────────────────────────────────────────────────────────────────────────────────────────────────────

WRITES: dict[str, Callable[[TestBox, runs.Claim], Any]] = {
    "record": lambda box, held: record(box, held),
    "record and hand back": lambda box, held: record(box, held, go_on=False),
    "record_failure at once": lambda box, held: fail(box, held, wait_s=None),
    "record_failure later": lambda box, held: fail(box, held),
    "hand_back": lambda box, held: runs.hand_back(box.box, held, began=True, elapsed_ms=100),
    "finish": lambda box, held: finish(box, held, next_owner="w1"),
    "finish failed": lambda box, held: finish(box, held, verdict=FAILED),
    "renew": lambda box, held: runs.renew(box.box, held, elapsed_ms=100),
}


def everything(box: TestBox) -> list[Any]:
    return [box.rows(f"SELECT * FROM {table}") for table in ("runs", "stages", "deliveries")]


@pytest.mark.parametrize("meanwhile", ["another worker has it", "it is pending", "it has ended"])
@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_lease_records_nothing(box: TestBox, write: str, meanwhile: str) -> None:
    more = "callbacks: [{url: 'http://127.0.0.1:1/', events: [completed, failed, output]}]\n"
    workflow(box, more=more)
    # Something else is pending, which `finish` would claim.
    box.accept()
    held = claimed(box)
    lose(box)
    if meanwhile != "it is pending":
        change(box, "UPDATE runs SET claims = 0")
        taken = claimed(box, owner="w2")
        assert taken.run.id == held.run.id
        if meanwhile == "it has ended":
            finish(box, taken)
    before = everything(box)

    with pytest.raises(runs.LeaseLost):
        WRITES[write](box, held)

    assert everything(box) == before


def test_the_same_worker_may_not_write_under_an_earlier_claim(box: TestBox) -> None:
    workflow(box)
    held = claimed(box)
    lose(box)
    claimed(box)

    with pytest.raises(runs.LeaseLost):
        record(box, held)


def test_renewing_prolongs_the_lease(box: TestBox) -> None:
    run_id = workflow(box)
    held = claimed(box)
    change(box, "UPDATE runs SET lease_until = lease_until - 25")
    before = row(box, run_id)["lease_until"]

    assert runs.renew(box.box, held, elapsed_ms=1) is False

    assert row(box, run_id)["lease_until"] - before > 20


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "repeated"), [("command", False), ("idempotent", True), ("stub", True), ("get", True), ("post", False)])
def test_after_a_crash_a_stage_is_repeated_or_the_run_is_interrupted(box: TestBox, kind: str, repeated: bool) -> None:
    run_id = workflow(box, kind)
    claimed(box)
    lose(box)

    held = claim(box)

    shown = box.run(run_id)
    if repeated:
        assert held is not None
        assert (held.stage.name, held.stage_row.attempts, shown["status"]) == ("one", 2, "running")
    else:
        assert held is None
        assert (shown["status"], shown["error"]["reason"], shown["error"]["stage"]) == ("failed", "interrupted", "one")
        assert "outcome unknown" in shown["error"]["detail"]
        assert shown["stages"][0]["error"]["reason"] == "interrupted"
        assert shown["stages"][0]["status"] == "failed"


def test_after_a_crash_finished_stages_are_not_executed_again(box: TestBox) -> None:
    run_id = workflow(box, "command")
    record(box, claimed(box))
    lose(box)

    held = claimed(box)

    assert (held.stage.name, [each.name for each in held.history]) == ("two", ["one"])
    assert stage_rows(box, run_id) == [("one", "completed", 1), ("two", "running", 2)]


@pytest.mark.parametrize("how", ["handed back", "waiting for a retry", "the next stage pending"])
def test_a_command_that_had_not_begun_is_executed_after_a_crash(box: TestBox, how: str) -> None:
    workflow(box, "command")
    held = claimed(box)
    if how == "handed back":
        runs.hand_back(box.box, held, began=True, elapsed_ms=0)
    elif how == "waiting for a retry":
        fail(box, held, wait_s=1)
        sweep(box, now=NOW + timedelta(seconds=1))
    else:
        runs.record(box.box, held, DONE, held.definition.stages[0], go_on=False, elapsed_ms=0, now=NOW)

    assert claimed(box).stage.name == "one"


def test_a_run_that_loses_five_workers_at_one_stage_fails(box: TestBox) -> None:
    run_id = workflow(box)
    for _ in range(runs.CLAIMS_MAX):
        claimed(box)
        lose(box)

    assert claim(box) is None
    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("worker_lost", "one")


def test_claims_count_for_one_stage_only(box: TestBox) -> None:
    run_id = workflow(box)
    for _ in range(runs.CLAIMS_MAX - 1):
        claimed(box)
        lose(box)
    held = record(box, claimed(box))
    for _ in range(runs.CLAIMS_MAX - 1):
        lose(box)
        held = claimed(box)

    assert held is not None
    finish(box, held)
    assert box.run(run_id)["status"] == "completed"


def test_workers_that_an_earlier_stage_cost_are_forgotten_by_who_hands_the_next_back(box: TestBox) -> None:
    run_id = workflow(box)
    for _ in range(runs.CLAIMS_MAX - 1):
        claimed(box)
        lose(box)
    held = record(box, claimed(box))
    assert held is not None

    runs.hand_back(box.box, held, began=False, elapsed_ms=0)

    assert row(box, run_id)["claims"] == 0


def test_a_stage_that_was_handed_back_before_it_began_made_no_attempt(box: TestBox) -> None:
    run_id = workflow(box)
    runs.hand_back(box.box, claimed(box), began=False, elapsed_ms=0)

    assert [stage["attempts"] for stage in box.run(run_id)["stages"]] == [0]
    assert claimed(box).stage_row.attempts == 1


def test_handing_back_does_not_count_as_a_lost_worker(box: TestBox) -> None:
    workflow(box)
    for _ in range(runs.CLAIMS_MAX * 2):
        runs.hand_back(box.box, claimed(box), began=True, elapsed_ms=0)

    assert claimed(box).run.claims == 1


def test_retries_that_wait_do_not_count_as_lost_workers(box: TestBox) -> None:
    workflow(box)
    for number in range(runs.CLAIMS_MAX * 2):
        fail(box, claimed(box), wait_s=1)
        sweep(box, now=NOW + timedelta(seconds=1))
        assert box.rows("SELECT failures FROM stages")[0]["failures"] == number + 1

    assert claimed(box).stage_row.failures == runs.CLAIMS_MAX * 2


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pending_run_is_stopped_at_once(box: TestBox) -> None:
    run_id = workflow(box)

    assert runs.stop(box.box, run_id, now=NOW) == "stopped"

    assert claim(box) is None
    assert (box.run(run_id)["status"], box.run(run_id)["error"]) == ("stopped", None)


def test_a_waiting_run_is_stopped_at_once_and_its_stage_with_it(box: TestBox) -> None:
    run_id = workflow(box)
    fail(box, claimed(box))

    assert runs.stop(box.box, run_id, now=NOW) == "stopped"

    assert stage_rows(box, run_id) == [("one", "stopped", 1)]
    assert sweep(box, now=NOW + timedelta(hours=1)).woken == 0


def test_a_running_run_is_stopped_by_its_worker(box: TestBox) -> None:
    run_id = workflow(box)
    held = claimed(box)

    assert runs.stop(box.box, run_id, now=NOW) == "running"
    assert runs.renew(box.box, held, elapsed_ms=1) is True
    finish(box, held, verdict=flow.End(RunStatus.STOPPED))

    assert (box.run(run_id)["status"], stage_rows(box, run_id)) == ("stopped", [("one", "stopped", 1)])


GOING_ON: dict[str, Callable[[TestBox, runs.Claim], Any]] = {
    "the next stage": lambda box, held: record(box, held),
    "handed back": lambda box, held: runs.hand_back(box.box, held, began=True, elapsed_ms=0),
    "a retry later": lambda box, held: fail(box, held, wait_s=300),
    "the worker died": lambda box, held: lose(box),
}


@pytest.mark.parametrize("way", GOING_ON)
def test_a_stop_is_not_forgotten_whichever_way_the_run_goes_on(box: TestBox, way: str) -> None:
    run_id = workflow(box)
    held = claimed(box)
    runs.stop(box.box, run_id, now=NOW)

    going = GOING_ON[way](box, held)
    sweep(box, now=NOW + timedelta(seconds=1))

    assert going is None
    assert claim(box) is None
    assert box.run(run_id)["status"] == "stopped"
    # A stage that never began was not reached.
    assert [stage["name"] for stage in box.run(run_id)["stages"]] == ["one"]


def test_a_run_that_ends_before_its_worker_sees_the_stop_has_ended_so(box: TestBox) -> None:
    run_id = workflow(box)
    held = claimed(box)
    runs.stop(box.box, run_id, now=NOW)

    finish(box, held)

    assert box.run(run_id)["status"] == "completed"


@pytest.mark.parametrize("verdict", [COMPLETED, FAILED, flow.End(RunStatus.STOPPED)], ids=["completed", "failed", "stopped"])
def test_an_ended_run_cannot_be_stopped(box: TestBox, verdict: flow.End) -> None:
    run_id = workflow(box)
    finish(box, claimed(box), verdict=verdict)

    with pytest.raises(Conflict, match="has ended already"):
        runs.stop(box.box, run_id, now=NOW)


def test_stopping_what_is_not_there_says_so(box: TestBox) -> None:
    with pytest.raises(NotFound, match="run list"):
        runs.stop(box.box, 999, now=NOW)


# ── sweep ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def dead_owner() -> str:
    """Name a process of this boot that lives no more."""
    boot, namespace, pid, _ = leases.owner().split("/")
    return f"{boot}/{namespace}/{pid}/1"


LOST = {
    "lease over": "UPDATE runs SET lease_until = 1",
    "other boot": "UPDATE runs SET lease_boot = 'earlier'",
    "process dead": f"UPDATE runs SET lease_owner = '{dead_owner()}'",
}


@pytest.mark.parametrize("how", LOST)
def test_a_lost_run_is_pending_again(box: TestBox, how: str) -> None:
    run_id = workflow(box)
    claimed(box)
    change(box, LOST[how])

    assert sweep(box) == runs.Swept(lost=1, woken=0, stale=True)

    assert (row(box, run_id)["status"], row(box, run_id)["lease_owner"]) == ("pending", None)


def test_a_run_whose_worker_lives_is_left_alone(box: TestBox) -> None:
    workflow(box)
    claimed(box, owner=leases.owner())

    assert sweep(box) == runs.Swept()


def test_a_sweep_without_work_writes_nothing(box: TestBox) -> None:
    workflow(box)
    claimed(box, owner=leases.owner())

    # Another writer holds the lock for longer than anybody would wait.
    with box.database.transaction():
        assert sweep(box) == runs.Swept()


def test_a_waiting_run_goes_on_at_its_time_and_not_before(box: TestBox) -> None:
    run_id = workflow(box)
    fail(box, claimed(box), wait_s=30)

    assert sweep(box, now=NOW + timedelta(seconds=29)).woken == 0
    assert (row(box, run_id)["status"], row(box, run_id)["lease_owner"]) == ("waiting", None)
    assert stage_rows(box, run_id) == [("one", "waiting", 1)]
    assert sweep(box, now=NOW + timedelta(seconds=30)) == runs.Swept(lost=0, woken=1, stale=True)
    assert stage_rows(box, claimed(box).run.id) == [("one", "running", 2)]


def test_a_run_that_nobody_claims_is_stale_after_two_seconds(box: TestBox) -> None:
    accept(box, now=NOW)

    assert sweep(box, now=NOW + timedelta(seconds=1)).stale is False
    assert sweep(box, now=NOW + timedelta(seconds=3)).stale is True


def test_the_retry_in_place_keeps_the_claim(box: TestBox) -> None:
    run_id = workflow(box)

    held = fail(box, claimed(box), wait_s=None)

    assert held is not None
    assert (held.stage_row.failures, held.stage_row.attempts) == (1, 2)
    finish(box, held)
    stage = box.run(run_id)["stages"][0]
    assert (stage["status"], stage["error"], stage["stderr"], stage["attempts"]) == ("completed", None, None, 2)


# ── the database is busy, reading ───────────────────────────────────────────────────────────────────────────────────


@sqlite_only
def test_a_busy_database_costs_no_claim(box: TestBox) -> None:
    run_id = workflow(box)
    impatient = db.Database.open(box.config.database_url, busy_timeout_ms=50)
    other = runs.Box(impatient, workflows.Definitions(), box.config.base_url)

    with box.database.transaction(), pytest.raises(Unavailable):
        runs.claim(other, owner="w2", now=NOW)

    assert row(box, run_id)["status"] == "pending"
    impatient.close()


@pytest.mark.parametrize("run_id", [0, -1, 999, 2**63, 10**30])
def test_a_run_that_is_not_there_is_none(box: TestBox, run_id: int) -> None:
    with box.database.read() as connection:
        assert runs.show(connection, run_id) is None
        assert runs.status_of(connection, run_id) is None


def test_lists_are_newest_first_and_bounded(box: TestBox) -> None:
    ids = [box.accept() for _ in range(3)]
    finish(box, claimed(box))

    with box.database.read() as connection:
        listed = [each["id"] for each in runs.list_all(connection, limit=2)]
        pending = [each["id"] for each in runs.list_all(connection, status="pending")]
        of_other = runs.list_all(connection, workflow_id=99)

    assert listed == [ids[2], ids[1]]
    assert pending == [ids[2], ids[1]]
    assert of_other == []


def test_a_status_that_contradicts_itself_is_refused_by_the_database(box: TestBox) -> None:
    run_id = box.accept()
    for contradiction in ("status = 'running'", "status = 'completed'", "status = 'failed', finished_at = 'x'", "status = 'lost'"):
        with pytest.raises(IntegrityError):
            change(box, f"UPDATE runs SET {contradiction} WHERE id = :id", id=run_id)


# ── what a look costs ───────────────────────────────────────────────────────────────────────────────────────────────

HEAD = "SEARCH runs USING COVERING INDEX runs_pending (machine=?"
BY_HEADS, BY_HEAD = {f"{HEAD} AND claims=?)", f"{HEAD} AND claims>?)"}, {f"{HEAD})"}
BY_ID = {"SEARCH runs USING INTEGER PRIMARY KEY (rowid=?)"}


@sqlite_only
@pytest.mark.parametrize(
    ("statement", "ways"),
    [
        (claiming.HEADS.statement, {*BY_HEADS, "SCAN schema_version"}),
        (claiming.PENDING.statement, BY_HEAD),
        (claiming.TAKE.statement, BY_ID),
        (state.CHANGE_HELD.statement.values(wake_at=None), BY_ID),  # type: ignore[attr-defined]
    ],
    ids=["whose turn it is", "whether any waits", "the run taken", "the run held"],
)
def test_a_look_costs_the_same_however_many_wait(box: TestBox, statement: Any, ways: set[str]) -> None:
    with box.database.read() as connection:
        compiled = statement.compile(dialect=connection.dialect)
        unknown = tuple(None for _ in compiled.positiontup)
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", unknown)]

    assert {step for step in plan if not step.startswith(("SCAN CONSTANT", "SCALAR"))} == ways
    # A status that is a parameter of the condition has SQLite plan the statement anew each time.
    assert "status = ?" not in str(compiled).partition("WHERE")[2]
