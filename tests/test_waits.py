"""Stages that wait: no worker is held, what was asked goes out once it can be answered, answers follow the rules of DESIGN §1."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
from sqlalchemy import text

import inbox as inboxes
from inbox import Inbox
from orqo import clock, executor, runs
from orqo.config import PROJECT_DIR
from orqo.errors import Conflict, Gone, Invalid, NotFound
from support import Service, TestBox, wait_for

ASK = "{name: ask, wait: {timeout: 1h}}"
APPROVE = "{name: ask, approval: {message: 'Publish ${input.what}?'}}"
AFTER = "{name: after, stub: {output: '${stages.ask.output}'}}"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A real receiver."""
    with inboxes.inbox() as made:
        yield made


def apply(box: TestBox, *stages: str, head: str = "") -> None:
    listed = "".join(f"  - {stage}\n" for stage in stages)
    box.apply(f"name: waits\n{head}stages:\n{listed}")


def started(box: TestBox, *stages: str, head: str = "", given: Any = None) -> int:
    """Apply the workflow, accept a run and let the worker of this process go as far as it can."""
    apply(box, *stages, head=head)
    run_id = box.accept("waits", input={"what": "it"} if given is None else given)
    executor.work()
    return run_id


def token(box: TestBox, run_id: int) -> str:
    with box.database.read() as connection:
        found = runs.token_of(box.box, runs.wait_of(connection, run_id))
    assert found is not None
    return found


def answer(box: TestBox, run_id: int, *, by: str = "tester", **given: Any) -> runs.Answered:
    """Answer by the token, as /callback does."""
    wanted = runs.Answer(**({"status": "completed"} | given))
    with box.database.transaction() as connection:
        return runs.answer(box.box, connection, runs.find_wait(connection, token(box, run_id)), wanted, by=by, now=clock.now())


def status(box: TestBox, run_id: int) -> str:
    return str(box.run(run_id)["status"])


def let_pass(box: TestBox, seconds: float) -> None:
    """Sweep as if so much time had passed: what waits for longer than that goes on."""
    past = clock.to_text(clock.now() - timedelta(seconds=1))
    until = clock.to_text(clock.now() + timedelta(seconds=seconds))
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE waits SET deadline_at = :past WHERE deadline_at <= :until"), {"past": past, "until": until})
        connection.execute(text("UPDATE runs SET wake_at = :past WHERE wake_at <= :until"), {"past": past, "until": until})
    runs.sweep(box.box, stale_s=2.0, now=clock.now())


# ── delay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_delay_holds_no_worker_and_goes_on_when_its_time_has_come(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, "{name: pause, delay: 10m}", "{name: after, stub: {output: done}}")

    before = box.run(run_id)
    let_pass(box, 599)
    executor.work()
    early = status(box, run_id)
    let_pass(box, 601)
    executor.work()

    assert (before["status"], [(s["name"], s["status"]) for s in before["stages"]]) == ("waiting", [("pause", "waiting")])
    assert worker.held is None and box.rows("SELECT lease_owner FROM runs")[0]["lease_owner"] is None
    assert early == "waiting"
    ended = box.run(run_id)
    assert (ended["status"], ended["output"]) == ("completed", "done")
    assert [(s["name"], s["status"], s["attempts"]) for s in ended["stages"]] == [("pause", "completed", 1), ("after", "completed", 1)]


def test_a_delay_has_no_token_and_cannot_be_answered(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, "{name: pause, delay: 10m}")

    with box.database.read() as connection, pytest.raises(Conflict, match="waits for no report"):
        runs.wait_of(connection, run_id)

    assert box.rows("SELECT token_hash, nonce FROM waits") == [{"token_hash": None, "nonce": None}]


# ── approval ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", ["approved", "rejected"])
def test_an_approval_ends_with_the_label_that_was_answered(box: TestBox, worker: executor.Worker, outcome: str) -> None:
    run_id = started(box, APPROVE, "{name: after, stub: {output: '${stages.ask.outcome}'}}")

    answer(box, run_id, outcome=outcome, by="Ada")
    executor.work()

    ended = box.run(run_id)
    assert (ended["status"], ended["output"], ended["stages"][0]["outcome"]) == ("completed", outcome, outcome)
    row = box.rows("SELECT status, message, answered_by, answered_at, used FROM waits")[0]
    assert (row["status"], row["message"], row["answered_by"], row["used"]) == ("answered", "Publish it?", "Ada", 1)
    assert row["answered_at"]


