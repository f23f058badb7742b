"""Accept: a run becomes durable, once for each idempotency key.

Owns the table idempotency_keys.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Table, bindparam, insert, select, update

from orqo import clock, crashpoints, db, jsontext, workflows
from orqo.errors import Invalid
from orqo.models import IdempotencyKey, RunStatus, Trigger
from orqo.prepared import Prepared
from orqo.runs import concurrency
from orqo.runs.state import RUNS, Accepted, NewRun, Replay

IDEMPOTENCY_HOURS = 24
NO_PARENT = {"parent_id": None, "parent_stage": None, "parent_pass": None, "parent_via": None, "depth": 0}
NOT_HELD = {"concurrency_key": None, "concurrency_limit": None, "held": 0}
WRITTEN = (
    *("workflow_id", "version_id", "status", "input", "metadata", "trigger_id", "token_id", "origin", "trigger_facts", "callbacks"),
    *("created_at", "awaited", "rerun_of", *NO_PARENT, *NOT_HELD),
)
INSERT_RUN = Prepared(insert(RUNS).returning(RUNS.c.id), *WRITTEN)
COUNT_FIRED = (
    update(Trigger)
    .where(Trigger.id == bindparam("fired_id"))
    .values(fired_count=Trigger.fired_count + 1, last_fired_at=bindparam("fired_at"))
)
KEYS = cast(Table, IdempotencyKey.__table__)
IS_SAME = (KEYS.c.scope == bindparam("of_scope"), KEYS.c.key == bindparam("of_key"))
EARLIER = (
    select(KEYS.c.run_id, KEYS.c.body_hash, RUNS.c.status)
    .join_from(KEYS, RUNS, RUNS.c.id == KEYS.c.run_id)
    .where(*IS_SAME, KEYS.c.created_at > bindparam("since"))
)
REPLACE_KEY = update(KEYS).where(*IS_SAME)
INSERT_KEY = insert(KEYS)


def accept(connection: Connection, new: NewRun, *, now: datetime) -> Accepted:
    """Write a pending run, or find the one that the same call made within 24 hours.

    Raises Invalid where an Idempotency-Key comes again with another body or the input does not fit the input_schema, Busy
    where the workflow's concurrency says skip. Durable once the caller's transaction commits.
    """
    if new.replay:
        db.only_one_at_a_time(connection, f"{new.replay.scope} {new.replay.key}")
    known = earlier(connection, new.replay, now=now) if new.replay else None
    if known is not None:
        return Accepted(known, duplicate=True)
    workflows.check_input(connection, new.version_id, new.input)
    moment = clock.to_text(now)
    values = (
        NOT_HELD
        | concurrency.admit(connection, new, now=now)
        | {
            "workflow_id": new.workflow_id,
            "version_id": new.version_id,
            "status": RunStatus.PENDING,
            "input": jsontext.dump(new.input),
            "metadata": jsontext.dump(new.metadata),
            "trigger_id": new.trigger_id,
            "token_id": new.token_id,
            "origin": new.origin,
            "trigger_facts": jsontext.dump(new.trigger_facts),
            "callbacks": jsontext.dump(list(new.callbacks)),
            "created_at": moment,
            "awaited": int(new.awaited),
            "rerun_of": new.rerun_of,
            **_parentage(new),
        }
    )
    run_id = int(INSERT_RUN.first(connection, values).id)
    if new.trigger_id is not None and new.rerun_of is None:
        connection.execute(COUNT_FIRED, {"fired_id": new.trigger_id, "fired_at": moment})
    if new.replay:
        _remember(connection, new.replay, run_id, moment)
    crashpoints.reach("accept-before-commit")
    return Accepted(run_id)


def _parentage(new: NewRun) -> dict[str, Any]:
    parent = new.parent
    if parent is None:
        return NO_PARENT
    stage = {"parent_stage": parent.stage, "parent_pass": parent.pass_, "parent_via": parent.via}
    return {"parent_id": parent.run_id, "depth": parent.depth, **stage}


def earlier(connection: Connection, replay: Replay, *, now: datetime) -> int | None:
    """Give the run that this call made before, None where it made none within 24 hours.

    A vendor's redelivery after a failed or stopped run makes a new one. Invalid where an Idempotency-Key comes with another body.
    """
    since = clock.to_text(now - timedelta(hours=IDEMPOTENCY_HOURS))
    row = connection.execute(EARLIER, {"of_scope": replay.scope, "of_key": replay.key, "since": since}).one_or_none()
    if row is None:
        return None
    if replay.body_hash is None:
        return None if row.status in (RunStatus.FAILED, RunStatus.STOPPED) else int(row.run_id)
    if row.body_hash != replay.body_hash:
        raise Invalid(
            f"This Idempotency-Key came with another body within the last {IDEMPOTENCY_HOURS} hours. Use a new key for a new request."
        )
    return int(row.run_id)


def _remember(connection: Connection, replay: Replay, run_id: int, moment: str) -> None:
    values = {"run_id": run_id, "body_hash": replay.body_hash, "created_at": moment}
    if not connection.execute(REPLACE_KEY, values | {"of_scope": replay.scope, "of_key": replay.key}).rowcount:
        connection.execute(INSERT_KEY, values | {"scope": replay.scope, "key": replay.key})
