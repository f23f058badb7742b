"""What `bench rows` measures: each operation on one box, as a function of that box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import bulk
from orqo import attempts, clock, db, deliveries, flow, retention, runs, slots
from orqo.models import RunStatus

OWNER = "bench"
# So much is kept that nothing is to be deleted: what is measured is the look.
KEEP = retention.Limits(days=36_500, runs=100_000_000)
DAY = timedelta(hours=24)
DASHBOARD = (
    "/", "/live", "/workflows", "/workflows/build", "/workflows/build/runs", "/workflows/build/runs?status=failed",
    "/workflows/build/runs?status=waiting", "/workflows/build/runs?status=pending", "/workflows/build/runs?before=<middle>",
    "/workflows/old/runs", "/workflows/old/runs?status=failed", "/workflows/old/runs?status=waiting", "/workflows/build/callbacks",
    "/runs", "/runs?status=completed", "/runs?status=failed", "/runs?status=stopped", "/runs?status=waiting", "/runs?status=running",
    "/runs?status=stopped&before=<middle>", "/runs/<id>", "/runs/<id>/live", "/deliveries", "/deliveries?status=delivered",
    "/deliveries?status=dead", "/deliveries?status=pending", "/deliveries?before=<middle>", "/deliveries/<id>", "/received",
    "/received/reports", "/requests/<request>",
)  # fmt: skip
API = (
    "/runs", "/runs?status=failed", "/runs?status=completed", "/runs?status=waiting", "/runs?workflow=build", "/runs?workflow=old",
    "/runs?workflow=build&status=failed", "/runs?workflow=old&status=waiting", "/runs?trigger=<often>", "/runs?trigger=<seldom>",
    "/runs?trigger=<often>&status=failed", "/runs?trigger=<often>&status=stopped", "/runs?trigger=<often>&status=waiting",
    "/runs?trigger=<seldom>&status=completed", "/runs?trigger=<often>&workflow=old", "/runs?metadata[team]=blue", "/runs?since=<yesterday>",
    "/runs?since=<yesterday>&status=failed", "/runs?since=<yesterday>&workflow=old", "/runs?since=<yesterday>&trigger=<often>",
    "/runs?before=<middle>", "/runs?status=failed&before=<middle>", "/runs?limit=1", "/runs/<id>", "/runs/<id>/output",
    "/deliveries", "/deliveries?status=dead", "/deliveries?status=pending", "/deliveries?status=delivered", "/deliveries?run=<id>",
    "/deliveries?callback=<build>", "/deliveries?callback=<old>", "/deliveries?callback=<build>&status=dead",
    "/deliveries?callback=<build>&status=pending", "/deliveries?callback=<old>&status=dead", "/deliveries?callback=<old>&status=pending",
    "/deliveries?before=<middle>", "/deliveries/<id>", "/requests", "/requests?verdict=refused", "/requests?workflow=build",
    "/requests?workflow=old", "/requests?trigger=<often>", "/requests?trigger=<seldom>", "/requests?run=<id>", "/requests?endpoint=hook",
    "/workflows", "/workflows/build", "/triggers", "/callbacks", "/tokens", "/instance",
)  # fmt: skip
LIMITED = (
    "/runs",
    "/runs?status=failed",
    "/runs?status=waiting",
    "/runs?since=<yesterday>",
    "/deliveries",
    "/deliveries?status=dead",
    "/requests",
)
# What grows to a bound that a small database does not reach, and the bound.
BOUNDED = {
    "/": "counts to 1,000",
    "/live": "counts to 1,000",
    "/api/v1/deliveries?status=dead (token of workflow old)": "looks at 2,500 deliveries",
    "/api/v1/deliveries (token of workflow old)": "looks at 2,500 deliveries",
}


@dataclass
class Side:
    """One box: its application, what a worker has of it, and what was claimed and is to go on."""

    client: Any
    database: db.Database
    box: runs.Box
    names: bulk.Names
    headers: Mapping[str, Mapping[str, str]]
    hook: str
    count: int
    claim: runs.Claim | None = None
    leased: list[Any] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)

    def path(self, pattern: str) -> str:
        """Give the path with this box's own ids in it."""
        if pattern not in self.paths:
            names = self.names
            known = {
                "id": self.count // 2, "request": bulk.REQUESTS, "middle": self.count // 2, "often": names.trigger_ids[0],
                "seldom": names.trigger_ids[1],
                "build": names.callback_ids[0], "old": names.old_callback_id, "yesterday": clock.to_text(clock.now() - DAY),
            }  # fmt: skip
            filled = pattern
            for mark, value in known.items():
                filled = filled.replace(f"<{mark}>", str(value))
            self.paths[pattern] = filled
        return self.paths[pattern]


