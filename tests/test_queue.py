"""Redis: one wake-up at most, bounded waits when it is away, and no code but ours out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from orqo import clock, executor, queue, valkey
from orqo.queue import Bell
from support import TestBox, wait_for

marks: list[Any] = []


def mark(*arguments: Any) -> None:
    """What a job of somebody else's would do."""
    marks.append(arguments)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Bell]]:
    """A Valkey of this test's own, and a bell on it."""
    with valkey.socket_folder() as sockets:
        path = sockets / "s"
        process = subprocess.Popen(valkey.command(valkey.needed_program(), folder=tmp_path, socket_path=path))
        wait_for(lambda: valkey.answers(path))
        bell = Bell(valkey.url_of(path), "test")
        yield process, bell
        bell.close()
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def waiting(bell: Bell) -> int:
    with Redis.from_url(bell.url) as redis:
        return int(redis.llen(f"rq:queue:{bell.queue_name}"))  # type: ignore[arg-type]


# ── waking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_most_one_wake_up_is_outstanding(box: TestBox) -> None:
    for _ in range(10):
        assert box.bell.wake_workers()
    assert waiting(box.bell) == 1

    box.bell.answered()
    box.bell.wake_workers()

    assert waiting(box.bell) == 2


def test_threads_that_ring_at_once_ring_once(box: TestBox) -> None:
    threads = [threading.Thread(target=box.bell.wake_workers) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert waiting(box.bell) == 1


def test_a_wake_up_that_was_lost_is_rung_again_after_some_seconds(box: TestBox) -> None:
    box.bell.wake_workers()

    with Redis.from_url(box.bell.url) as redis:
        assert 0 < redis.ttl(f"{box.bell.queue_name}:wake-up") <= 5  # type: ignore[operator]


def test_a_wake_up_carries_nothing(box: TestBox) -> None:
    box.bell.wake_workers()

    with Redis.from_url(box.bell.url) as redis:
        [job_id] = redis.lrange(f"rq:queue:{box.bell.queue_name}", 0, -1)  # type: ignore[misc]
        job = Job.fetch(job_id.decode(), connection=redis, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs, job.timeout) == ("orqo.executor.work", [], {}, -1)


def test_boxes_that_share_a_redis_do_not_hear_each_other(box: TestBox) -> None:
    other = Bell(box.bell.url, "another")
    box.bell.wake_workers()

    assert waiting(other) == 0
    assert other.queue_name != box.bell.queue_name
    other.close()


# ── a worker that listens within its job ────────────────────────────────────────────────────────────────────────────


def listening(bell: Bell, count: int = 1, *, for_s: float = 5.0) -> list[Future[bool]]:
    """Let so many wait for a wake-up, each in a thread; returns as soon as all do."""
    pool = ThreadPoolExecutor(count)
    heard = [pool.submit(bell.wake_ups(threading.Event()).wait, time.monotonic() + for_s) for _ in range(count)]
    pool.shutdown(wait=False)
    with Redis.from_url(bell.url) as redis:
        wait_for(lambda: redis.info("clients")["blocked_clients"] >= count)  # type: ignore[index]
    return heard


def hands(bell: Bell) -> int:
    with Redis.from_url(bell.url) as redis:
        return int(redis.llen(f"{bell.queue_name}:hand"))  # type: ignore[arg-type]


def test_who_listens_is_woken_without_a_job_of_rqs(server: tuple[subprocess.Popen[bytes], Bell]) -> None:
    _, bell = server
    [heard] = listening(bell)

    assert bell.wake_workers()

    assert heard.result(timeout=5) is True
    assert (waiting(bell), hands(bell)) == (0, 0)


def test_a_wake_up_wakes_one_who_listens(server: tuple[subprocess.Popen[bytes], Bell]) -> None:
    _, bell = server
    heard = listening(bell, 3, for_s=1.5)

    bell.wake_workers()

    assert sorted(each.result(timeout=5) for each in heard) == [False, False, True]
    assert waiting(bell) == 0


def test_threads_that_ring_at_once_where_nobody_listens_leave_one_job_and_nothing_else(box: TestBox) -> None:
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: box.bell.wake_workers(), range(8)))

        assert (waiting(box.bell), hands(box.bell)) == (1, 0)
        with Redis.from_url(box.bell.url) as redis:
            redis.delete(f"rq:queue:{box.bell.queue_name}", f"{box.bell.queue_name}:wake-up")


