"""Triggers: webhooks, found by their token, and schedules; made and changed.

Owns the table triggers. The token of a trigger is derived from its nonce and the instance key, unless a file pins it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from orqo import clock, cron, jsontext, tokens
from orqo.db import Database
from orqo.definition import TriggerDefinition
from orqo.errors import Conflict, Fault, Invalid, NotFound
from orqo.models import Trigger, Workflow
from orqo.prepared import Prepared
from orqo.webhook import Rate

NAME = re.compile(r"[a-z0-9_-]{1,64}")
UNKNOWN = "There is no such webhook. Copy the URL again from the workflow's Runs & Triggers tab."
ROWS = Trigger.__table__
FOUND = (
    select(ROWS, Workflow.name.label("workflow_name"), Workflow.enabled.label("workflow_enabled"), Workflow.version_id)
    .join(Workflow, Workflow.id == Trigger.workflow_id)
    .where(Workflow.deleted_at.is_(None))
)
BY_DIGEST = Prepared(FOUND.where(Trigger.token_hash == bindparam("digest")))
BY_ID = Prepared(FOUND.where(Trigger.id == bindparam("trigger_id")))
# Beside its options: the trigger has left its file. It keeps them, for whoever enables it must not open it to unsigned calls.
ABSENT = "absent"
SCHEDULE = "schedule"


def find(connection: Connection, token: str) -> Row[Any] | None:
    """Give the trigger and its workflow that a URL's token belongs to, None where there is none.

    The row holds the trigger's columns and `workflow_name, workflow_enabled, version_id`.
    """
    if not tokens.WEBHOOK_TOKEN.fullmatch(token):
        return None
    found: Row[Any] | None = BY_DIGEST.first(connection, {"digest": tokens.digest(token)})
    return found


def look_up(database: Database, token: str) -> Row[Any] | None:
    """Do the same without a transaction around it."""
    if not tokens.WEBHOOK_TOKEN.fullmatch(token):
        return None
    found: Row[Any] | None = database.look(BY_DIGEST, {"digest": tokens.digest(token)})
    return found


def find_by_id(connection: Connection, trigger_id: int) -> Row[Any] | None:
    """Give the same row by the trigger's id."""
    found: Row[Any] | None = BY_ID.first(connection, {"trigger_id": trigger_id})
    return found


def token_of(row: Row[Any], key: bytes) -> str | None:
    """Give the token of a trigger's URL, None where it is pinned in a file and so not known here."""
    return tokens.webhook_token(key, row.nonce) if row.nonce else None


def url_of(row: Row[Any], key: bytes, base_url: str) -> str | None:
    """Give the full URL of a webhook, None where its token is pinned in a file."""
    token = token_of(row, key)
    return f"{base_url}/api/v1/hooks/{token}" if token else None