Operation = Callable[[Side], Any]


def groups() -> list[dict[str, Operation]]:
    """Give the operations by name; those of one group are carried out one after the other, each time."""
    apart: dict[str, Operation] = {"sweep": _sweep, "deliveries due: none": _none_due, "retention: nothing to delete": _look}
    apart |= {f"run list {status}".strip(): _listed(status) for status in ("", "failed", "waiting")}
    apart |= {f"delivery list {status}".strip(): _sent(status) for status in ("", "dead", "pending")}
    apart |= {path: _asked(path) for path in DASHBOARD}
    apart |= {f"/api/v1{path}": _asked(f"/api/v1{path}", "all") for path in API}
    apart |= {"/metrics": _asked("/metrics", "all")}
    apart |= {f"/api/v1{path} (token of workflow old)": _asked(f"/api/v1{path}", "limited") for path in LIMITED}
    return [_life(), *({name: operation} for name, operation in apart.items())]


def _life() -> dict[str, Operation]:
    """Give the steps of a run's life in their order."""
    return {
        "accept (POST /api/v1/trigger)": _accept,
        "accept (a webhook)": _accept_hook,
        "look for a pending run": _pending,
        "claim": _claim,
        "finish with three deliveries, and claim the next": _finish_and_claim,
        "finish with three deliveries": _finish,
        "claim deliveries": _claim_deliveries,
        "record attempts": _record_attempts,
    }


def _accept(side: Side) -> None:
    body = {"workflow_id": side.names.workflow_id, "input": {"n": 1}}
    _expect(side.client.post("/api/v1/trigger", json=body, headers=side.headers["all"]), 201)


def _accept_hook(side: Side) -> None:
    _expect(side.client.post(side.hook, json={"n": 1}), 201)


def _expect(response: Any, code: int) -> None:
    if response.status_code != code:
        raise SystemExit(f"{response.request.path} answered {response.status_code}: {response.get_data(as_text=True)[:300]}")


def _pending(side: Side) -> None:
    with side.database.read() as connection:
        assert any(runs.pending(connection, side.box.machine))


def _claim(side: Side) -> None:
    side.claim = runs.claim(side.box, owner=OWNER, now=clock.now())


def _finish_and_claim(side: Side) -> None:
    _finish(side, next_owner=OWNER)


def _finish(side: Side, next_owner: str | None = None) -> None:
    assert side.claim is not None
    end, output = runs.StageEnd(output=b"1", output_kind="json"), runs.Output(b"1", "json")
    told = {"elapsed_ms": 1, "next_owner": next_owner, "now": clock.now()}
    _, following = runs.finish(side.box, side.claim, end, flow.End(RunStatus.COMPLETED), output, **told)
    side.claim = following


def _claim_deliveries(side: Side) -> None:
    side.leased = deliveries.claim_due(side.database, owner=OWNER, room=slots.Slots().room(), now=clock.now())
    assert side.leased


def _record_attempts(side: Side) -> None:
    now = clock.now()
    outcome = deliveries.Outcome(now, 5, 200, "delivered", "")
    with side.database.transaction() as connection:
        sent = [(row, outcome) for row in side.leased]
        attempts.record(connection, sent, owner=OWNER, schedule_s=(5.0,), now=now)


def _sweep(side: Side) -> None:
    runs.sweep(side.box, stale_s=2.0, now=clock.now())
    deliveries.sweep(side.database)


def _none_due(side: Side) -> None:
    assert not deliveries.claim_due(side.database, owner=OWNER, room=slots.Slots().room(), now=clock.now())


def _look(side: Side) -> None:
    assert retention.prune(side.database, KEEP, Path(), now=clock.now()) == 0


def _listed(status: str) -> Operation:
    def listed(side: Side) -> None:
        with side.database.read() as connection:
            runs.list_all(connection, status=status or None)

    return listed


def _sent(status: str) -> Operation:
    def sent(side: Side) -> None:
        with side.database.read() as connection:
            deliveries.list_all(connection, status=status or None)

    return sent


def _asked(pattern: str, who: str = "") -> Operation:
    def asked(side: Side) -> None:
        _expect(side.client.get(side.path(pattern), headers=side.headers.get(who)), 200)

    return asked
