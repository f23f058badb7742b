"""A sequence of what may happen to runs, done to the real ones and to those of rules_of_runs.py, and held against each other.

Everything random comes from the sequence's number. `told` says what was done, to be read when the two differ.
"""

from __future__ import annotations

import functools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import random_workflows
from random_workflows import NAMES
from rules_of_runs import Rules
from rules_shapes import ENDED, Refused, Run, Wait

from orqo import apply, clock, db, definition, executor, facts, jsontext, leases, runs, settling, stages, workflows
from orqo.errors import Problem
from orqo.held import Held
from orqo.secretstore import SecretStore
from support import TestBox

STEPS, LAST_TURNS = 30, 80
STATUSES = {"conflict": (409,), "invalid": (409, 422), "gone": (410,)}
EMPTIED = ("deliveries", "waits", "stages", "runs", "callbacks", "workflow_versions", "workflows")
LATER = "strftime('%Y-%m-%dT%H:%M:%fZ', {0}, '-{1} seconds')"
parsed = functools.lru_cache(maxsize=20_000)(definition.parse)


class Sequence:
    """One sequence; `play` ends with every run at its end."""

    def __init__(self, box: TestBox, number: int) -> None:
        self.box, self.rng, self.told = box, random.Random(number), list[str]()
        # What it is looked at with: a connection without our layers.
        self.raw = db.sqlite_module().connect(box.database.engine.url.database, isolation_level=None)
        for table in EMPTIED:
            self.raw.execute(f"DELETE FROM {table}")
        # All numbers begin anew but those of versions: what a version says is kept in memory, for it never changes.
        self.raw.execute("DELETE FROM sqlite_sequence WHERE name <> 'workflow_versions'")
        self.real = runs.Box(box.database, workflows.Definitions(), box.config.base_url, box.key)
        self.rules = Rules()
        parts = {"box": self.real, "config": box.config, "bell": box.bell, "client": None, "secrets": SecretStore({})}
        self.worker = executor.Worker(**parts, owner=leases.owner(), stopping=threading.Event())  # type: ignore[arg-type]
        self.held: list[Held | None] = [None, None]
        self.lost: list[Held] = []

    def close(self) -> None:
        self.raw.close()

    def play(self) -> None:
        # Reading a file costs more than all that is done with it, so sequences share them.
        pool = random.Random(self.rng.randrange(2000))
        self.size, self.pool = pool.choice((1, 2, 3, 4)), pool
        self.concurrency = {name: random_workflows.concurrency(pool) for name in NAMES}
        for name in NAMES:
            self.apply(name)
            self.accept(name)
        for _ in range(STEPS):
            self.rng.choices(DOES, WEIGHTS)[0](self)
            self.compare()
        self.come_to_an_end()

    def come_to_an_end(self) -> None:
        """Let everything end; what does not by itself in some time is stopped."""
        for turn in range(LAST_TURNS):
            if all(run.status in ENDED for run in self.rules.runs.values()):
                return
            self.work()
            self.pass_time()
            if turn > LAST_TURNS // 3:
                for run in self.rules.runs.values():
                    self.stop(run)
                self.notice_stop()
            self.compare()
        raise AssertionError("a run has no end")

    # ── what callers do ─────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, name: str | None = None) -> None:
        """Make a new version, of as many stages: runs keep theirs."""
        name = name or self.rng.choice(NAMES)
        file = random_workflows.file(self.pool, name, self.size, self.concurrency[name])
        self.told.append(f"apply {file}")
        with self.box.database.transaction() as connection:
            apply.apply(connection, parsed(json.dumps(file)), key=self.box.key, now=clock.now())
        self.rules.files[name] = file

    def accept(self, name: str | None = None) -> None:
        name, k = name or self.rng.choice(NAMES), self.rng.choice((0, 1))
        if name not in self.rules.disabled:
            self._both(f"accept {name} {k}", lambda: self.rules.accept(name, {"k": k}), lambda: self.box.accept(name, input={"k": k}))

    def toggle(self) -> None:
        name = self.rng.choice(NAMES)
        self.told.append(f"toggle {name}")
        with self.box.database.transaction() as connection:
            workflows.set_enabled(connection, name, enabled=name in self.rules.disabled, now=clock.now())
        self.rules.disabled ^= {name}

    def stop(self, run: Run | None = None) -> None:
        run = run or self._any()
        if run is not None:
            self._both(f"stop {run.id}", lambda: self.rules.stop(run), lambda: runs.stop(self.real, run.id, now=clock.now()))

    def rerun(self) -> None:
        run, stage = self._any(), self.rng.choice((None, *"abcd"[: self.size]))

        def again() -> None:
            with self.box.database.transaction() as connection:
                runs.rerun(self.real, connection, run.id, from_stage=stage, origin="api", now=clock.now())

        if run is not None:
            self._both(f"rerun {run.id} from {stage}", lambda: self.rules.rerun(run, stage), again)

    def answer(self) -> None:
        answerable = [(run, wait) for run in self.rules.runs.values() for wait in run.waits if wait.kind in ("approval", "wait")]
        if answerable:
            (run, wait), given = self.rng.choice(answerable[-4:]), self._given()
            self._both(f"answer {run.id} {given}", lambda: self.rules.answer(run, wait, given), lambda: self._answer(run, wait, given))

    def _given(self) -> tuple[str, str | None, Any]:
        status = self.rng.choice(("completed", "completed", "completed", "output", "failed", "stopped"))
        label = self.rng.choice(("yes", "no", "approved", "rejected", None)) if status == "completed" else None
        return status, label, None if status in ("failed", "stopped") else self.rng.choice((1, {"k": 1}))

    def _answer(self, run: Run, wait: Wait, given: tuple[str, str | None, Any]) -> None:
        # Two waits that were answered alike are equal, and not the same.
        place = next(number for number, each in enumerate(run.waits) if each is wait)
        row = self.box.rows("SELECT nonce FROM waits WHERE run_id = :id ORDER BY id", id=run.id)[place]
        with self.box.database.transaction() as connection:
            found = runs.find_wait(connection, runs.token_of(self.real, row) or "")
            runs.answer(self.real, connection, found, runs.Answer(given[0], given[2], given[1]), by="tester", now=clock.now())

    def _any(self) -> Run | None:
        return self.rng.choice(list(self.rules.runs.values())[-6:]) if self.rules.runs else None

    def _both(self, what: str, by_rules: Callable[[], Any], really: Callable[[], Any]) -> None:
        """Do a thing both ways; what the rules refuse is refused with a status that says so."""
        self.told.append(what)
        try:
            by_rules()
        except Refused as refused:
            with pytest.raises(Problem) as problem:
                really()
            assert problem.value.status in STATUSES[str(refused)], problem.value.detail
        else:
            really()

    # ── what workers do ─────────────────────────────────────────────────────────────────────────────────────────────

    def work(self) -> None:
        """Let each worker take its next step: claim, or execute the stage; one lost after its effect records nothing."""
        for slot in (0, 1):
            self.step(slot)

    def step(self, slot: int | None = None) -> None:
        slot = self.rng.choice((0, 1)) if slot is None else slot
        held = self.held[slot]
        if held is None:
            self.told.append(f"worker {slot} claims")
            self._took(slot, runs.claim(self.real, owner=self.worker.owner, now=clock.now()), self.rules.claim())
        else:
            self._execute(slot, held, self.rules.runs[held.claim.run.id])

    def _execute(self, slot: int, held: Held, run: Run) -> None:
        drawn, more, took_s = self._drawn(), self.rng.random() < 0.5, self.rng.choice((0, 0, 0, 40))
        self.told.append(f"worker {slot} executes {run.id}: {drawn}, {took_s} s{', and claims' if more else ''}")
        result, roots = self._result(held, drawn)
        expected = self.rules.execute(run, drawn)
        if expected is None or result is None:
            assert result is expected
            self.held[slot] = None
        elif self.rng.random() < 0.1:
            self.lose(slot)
        else:
            held.since -= took_s
            following = settling.record(self.worker, held, result, roots, until=math.inf if more else 0.0)
            self.rules.settle(run, expected, took_s=took_s, go_on=True)
            self._go_on(slot, held, run, following, more=more)

    def _go_on(self, slot: int, held: Held, run: Run, following: runs.Claim | None, *, more: bool) -> None:
        if run.status == "running":
            assert following is not None and following.run.id == run.id
            held.claim = following
        else:
            self._took(slot, following, self.rules.claim() if run.status in ENDED and more else None)

    def _took(self, slot: int, claim: runs.Claim | None, run: Run | None) -> None:
        assert (claim and claim.run.id) == (run and run.id)
        self.held[slot] = Held(claim, time.monotonic()) if claim else None

    def _drawn(self) -> tuple[Any, ...]:
        """Give what a command comes to."""
        if self.rng.random() < 0.6:
            return "completed", self.rng.choice(("yes", "no", None)), 7
        return "failed", "stage_failed", self.rng.random() < 0.7

    def _result(self, held: Held, drawn: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        """Execute the stage; no process is started, what a command would come to is drawn instead."""
        claim = held.claim
        if claim.stage.kind != "command":
            return executor._execute(self.worker, held)
        changes = {"status": "running", "error_reason": None}
        return _as_result(drawn), facts.roots(claim.run, claim.history, workflow=claim.definition.name, base_url="", changes=changes)

    def notice_stop(self) -> None:
        """Let each worker look whether its run shall stop, as it does every two seconds."""
        self.told.append("look for stops")
        for slot, held in self._holding():
            if runs.renew(self.real, held.claim, elapsed_ms=held.elapsed_ms):
                held.must_end = "stopped"
                settling.record(self.worker, held, stages.Failed("cancelled", "stopped"), {}, until=0.0)
                self.held[slot] = None
                self.rules.notice_stop(self.rules.runs[held.claim.run.id])

    def hand_back(self) -> None:
        for slot, held in list(self._holding())[:1]:
            self.told.append(f"worker {slot} hands back")
            runs.hand_back(self.real, held.claim, began=False, elapsed_ms=held.elapsed_ms)
            self.rules.hand_back(self.rules.runs[held.claim.run.id])
            self.held[slot] = None

    def lose(self, slot: int | None = None) -> None:
        """Lose a worker: its lease runs out and the sweep finds the run."""
        for at, held in [each for each in self._holding() if slot in (None, each[0])][:1]:
            self.told.append(f"worker {at} is lost")
            self.raw.execute("UPDATE runs SET lease_until = 1 WHERE id = ?", (held.claim.run.id,))
            runs.sweep(self.real, stale_s=2.0, now=clock.now())
            self.rules.lose_worker(self.rules.runs[held.claim.run.id])
            # The sweep wakes besides what is due, such as a retry that a stop was asked for.
            self.rules.pass_time(0)
            self.lost.append(held)
            self.held[at] = None

    def come_back(self) -> None:
        """A worker that was only slow records nothing any more."""
        for held in self.lost[-1:]:
            self.told.append("a lost worker comes back")
            with pytest.raises(runs.LeaseLost):
                settling.record(self.worker, held, _as_result(self._drawn()), {"stages": {}, "input": None}, until=math.inf)

    def _holding(self) -> Iterator[tuple[int, Held]]:
        return ((slot, held) for slot, held in enumerate(self.held) if held is not None)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pass_time(self) -> None:
        """Move whatever is due at a time into the past by so much, and sweep."""
        seconds = self.rng.choice((100, 1000, 20_000))
        self.told.append(f"{seconds} s pass")
        self.raw.execute(f"UPDATE waits SET deadline_at = {LATER.format('deadline_at', seconds)} WHERE status = 'open'")
        self.raw.execute(f"UPDATE runs SET wake_at = {LATER.format('wake_at', seconds)} WHERE status = 'waiting'")
        runs.sweep(self.real, stale_s=2.0, now=clock.now())
        self.rules.pass_time(seconds)

    # ── what must be so ─────────────────────────────────────────────────────────────────────────────────────────────

    def compare(self) -> None:
        """Hold every run, its stages and the event of its end against what the rules say."""
        listed: dict[int, list[Any]] = {}
        for run_id, output, kind, *told in self.raw.execute(STAGES):
            shown = jsontext.value_of(output, kind) if told[3] == "completed" else None
            listed.setdefault(run_id, []).append((*told, shown))
        events = self.raw.execute("SELECT run_id, event FROM deliveries ORDER BY run_id, id").fetchall()
        ours = [_expected(run) for run in self.rules.runs.values()]
        theirs = [_real(row, listed.get(row[0], [])) for row in self.raw.execute(RUNS)]

        assert len(theirs) == len(ours)
        for found, expected in zip(theirs, ours, strict=True):
            assert found == expected, f"{found} is not {expected}"
        assert events == [(run.id, f"run.{run.status}") for run in self.rules.runs.values() if run.status in ENDED]


RUNS = """SELECT id, status, error_reason, error_stage, parent_id, depth, held, stop_requested_at IS NOT NULL, output, output_kind
          FROM runs ORDER BY id"""
STAGES = """SELECT run_id, output, output_kind, name, kind, pass, status, attempts, outcome, error_reason
            FROM stages ORDER BY run_id, sequence"""


def _real(row: Any, listed: list[Any]) -> tuple[Any, ...]:
    *told, held, stopping, output, kind = row
    is_over = told[1] in ENDED
    return (*told, bool(held), bool(stopping) and not is_over, jsontext.value_of(output, kind) if told[1] == "completed" else None, listed)


def _expected(run: Run) -> tuple[Any, ...]:
    listed = [
        (each.name, each.kind, each.pass_, each.status, each.attempts, each.outcome, each.reason, each.output)
        if each.status == "completed"
        else (each.name, each.kind, each.pass_, each.status, each.attempts, each.outcome, each.reason, None)
        for each in run.entries
    ]
    stopping = run.stop_asked and run.status not in ENDED
    return (run.id, run.status, run.reason, run.stage, run.parent, run.depth, run.held, stopping, run.output, listed)


def _as_result(drawn: tuple[Any, ...]) -> stages.Completed | stages.Failed:
    if drawn[0] == "failed":
        return stages.Failed(drawn[1], "drawn", retryable=drawn[2], exit_code=1)
    return stages.Completed(jsontext.dump(drawn[2]).encode(), "json", outcome=drawn[1], exit_code=0)


DOES, WEIGHTS = zip(
    *(
        (Sequence.step, 40),
        (Sequence.work, 10),
        (Sequence.accept, 6),
        (Sequence.answer, 14),
        (Sequence.pass_time, 10),
        (Sequence.stop, 3),
        (Sequence.rerun, 5),
        (Sequence.lose, 6),
        (Sequence.come_back, 2),
        (Sequence.hand_back, 6),
        (Sequence.notice_stop, 3),
        (Sequence.toggle, 1),
        (Sequence.apply, 2),
    ),
    strict=True,
)