def create(
    connection: Connection,
    *,
    workflow_id: int,
    name: str,
    key: bytes,
    origin: str,
    now: datetime,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Make a trigger and give its id. Invalid for an unusable name, Conflict for one that is taken.

    `options` are in the stored form, as `definition.parse_trigger` and `parse_schedule` give them; those with a `schedule`
    make one.
    """
    _check_name(connection, workflow_id, name)
    token = {} if options and SCHEDULE in options else _fresh(key)
    return _insert(connection, workflow_id, name, origin, now, token, options or {})


def _check_name(connection: Connection, workflow_id: int, name: str) -> None:
    if not NAME.fullmatch(name):
        detail = "The trigger cannot have this name: give 1 to 64 of a-z, 0-9, - and _."
        raise Invalid(detail, errors=[Fault("/name", "must be 1 to 64 of a-z, 0-9, - and _")])
    if connection.execute(select(Trigger.id).where(Trigger.workflow_id == workflow_id, Trigger.name == name)).scalar():
        raise Conflict(f"The workflow has a trigger {name} already; choose another name.")


def _fresh(key: bytes) -> dict[str, Any]:
    nonce = tokens.mint_nonce()
    return {"nonce": nonce, "token_hash": tokens.digest(tokens.webhook_token(key, nonce))}


def _insert(
    connection: Connection, workflow_id: int, name: str, origin: str, now: datetime, token: dict[str, Any], options: Mapping[str, Any]
) -> int:
    values = {"workflow_id": workflow_id, "name": name, "kind": _kind(options), "origin": origin, "created_at": clock.to_text(now)}
    values |= {"options": jsontext.dump(dict(options)), "next_fire_at": next_fire(options, now=now)}
    return int(connection.execute(insert(Trigger).values(values | token).returning(Trigger.id)).scalar_one())


def _kind(options: Mapping[str, Any]) -> str:
    return "schedule" if SCHEDULE in options else "webhook"


def next_fire(options: Mapping[str, Any], *, now: datetime) -> str | None:
    """Give when a schedule fires next, as it is stored; None for a webhook."""
    moment = cron.next_time(options[SCHEDULE], options["timezone"], after=now) if SCHEDULE in options else None
    return clock.to_text(moment) if moment else None


def configure(
    connection: Connection, *, workflow_id: int, wanted: Sequence[TriggerDefinition], key: bytes, now: datetime
) -> dict[str, int]:
    """Make a workflow's triggers that come from its file exactly the wanted ones; gives their ids by name.

    A token once made never changes by applying; a trigger that left the file is disabled, not deleted, so that putting
    it back gives the same URL again. Raises Conflict where a name is taken by a trigger made elsewhere.
    """
    rows = connection.execute(select(ROWS).where(Trigger.workflow_id == workflow_id)).all()
    existing = {row.name: row for row in rows}
    ids = {trigger.name: _configured(connection, workflow_id, trigger, existing.get(trigger.name), key, now) for trigger in wanted}
    for row in rows:
        if row.origin == "file" and row.name not in ids:
            options = jsontext.dump(json.loads(row.options) | {ABSENT: True})
            connection.execute(update(Trigger).where(Trigger.id == row.id).values(enabled=0, options=options))
    return ids


def _configured(
    connection: Connection, workflow_id: int, wanted: TriggerDefinition, row: Row[Any] | None, key: bytes, now: datetime
) -> int:
    pinned = {"nonce": None, "token_hash": wanted.token_hash} if wanted.token_hash else None
    if wanted.token_hash:
        _refuse_taken(connection, wanted, row)
    scheduled = SCHEDULE in wanted.options
    if row is None:
        return _insert(connection, workflow_id, wanted.name, "file", now, {} if scheduled else pinned or _fresh(key), wanted.options)
    if row.origin != "file":
        raise Conflict(f"The workflow has a trigger {wanted.name} that was made by {row.origin}; rename it in the file or delete that one.")
    changes: dict[str, Any] = {}
    if pinned and row.token_hash != wanted.token_hash:
        changes |= pinned
    elif not pinned and not scheduled and row.nonce is None:
        changes |= _fresh(key)
    if row.kind != _kind(wanted.options):
        # A URL that was a webhook's is not to start what a schedule does.
        changes |= {"kind": _kind(wanted.options)} | ({"token_hash": None, "nonce": None} if scheduled else {})
    if ABSENT in json.loads(row.options):
        # It was disabled by leaving the file; one that a person disabled stays so.
        changes |= {"enabled": 1, "next_fire_at": next_fire(wanted.options, now=now)}
    if row.options != (options := jsontext.dump(wanted.options)):
        changes |= {"options": options, "next_fire_at": next_fire(wanted.options, now=now)}
    if changes:
        connection.execute(update(Trigger).where(Trigger.id == row.id).values(changes))
    return int(row.id)


def _refuse_taken(connection: Connection, wanted: TriggerDefinition, row: Row[Any] | None) -> None:
    holder = connection.execute(select(Trigger.id).where(Trigger.token_hash == wanted.token_hash)).scalar()
    if holder is not None and (row is None or holder != row.id):
        raise Invalid(
            f"The token of trigger {wanted.name} belongs to another trigger already; pin another.",
            errors=[Fault("/triggers", "this token is in use")],
        )


def get(connection: Connection, trigger_id: int) -> Row[Any]:
    """Give a trigger's row with `workflow_name`; NotFound where there is none."""
    columns = (ROWS, Workflow.name.label("workflow_name"))
    joined = select(*columns).join(Workflow, Workflow.id == Trigger.workflow_id)
    row = connection.execute(joined.where(Trigger.id == trigger_id, Workflow.deleted_at.is_(None))).one_or_none()
    if row is None:
        raise NotFound(f"There is no trigger {trigger_id}. List them with: trigger list")
    return row


def list_all(connection: Connection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Give each trigger without its token, by workflow and name."""
    columns = (ROWS, Workflow.name.label("workflow_name"))
    joined = select(*columns).join(Workflow, Workflow.id == Trigger.workflow_id).where(Workflow.deleted_at.is_(None))
    return [shown(row) for row in connection.execute(joined.order_by(Workflow.name, Trigger.name).limit(limit))]


def shown(row: Row[Any]) -> dict[str, Any]:
    """Give the JSON of a trigger without its token; `pinned` says that a file holds the token."""
    return {
        "id": row.id,
        "workflow_id": row.workflow_id,
        "workflow": row.workflow_name,
        "name": row.name,
        "kind": row.kind,
        "enabled": bool(row.enabled),
        "pinned": row.kind == "webhook" and row.nonce is None,
        "origin": row.origin,
        "options": {key: value for key, value in json.loads(row.options).items() if key != ABSENT},
        "fired_count": row.fired_count,
        "last_fired_at": row.last_fired_at,
        "created_at": row.created_at,
        **({"next_fire_at": row.next_fire_at} if row.kind == "schedule" else {}),
    }


def set_enabled(connection: Connection, trigger_id: int, *, enabled: bool) -> None:
    """Let a trigger fire, or answer 409 from now on. NotFound where there is none.

    A schedule goes on with the first time after it is enabled: what it missed meanwhile was not wanted.
    """
    get(connection, trigger_id)
    connection.execute(update(Trigger).where(Trigger.id == trigger_id).values(enabled=int(enabled), next_fire_at=None))


def rename(connection: Connection, trigger_id: int, *, name: str) -> None:
    """Give a trigger another name. Conflict for one that is taken, and where a file names the trigger; Invalid for an unusable name."""
    row = get(connection, trigger_id)
    if row.name == name:
        return
    if row.origin == "file":
        raise Conflict(f"Trigger {trigger_id} has its name from the workflow's file: change it there and apply the file.")
    _check_name(connection, row.workflow_id, name)
    connection.execute(update(Trigger).where(Trigger.id == trigger_id).values(name=name))


def set_options(connection: Connection, trigger_id: int, *, options: Mapping[str, Any]) -> None:
    """Replace what a webhook asks of its requests. Conflict where a file says it, NotFound where there is none."""
    row = get(connection, trigger_id)
    if row.origin == "file":
        raise Conflict(f"Trigger {trigger_id} comes from the workflow's file: change it there and apply the file.")
    if row.kind != _kind(options):
        raise Conflict(f"Trigger {trigger_id} is a {row.kind}: it cannot become a {_kind(options)}. Make another trigger.")
    changed = {"options": jsontext.dump(dict(options)), "next_fire_at": None}
    connection.execute(update(Trigger).where(Trigger.id == trigger_id).values(changed))


def take_turn(connection: Connection, trigger_id: int, rate: Rate, *, now: datetime) -> int | None:
    """Count one request against a trigger's rate; None where it is within, else the seconds after which the next one is.

    The generic cell rate algorithm: one number a trigger, the same for all web processes. A refused request counts nothing.
    """
    seconds = now.timestamp()
    until = connection.execute(select(ROWS.c.rate_until).where(Trigger.id == trigger_id).with_for_update()).scalar_one()
    # A clock that was set back must not shut the trigger for longer than its rate says.
    spread = min(max(until or 0.0, seconds), seconds + rate.per_s) + rate.per_s / rate.count
    over_s = spread - seconds - rate.per_s
    if over_s > 1e-6:
        return max(1, math.ceil(over_s))
    connection.execute(update(Trigger).where(Trigger.id == trigger_id).values(rate_until=spread))
    return None


def rotate(connection: Connection, trigger_id: int, *, key: bytes) -> None:
    """Give a trigger a new token; the old URL is unknown from now on. Conflict where a file pins the token."""
    row = get(connection, trigger_id)
    if row.kind == "schedule":
        raise Conflict(f"Trigger {trigger_id} is a schedule: it has no URL.")
    if row.nonce is None:
        raise Conflict(f"The token of trigger {trigger_id} is pinned in the workflow's file: change it there and apply the file.")
    connection.execute(update(Trigger).where(Trigger.id == trigger_id).values(_fresh(key)))


def remove(connection: Connection, trigger_id: int) -> None:
    """Delete a trigger with its callbacks; its runs stay. NotFound where there is none."""
    get(connection, trigger_id)
    connection.execute(delete(Trigger).where(Trigger.id == trigger_id))
