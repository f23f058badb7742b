"""The soak runs and notices what it is there to notice."""

from __future__ import annotations

import pytest

import postgresql
from bench import soak


@pytest.mark.full
def test_a_short_soak_loses_nothing_and_tells_what_was_used(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--minutes", "0.5", "--rate", "5", *(["--postgresql"] if postgresql.IS_WANTED else [])]

    soak.main(wanted)

    said = capsys.readouterr().out
    assert "RSS MB of all" in said and "p99 ms" in said
    # Half a minute is too short for the disk to be at its bound.
    assert not [line for line in said.splitlines() if "missing" in line or "log lines" in line or "of a start" in line]


@pytest.mark.parametrize(
    ("name", "last", "told"),
    [
        ("RSS MB of all", 105.5, True),
        ("RSS MB of all", 104.5, False),
        ("RSS MB python app.py (1)", 106.0, True),
        ("disk MB database", 115.0, True),
        ("disk MB database", 109.0, False),
        ("p99 ms", 300.0, False),
    ],
)
def test_what_grows_beyond_its_limit_is_told(name: str, last: float, told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    soaked = soak.Soaked({name: [100.0, 100.0, 100.0, 102.0, 101.0, last, last, last]})

    soak.report(soaked)

    assert bool(soaked.faults) is told
