"""A short run of chaos, and bugs planted on purpose that it or the crash-point tests must catch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chaos.planted import BUGS, BY_NAME, ROOT, Bug, catches
from chaos.run import chaos

import postgresql

RUNS = 1000 if os.environ.get("ORQO_TEST_FULL") else 60


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning")
def test_nothing_promised_is_broken_while_processes_die_and_redis_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    assert chaos(runs=RUNS, seed=3, say=said.append) == 0, "\n".join(said)


@pytest.mark.full
@pytest.mark.skipif(not postgresql.IS_WANTED, reason="SQLite has one machine: make test DB=postgresql")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning")
def test_nothing_promised_is_broken_while_machines_lose_power_and_network(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    assert chaos(runs=RUNS, seed=3, hosts=5, say=said.append) == 0, "\n".join(said)


@pytest.mark.parametrize("name", [pytest.param(bug.name, marks=pytest.mark.full) for bug in BUGS])
def test_a_planted_bug_is_caught(name: str, tmp_path: Path) -> None:
    assert catches(BY_NAME[name], tmp_path) is not None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted_where_it_was_meant_to_be(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1


def test_there_are_at_least_ten_bugs_to_plant() -> None:
    assert len(BUGS) >= 10
