"""The checker of what decides, waits, starts others and takes turns: waits, children, prompts, concurrency, schedules.

Owns the promises of DESIGN §5 for these kinds. Uses no function of the service.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict

from chaos.found import TERMINAL, Found, seconds

LATE_MAX_S = 45.0
ACCEPTED, REFUSED_ONCE_ANSWERED = 200, (409, 410)


def check(found: Found) -> None:
    """Enter the violations."""
    _waits(found)
    _ways(found)
    _children(found)
    _turns(found)
    _schedules(found)


def _waits(found: Found) -> None:
    """A wait is asked for with one token, takes one outcome, ends at its deadline, and its run goes on with what was said."""
    accepted: dict[int, set[str]] = defaultdict(set)
    for given in found.receivers.answerer.given:
        if given.status == ACCEPTED:
            accepted[given.run_id].add(given.outcome)
        elif given.status not in REFUSED_ONCE_ANSWERED:
            found.no("refused", f"the answer {given.outcome} to run {given.run_id} was answered {given.status}")
    for run_id, links in found.receivers.answerer.links.items():
        if len(links) > 1:
            found.no("wait answered with two outcomes", f"run {run_id} asked with {len(links)} tokens")
    for run_id, waits in found.waits.items():
        _ended(found, run_id)
        if found.flow(run_id).decides != "ask":
            continue
        outcomes = accepted[run_id] | ({found.outcome(run_id)} - {None})
        if len(outcomes) > 1:
            found.no("wait answered with two outcomes", f"run {run_id}: {sorted(map(str, outcomes))}")
        if len(waits) > 1:
            found.no("wait answered with two outcomes", f"run {run_id} waited {len(waits)} times at one stage")


def _ended(found: Found, run_id: int) -> None:
    """No wait is open once all have ended; none that nobody answered in time ended before its deadline, or long after it."""
    ends = {stage["id"]: stage["finished_at"] for stage in found.stages[run_id]}
    for wait in found.waits[run_id]:
        end = ends.get(wait["stage_id"])
        if wait["status"] == "open" or (wait["status"] == "answered" and not wait["used"]) or end is None:
            found.no("wait ended late or not at all", f"run {run_id}: the wait of {wait['stage']} is {wait['status']}")
            continue
        late_s = seconds(end) - seconds(wait["deadline_at"])
        if late_s > LATE_MAX_S or (wait["status"] == "timed_out" and late_s < 0):
            found.no("wait ended late or not at all", f"run {run_id}: {wait['stage']} ended {late_s:.1f} s after its deadline")


def _ways(found: Found) -> None:
    """A completed run went the way of its outcome, and a model's choice is one that the model made."""
    for run_id, row in found.runs.items():
        flow, outcome = found.flow(run_id), found.outcome(run_id)
        if not flow.decides or row["status"] != "completed":
            continue
        went = {stage for _, stage, _ in found.traces[run_id]}
        if outcome is None or went != set(flow.ways[outcome]):
            found.no("stage went another way than its outcome", f"run {run_id} of {flow.name}, {outcome}: {sorted(went)}")
        said = found.receivers.model.said[run_id]
        if flow.decides == "think" and outcome not in said:
            found.no("stage went another way than its outcome", f"run {run_id}: {outcome}, but the model said {said}")
        if flow.decides == "think" and run_id in found.quiet and len(said) != 1:
            found.no("stage executed twice without a fault", f"run {run_id}: the model was asked {len(said)} times")


def _children(found: Found) -> None:
    """Each pass of a stage has one child; a parent that waited ended after it, and as it did."""
    for run_id, row in found.runs.items():
        made = Counter((child["parent_stage"], child["parent_pass"], child["parent_via"]) for child in found.children[run_id])
        entered = {(stage["name"], stage["pass"], "stage") for stage in found.stages[run_id] if stage["kind"] == "workflow"}
        if any(count > 1 for count in made.values()) or made.keys() - entered:
            found.no("child started twice or not at all", f"run {run_id}: {dict(made)}")
        if row["status"] == "completed" and entered - made.keys():
            found.no("child started twice or not at all", f"run {run_id} is completed without {entered - made.keys()}")
        for child in found.children[run_id]:
            _after_its_child(found, run_id, child["id"])