@pytest.mark.parametrize("outcome", ["Approved", "maybe", None])
def test_an_approval_takes_the_listed_labels_only_and_goes_on_waiting(box: TestBox, worker: executor.Worker, outcome: str | None) -> None:
    run_id = started(box, APPROVE)

    with pytest.raises(Invalid, match="approved, rejected"):
        answer(box, run_id, outcome=outcome)

    assert status(box, run_id) == "waiting"


def test_an_approval_leads_where_its_outcome_is_routed(box: TestBox, worker: executor.Worker) -> None:
    stage = "{name: ask, approval: {message: m}, outcomes: [yes, no], routing: {'no': end}}".replace("[yes, no]", "['yes', 'no']")
    run_id = started(box, stage, AFTER)

    answer(box, run_id, outcome="no")
    executor.work()

    assert [s["name"] for s in box.run(run_id)["stages"]] == ["ask"]
    assert status(box, run_id) == "completed"


# ── the time is over ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("stage", "hours"), [(APPROVE, 24), (ASK, 1), ("{name: ask, wait: }", 1)], ids=["approval", "wait", "default"])
def test_an_unanswered_wait_fails_the_run_with_timeout(box: TestBox, worker: executor.Worker, stage: str, hours: int) -> None:
    run_id = started(box, stage, AFTER)
    let_pass(box, hours * 3600 - 60)
    early = status(box, run_id)

    let_pass(box, hours * 3600 + 60)
    executor.work()

    assert early == "waiting"
    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("timeout", "ask")
    assert "nobody answered" in error["detail"]


def test_on_timeout_is_the_outcome_of_an_unanswered_wait(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, "{name: ask, approval: {message: m, timeout: 1m, on_timeout: rejected}}", "{name: b, stub: {}}")

    let_pass(box, 61)
    executor.work()

    ended = box.run(run_id)
    assert (ended["status"], ended["stages"][0]["outcome"]) == ("completed", "rejected")


def test_an_answer_after_the_time_is_refused(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, "{name: ask, approval: {message: m, timeout: 1m, on_timeout: rejected}}", "{name: b, delay: 1h}")
    found = token(box, run_id)
    let_pass(box, 61)
    executor.work()

    with box.database.transaction() as connection, pytest.raises(Conflict, match="not answered in time"):
        runs.answer(box.box, connection, runs.find_wait(connection, found), runs.Answer("completed"), by="x", now=clock.now())


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("output", [None, "text", {"a": [1, "é"]}, 3.5, False])
def test_a_completed_answer_is_the_stages_output(box: TestBox, worker: executor.Worker, output: Any) -> None:
    run_id = started(box, ASK, AFTER)

    answer(box, run_id, output=output)
    executor.work()

    assert (status(box, run_id), box.run(run_id)["output"]) == ("completed", output)


@pytest.mark.parametrize(("given", "words"), [("failed", "says failed: no disk"), ("stopped", "was stopped: no disk")])
def test_a_failed_or_stopped_answer_fails_the_stage(box: TestBox, worker: executor.Worker, given: str, words: str) -> None:
    run_id = started(box, ASK, AFTER)

    answer(box, run_id, status=given, error="no disk")
    executor.work()

    error = box.run(run_id)["error"]
    assert (error["reason"], error["stage"]) == ("stage_failed", "ask")
    assert words in error["detail"]


def test_progress_is_kept_and_told_and_the_run_goes_on_waiting(box: TestBox, worker: executor.Worker) -> None:
    head = "callbacks:\n  - {url: 'http://127.0.0.1:1/', events: [output]}\n"
    run_id = started(box, ASK, AFTER, head=head)

    answered = answer(box, run_id, status="output", output={"percent": 50})

    assert answered == runs.Answered(run_id, told=1)
    waiting = box.run(run_id)
    assert (waiting["status"], waiting["stages"][0]["output"]) == ("waiting", {"percent": 50})
    told = json.loads(box.rows("SELECT body FROM deliveries")[0]["body"])
    assert (told["type"], told["data"]["stage"], told["data"]["output"]) == ("run.output", "ask", {"percent": 50})


