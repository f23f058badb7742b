"""The checker: holds what was acknowledged against the file's rows and what the receivers got.

Uses no function of the service: what it reads is HTTP answers, the receivers' records, traces of stages and, read-only,
the database. Each fault found is a sentence under its class.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import Counter, defaultdict
from typing import Any

from chaos import deciding
from chaos.found import TERMINAL, Found, call_of
from chaos.receivers import Arrival
from chaos.workflows import BY_NAME, Flow

LOST_MAX_S, RESTART_MAX_S = 45.0, 30.0


def check(found: Found) -> dict[str, list[str]]:
    """Give the violations of each class."""
    found.read()
    _acknowledged(found)
    _ends(found)
    _executions(found)
    deciding.check(found)
    _callbacks(found)
    _recovery(found)
    return found.violations


def _acknowledged(found: Found) -> None:
    """Each call: acknowledged, its row there and its own, one run for its key."""
    of_call = defaultdict(set)
    for run_id, row in found.runs.items():
        of_call[call_of(row)].add(run_id)
    for call in found.load.calls:
        for _, run_id in call.answers:
            row = found.runs.get(run_id)
            if row is None or call_of(row) != call.number or row["workflow"] != call.flow.name:
                found.no("lost 201", f"call {call.number} was told run {run_id}, which is not there or another's")
        if len(of_call[call.number] | call.run_ids) > 1:
            found.no("key with two runs", f"{call.key}: runs {sorted(of_call[call.number] | call.run_ids)}")
        if sum(status == 201 for status, _ in call.answers) > 1:
            found.no("key with two runs", f"{call.key} was answered 201 twice")
        if call.ignored and not call.answers and of_call[call.number]:
            found.no("refused", f"call {call.number} was told that nothing started, but run {of_call[call.number]} did")
    for sentence in found.load.refused:
        found.no("refused", sentence)


def _ends(found: Found) -> None:
    quiet = found.quiet
    for run_id, row in found.runs.items():
        flow = BY_NAME[row["workflow"]]
        if row["status"] not in TERMINAL:
            found.no("run not terminal", f"run {run_id} is {row['status']}")
            continue
        if row["status"] not in flow.ends and not found.excused(run_id):
            found.no("two terminals", f"run {run_id} of {flow.name} ended {row['status']} ({row['error_reason']}: {row['error_detail']})")
        seen = found.watch.ends.get(run_id)
        if seen and seen != (row["status"], row["finished_at"]):
            found.no("terminal state left", f"run {run_id} was {seen} and is {(row['status'], row['finished_at'])}")
        if run_id in quiet and any(stage["attempts"] != 1 for stage in found.stages[run_id]) and "completed" in flow.ends:
            found.no("stage executed twice without a fault", f"run {run_id}: {[stage['attempts'] for stage in found.stages[run_id]]}")
    for sentence in found.watch.left:
        found.no("terminal state left", sentence)


# ── executions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _executions(found: Found) -> None:
    quiet = found.quiet
    for run_id, traces in found.traces.items():
        flow, counts = found.flow(run_id), Counter(stage for _, stage, _ in traces)
        for stage in flow.once:
            if counts[stage] > 1:
                found.no("non-idempotent stage executed twice", f"run {run_id}, stage {stage}: {counts[stage]} times")
        if run_id in quiet and max(counts.values()) > 1:
            found.no("stage executed twice without a fault", f"run {run_id}: {dict(counts)}")
        _in_order(found, flow, run_id, sorted(traces))
    for run_id, row in found.runs.items():
        if row["workflow"] == "keeps" and row["status"] == "completed" and bytes(row["output"] or b"").strip() != str(run_id).encode():
            found.no("file lost or another's", f"run {run_id} read {bytes(row['output'] or b'')!r}")
        flow, seen = found.flow(run_id), {stage for _, stage, _ in found.traces[run_id]}
        if row["status"] == "completed" and not flow.decides and seen != set(flow.effects):
            found.no("callback contradicts the row", f"run {run_id} is completed, but only these had an effect: {seen}")


def _in_order(found: Found, flow: Flow, run_id: int, traces: list[tuple[float, str, int]]) -> None:
    """A stage that began after a later one had begun was executed again after its end."""
    furthest = 0
    for at, stage, _ in traces:
        place = flow.effects.index(stage)
        if place < furthest:
            found.no("finished stage executed again", f"run {run_id}: {stage} began at {at:.3f} after {flow.effects[furthest]}: {traces}")
        furthest = max(furthest, place)


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _callbacks(found: Found) -> None:
    by_channel: dict[tuple[int, str], list[Arrival]] = defaultdict(list)
    for arrival in found.receivers.arrivals:
        by_channel[arrival.event["workflow_run_id"], arrival.path].append(arrival)
    gone = {run_id for call in found.load.calls if call.gone for run_id in call.run_ids}
    for run_id, row in found.runs.items():
        flow = BY_NAME[row["workflow"]]
        _channel(found, row, flow.events, by_channel.pop((run_id, f"/cb/{flow.name}"), []))
        if run_id in gone:
            _channel(found, row, ("completed", "failed", "stopped"), by_channel.pop((run_id, "/gone"), []), acknowledged=False)
    for (run_id, path), arrivals in by_channel.items():
        found.no("lost 201", f"{len(arrivals)} callbacks to {path} tell of run {run_id}, which nobody started")
    for delivery in found.deliveries:
        if delivery["status"] == "pending" or (delivery["status"] == "dead" and "/gone" not in delivery["url"]):
            found.no("callback missing", f"delivery {delivery['id']} of run {delivery['run_id']} is {delivery['status']}")


def _channel(found: Found, row: Any, events: tuple[str, ...], arrivals: list[Arrival], *, acknowledged: bool = True) -> None:
    """Hold all that arrived for one run and one callback against what should have."""
    expected = [f"output {stage['name']}" for stage in found.stages[row["id"]] if "output" in events and _has_output(stage)]
    expected += ["waiting"] if "waiting" in events and found.waits[row["id"]] else []
    expected += [row["status"]] if row["status"] in TERMINAL else []
    first_seen: list[str] = []
    frozen_forms: dict[str, tuple[str, bytes]] = {}
    for arrival in arrivals:
        name = _name(arrival.event)
        if frozen_forms.setdefault(name, (arrival.webhook_id, arrival.body)) != (arrival.webhook_id, arrival.body):
            found.no("callback with another id or bytes", f"run {row['id']}: {name}")
        if name not in first_seen:
            first_seen.append(name)
        elif name != first_seen[-1]:
            found.no("callback out of order", f"run {row['id']}: {name} came again after {first_seen[-1]}")
        _one(found, row, arrival)
    wanted = {name for name in expected}
    got = {_name(arrival.event) for arrival in arrivals if arrival.acknowledged or not acknowledged}
    ends = {name for name in first_seen if name in TERMINAL}
    if len(ends) > 1:
        found.no("two terminals", f"run {row['id']} told {sorted(ends)}")
    if wanted - got:
        found.no("callback missing", f"run {row['id']} of {row['workflow']}: {sorted(wanted - got)}")
    if [name for name in first_seen if name in wanted] != [name for name in expected if name in first_seen]:
        found.no("callback out of order", f"run {row['id']}: {first_seen}, not {expected}")
    for name in set(first_seen) - wanted:
        found.no("callback contradicts the row", f"run {row['id']}, which is {row['status']}: {name}")


def _has_output(stage: Any) -> bool:
    return stage["status"] == "completed" and stage["output"] is not None


def _name(event: dict[str, Any]) -> str:
    return f"output {event['data']['stage']}" if event["type"] == "run.output" else str(event["status"])


def _one(found: Found, row: Any, arrival: Arrival) -> None:
    """Hold one callback against the row, the file as it was when it came, and its signature."""
    event = arrival.event
    if event["status"] in TERMINAL and event["type"] != "run.output":
        if arrival.state != event["status"]:
            found.no("callback before its state", f"run {row['id']}: told {event['status']} while the file said {arrival.state}")
        told = {key: event["data"][key] for key in ("workflow", "created_at", "finished_at")}
        if told != {"workflow": row["workflow"], "created_at": row["created_at"], "finished_at": row["finished_at"]}:
            found.no("callback contradicts the row", f"run {row['id']}: {told}")
        if (event["data"]["error"] or {}).get("reason") != row["error_reason"]:
            found.no("callback contradicts the row", f"run {row['id']}: error {event['data']['error']}, not {row['error_reason']}")
    elif arrival.state is None:
        found.no("callback before its state", f"run {row['id']}: told {event['type']} while the file had no such run")
    secret = base64.b64decode(found.secrets[arrival.path].removeprefix("whsec_"))
    signed = f"{arrival.webhook_id}.{arrival.headers['webhook-timestamp']}.".encode() + arrival.body
    wanted = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    if arrival.headers["webhook-signature"] != wanted:
        found.no("callback with a wrong signature", f"run {row['id']}: {event['type']}")


def recoveries(found: Found) -> tuple[tuple[str, list[float], float], ...]:
    """Give what is measured, the seconds that it took each time, and how many it may take at most.

    A run that goes on has to be claimed: what the queue costs everybody, on a machine with too much to do, is no fault.
    """
    queue_s = max(found.queued_s, default=0.0)
    return (
        ("a killed worker's run is free again", found.watch.freed_s, found.world.dead_max_s),
        ("a killed worker's run goes on, queue included", found.watch.takeovers_s, LOST_MAX_S + queue_s),
        ("a frozen worker's run goes on elsewhere", found.watch.losses_s, LOST_MAX_S + queue_s),
        ("Redis is back, a pending run starts", found.watch.restarts_s, RESTART_MAX_S + queue_s),
    )


def _recovery(found: Found) -> None:
    for name, times, limit_s in recoveries(found):
        for seconds in times:
            if seconds > limit_s:
                found.no("recovery too slow", f"{name}: {seconds:.1f} s")
    for line in found.world.log.read_text(errors="replace").splitlines():
        if "status=fault" in line:
            found.no("fault of our own in the log", line[:200])


def duplicates(found: Found) -> int:
    """Count the callbacks that came again although they had been acknowledged."""
    acknowledged: set[str] = set()
    count = 0
    for arrival in found.receivers.arrivals:
        count += arrival.webhook_id in acknowledged
        if arrival.acknowledged:
            acknowledged.add(arrival.webhook_id)
    return count
