"""Accept: a run becomes durable, once for each idempotency key.

Owns the table idempotency_keys.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from orqo import clock, crashpoints, db, jsontext, workflows
from orqo.errors import Invalid
from orqo.models import IdempotencyKey, Run, RunStatus, Trigger
from orqo.runs import concurrency
from orqo.runs.state import RUNS, Accepted, NewRun, Replay

IDEMPOTENCY_HOURS = 24


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
    values = concurrency.admit(connection, new, now=now) | {
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
    run_id = connection.execute(insert(RUNS).values(values).returning(RUNS.c.id)).scalar_one()
    if new.trigger_id is not None and new.rerun_of is None:
        fired = {"fired_count": Trigger.fired_count + 1, "last_fired_at": moment}
        connection.execute(update(Trigger).where(Trigger.id == new.trigger_id).values(fired))
    if new.replay:
        _remember(connection, new.replay, run_id, moment)
    crashpoints.reach("accept-before-commit")
    return Accepted(run_id)


def _parentage(new: NewRun) -> dict[str, Any]:
    parent = new.parent
    if parent is None:
        return {}
    stage = {"parent_stage": parent.stage, "parent_pass": parent.pass_, "parent_via": parent.via}
    return {"parent_id": parent.run_id, "depth": parent.depth, **stage}


def earlier(connection: Connection, replay: Replay, *, now: datetime) -> int | None:
    """Give the run that this call made before, None where it made none within 24 hours.

    A vendor's redelivery after a failed or stopped run makes a new one. Invalid where an Idempotency-Key comes with another body.
    """
    same = (IdempotencyKey.scope == replay.scope, IdempotencyKey.key == replay.key)
    query = select(IdempotencyKey.run_id, IdempotencyKey.body_hash, Run.status).join(Run, Run.id == IdempotencyKey.run_id)
    fresh = IdempotencyKey.created_at > clock.to_text(now - timedelta(hours=IDEMPOTENCY_HOURS))
    row = connection.execute(query.where(*same, fresh)).one_or_none()
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
    same = (IdempotencyKey.scope == replay.scope, IdempotencyKey.key == replay.key)
    if not connection.execute(update(IdempotencyKey).where(*same).values(values)).rowcount:
        connection.execute(insert(IdempotencyKey).values(values | {"scope": replay.scope, "key": replay.key}))
