"""Schedules: when they come, that each time fires once, and what happens to times that were missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, cron, schedules, triggers, workflows
from orqo.config import PROJECT_DIR
from orqo.errors import Conflict, Invalid
from support import Service, TestBox, wait_for

NIGHTLY = """
name: nightly
triggers:
  - {name: night, schedule: "15 2 * * *", timezone: Europe/Paris, input: {what: "${all}"}}
stages:
  - {name: one, stub: {output: "${input.what}"}}
"""


def at(written: str) -> datetime:
    return datetime.fromisoformat(written).replace(tzinfo=UTC)


def times(expression: str, zone: str, after: str, count: int = 3) -> list[str]:
    return [f"{each:%Y-%m-%d %H:%M}" for each in cron.next_times(expression, zone, after=at(after), count=count)]


# ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("15 2 * * 1-5", "UTC", "2026-01-02 02:15", ["2026-01-05 02:15", "2026-01-06 02:15", "2026-01-07 02:15"]),
        ("15 2 * * *", "Europe/Paris", "2026-01-01 00:00", ["2026-01-01 01:15", "2026-01-02 01:15", "2026-01-03 01:15"]),
        ("*/20 * * * *", "Asia/Kolkata", "2026-01-01 00:05", ["2026-01-01 00:10", "2026-01-01 00:30", "2026-01-01 00:50"]),
        ("0 9 29 2 *", "America/New_York", "2026-01-01 00:00", ["2028-02-29 14:00", "2032-02-29 14:00", "2036-02-29 14:00"]),
        ("0 0 1 jan *", "UTC", "2026-01-01 00:00", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
    ],
    ids=["weekdays", "zone", "each twenty minutes", "leap days", "month by name"],
)
def test_the_next_times_of_a_zone(expression: str, zone: str, after: str, expected: list[str]) -> None:
    assert times(expression, zone, after) == expected


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        # On 2026-03-29 clocks in Paris go from 02:00 to 03:00 at 01:00 UTC.
        ("30 2 * * *", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        ("0,30 2,3 * * *", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-29 01:30", "2026-03-30 00:00"]),
        ("30 * * * *", "2026-03-29 00:00", ["2026-03-29 00:30", "2026-03-29 01:30"]),
        # On 2026-10-25 they go from 03:00 back to 02:00 at 01:00 UTC.
        ("30 2 * * *", "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        ("30 2 * * *", "2026-10-25 00:45", ["2026-10-26 01:30"]),
        ("30 * * * *", "2026-10-25 00:00", ["2026-10-25 00:30", "2026-10-25 01:30", "2026-10-25 02:30"]),
    ],
    ids=["the hour left out", "several in it", "each hour there", "the hour that comes twice", "between the two", "each hour here"],
)
def test_where_the_clocks_change(expression: str, after: str, expected: list[str]) -> None:
    assert times(expression, "Europe/Paris", after, len(expected)) == expected


@pytest.mark.parametrize("wrong", ["", "* * * *", "* * * * * *", "60 * * * *", "@daily", "0 0 30 2 *", "a b c d e", "* " * 500])
def test_what_is_no_schedule_is_refused(wrong: str) -> None:
    assert not cron.is_expression(wrong)


@pytest.mark.parametrize(
    ("zone", "known"), [("Europe/Paris", True), ("UTC", True), ("Paris", False), ("../etc/passwd", False), ("", False)]
)
def test_a_zone_is_of_the_iana_database(zone: str, known: bool) -> None:
    assert cron.is_zone(zone) is known


# ── firing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_due(box: TestBox, moment: str = "2026-01-02T01:15:00.000Z") -> None:
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET next_fire_at = :at WHERE kind = 'schedule'"), {"at": moment})


def fire(box: TestBox, now: datetime) -> list[int | None]:
    return [schedules.fire(box.database, row, now=now) for row in schedules.due(box.database, now=now)]


def next_fire(box: TestBox) -> Any:
    return box.rows("SELECT next_fire_at FROM triggers WHERE kind = 'schedule'")[0]["next_fire_at"]


def test_a_schedule_has_its_next_time_and_no_url(box: TestBox) -> None:
    before = clock.now()
    box.apply(NIGHTLY)

    row = box.rows("SELECT kind, token_hash, nonce, next_fire_at FROM triggers")[0]

    assert (row["kind"], row["token_hash"], row["nonce"]) == ("schedule", None, None)
    assert row["next_fire_at"] == clock.to_text(cron.next_times("15 2 * * *", "Europe/Paris", after=before)[0])


def test_when_its_time_has_come_it_starts_its_workflow_and_moves_on(box: TestBox) -> None:
    box.apply(NIGHTLY)
    make_due(box)

    early = fire(box, at("2026-01-02 01:14:59"))
    (run_id,) = fire(box, at("2026-01-02 01:15:01"))
    again = fire(box, at("2026-01-02 01:15:02"))

    assert (early, again) == ([], [])
    assert run_id is not None
    run = box.run(run_id)
    assert (run["input"], run["trigger_id"], run["metadata"]) == ({"what": "${all}"}, 1, {"scheduled_at": "2026-01-02T01:15:00.000Z"})
    assert box.rows("SELECT origin FROM runs")[0]["origin"] == "schedule"
    assert next_fire(box) == "2026-01-03T01:15:00.000Z"
    assert box.rows("SELECT fired_count FROM triggers")[0]["fired_count"] == 1


def test_times_that_were_missed_fire_once(box: TestBox) -> None:
    box.apply(NIGHTLY)
    make_due(box)

    fired = fire(box, at("2026-01-09 12:00")) + fire(box, at("2026-01-09 12:00:01"))

    assert len(fired) == 1
    assert next_fire(box) == "2026-01-10T01:15:00.000Z"


def test_several_dispatchers_fire_once(box: TestBox) -> None:
    box.apply(NIGHTLY)
    make_due(box)
    now = at("2026-01-02 01:15:01")
    (row,) = schedules.due(box.database, now=now)
    fired: list[int | None] = []
    threads = [threading.Thread(target=lambda: fired.append(schedules.fire(box.database, row, now=now))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([each for each in fired if each is not None]) == 1
    assert len(box.rows("SELECT id FROM runs")) == 1


@pytest.mark.parametrize("off", ["trigger", "workflow"])
def test_what_is_disabled_does_not_fire_and_does_not_catch_up(box: TestBox, off: str) -> None:
    box.apply(NIGHTLY)
    make_due(box)

    def switch(*, enabled: bool) -> None:
        with box.database.transaction() as connection:
            if off == "trigger":
                triggers.set_enabled(connection, 1, enabled=enabled)
            else:
                workflows.set_enabled(connection, "nightly", enabled=enabled, now=clock.now())

    switch(enabled=False)
    while_off = fire(box, at("2026-01-02 01:16"))
    switch(enabled=True)
    after = fire(box, at("2026-01-02 12:00"))

    assert [each for each in while_off + after if each is not None] == []
    assert next_fire(box) == "2026-01-03T01:15:00.000Z"


def test_a_run_that_cannot_begin_costs_its_time_and_no_more(box: TestBox) -> None:
    box.apply(NIGHTLY + "concurrency: {key: x, when_busy: skip}\n")
    box.accept("nightly", input={"what": 1})
    make_due(box)

    fired = fire(box, at("2026-01-02 01:16"))

    assert fired == [None]
    assert next_fire(box) == "2026-01-03T01:15:00.000Z"


def test_applying_the_same_schedule_again_skips_nothing_and_another_counts_from_now(box: TestBox) -> None:
    box.apply(NIGHTLY)
    make_due(box)
    box.apply(NIGHTLY + "description: changed\n")
    same = next_fire(box)

    box.apply(NIGHTLY.replace("15 2 * * *", "0 5 * * *"))

    assert same == "2026-01-02T01:15:00.000Z"
    assert next_fire(box) > clock.to_text(clock.now())


def test_a_webhook_that_becomes_a_schedule_loses_its_url(box: TestBox) -> None:
    box.apply("name: nightly\ntriggers: [{name: night}]\nstages: [{name: one, stub: {}}]\n")
    path = box.hook("nightly", "night")

    box.apply(NIGHTLY)

    assert box.rows("SELECT kind, token_hash FROM triggers") == [{"kind": "schedule", "token_hash": None}]
    assert path
    with box.database.transaction() as connection, pytest.raises(Conflict, match="no URL"):
        triggers.rotate(connection, 1, key=box.key)


def test_the_dispatcher_fires(service: Service) -> None:
    box = service.box
    box.apply(NIGHTLY)
    make_due(box, clock.to_text(clock.now() - timedelta(hours=30)))

    run = wait_for(lambda: [box.run(row["id"]) for row in box.rows("SELECT id FROM runs WHERE finished_at IS NOT NULL")], within_s=8)[0]

    assert (run["status"], run["output"]) == ("completed", "${all}")
    assert len(box.rows("SELECT id FROM runs")) == 1


# ── written ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ("{name: a, schedule: '15 2 * *'}", "five fields"),
        ("{name: a, schedule: '15 2 * * *', timezone: Paris}", "IANA"),
        ("{name: a, timezone: UTC}", "only to a schedule"),
        ("{name: a, schedule: '15 2 * * *', webhook: {}}", "takes one of webhook, schedule"),
        ("{name: a, schedule: '15 2 * * *', filter: {input.a: 1}}", "does not apply to a schedule"),
    ],
)
def test_a_file_with_a_wrong_schedule_is_refused(box: TestBox, trigger: str, words: str) -> None:
    with pytest.raises(Invalid) as fault:
        box.apply(f"name: x\ntriggers:\n  - {trigger}\nstages:\n  - {{name: one, stub: {{}}}}\n")

    assert words in str(fault.value.errors)


def orqo(settings: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orqo", *words], env={**os.environ, **settings}, cwd=PROJECT_DIR, capture_output=True, text=True
    )


def test_the_command_line_makes_a_schedule_and_shows_its_next_five_times(box: TestBox, settings: dict[str, str]) -> None:
    words = ("--schedule", "15 2 * * 1-5", "--timezone", "Europe/Paris", "--input", '{"name": "Ada"}')
    made = orqo(settings, "trigger", "create", "hello", *words)
    shown = orqo(settings, "trigger", "show", "1", "--json")

    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.count("02:15 +0") == 5
    told = json.loads(shown.stdout)
    assert (told["kind"], told["name"], told["url"]) == ("schedule", "schedule", None)
    assert told["options"] == {"schedule": "15 2 * * 1-5", "timezone": "Europe/Paris", "input": {"name": "Ada"}}
    assert told["next_times"][0]["at"] == told["next_fire_at"]
    assert len(told["next_times"]) == 5


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--schedule", "15 2 * *"), 1),
        (("--schedule", "15 2 * * *", "--timezone", "Paris"), 1),
        (("--timezone", "UTC"), 2),
        (("--schedule", "15 2 * * *", "--rate", "1/m"), 2),
    ],
)
def test_the_command_line_refuses_what_no_file_could_say(
    box: TestBox, settings: dict[str, str], words: tuple[str, ...], status: int
) -> None:
    refused = orqo(settings, "trigger", "create", "hello", *words)

    assert refused.returncode == status
    assert refused.stderr.startswith("orqo: ") and "Traceback" not in refused.stderr
    assert box.rows("SELECT id FROM triggers") == []
