"""Slots: a quick host is served without a pause, a slow one costs little, and nothing that was claimed is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from orqo import slots
from orqo.slots import AHEAD_PER_HOST_MAX, CROWDED, IN_FLIGHT_MAX, PER_HOST_MAX, STRANGER_MAX, Room, Slots


def row(number: int, host: str = "a:80", *, guarded: int = 0, callback_id: int | None = None) -> Any:
    return SimpleNamespace(id=number, host=host, guarded=guarded, callback_id=callback_id)


def land(held: Slots, landed: Any, *, ms: int = 10, code: int | None = 204) -> Any:
    delivered = code is not None and code < 300
    return held.land(landed, duration_ms=ms, answered=code is not None, delivered=delivered, gone=code == 410)


def known(*hosts: str, ms: int = 10, **settings: Any) -> Slots:
    """Give slots to which these hosts have answered."""
    held = Slots(**settings)
    for number, host in enumerate(hosts, start=1_000_000):
        for each in held.add([row(number, host)]):
            land(held, each, ms=ms)
        held.settle([number])
    return held


def ids(rows: Sequence[Any]) -> list[int]:
    return [each.id for each in rows]


def test_a_stranger_gets_little_and_a_host_that_answered_its_share() -> None:
    assert len(Slots().add(row(number) for number in range(20))) == STRANGER_MAX
    assert len(known("a:80").add(row(number) for number in range(20))) == PER_HOST_MAX


def test_a_freed_slot_gets_the_next_of_its_host_at_once() -> None:
    held = known("a:80", "b:80")
    started = held.add([*(row(number) for number in range(10)), row(10, "b:80")])

    following = land(held, started[0])

    assert following.id == 8
    assert (held.in_flight, held.held) == (9, 11)


def test_more_is_claimed_ahead_of_a_quick_host_than_of_one_that_takes_its_time() -> None:
    def ahead(ms: int) -> int:
        return known("a:80", ms=ms).room().hosts["a:80"][1]

    assert (ahead(5), ahead(500), ahead(10_000)) == (AHEAD_PER_HOST_MAX, 8, 0)


def test_room_counts_what_is_in_flight_and_what_waits() -> None:
    held = known("a:80", ms=500)
    held.add(row(number) for number in range(10))

    room = held.room()

    assert room.hosts["a:80"] == (0, 6)
    assert [room.take("a:80", guarded=False) for _ in range(7)] == [True] * 6 + [False]
    assert room.full == ["a:80"]


def test_a_host_that_runs_out_of_time_gets_one_at_a_time_and_the_rest_goes_back() -> None:
    now = [0.0]
    held = known("a:80", seconds=lambda: now[0])
    started = held.add(row(number) for number in range(12))

    assert land(held, started[0], ms=15_000, code=None) is None
    assert held.returned() == [8, 9, 10, 11]
    for each in started[1:]:
        land(held, each, ms=15_000, code=None)

    assert held.room().hosts["a:80"] == (1, 0)
    now[0] += slots.SLOW_FOR_S + 1
    assert "a:80" not in held.room().hosts


def test_a_slow_host_that_delivers_is_well_again() -> None:
    held = known("a:80")
    for code in (None, 204):
        for each in held.add([row(1)]):
            land(held, each, ms=15_000 if code is None else 10, code=code)
        held.settle([1])

    assert held.room().hosts["a:80"][0] == PER_HOST_MAX


def test_a_host_that_has_gone_away_quickly_keeps_its_place() -> None:
    held = known("a:80")
    for each in held.add([row(1)]):
        land(held, each, code=None)

    assert held.room().hosts["a:80"][0] == PER_HOST_MAX


def test_what_waited_too_long_goes_back_and_is_not_sent() -> None:
    now = [0.0]
    held = known("a:80", seconds=lambda: now[0])
    started = held.add(row(number) for number in range(10))

    now[0] += slots.WAIT_MAX_S + 1

    assert land(held, started[0], ms=4000) is None
    assert held.returned() == [8, 9]


def test_410_sends_back_what_waits_for_that_callback_alone() -> None:
    held = known("a:80")
    started = held.add(row(number, callback_id=1 + number % 2) for number in range(12))

    following = land(held, started[0], code=410)

    assert following.id == 9
    assert held.returned() == [8, 10]


def test_what_is_paused_goes_back() -> None:
    held = known("a:80")
    held.add(row(number, callback_id=number) for number in range(12))

    held.drop({9, 11, 99})

    assert held.returned() == [9, 11]


def test_closing_sends_back_all_that_waits_and_begins_nothing() -> None:
    held = known("a:80")
    started = held.add(row(number) for number in range(10))

    held.close()

    assert land(held, started[0]) is None
    assert (held.returned(), held.room().slots) == ([8, 9], 0)
    held.forget([8, 9])
    held.settle(range(8))
    assert (held.held, held.returned()) == (0, [])


def test_what_is_held_already_is_not_taken_twice() -> None:
    held = Slots()

    assert ids(held.add([row(1)])) == [1]
    assert held.add([row(1)]) == []
    held.settle([1])
    assert ids(held.add([row(1)])) == [1]


def test_a_crowd_leaves_room_for_those_who_have_none() -> None:
    busy = [f"h{number}:80" for number in range(12)]
    held = known(*busy)
    started = held.add(row(number, busy[number % 12]) for number in range(240))

    assert CROWDED <= len(started) < IN_FLIGHT_MAX
    assert len(held.add([row(999, "stranger:80")])) == 1
    # Whoever has more than a stranger's share waits now, though others of its own wait in memory.
    assert land(held, started[0]) is None


def test_guarded_deliveries_have_a_share_that_no_number_of_hosts_exceeds() -> None:
    held = Slots()

    started = held.add(row(number, f"h{number}:80", guarded=1) for number in range(90))

    assert len(started) == slots.GUARDED_MAX
    assert held.room().guarded == 0
    assert len(held.add([row(99, "own:80")])) == 1


@pytest.mark.parametrize(("guarded", "taken"), [(True, False), (False, True)])
def test_without_guarded_room_only_the_operators_own_is_taken(guarded: bool, taken: bool) -> None:
    assert Room(slots=5, guarded=0, ahead=5, per_host=2).take("a:80", guarded=guarded) is taken
