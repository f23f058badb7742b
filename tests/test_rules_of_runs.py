"""Whatever happens to runs in whatever order, they are what the rules say: the real code against rules_of_runs.py.

Each sequence begins with an empty database and two random workflows. Runs are accepted, claimed by two workers, executed,
lost and found again, handed back, stopped, answered, repeated; time passes by moving what is due into the past. A sequence
is told by its number: ORQO_SEQUENCE=17 does that one alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sequences import Sequence

from support import TestBox, fresh_box, fresh_settings, sqlite_only

# What is looked at is read from SQLite's file, without our layers.
pytestmark = sqlite_only
FULL = bool(os.environ.get("ORQO_TEST_FULL"))
BATCH, BATCHES = (100, 100) if FULL else (20, 1)


@pytest.fixture(scope="module")
def base(redis_url: str) -> Iterator[TestBox]:
    """A box in memory where there is such a place: what is looked at is what is written, not when it is on the disk."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=memory) as folder,
        fresh_settings(redis_url) as environment,
        fresh_box(environment | {"ORQO_DATA": f"{folder}/data"}) as made,
    ):
        yield made


@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_happens_runs_are_what_the_rules_say(base: TestBox, batch: int) -> None:
    only = os.environ.get("ORQO_SEQUENCE")
    for number in [int(only)] if only else range(batch * BATCH, (batch + 1) * BATCH):
        sequence = Sequence(base, number)
        try:
            sequence.play()
        except Exception as fault:
            fault.add_note(f"sequence {number}:\n" + "\n".join(sequence.told))
            raise
        finally:
            sequence.close()