def test_a_signal_ends_the_wait(box: TestBox) -> None:
    stopping = threading.Event()
    wake_ups = box.bell.wake_ups(stopping)

    def stop(*_: object) -> None:
        stopping.set()
        wake_ups.interrupt()

    kept = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        began = time.monotonic()
        heard = [wake_ups.wait(began + 4), wake_ups.wait(began + 4)]
    finally:
        signal.signal(signal.SIGUSR1, kept)

    assert heard == [False, False]
    assert time.monotonic() - began < 3


def test_a_redis_that_ends_ends_the_wait(server: tuple[subprocess.Popen[bytes], Bell]) -> None:
    process, bell = server
    [heard] = listening(bell)

    process.kill()

    assert heard.result(timeout=3) is False


def test_a_worker_stays_in_its_job_for_what_comes_next(box: TestBox, worker: executor.Worker) -> None:
    worker.wake_ups = box.bell.wake_ups(worker.stopping)
    working = threading.Thread(target=executor.work)
    working.start()
    with Redis.from_url(box.bell.url) as redis:
        wait_for(lambda: redis.info("clients")["blocked_clients"] >= 1)  # type: ignore[index]

    for _ in range(3):
        run_id = box.accept()
        box.bell.wake_workers()
        wait_for(lambda wanted=run_id: box.run(wanted)["status"] == "completed")  # type: ignore[misc]

    assert waiting(box.bell) == 0
    worker.stopping.set()
    box.bell.wake_workers()
    working.join(timeout=5)
    assert not working.is_alive()


# ── Redis away ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_a_redis_that_is_away_costs_half_a_second_once_and_then_nothing(server: tuple[subprocess.Popen[bytes], Bell], away: str) -> None:
    process, bell = server
    assert bell.wake_workers()
    bell.answered()
    if away == "stopped":
        process.kill()
        process.wait()
    else:
        process.send_signal(signal.SIGSTOP)

    took = []
    for _ in range(20):
        began = time.monotonic()
        assert bell.wake_workers() is False
        took.append(time.monotonic() - began)

    assert took[0] <= 0.5
    assert sum(took[1:]) < 0.05
    assert bell.is_reachable() is False
    assert bell.workers(now=clock.now()) == []


def test_a_redis_that_is_back_is_rung_again_within_two_seconds(server: tuple[subprocess.Popen[bytes], Bell]) -> None:
    process, bell = server
    process.send_signal(signal.SIGSTOP)
    assert bell.wake_workers() is False
    process.send_signal(signal.SIGCONT)

    wait_for(bell.wake_workers, within_s=2)

    assert waiting(bell) >= 1


def test_nothing_of_redis_is_an_exception(tmp_path: Path) -> None:
    bell = Bell(f"unix://{tmp_path}/nobody", "test")

    assert bell.wake_workers() is False
    bell.notify()
    bell.answered()
    assert (bell.is_reachable(), bell.workers(now=clock.now())) == (False, [])
    bell.close()


def test_without_a_setting_the_embedded_servers_note_is_read(box: TestBox, settings: dict[str, str]) -> None:
    config = box.config.from_environ(settings | {"REDIS_URL": ""})

    assert queue.redis_url(config) == f"unix://{config.data}/redis.sock"
    config.socket_note.write_text("unix:///tmp/x/valkey.sock\n")
    assert queue.redis_url(config) == "unix:///tmp/x/valkey.sock"


# ── notices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_notice_wakes_whoever_waits(box: TestBox) -> None:
    notices = box.bell.notices()
    notices.wait(0.05)
    threading.Timer(0.1, box.bell.notify).start()
    began = time.monotonic()

    heard = [notices.wait(1.0) for _ in range(2)]

    assert True in heard
    assert time.monotonic() - began < 1.9


def test_without_a_notice_or_without_redis_the_time_passes(box: TestBox, tmp_path: Path) -> None:
    nobody = Bell(f"unix://{tmp_path}/nobody", "test")
    for notices in (box.bell.notices(), nobody.notices()):
        # The first one subscribes.
        notices.wait(0.01)
        began = time.monotonic()

        assert notices.wait(0.2) is False

        assert 0.15 < time.monotonic() - began < 0.8
    nobody.close()


