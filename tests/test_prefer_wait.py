"""Prefer: wait=N: an answer that holds the ended run, woken by the worker's word, and never more waiting than half of the threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from orqo import call, clock, executor, runs
from orqo.config import Config
from orqo.queue import Bell
from support import Service, TestBox, application

SLOW = "name: slow\nstages: [{name: one, stub: {delay: 30s}}]"


def start(client: Any, box: TestBox, workflow: str = "hello", *, prefer: str = "wait=10", scopes: str = "trigger read") -> Any:
    headers = {"Authorization": f"Bearer {box.token(*scopes.split())}", "Prefer": prefer}
    return client.post("/api/v1/trigger", json={"workflow": workflow, "input": {"name": "Ada"}}, headers=headers)


@pytest.fixture
def working(worker: executor.Worker) -> Any:
    """A worker that works in the background as soon as a run is there."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.02):
            executor.work()

    thread = threading.Thread(target=work)
    thread.start()
    yield worker
    ending.set()
    worker.stopping.set()
    thread.join()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=10", 10), ("respond-async, wait=5", 5), ("WAIT = 7", 7), ('wait="3"', 3), ("wait=100;x=1, wait=2", 60),
        ("wait=999999999", 60), ("wait=0", 0), ("wait", 0), ("wait=-1", 0), ("wait=1.5", 0), ("wait=٣", 0), ("waiting=5", 0),
        ("", 0), ("," * 9000, 0),
    ],
)  # fmt: skip
def test_the_preference_is_read_as_the_rfc_says_and_bounded(header: str, seconds: int) -> None:
    assert call.wait_s({"prefer": header}) == seconds


def test_a_run_that_ends_in_time_is_in_the_answer(box: TestBox, client: Any, working: executor.Worker) -> None:
    answer = start(client, box)

    assert answer.status_code == 201
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.headers["Location"] == f"/api/v1/runs/{answer.json['workflow_run_id']}"
    assert (answer.json["status"], answer.json["run"]) == ("started", box.run(answer.json["workflow_run_id"]))
    assert answer.json["run"]["output"] == {"greeting": "Hello, Ada"}


def test_a_hook_takes_the_preference_too(box: TestBox, client: Any, working: executor.Worker) -> None:
    answer = client.post(box.hook(), json={"name": "Bo"}, headers={"Prefer": "wait=10"})

    assert (answer.status_code, answer.json["run"]["output"]) == (201, {"greeting": "Hello, Bo"})


def test_a_failed_run_is_in_the_answer_as_well(box: TestBox, client: Any, working: executor.Worker) -> None:
    box.apply("name: fails\nstages: [{name: one, stub: {fail: no}}]")

    answer = start(client, box, "fails")

    assert (answer.status_code, answer.json["run"]["status"]) == (201, "failed")


def test_a_run_that_does_not_end_in_time_is_answered_as_ever(box: TestBox, client: Any) -> None:
    began = time.monotonic()

    answer = start(client, box, prefer="wait=1")

    assert 0.9 < time.monotonic() - began < 2
    assert (answer.status_code, set(answer.json)) == (201, {"workflow_run_id", "status"})
    assert "Preference-Applied" not in answer.headers


def test_without_the_preference_nobody_waits(box: TestBox, client: Any) -> None:
    began = time.monotonic()

    answer = start(client, box, prefer="return=minimal")

    assert (answer.status_code, time.monotonic() - began < 0.5) == (201, True)
    assert box.rows("SELECT awaited FROM runs") == [{"awaited": 0}]


def test_who_may_not_read_runs_is_given_none(box: TestBox, client: Any, working: executor.Worker) -> None:
    assert "run" not in start(client, box, scopes="trigger").json