def test_the_same_answer_again_is_a_duplicate_also_when_the_run_has_ended(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    answer(box, run_id, output=1)
    before = answer(box, run_id, output=1)
    executor.work()

    after = answer(box, run_id, output=1)

    assert before == after == runs.Answered(run_id, duplicate=True)


def test_another_answer_is_a_conflict_and_after_the_end_gone(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    answer(box, run_id, output=1)

    with pytest.raises(Conflict, match="answered otherwise"):
        answer(box, run_id, output=2)
    executor.work()
    with pytest.raises(Gone):
        answer(box, run_id, output=2)

    assert box.run(run_id)["output"] == 1


def test_a_stopped_run_cannot_be_answered_any_more(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)

    assert runs.stop(box.box, run_id, now=clock.now()) == "stopped"

    with pytest.raises(Gone):
        answer(box, run_id)
    assert [(s["name"], s["status"]) for s in box.run(run_id)["stages"]] == [("ask", "stopped")]


def test_an_unknown_token_is_not_found(box: TestBox) -> None:
    for wrong in ("x" * 43, "", "é" * 43, "x" * 1000):
        with box.database.read() as connection, pytest.raises(NotFound):
            runs.find_wait(connection, wrong)


def test_of_many_different_answers_at_once_one_wins(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    won: list[int] = []

    def one(number: int) -> None:
        try:
            answer(box, run_id, output=number)
            won.append(number)
        except Conflict:
            return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    executor.work()

    assert len(won) == 1
    assert box.run(run_id)["output"] == won[0]


def test_a_failed_answer_is_asked_again_with_a_new_token_where_the_stage_is_retried(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, "{name: ask, wait: {timeout: 1h}, retry: {attempts: 2, delay: 0s}}")
    first = token(box, run_id)

    answer(box, run_id, status="failed", error="not now")
    executor.work()

    second = token(box, run_id)
    assert (status(box, run_id), first != second) == ("waiting", True)
    answer(box, run_id, output="now")
    executor.work()
    assert (status(box, run_id), box.run(run_id)["output"]) == ("completed", "now")


def test_the_token_is_43_characters_and_only_its_digest_is_stored(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)

    found = token(box, run_id)

    assert len(found) == 43
    assert found not in str(box.rows("SELECT * FROM waits"))


# ── the request ─────────────────────────────────────────────────────────────────────────────────────────────────────


def asking(url: str, more: str = "") -> str:
    return f"{{name: ask, wait: {{timeout: 1h, request: {{method: POST, url: '{url}', json: {{reply_to: '${{wait.url}}'}}}}}}{more}}}"


def test_the_request_carries_where_to_answer_and_the_answer_goes_there(box: TestBox, worker: executor.Worker, inbox: Inbox) -> None:
    run_id = started(box, asking(inbox.url()), AFTER)

    sent = inbox.arrived[0].json
    assert sent == {"reply_to": f"{box.config.base_url}/api/v1/callback?token={token(box, run_id)}"}
    assert status(box, run_id) == "waiting"


def test_the_wait_is_durable_and_answerable_when_its_request_arrives(box: TestBox, worker: executor.Worker, inbox: Inbox) -> None:
    """An answer that comes while the request is still open is taken, and the run goes on without waiting."""
    answered = []

    def on_request(request: Any) -> None:
        given = request.json["reply_to"].partition("token=")[2]
        with box.database.transaction() as connection:
            wait = runs.find_wait(connection, given)
            answered.append(runs.answer(box.box, connection, wait, runs.Answer("completed", "quick"), by="x", now=clock.now()))

    inbox.on_request = on_request
    run_id = started(box, asking(inbox.url()), AFTER)

    assert [each.run_id for each in answered] == [run_id]
    assert (status(box, run_id), box.run(run_id)["output"]) == ("completed", "quick")


def test_a_request_that_fails_fails_the_stage_and_closes_the_wait(box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, asking("http://127.0.0.1:1/"), AFTER)

    assert box.run(run_id)["error"]["stage"] == "ask"
    with pytest.raises(Gone):
        answer(box, run_id)


def test_after_a_crash_between_wait_and_request_the_request_is_made_again_with_the_same_token(
    box: TestBox, worker: executor.Worker, inbox: Inbox
) -> None:
    apply(box, asking(inbox.url()), AFTER)
    run_id = box.accept("waits")
    held = runs.claim(box.box, owner="dead", now=clock.now())
    assert held is not None
    minted, _ = runs.wait(box.box, held, runs.NewWait(3600, True), pauses=False, elapsed_ms=1, now=clock.now())
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET lease_until = 1"))
    runs.sweep(box.box, stale_s=2.0, now=clock.now())

    executor.work()

    assert [each.json["reply_to"].partition("token=")[2] for each in inbox.arrived] == [minted]
    assert status(box, run_id) == "waiting"
    with pytest.raises(runs.LeaseLost):
        runs.pause(box.box, held, elapsed_ms=1, now=clock.now())


def test_an_answer_that_came_before_a_crash_is_used_and_nothing_is_asked_again(box: TestBox, worker: executor.Worker, inbox: Inbox) -> None:
    apply(box, asking(inbox.url()), AFTER)
    run_id = box.accept("waits")
    held = runs.claim(box.box, owner="dead", now=clock.now())
    assert held is not None
    runs.wait(box.box, held, runs.NewWait(3600, True), pauses=False, elapsed_ms=1, now=clock.now())
    answer(box, run_id, output="early")
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET lease_until = 1"))
    runs.sweep(box.box, stale_s=2.0, now=clock.now())

    executor.work()

    assert inbox.arrived == []
    assert box.run(run_id)["output"] == "early"


def test_a_stop_that_is_asked_for_while_the_request_is_out_does_not_wait(box: TestBox, worker: executor.Worker, inbox: Inbox) -> None:
    apply(box, asking(inbox.url()), AFTER)
    run_id = box.accept("waits")
    inbox.on_request = lambda _: runs.stop(box.box, run_id, now=clock.now())

    executor.work()

    assert status(box, run_id) == "stopped"


# ── the event ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_event_waiting_tells_message_link_and_deadline(box: TestBox, worker: executor.Worker) -> None:
    head = "callbacks:\n  - {url: 'http://127.0.0.1:1/', events: [waiting]}\n"
    run_id = started(box, APPROVE, head=head)

    told = json.loads(box.rows("SELECT body FROM deliveries")[0]["body"])

    assert (told["type"], told["status"], told["workflow_run_id"]) == ("run.waiting", "waiting", run_id)
    assert {key: told["data"][key] for key in ("stage", "message", "link")} == {
        "stage": "ask",
        "message": "Publish it?",
        "link": f"{box.config.base_url}/answer/{token(box, run_id)}",
    }
    assert told["data"]["deadline"] == box.rows("SELECT wake_at FROM runs")[0]["wake_at"]


def test_a_callbacks_own_body_may_hold_the_link_and_other_events_do_without(box: TestBox, worker: executor.Worker) -> None:
    head = "callbacks:\n  - {url: 'http://127.0.0.1:1/', events: [waiting, completed], json: {text: '${wait.message?} <${wait.link?}>'}}\n"
    run_id = started(box, APPROVE, head=head)
    link = f"{box.config.base_url}/answer/{token(box, run_id)}"
    answer(box, run_id, outcome="approved")
    executor.work()

    bodies = [json.loads(row["body"])["text"] for row in box.rows("SELECT body FROM deliveries ORDER BY id")]

    assert bodies == [f"Publish it? <{link}>", " <>"]


@pytest.mark.parametrize("stage", ["{name: one, delay: 1m}", "{name: one, stub: {fail: x}, retry: {attempts: 2, delay: 1m}}"])
def test_nobody_is_told_of_a_wait_that_nobody_can_answer(box: TestBox, worker: executor.Worker, stage: str) -> None:
    started(box, stage, head="callbacks:\n  - {url: 'http://127.0.0.1:1/', events: [waiting]}\n")

    assert box.rows("SELECT id FROM deliveries") == []


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_by_http(service: Service, run_id: int, **given: Any) -> None:
    """Answer as another system does: what is refused for a while (503) is sent again when the answer says so."""
    url = f"{service.url}/api/v1/callback?token={token(service.box, run_id)}"
    for _ in range(60):
        said = requests.post(url, json={"status": "completed"} | given, timeout=30)
        if said.status_code != 503:
            break
        time.sleep(int(said.headers["Retry-After"]))
    assert said.status_code == 200, said.text


@pytest.mark.full
def test_a_thousand_waiting_runs_cost_no_worker_survive_a_restart_and_are_answered_correctly(service: Service) -> None:
    box = service.box
    apply(box, ASK, "{name: after, stub: {output: '${stages.ask.output.number}'}}")
    ids = [box.accept("waits") for _ in range(1000)]

    def waiting() -> int:
        return int(box.rows("SELECT count(*) AS n FROM runs WHERE status = 'waiting'")[0]["n"])

    wait_for(lambda: waiting() == 1000, within_s=300, what="1000 waiting runs")
    other = box.accept("hello")
    wait_for(lambda: box.run(other)["finished_at"], within_s=60, what="a run beside a thousand that wait")
    service.stop("worker")
    service.start("worker")
    service.wait_ready()
    for run_id in ids:
        answer_by_http(service, run_id, output={"number": run_id})
    wait_for(lambda: waiting() == 0 and not box.rows("SELECT id FROM runs WHERE finished_at IS NULL"), within_s=300, what="all ended")

    assert {run_id: box.run(run_id)["output"] for run_id in ids} == {run_id: run_id for run_id in ids}


# ── over HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────


def report(client: Any, given: Any, *, bearer: str = "", query: str = "", path: str = "/api/v1/callback") -> Any:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return client.post(path + query, json=given, headers=headers)


@pytest.mark.parametrize("how", ["bearer", "query"])
def test_a_wait_token_answers_at_callback(client: Any, box: TestBox, worker: executor.Worker, how: str) -> None:
    run_id = started(box, ASK, AFTER)
    shown = {"bearer": token(box, run_id)} if how == "bearer" else {"query": f"?token={token(box, run_id)}"}

    first = report(client, {"status": "completed", "output": {"n": 1}}, **shown)
    again = report(client, {"status": "completed", "output": {"n": 1}}, **shown)
    other = report(client, {"status": "completed", "output": {"n": 2}}, **shown)
    executor.work()
    late = report(client, {"status": "failed"}, **shown)

    assert (first.status_code, first.get_json()) == (200, {"workflow_run_id": run_id, "status": "received"})
    assert (again.status_code, again.get_json()) == (200, {"workflow_run_id": run_id, "status": "received", "duplicate": True})
    assert (other.status_code, late.status_code) == (409, 410)
    assert box.run(run_id)["output"] == {"n": 1}


def test_an_unknown_wait_token_is_404_and_other_peoples_signatures_are_ignored(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    unknown = report(client, {"status": "completed"}, bearer="x" * 43)
    signature = {"Authorization": f"Bearer {token(box, run_id)}", "webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x"}

    taken = client.post("/api/v1/callback", json={"status": "completed"}, headers=signature)

    assert (unknown.status_code, taken.status_code) == (404, 200)


@pytest.mark.parametrize(
    ("event", "status", "output"),
    [
        ({"type": "run.completed", "status": "completed", "workflow_run_id": 999, "data": {"output": {"n": 7}}}, "completed", {"n": 7}),
        (
            {"type": "run.failed", "status": "failed", "data": {"error": {"reason": "timeout", "detail": "too slow", "stage": "x"}}},
            "failed",
            "timeout: too slow",
        ),
        ({"type": "run.stopped", "status": "stopped", "data": {"error": None}}, "failed", "was stopped"),
        ({"type": "run.output", "status": "running", "data": {"output": "half"}}, "waiting", None),
    ],
)
def test_the_event_of_another_box_is_an_answer(
    client: Any, box: TestBox, worker: executor.Worker, event: Any, status: str, output: Any
) -> None:
    run_id = started(box, ASK, AFTER)

    answered = report(client, event, query=f"?token={token(box, run_id)}")
    executor.work()

    ended = box.run(run_id)
    assert (answered.status_code, ended["status"]) == (200, status)
    assert ended["output"] == output if status != "failed" else output in ended["error"]["detail"]


def test_a_report_that_is_no_answer_is_422_and_the_run_goes_on_waiting(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    for given in ({"status": "done"}, {"type": "run.waiting", "status": "waiting"}, {"output": 1}, []):
        assert report(client, given, bearer=token(box, run_id)).status_code == 422, given

    assert status(box, run_id) == "waiting"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_wait_tokens_stay_in_strict_mode(settings: dict[str, str], request: pytest.FixtureRequest, strict: str) -> None:
    settings["ORQO_STRICT"] = strict
    box, client = request.getfixturevalue("box"), request.getfixturevalue("client")
    request.getfixturevalue("worker")
    run_id = started(box, ASK)

    assert report(client, {"status": "completed"}, bearer=token(box, run_id)).status_code == 200


def test_an_api_token_names_the_run(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK, AFTER)
    bearer = box.token("callback")
    given = {"status": "completed", "output": "x", "workflow_run_id": run_id}

    wrong_scope = report(client, given, bearer=box.token("read", "write"))
    wrong_stage = report(client, given | {"stage": "after"}, bearer=bearer)
    foreign = report(client, given, bearer=box.token("callback", workflow_ids=[1]))
    taken = report(client, given | {"stage": "ask"}, bearer=bearer)
    again = report(client, given, bearer=bearer)

    assert (wrong_scope.status_code, wrong_stage.status_code, foreign.status_code) == (403, 409, 404)
    assert (taken.status_code, again.get_json().get("duplicate")) == (200, True)
    assert box.rows("SELECT answered_by FROM waits")[0]["answered_by"] == "API token test"


def test_the_request_log_tells_of_each_report_and_holds_no_token(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    found = token(box, run_id)
    report(client, {"status": "nonsense"}, query=f"?token={found}")
    report(client, {"status": "completed"}, bearer=found)
    report(client, {"status": "completed"}, query=f"?token={found}")

    rows = box.rows("SELECT verdict, run_id FROM requests ORDER BY id")

    assert [(row["verdict"], row["run_id"]) for row in rows] == [("refused", run_id), ("accepted", run_id), ("duplicate", run_id)]
    assert found not in str(box.rows("SELECT query, headers, hidden, body FROM requests"))


def test_the_api_answers_with_scope_write(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, APPROVE)
    path = f"/api/v1/runs/{run_id}/answer"

    refused = report(client, {"outcome": "approved"}, bearer=box.token("read", "callback", "trigger"), path=path)
    wrong = report(client, {"outcome": "yes"}, bearer=box.token("write"), path=path)
    taken = report(client, {"outcome": "approved", "stage": "ask"}, bearer=box.token("write"), path=path)
    executor.work()

    assert (refused.status_code, wrong.status_code, taken.status_code) == (403, 422, 200)
    assert wrong.get_json()["errors"] == [{"pointer": "/outcome", "detail": "must be one of approved, rejected"}]
    assert (status(box, run_id), box.run(run_id)["stages"][0]["outcome"]) == ("completed", "approved")


def test_the_api_stops_a_waiting_run_at_once(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, APPROVE)
    path = f"/api/v1/runs/{run_id}/stop"

    stopped = report(client, {}, bearer=box.token("write"), path=path)
    again = report(client, {}, bearer=box.token("write"), path=path)

    assert (stopped.status_code, stopped.get_json(), again.status_code) == (200, {"id": run_id, "status": "stopped"}, 409)
    assert status(box, run_id) == "stopped"


def test_an_answer_wakes_a_worker(service: Service) -> None:
    box = service.box
    apply(box, ASK, AFTER)
    run_id = box.accept("waits")
    wait_for(lambda: status(box, run_id) == "waiting")
    began = time.monotonic()

    url = f"{service.url}/api/v1/callback?token={token(box, run_id)}"
    answered = requests.post(url, json={"status": "completed", "output": 5}, timeout=5)
    wait_for(lambda: status(box, run_id) == "completed", within_s=5)

    assert answered.status_code == 200
    assert time.monotonic() - began < 1


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_answers(box: TestBox, worker: executor.Worker, settings: dict[str, str]) -> None:
    run_id = started(box, APPROVE)
    command = [sys.executable, "-m", "orqo", "run", "answer", str(run_id), "ask"]
    options: dict[str, Any] = {"env": {**os.environ, **settings}, "cwd": PROJECT_DIR, "capture_output": True, "text": True}

    wrong = subprocess.run([*command, "perhaps"], **options)
    right = subprocess.run([*command, "approved"], **options)
    executor.work()

    assert (wrong.returncode, wrong.stderr) == (1, "orqo: The outcome must be one of approved, rejected.\n")
    assert (right.returncode, right.stdout) == (0, f"Run {run_id} goes on.\n")
    assert status(box, run_id) == "completed"
    assert "command line" in box.rows("SELECT answered_by FROM waits")[0]["answered_by"]


# ── the link ────────────────────────────────────────────────────────────────────────────────────────────────────────


def form_of(client: Any, path: str) -> dict[str, str]:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get(path).get_data(as_text=True))
    assert found is not None
    return {"csrf": found[1]}


def test_the_link_shows_the_question_to_whoever_has_it_and_decides_nothing(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, APPROVE, given={"what": "<b>&"})

    shown = client.get(f"/answer/{token(box, run_id)}")

    assert shown.status_code == 200
    assert "Publish &lt;b&gt;&amp;?" in shown.get_data(as_text=True)
    assert (shown.headers["Referrer-Policy"], shown.headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert status(box, run_id) == "waiting"


@pytest.mark.parametrize("outcome", ["approved", "rejected"])
def test_the_links_form_decides_and_notes_who_and_when(client: Any, box: TestBox, worker: executor.Worker, outcome: str) -> None:
    run_id = started(box, APPROVE)
    path = f"/answer/{token(box, run_id)}"

    posted = client.post(path, data=form_of(client, path) | {"outcome": outcome, "by": "Ada  Lovelace"})
    executor.work()

    assert (posted.status_code, posted.headers["Location"]) == (303, path)
    assert box.run(run_id)["stages"][0]["outcome"] == outcome
    assert box.rows("SELECT answered_by FROM waits")[0]["answered_by"] == "Ada Lovelace (by link)"
    after = client.get(path)
    assert after.status_code == 200
    assert outcome in after.get_data(as_text=True) and "<form method" not in after.get_data(as_text=True).partition("<main")[2]


@pytest.mark.parametrize(
    ("change", "headers"),
    [({"csrf": ""}, {}), ({"csrf": "0" * 64}, {}), ({}, {"Origin": "https://evil.example"}), ({}, {"Sec-Fetch-Site": "cross-site"})],
)
def test_a_form_of_another_site_decides_nothing(
    client: Any, box: TestBox, worker: executor.Worker, change: dict[str, str], headers: dict[str, str]
) -> None:
    run_id = started(box, APPROVE)
    path = f"/answer/{token(box, run_id)}"

    refused = client.post(path, data=form_of(client, path) | {"outcome": "approved"} | change, headers=headers)

    assert (refused.status_code, status(box, run_id)) == (403, "waiting")


def test_a_second_decision_by_link_is_told_of_the_first(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, APPROVE)
    path = f"/answer/{token(box, run_id)}"
    form = form_of(client, path)
    client.post(path, data=form | {"outcome": "approved"})

    second = client.post(path, data=form | {"outcome": "rejected"})

    assert second.status_code == 409
    assert "answered otherwise" in second.get_data(as_text=True)


def test_a_link_that_leads_nowhere_is_a_page(client: Any, box: TestBox, worker: executor.Worker) -> None:
    run_id = started(box, ASK)
    stopped_id = started(box, APPROVE)
    runs.stop(box.box, stopped_id, now=clock.now())

    for wanted, path in ((404, "x" * 43), (404, "x"), (404, token(box, run_id)), (410, token(box, stopped_id))):
        shown = client.get(f"/answer/{path}")
        assert (shown.status_code, shown.mimetype) == (wanted, "text/html")
