"""Retention: old and surplus runs go with all that is theirs, what is still to be done stays, and the file does not grow."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox import inbox
from orqo import clock, executor, retention
from support import TestBox, sqlite_only

TURNS = 50 if os.environ.get("ORQO_TEST_FULL") else 12
KEPT = 40


def prune_all(box: TestBox, limits: retention.Limits, *, later: timedelta = timedelta()) -> int:
    gone = 0
    while rows := retention.prune(box.database, limits, box.config.data / "runs", now=clock.now() + later):
        gone += rows
    return gone


def ended(box: TestBox, count: int) -> list[int]:
    """Give runs that have been executed."""
    ids = [box.accept() for _ in range(count)]
    executor.work()
    return ids


def ids(box: TestBox) -> list[int]:
    return [row["id"] for row in box.rows("SELECT id FROM runs ORDER BY id")]


def test_the_newest_runs_are_kept_and_the_others_go_with_their_stages_and_folders(box: TestBox, worker: executor.Worker) -> None:
    made = ended(box, 10)
    folder = box.config.data / "runs" / str(made[0])
    folder.mkdir(parents=True)
    (folder / "left.txt").write_text("left")

    prune_all(box, retention.Limits(days=30, runs=4))

    assert ids(box) == made[-4:]
    assert {row["run_id"] for row in box.rows("SELECT run_id FROM stages")} == set(made[-4:])
    assert not folder.exists()


def test_runs_past_their_days_go_whatever_their_number(box: TestBox, worker: executor.Worker) -> None:
    ended(box, 3)

    assert prune_all(box, retention.Limits(days=30, runs=1000), later=timedelta(days=29)) == 0
    assert prune_all(box, retention.Limits(days=30, runs=1000), later=timedelta(days=31)) == 3
    assert ids(box) == []


def test_an_unfinished_run_and_one_with_a_pending_delivery_stay(box: TestBox, worker: executor.Worker) -> None:
    with inbox() as done:
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{}}}}]\n")
        told = box.accept("told")
        executor.work()
        waiting = box.accept()
        later = [box.accept() for _ in range(3)]

        prune_all(box, retention.Limits(days=1, runs=1), later=timedelta(days=100))

    assert ids(box) == [told, waiting, *later]
    assert [row["status"] for row in box.rows("SELECT status FROM deliveries")] == ["pending"]


def test_keys_go_after_their_day_and_requests_after_their_week(box: TestBox, client: object) -> None:
    client.post(box.hook(), json={}, headers={"Idempotency-Key": "k"})  # type: ignore[attr-defined]
    limits = retention.Limits(days=30, runs=1000)

    prune_all(box, limits, later=timedelta(hours=23))
    assert len(box.rows("SELECT key FROM idempotency_keys")) == 1
    prune_all(box, limits, later=timedelta(hours=25))
    assert box.rows("SELECT key FROM idempotency_keys") == []
    assert len(box.rows("SELECT id FROM requests")) == 1
    prune_all(box, limits, later=timedelta(days=8))
    assert box.rows("SELECT id FROM requests") == []


def test_the_oldest_bodies_go_when_all_are_more_than_their_bound(box: TestBox, client: object) -> None:
    for size in (500, 400, 300):
        client.post(box.hook(), json="x" * size)  # type: ignore[attr-defined]

    prune_all(box, retention.Limits(days=30, runs=1000, bodies_bytes=750))

    assert [row["body"] is not None for row in box.rows("SELECT body FROM requests ORDER BY id")] == [False, True, True]
    assert [row["size"] for row in box.rows("SELECT size FROM requests ORDER BY id")] == [502, 402, 302]


def test_an_id_that_was_deleted_is_never_given_again(box: TestBox, worker: executor.Worker) -> None:
    last = ended(box, 2)[-1]

    prune_all(box, retention.Limits(days=1, runs=1000), later=timedelta(days=2))

    assert box.accept() == last + 1


def test_folders_without_a_run_are_found(box: TestBox) -> None:
    kept = box.accept()
    for name in (kept, 4711):
        (box.config.data / "runs" / str(name)).mkdir(parents=True)

    assert retention.prune_folders(box.database, box.config.data / "runs") == 1
    assert [path.name for path in (box.config.data / "runs").iterdir()] == [str(kept)]


@sqlite_only
@pytest.mark.parametrize("size", [6000])
def test_turning_over_many_times_the_limit_leaves_files_near_their_live_data(size: int, box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: large\nstages: [{name: one, stub: {output: '${input}'}}]\n")
    limits = retention.Limits(days=30, runs=KEPT)

    for _ in range(TURNS):
        for _ in range(KEPT):
            box.accept("large", input="x" * size)
        executor.work()
        prune_all(box, limits)

    assert len(ids(box)) == KEPT
    path = box.config.database_path
    assert path is not None
    pages = "SELECT page_count - freelist_count AS pages FROM pragma_page_count, pragma_freelist_count"
    used = box.rows(pages)[0]["pages"]
    on_disk = sum(Path(f"{path}{end}").stat().st_size for end in ("", "-wal") if Path(f"{path}{end}").exists())
    assert on_disk <= 1.5 * used * 4096, (on_disk, used * 4096)


def test_a_child_stays_while_its_parent_goes_on(box: TestBox, worker: executor.Worker) -> None:
    parent, child = box.accept(), ended(box, 1)[0]
    newer = box.accept()
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET status = 'pending', finished_at = NULL WHERE id = :id"), {"id": parent})
        connection.execute(text("UPDATE runs SET parent_id = :parent WHERE id = :id"), {"parent": parent, "id": child})

    prune_all(box, retention.Limits(days=1, runs=1), later=timedelta(days=9))

    assert ids(box) == [parent, child, newer]