def test_strict_knows_no_preference(settings: dict[str, str], box: TestBox, working: executor.Worker) -> None:
    token = box.token("trigger", "read")
    with application(Config.from_environ({**settings, "ORQO_STRICT": "1"})) as app, app.test_client() as client:
        headers = {"Authorization": f"Bearer {token}", "Prefer": "wait=5"}
        answer = client.post("/api/v1/trigger", json={"workflow_id": 1}, headers=headers)

    assert set(answer.json) == {"workflow_run_id", "status"}


def test_a_replay_that_ended_holds_its_run(box: TestBox, client: Any, worker: executor.Worker) -> None:
    headers = {"Authorization": f"Bearer {box.token('trigger', 'read')}", "Idempotency-Key": "k"}
    client.post("/api/v1/trigger", json={"workflow": "hello"}, headers=headers)
    executor.work()

    again = client.post("/api/v1/trigger", json={"workflow": "hello"}, headers=headers | {"Prefer": "wait=5"})

    assert (again.status_code, again.json["duplicate"], again.json["run"]["status"]) == (200, True, "completed")


def test_at_most_half_of_the_threads_wait_and_the_others_answer_at_once(box: TestBox, client: Any) -> None:
    app = client.application
    half = box.config.threads // 2

    def timed(_: int) -> float:
        began = time.monotonic()
        with app.test_client() as each:
            assert start(each, box, prefer="wait=2").status_code == 201
        return time.monotonic() - began

    with ThreadPoolExecutor(half + 3) as pool:
        took = sorted(pool.map(timed, range(half + 3)))

    assert [each > 1.9 for each in took] == [False] * 3 + [True] * half
    # The places are free again.
    assert timed(0) > 1.9


def test_a_server_that_goes_away_answers_at_once(box: TestBox, client: Any) -> None:
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {box.token('trigger', 'read')}", "Prefer": "wait=30"}

    answer = client.post(
        "/api/v1/trigger", json={"workflow": "hello"}, headers=headers,
        environ_overrides={"orqo.draining": lambda: time.monotonic() - began > 0.3},
    )  # fmt: skip

    assert (answer.status_code, "run" in answer.json) == (201, False)
    assert time.monotonic() - began < 2


def test_a_run_that_is_stopped_from_outside_is_seen_without_a_word(box: TestBox, client: Any) -> None:
    box.apply(SLOW)
    threading.Timer(0.3, lambda: runs.stop(box.box, 1, now=clock.now())).start()

    answer = start(client, box, "slow")

    assert answer.json["run"]["status"] == "stopped"


def test_the_word_wakes_before_the_next_look_and_is_not_missed(box: TestBox, redis_url: str) -> None:
    bell = Bell(redis_url, "test-ends")
    with bell.ends(7) as ends:
        bell.ended(8)
        bell.ended(7)
        began = time.monotonic()
        ends.wait(5)
    took = time.monotonic() - began
    bell.close()

    assert took < 0.2


def test_without_redis_the_end_is_seen_all_the_same(settings: dict[str, str], box: TestBox, working: executor.Worker) -> None:
    with application(Config.from_environ({**settings, "REDIS_URL": "unix:///nowhere/redis.sock"})) as app, app.test_client() as client:
        answer = start(client, box)

    assert answer.json["run"]["status"] == "completed"


@pytest.mark.parametrize(("awaited", "is_told"), [(True, True), (False, False)])
def test_a_worker_tells_of_the_end_where_somebody_waits(box: TestBox, worker: executor.Worker, awaited: bool, is_told: bool) -> None:
    run_id = box.accept(awaited=awaited)
    with box.bell.ends(run_id) as ends:
        executor.work()
        began = time.monotonic()

        ends.wait(1.0)

        assert (time.monotonic() - began < 0.9) is is_told


def test_real_processes_give_the_ended_run(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.box.token('trigger', 'read')}", "Prefer": "wait=20"}

    answer = requests.post(service.url + "/api/v1/trigger", json={"workflow": "hello"}, headers=headers, timeout=30)

    assert (answer.status_code, answer.headers["Preference-Applied"], answer.json()["run"]["status"]) == (201, "wait=20", "completed")