# ── the worker ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def signals() -> Iterator[None]:
    """RQ's worker takes the process's signals; they are given back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def work_off(bell: Bell) -> None:
    """Do all jobs that wait, as the worker process does."""
    worker = queue.Worker(bell, name=f"test-{time.monotonic_ns()}", stopping=threading.Event())
    worker.work(burst=True, logging_level="CRITICAL")
    worker.connection.close()


def put(bell: Bell, function: Any, *arguments: Any, **options: Any) -> None:
    """Enqueue a job as somebody who can write to Redis does."""
    with Redis.from_url(bell.url) as redis:
        Queue(bell.queue_name, connection=redis, serializer=JSONSerializer).enqueue(function, *arguments, **options)


@pytest.mark.usefixtures("signals")
def test_a_wake_up_makes_the_worker_execute_what_is_pending(box: TestBox, worker: executor.Worker) -> None:
    run_id = box.accept()
    box.bell.wake_workers()

    work_off(box.bell)

    assert box.run(run_id)["status"] == "completed"
    assert waiting(box.bell) == 0


@pytest.mark.usefixtures("signals", "worker")
@pytest.mark.parametrize(
    "job",
    [
        {"function": "os.system", "arguments": ("touch {}",)},
        {"function": "test_queue.mark", "arguments": ()},
        {"function": "builtins.exec", "arguments": ("open({!r}, 'w')",)},
        {"function": queue.WORK, "arguments": ("touch {}",)},
        {"function": queue.WORK, "arguments": (), "on_success": Callback("test_queue.mark")},
        {"function": queue.WORK, "arguments": (1,), "on_failure": Callback("test_queue.mark")},
        {"function": "os.system", "arguments": ("touch {}",), "on_failure": Callback("test_queue.mark")},
    ],
    ids=["os.system", "a function of ours", "exec", "arguments", "on_success", "on_failure", "both"],
)
def test_no_function_but_ours_is_executed(box: TestBox, tmp_path: Path, job: dict[str, Any]) -> None:
    marks.clear()
    file = tmp_path / "pwned"
    options = {key: value for key, value in job.items() if key.startswith("on_")}

    put(box.bell, job["function"], *(str(each).format(file) for each in job["arguments"]), **options)
    run_id = box.accept()
    box.bell.wake_workers()
    work_off(box.bell)

    assert not file.exists()
    assert marks == []
    # The worker goes on with what is its own.
    assert box.run(run_id)["status"] == "completed"


@pytest.mark.usefixtures("signals")
def test_the_job_would_have_run_in_a_worker_of_rqs_own(box: TestBox) -> None:
    """What is refused above is really there: else those tests could not fail."""
    marks.clear()
    put(box.bell, "test_queue.mark", 1)
    with Redis.from_url(box.bell.url) as redis:
        SimpleWorker([box.bell.queue_name], connection=redis, serializer=JSONSerializer).work(burst=True, logging_level="CRITICAL")

    assert marks == [(1,)]


@pytest.mark.usefixtures("signals")
def test_bytes_that_are_no_job_do_not_end_the_worker(box: TestBox, worker: executor.Worker) -> None:
    with Redis.from_url(box.bell.url) as redis:
        redis.rpush(f"rq:queue:{box.bell.queue_name}", "no-such-job")
        redis.hset(
            "rq:job:broken", mapping={"data": b"\x80\x04pickle", "created_at": "2026-01-02T03:04:05.678Z", "origin": box.bell.queue_name}
        )
        redis.rpush(f"rq:queue:{box.bell.queue_name}", "broken")
    run_id = box.accept()
    box.bell.wake_workers()

    work_off(box.bell)

    assert box.run(run_id)["status"] == "completed"


def test_a_look_at_the_workers_leaves_the_bell_as_impatient_as_it_was(server: tuple[subprocess.Popen[bytes], Bell]) -> None:
    process, bell = server
    with Redis.from_url(bell.url) as redis:
        worker = SimpleWorker([bell.queue_name], connection=redis)
        worker.register_birth()
        assert bell.workers(now=clock.now())
    process.send_signal(signal.SIGSTOP)

    # The second needs a connection that was not there before.
    threads = [threading.Thread(target=bell.is_reachable, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert [thread.is_alive() for thread in threads] == [False, False]
