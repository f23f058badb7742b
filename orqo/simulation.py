"""What a stand-in does on demand: the failures that a client of ORQO must live with (ORQO_SIMULATE).

Owns the `simulate:` of a workflow file once it is read: which of its rules holds for a start or a delivery, and how often
it did. Counts are this process's and begin anew with it. Off, which is always but in development, nothing here is called.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Row, func, select

from orqo import deliveries, errors, match, workflows
from orqo.config import duration_s
from orqo.db import Database
from orqo.models import Run, WorkflowVersion

ANSWERS: dict[int, type[errors.Problem]] = {
    each.status: each
    for each in (
        *(errors.Malformed, errors.Unauthorized, errors.Forbidden, errors.NotFound, errors.Conflict, errors.Gone),
        *(errors.TooLarge, errors.UnsupportedMedia, errors.Invalid, errors.TooManyRequests, errors.ServerFault),
    )
}
HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="orqo"'}, 429: {"Retry-After": "1"}}
UNAVAILABLE = 503
DUPLICATE, IGNORED = "duplicate", "ignored"
LATE = "5s"
BANNER = (
    "ORQO_SIMULATE=1: this is a stand-in. Anybody who asks for a failure gets one, and workflows may refuse, delay and "
    "spoil on purpose. Never let anything depend on it."
)


def problem(status: int, why: str) -> errors.Problem:
    """Give the problem that is answered with this status."""
    if status == UNAVAILABLE:
        return errors.Unavailable(f"Simulated: {why}.", retry_after_s=1)
    return ANSWERS[status](f"Simulated: {why}.", headers=HEADERS.get(status))


@dataclass
class Rules:
    """Which rules hold; `times` is counted for each version of a workflow. Thread-safe."""

    database: Database
    _used: Counter[tuple[int, int]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def holding(self, version_id: int, roots: Mapping[str, Any], *, of_callbacks: bool) -> Iterator[Mapping[str, Any]]:
        """Give the rules of a version that hold now, in order; each that is taken counts."""
        with self.database.read() as connection:
            listed = workflows.definition_of(connection, version_id).simulate
        for index, rule in enumerate(listed):
            fits = ("callback" in rule) == of_callbacks and ("when" not in rule or match.matches(rule["when"], roots))
            if fits and self._take((version_id, index), rule.get("times")):
                yield rule

    def _take(self, key: tuple[int, int], times: int | None) -> bool:
        with self._lock:
            if times is not None and self._used[key] >= times:
                return False
            self._used[key] += 1
            return True

    def before_start(self, version_id: int, roots: Mapping[str, Any]) -> int | None:
        """Delay a start or refuse it, as its workflow's first rules say that hold.

        Gives the run that is answered as a duplicate instead of a new one, where a rule says so and there is one. Raises Busy
        for `ignored`.
        """
        for rule in self.holding(version_id, roots, of_callbacks=False):
            time.sleep(duration_s(rule.get("wait", "0s")))
            said = rule.get("answer")
            if said == DUPLICATE:
                return self._newest_run(version_id)
            if said is not None:
                why = f"this workflow's simulate: says {said}"
                raise errors.Busy(f"Simulated: {why}.") if said == IGNORED else problem(said, why)
        return None

    def _newest_run(self, version_id: int) -> int | None:
        same = select(WorkflowVersion.workflow_id).where(WorkflowVersion.id == version_id).scalar_subquery()
        with self.database.read() as connection:
            return connection.execute(select(func.max(Run.id)).where(Run.workflow_id == same)).scalar()


@dataclass(frozen=True)
class Sending:
    """Sends deliveries as their workflows' rules say: twice, late, or with a signature that does not fit."""

    rules: Rules

    def send(self, delivery: Row[Any], sender: deliveries.Sender, *, now: datetime) -> deliveries.Outcome:
        """Send one delivery and give what came of it."""
        version_id, roots = self._about(delivery.run_id)
        found = list(self.rules.holding(version_id, roots, of_callbacks=True))
        spoilt = {rule["callback"] for rule in found}
        if "late" in spoilt:
            time.sleep(max(duration_s(rule.get("wait", LATE)) for rule in found if rule["callback"] == "late"))
        if "bad_signature" in spoilt:
            delivery = cast("Row[Any]", SimpleNamespace(**dict(delivery._mapping) | {"secret": None}))
            sender = replace(sender, key=secrets.token_bytes(32))
        outcome = deliveries.send(delivery, sender, now=now)
        return deliveries.send(delivery, sender, now=now) if "duplicate" in spoilt else outcome

    def _about(self, run_id: int) -> tuple[int, Mapping[str, Any]]:
        columns = (Run.version_id, Run.input, Run.trigger_facts)
        with self.rules.database.read() as connection:
            row = connection.execute(select(*columns).where(Run.id == run_id)).one()
        return row.version_id, {"input": json.loads(row.input), "trigger": json.loads(row.trigger_facts)}
