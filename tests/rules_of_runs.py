"""The rules of a run's life as DESIGN.md and the guides tell them, in their simplest form: the oracle of test_rules_of_runs.py.

Works on workflow files as they are written and on a clock of its own. Imports nothing of the service and knows no database,
no lease and no transaction. `Refused` stands for whatever the service refuses.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rules_shapes import ENDED, MISSING, TIMEOUTS, Entry, Refused, Run, Wait, filled, holds, kind_of, look_up, outcomes_of, seconds

DEPTH_MAX, CLAIMS_MAX, RETRY_MAX_S = 10, 5, 300


class Rules:
    """All runs of a box, and what may happen to them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.files: dict[str, dict[str, Any]] = {}
        self.disabled: set[str] = set()
        self.runs: dict[int, Run] = {}

    # ── accept ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def accept(self, name: str, value: Any, *, parent: Run | None = None) -> Run:
        run = Run(len(self.runs) + 1, self.files[name], value)
        if parent is not None:
            run.parent, run.depth = parent.id, parent.depth + 1
        self._take_turn(run)
        self.runs[run.id] = run
        return run

    def _take_turn(self, run: Run) -> None:
        """Stand in line where the workflow says how many may be under way."""
        rule = run.file.get("concurrency")
        if rule is None:
            return
        found = look_up(run, "input.k")
        if found is MISSING:
            raise Refused("invalid")
        run.key = json.dumps([run.file["name"], found])
        others = self._of_key(run.key)
        going = [each for each in others if not each.held]
        limit = rule["limit"]
        if rule["when_busy"] == "skip" and len(going) >= limit:
            raise Refused("conflict")
        if rule["when_busy"] == "replace":
            for older in others[: max(0, len(others) + 1 - limit)]:
                older.stop_asked, older.held = True, False
                if older.status == "waiting":
                    older.status = "pending"
        run.held = len(going) >= limit

    def _of_key(self, key: str) -> list[Run]:
        return [each for each in self.runs.values() if each.key == key and each.status not in ENDED]

    def _let_go(self, ended: Run) -> None:
        line = self._of_key(ended.key) if ended.key else []
        for each in line:
            if each.held and sum(not other.held for other in line) < each.file["concurrency"]["limit"]:
                each.held = False

    def start(self, run: Run, entry: Entry, name: str, value: Any, via: str) -> int:
        """Start a run from a stage, once for each pass; Refused where it cannot be."""
        same = (entry.name, entry.pass_, via)
        if same not in run.children:
            if run.depth >= DEPTH_MAX or name not in self.files or name in self.disabled:
                raise Refused("conflict")
            run.children[same] = self.accept(name, value, parent=run).id
        return run.children[same]

    # ── claim ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def claim(self) -> Run | None:
        """Give the run that a worker gets; what cannot go on ends on the way."""
        while (run := self._next()) is not None:
            run.status = "running"
            if self._goes_on(run):
                return run
        return None

    def _next(self) -> Run | None:
        """The oldest, but one that cost two workers only when there is no other (of fewer than fifty)."""
        free = [each for each in self.runs.values() if each.status == "pending" and not each.held]
        trusted = [each for each in free if each.lost < 2]
        return min(trusted or free, key=lambda each: (0 if trusted else each.lost, each.id), default=None)

    def _goes_on(self, run: Run) -> bool:
        if run.stop_asked:
            self._cut_off(run, "stopped")
        elif not run.entries:
            self._enter(run, 0, is_back=False, go_on=True)
        else:
            self._again(run, run.entries[-1])
        return run.status == "running"

    def _again(self, run: Run, entry: Entry) -> None:
        """Go on with the stage that was under way."""
        if entry.status == "running" and entry.kind == "command" and not run.spec(entry.name).get("idempotent"):
            self._cut_off(run, "failed", "interrupted")
            return
        if run.lost >= CLAIMS_MAX:
            self._cut_off(run, "failed", "worker_lost")
            return
        wait = entry.wait
        if wait is not None and wait.state == "open" and wait.deadline <= self.now:
            wait.state = "timed out"
            if wait.child is not None:
                self._stop_child(self.runs[wait.child])
        entry.attempts += int(wait is None or wait.state == "open")
        entry.status = "running"

    # ── a stage ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, run: Run, drawn: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give what the stage comes to: (completed, outcome, output) or (failed, reason, retryable); None: the run waits now."""
        entry = run.entries[-1]
        stage = run.spec(entry.name)
        if entry.kind == "command":
            return drawn
        if entry.kind == "stub":
            stub = stage["stub"]
            return (
                ("failed", "stage_failed", True) if "fail" in stub else ("completed", stub.get("outcome"), filled(run, stub.get("output")))
            )
        if entry.wait is not None:
            return self._after_wait(stage, entry.wait)
        if entry.kind == "workflow":
            return self._chain(run, entry, stage["workflow"])
        spec = stage[entry.kind]
        limit = spec if entry.kind == "delay" else spec.get("timeout", TIMEOUTS[entry.kind])
        self._wait(run, entry, Wait(entry.kind, self.now + seconds(limit)))
        return None

    def _wait(self, run: Run, entry: Entry, wait: Wait) -> None:
        entry.wait, entry.status = wait, "waiting"
        run.waits.append(wait)
        run.status, run.wake, run.lost = "pending" if run.stop_asked else "waiting", wait.deadline, 0

    def _after_wait(self, stage: dict[str, Any], wait: Wait) -> tuple[Any, ...]:
        if wait.kind == "delay":
            return "completed", None, None
        if wait.child is not None and wait.state == "answered":
            child = self.runs[wait.child]
            return ("completed", None, child.output) if child.status == "completed" else ("failed", "stage_failed", True)
        if wait.answer is None:
            label = stage[wait.kind].get("on_timeout")
            return ("failed", "timeout", True) if label is None else ("completed", label, None)
        status, outcome, output = wait.answer
        return ("completed", outcome, output) if status == "completed" else ("failed", "stage_failed", True)

    def _chain(self, run: Run, entry: Entry, spec: dict[str, Any]) -> tuple[Any, ...] | None:
        try:
            child = self.start(run, entry, spec["name"], filled(run, spec.get("input")), "stage")
        except Refused:
            return "failed", "stage_failed", False
        if spec.get("wait") is False:
            return "completed", None, {"workflow_run_id": child}
        self._wait(run, entry, Wait("workflow", self.now + seconds(spec.get("timeout", TIMEOUTS["workflow"])), child))
        return None

    # ── what follows ────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, run: Run, result: tuple[Any, ...], *, took_s: float, go_on: bool) -> None:
        """Take a stage's result, and let the run go on as its file says."""
        run.used_s += took_s
        entry, stage = run.entries[-1], run.spec(run.entries[-1].name)
        is_over = run.used_s >= seconds(run.file.get("timeout", "1h"))
        if result[0] == "completed":
            entry.status, entry.outcome, entry.output, entry.reason = (*result, None)
            step = self._routed(run, entry, stage)
        else:
            entry.failures += 1
            entry.reason, entry.output, entry.outcome = result[1], "", None
            step = self._after_failure(run, entry, stage, is_retryable=result[2])
        if is_over and not (result[0] == "completed" and step[0] in ("end", "chain", "fail")):
            step = ("fail", "timeout")
        self._follow(run, entry, step, go_on=go_on)

    def _routed(self, run: Run, entry: Entry, stage: dict[str, Any]) -> tuple[Any, ...]:
        target = stage.get("routing", {}).get(entry.outcome)
        if target is None:
            return self._onward(run, entry)
        if target == "end":
            return ("end",)
        return ("chain", target["workflow"]) if isinstance(target, dict) else self._toward(run, entry, target)

    def _after_failure(self, run: Run, entry: Entry, stage: dict[str, Any], *, is_retryable: bool) -> tuple[Any, ...]:
        if is_retryable and entry.failures < stage.get("retry", {}).get("attempts", 1):
            return ("retry", min(RETRY_MAX_S, seconds(stage["retry"]["delay"]) * 2 ** (entry.failures - 1)))
        entry.status = "failed"
        way = stage.get("on_error", "fail")
        if way == "fail":
            return ("fail", entry.reason)
        return self._onward(run, entry) if way == "next" else self._toward(run, entry, way)

    def _onward(self, run: Run, entry: Entry) -> tuple[Any, ...]:
        index = run.position(entry.name) + 1
        return ("enter", index, False) if index < len(run.file["stages"]) else ("end",)

    def _toward(self, run: Run, entry: Entry, target: str) -> tuple[Any, ...]:
        guard = {"limit": 3, "then": "next"} | run.file.get("loop_guard", {})
        is_back = run.position(target) <= run.position(entry.name)
        times = sum(each.is_back for each in run.entries if each.name == target)
        if is_back and times >= guard["limit"]:
            return ("fail", "loop_guard") if guard["then"] == "fail" else self._onward(run, entry)
        return ("enter", run.position(target), is_back)

    def _follow(self, run: Run, entry: Entry, step: tuple[Any, ...], *, go_on: bool) -> None:
        if step[0] == "retry":
            self._retry(run, entry, step[1])
        elif step[0] == "enter":
            run.lost = 0
            self._enter(run, step[1], is_back=step[2], go_on=go_on and not run.stop_asked)
        elif step[0] == "fail":
            entry.status = "failed" if entry.status == "running" else entry.status
            self._end(run, "failed", step[1], entry.name)
        elif step[0] == "end" or self._chained(run, entry, step[1]):
            self._end(run, "completed")
        else:
            self._end(run, "failed", "stage_failed", entry.name)

    def _chained(self, run: Run, entry: Entry, name: str) -> bool:
        try:
            self.start(run, entry, name, entry.output, "routing")
        except Refused:
            return False
        return True

    def _retry(self, run: Run, entry: Entry, delay_s: float) -> None:
        entry.wait = None
        if not delay_s:
            entry.attempts += 1
            return
        entry.status, run.status, run.lost = "waiting", "waiting", 0
        run.wake = self.now + (0 if run.stop_asked else delay_s)

    def _enter(self, run: Run, index: int, *, is_back: bool, go_on: bool) -> None:
        """Enter a stage, past all whose `when` does not hold."""
        for stage in run.file["stages"][index:]:
            entry = Entry(
                stage["name"], kind_of(stage), 1 + sum(each.name == stage["name"] for each in run.entries), "skipped", is_back=is_back
            )
            run.entries.append(entry)
            is_back = False
            before = replace(run, entries=run.entries[:-1])
            if "when" not in stage or holds(before, stage["when"]):
                entry.status, entry.attempts = ("running", 1) if go_on else ("pending", 0)
                if not go_on:
                    run.status = "pending"
                return
        self._end(run, "completed")

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, run: Run, status: str, reason: str | None = None, stage: str | None = None) -> None:
        run.status, run.reason, run.stage, run.held = status, reason, stage, False
        executed = [each for each in run.entries if each.status != "skipped"]
        run.output = executed[-1].output if status == "completed" and executed else None
        if status == "completed" and "output" in run.file:
            run.output = filled(run, run.file["output"])
        for wait in run.waits:
            wait.state = "closed" if wait.state == "open" else wait.state
        if status == "stopped":
            for child in [each for each in self.runs.values() if each.parent == run.id]:
                self._stop_child(child)
        self._tell_parent(run)
        self._let_go(run)

    def _cut_off(self, run: Run, status: str, reason: str | None = None) -> None:
        """End a run from outside its stage; one that never began was not reached."""
        name = None
        if run.entries and not run.entries[-1].is_over:
            entry = run.entries[-1]
            name = entry.name
            entry.status, entry.reason = status, reason or entry.reason
            if entry.attempts == 0:
                run.entries.pop()
        self._end(run, status, reason, name if reason else None)

    def _stop_child(self, child: Run) -> None:
        if child.status == "running":
            child.stop_asked = True
        elif child.status not in ENDED:
            self._cut_off(child, "stopped")

    def _tell_parent(self, run: Run) -> None:
        parent = self.runs.get(run.parent or 0)
        for wait in parent.waits if parent else ():
            if parent and wait.child == run.id and wait.state == "open":
                wait.state = "answered"
                parent.status = "pending" if parent.status == "waiting" else parent.status

    # ── from outside ────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, run: Run) -> None:
        if run.status in ENDED:
            raise Refused("conflict")
        if run.status == "running":
            run.stop_asked = True
        else:
            self._cut_off(run, "stopped")

    def notice_stop(self, run: Run) -> None:
        run.entries[-1].status, run.entries[-1].reason = "stopped", "cancelled"
        self._end(run, "stopped")

    def hand_back(self, run: Run) -> None:
        """Give a run back whose stage has not begun: that was no attempt. One that goes on after its wait was counted before."""
        entry = run.entries[-1]
        run.status, entry.status = "pending", "pending"
        entry.attempts -= int(entry.wait is None or entry.wait.state == "open")

    def lose_worker(self, run: Run) -> None:
        run.lost += 1
        run.status = "pending"
        if run.stop_asked:
            self._cut_off(run, "stopped")

    def pass_time(self, elapsed_s: float) -> None:
        self.now += elapsed_s
        for run in self.runs.values():
            if run.status == "waiting" and run.wake is not None and run.wake <= self.now:
                run.status = "pending"

    def rerun(self, old: Run, stage: str | None) -> Run:
        name = old.file["name"]
        if name in self.disabled or (stage is not None and old.status not in ENDED):
            raise Refused("conflict")
        if stage is None:
            return self.accept(name, old.input)
        places = [index for index, each in enumerate(old.entries) if each.name == stage]
        if not places:
            raise Refused("invalid")
        run = self.accept(name, old.input)
        run.entries = [replace(each, wait=None) for each in old.entries[: places[-1]]]
        was = old.entries[places[-1]]
        kind = kind_of(run.spec(stage))
        run.entries.append(Entry(stage, kind, 1 + sum(each.name == stage for each in run.entries), "pending", is_back=was.is_back))
        return run

    def answer(self, run: Run, wait: Wait, given: tuple[str, str | None, Any]) -> None:
        entry = next(each for each in run.entries if each.wait is wait) if wait.state == "open" else None
        if given[0] == "output" and entry is not None:
            entry.output = given[2]
            return
        if wait.state == "answered" and wait.answer == given:
            return
        if run.status in ENDED:
            raise Refused("gone")
        if entry is None:
            raise Refused("conflict")
        listed = outcomes_of(run.spec(entry.name))
        if given[0] == "completed" and listed and given[1] not in listed and not (given[1] is None and wait.kind == "wait"):
            raise Refused("invalid")
        wait.state, wait.answer = "answered", given
        run.status = "pending" if run.status == "waiting" else run.status