def _after_its_child(found: Found, run_id: int, child_id: int) -> None:
    parent, child = found.runs[run_id], found.runs[child_id]
    if json.loads(child["input"])["of"] != run_id:
        found.no("child started twice or not at all", f"run {child_id} was started by {run_id} with {child['input']}")
    if child["parent_stage"] != "call" or parent["status"] not in TERMINAL or child["status"] not in TERMINAL:
        return
    call = next(stage for stage in found.stages[run_id] if stage["name"] == "call")
    if child["status"] != "completed" and call["status"] == "completed":
        found.no("parent ended before its child", f"run {run_id}: its stage is completed, run {child_id} is {child['status']}")
    first = min((at for at, stage, _ in found.traces[run_id] if stage == "after"), default=None)
    last = min((at for at, stage, _ in found.traces[child_id] if stage == "d"), default=None)
    # By the receiver's clock: what the parent does next comes after what its child did last.
    if first is not None and (last is None or first < last):
        found.no("parent ended before its child", f"run {run_id} went on at {first:.3f}, run {child_id} ended its work at {last}")


def _turns(found: Found) -> None:
    """Of one key no more runs are under way than the limit says: by the file as it was seen, and by the receiver's clock."""
    found.violations["concurrency limit exceeded"] += sorted(found.watch.crowded)
    marks: dict[tuple[str, str], list[tuple[float, int, int]]] = defaultdict(list)
    for run_id, row in found.runs.items():
        if found.flow(run_id).limit:
            # The first trace of each: what a frozen process had sent halfway may arrive once more, later.
            firsts = [min(at for at, stage, _ in found.traces[run_id] if stage == name) for name in _names(found, run_id)]
            if len(firsts) == 2:
                marks[row["workflow"], row["concurrency_key"]] += [(firsts[0], 1, run_id), (firsts[1], -1, run_id)]
        if row["status"] == "stopped" and not _replaced(found, run_id):
            found.no("run stopped by nobody", f"run {run_id} of {row['workflow']}")
    for (workflow, key), moments in marks.items():
        going, limit = 0, found.flow(moments[0][2]).limit
        for at, change, run_id in sorted(moments):
            going += change
            if going > limit:
                found.no("concurrency limit exceeded", f"{workflow} {key}: {going} at {at:.3f}, when run {run_id} began")


def _names(found: Found, run_id: int) -> list[str]:
    return sorted({stage for _, stage, _ in found.traces[run_id]})


def _replaced(found: Found, run_id: int) -> bool:
    row = found.runs[run_id]
    newer = (other for other in found.runs.values() if other["id"] > run_id and other["workflow"] == row["workflow"])
    return row["workflow"] == "replaces" and any(other["concurrency_key"] == row["concurrency_key"] for other in newer)


def _schedules(found: Found) -> None:
    """Each schedule fires once for each minute that it was on, and soon."""
    name = "schedule fired twice, late or not at all"
    fired: Counter[tuple[int, float]] = Counter()
    for run_id, row in found.runs.items():
        if row["origin"] == "schedule":
            due = seconds(json.loads(row["metadata"])["scheduled_at"])
            fired[row["trigger_id"], due] += 1
            late_s = seconds(row["created_at"]) - due
            if due % 60 or not 0 <= late_s <= LATE_MAX_S:
                found.no(name, f"run {run_id} was due at {due} and accepted {late_s:.1f} s later")
    for (trigger_id, due), count in fired.items():
        if count > 1:
            found.no(name, f"trigger {trigger_id} fired {count} times for {due}")
    began, ended = found.ticking
    minutes = [float(minute) for minute in range(int(began // 60 + 1) * 60, int(ended - LATE_MAX_S), 60)]
    for trigger_id in found.schedules:
        for minute in minutes:
            if not fired[trigger_id, minute]:
                found.no(name, f"trigger {trigger_id} did not fire for {minute}")
