"""The tables as classes: columns, types and keys only; schema.sql holds the rest and is the one truth.

Owns the status enums: a status is spelled here and nowhere else. Never creates a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Double, ForeignKey, Integer, LargeBinary, Text, literal_column
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.operators import OperatorType

# SQLite numbers rows by itself only where the column's type is spelled INTEGER; its integers have 64 bits anyway.
IDENTITY = BigInteger().with_variant(Integer(), "sqlite")


class RunStatus(StrEnum):
    """Where a run stands (DESIGN §2); the last three are terminal."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def terminal(self) -> bool:
        """Tell whether a run never leaves this status."""
        return self in TERMINAL


TERMINAL = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.STOPPED)


class StageStatus(StrEnum):
    """Where one execution of a stage stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    STOPPED = "stopped"


class DeliveryStatus(StrEnum):
    """Where a delivery stands; dead ones can be redelivered."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Reason(StrEnum):
    """Why a run or a stage failed."""

    STAGE_FAILED = "stage_failed"
    LOOKUP_FAILED = "lookup_failed"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    INTERRUPTED = "interrupted"
    LOOP_GUARD = "loop_guard"
    OUTCOME_UNKNOWN = "outcome_unknown"
    FILES_LOST = "files_lost"
    FAULT = "fault"


def _spelled(value: Any) -> Any:
    """Put a member of our enums, or a flag, into the SQL itself; everything else stays a parameter."""
    if isinstance(value, StrEnum):
        return literal_column(f"'{value.value}'", Text())
    if isinstance(value, int):
        return literal_column(str(int(value)), Integer())
    return [_spelled(each) for each in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class Status(Text):
    """A column of words. What it is compared with stands in the SQL, where it is an enum's member.

    A condition with a parameter does not imply `WHERE status = 'pending'`: a plan that PostgreSQL makes for any parameter
    passes over every partial index and reads the whole table, and SQLite plans anew for each value.
    """

    class comparator_factory(Text.Comparator[Any]):
        def operate(self, op: OperatorType, *other: Any, **options: Any) -> Any:
            return super().operate(op, *map(_spelled, other), **options)


class Flag(Integer):
    """A column of 0 and 1, compared as Status is."""

    class comparator_factory(Integer.Comparator[Any]):
        def operate(self, op: OperatorType, *other: Any, **options: Any) -> Any:
            return super().operate(op, *map(_spelled, other), **options)


class Base(DeclarativeBase):
    """What all tables share: the metadata."""


class SchemaVersion(Base):
    """The version of schema.sql that this database has: one row."""

    __tablename__ = "schema_version"
    # SQLAlchemy wants a key; the table has none and one row.
    version: Mapped[int] = mapped_column(Integer, primary_key=True)


class Instance(Base):
    """This box: one row."""

    __tablename__ = "instance"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    key_check: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    example_made_at: Mapped[str | None] = mapped_column(Text)
    workflows_folder: Mapped[str | None] = mapped_column(Text)


class Machine(Base):
    """One ORQO_DATA with workers on it."""

    __tablename__ = "machines"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    seen_at: Mapped[str] = mapped_column(Text)


class Workflow(Base):
    """A named definition."""

    __tablename__ = "workflows"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    version_id: Mapped[int | None] = mapped_column(BigInteger)
    enabled: Mapped[int] = mapped_column(Integer)
    absent: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[str] = mapped_column(Text)
    deleted_at: Mapped[str | None] = mapped_column(Text)


class WorkflowVersion(Base):
    """One text of a workflow; never changed."""

    __tablename__ = "workflow_versions"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    workflow_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("workflows.id"))
    number: Mapped[int] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(Text)
    definition: Mapped[str] = mapped_column(Text)
    concurrency: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)


class WorkflowFile(Base):
    """A file of the folder that says what workflows are, as it was read last."""

    __tablename__ = "workflow_files"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    workflow_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("workflows.id"))
    faults: Mapped[str] = mapped_column(Text)
    read_at: Mapped[str] = mapped_column(Text)


class Trigger(Base):
    """What starts a workflow from outside: a webhook or a schedule."""

    __tablename__ = "triggers"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    workflow_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("workflows.id"))
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[str | None] = mapped_column(Text, unique=True)
    nonce: Mapped[str | None] = mapped_column(Text)
    enabled: Mapped[int] = mapped_column(Integer)
    origin: Mapped[str] = mapped_column(Text)
    options: Mapped[str] = mapped_column(Text)
    rate_until: Mapped[float | None] = mapped_column(Double)
    next_fire_at: Mapped[str | None] = mapped_column(Text)
    fired_count: Mapped[int] = mapped_column(Integer)
    last_fired_at: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)


class ApiToken(Base):
    """Who may call the API."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[str] = mapped_column(Text, unique=True)
    scopes: Mapped[str] = mapped_column(Text)
    workflow_ids: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    last_used_at: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[str | None] = mapped_column(Text)
    revoked_at: Mapped[str | None] = mapped_column(Text)


class Run(Base):
    """One execution of a workflow; only runs.py writes it."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    workflow_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("workflows.id"))
    version_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("workflow_versions.id"))
    status: Mapped[str] = mapped_column(Status)
    input: Mapped[str] = mapped_column(Text)
    # `metadata` is SQLAlchemy's own name on a declarative class.
    metadata_: Mapped[str] = mapped_column("metadata", Text)
    trigger_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("triggers.id", ondelete="SET NULL"))
    token_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("api_tokens.id", ondelete="SET NULL"))
    origin: Mapped[str] = mapped_column(Text)
    rerun_of: Mapped[int | None] = mapped_column(BigInteger)
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    parent_stage: Mapped[str | None] = mapped_column(Text)
    parent_pass: Mapped[int | None] = mapped_column(Integer)
    parent_via: Mapped[str | None] = mapped_column(Text)
    depth: Mapped[int] = mapped_column(Integer)
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    concurrency_limit: Mapped[int | None] = mapped_column(Integer)
    held: Mapped[int] = mapped_column(Flag)
    trigger_facts: Mapped[str] = mapped_column(Text)
    callbacks: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    started_at: Mapped[str | None] = mapped_column(Text)
    finished_at: Mapped[str | None] = mapped_column(Text)
    wake_at: Mapped[str | None] = mapped_column(Text)
    machine: Mapped[str] = mapped_column(Text)
    awaited: Mapped[int] = mapped_column(Integer)
    running_ms: Mapped[int] = mapped_column(BigInteger)
    claims: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int] = mapped_column(BigInteger)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_boot: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[float | None] = mapped_column(Double)
    stop_requested_at: Mapped[str | None] = mapped_column(Text)
    output: Mapped[bytes | None] = mapped_column(LargeBinary)
    output_kind: Mapped[str | None] = mapped_column(Text)
    output_truncated: Mapped[int] = mapped_column(Integer)
    error_reason: Mapped[str | None] = mapped_column(Text)
    error_detail: Mapped[str | None] = mapped_column(Text)
    error_stage: Mapped[str | None] = mapped_column(Text)


class Stage(Base):
    """One execution of a stage within a run."""

    __tablename__ = "stages"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("runs.id", ondelete="CASCADE"))
    sequence: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    pass_: Mapped[int] = mapped_column("pass", Integer)
    status: Mapped[str] = mapped_column(Status)
    attempts: Mapped[int] = mapped_column(Integer)
    failures: Mapped[int] = mapped_column(Integer)
    inherited: Mapped[int] = mapped_column(Integer)
    output: Mapped[bytes | None] = mapped_column(LargeBinary)
    output_kind: Mapped[str | None] = mapped_column(Text)
    output_truncated: Mapped[int] = mapped_column(Integer)
    outcome: Mapped[str | None] = mapped_column(Text)
    error_reason: Mapped[str | None] = mapped_column(Text)
    error_detail: Mapped[str | None] = mapped_column(Text)
    exit_code: Mapped[int | None] = mapped_column(Integer)
    stderr: Mapped[bytes | None] = mapped_column(LargeBinary)
    response: Mapped[str | None] = mapped_column(Text)
    usage: Mapped[str | None] = mapped_column(Text)
    note: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[str] = mapped_column(Text)
    finished_at: Mapped[str | None] = mapped_column(Text)


class WaitStatus(StrEnum):
    """Where a wait stands."""

    OPEN = "open"
    ANSWERED = "answered"
    TIMED_OUT = "timed_out"
    CLOSED = "closed"


class Wait(Base):
    """What a waiting stage waits for."""

    __tablename__ = "waits"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("runs.id", ondelete="CASCADE"))
    stage_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("stages.id", ondelete="CASCADE"))
    stage: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Status)
    used: Mapped[int] = mapped_column(Integer)
    nonce: Mapped[str | None] = mapped_column(Text)
    token_hash: Mapped[str | None] = mapped_column(Text, unique=True)
    outcomes: Mapped[str] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    deadline_at: Mapped[str] = mapped_column(Text)
    child_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[str] = mapped_column(Text)
    answered_at: Mapped[str | None] = mapped_column(Text)
    answered_by: Mapped[str | None] = mapped_column(Text)
    answer: Mapped[str | None] = mapped_column(Text)


class Callback(Base):
    """A configured destination and its events."""

    __tablename__ = "callbacks"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    workflow_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("workflows.id"))
    trigger_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("triggers.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[str] = mapped_column(Text)
    body: Mapped[str | None] = mapped_column(Text)
    headers: Mapped[str] = mapped_column(Text)
    secret: Mapped[str | None] = mapped_column(Text)
    guarded: Mapped[int] = mapped_column(Integer)
    origin: Mapped[str] = mapped_column(Text)
    failing_since: Mapped[str | None] = mapped_column(Text)
    paused_at: Mapped[str | None] = mapped_column(Text)
    pause_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    removed_at: Mapped[str | None] = mapped_column(Text)


class Delivery(Base):
    """One event for one callback: a row of the outbox."""

    __tablename__ = "deliveries"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(Text, unique=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("runs.id", ondelete="CASCADE"))
    callback_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("callbacks.id", ondelete="SET NULL"))
    channel: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(Integer)
    event: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    headers: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    secret: Mapped[str | None] = mapped_column(Text)
    guarded: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(Status)
    attempts: Mapped[int] = mapped_column(Integer)
    retries: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[str | None] = mapped_column(Text)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_boot: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[str] = mapped_column(Text)
    finished_at: Mapped[str | None] = mapped_column(Text)


class Attempt(Base):
    """One POST of a delivery."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("deliveries.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[str] = mapped_column(Text)
    duration_ms: Mapped[int] = mapped_column(Integer)
    status_code: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    excerpt: Mapped[str | None] = mapped_column(Text)


class Verdict(StrEnum):
    """What became of a received request."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    HANDSHAKE = "handshake"
    RECEIVED = "received"
    REFUSED = "refused"


class Request(Base):
    """One call that an endpoint received."""

    __tablename__ = "requests"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    endpoint: Mapped[str] = mapped_column(Text)
    received_at: Mapped[str] = mapped_column(Text)
    trigger_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("triggers.id", ondelete="SET NULL"))
    token_id: Mapped[int | None] = mapped_column(BigInteger)
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    status_code: Mapped[int] = mapped_column(Integer)
    verdict: Mapped[str] = mapped_column(Status)
    reason: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str] = mapped_column(Text)
    remote: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(BigInteger)
    query: Mapped[str] = mapped_column(Text)
    headers: Mapped[str] = mapped_column(Text)
    hidden: Mapped[str] = mapped_column(Text)
    replay_of: Mapped[int | None] = mapped_column(BigInteger)
    webhook_id: Mapped[str | None] = mapped_column(Text, unique=True)
    event: Mapped[str | None] = mapped_column(Text)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


class IdempotencyKey(Base):
    """What was answered before, so that a replay gets the same run."""

    __tablename__ = "idempotency_keys"
    scope: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("runs.id", ondelete="CASCADE"))
    body_hash: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)


class Person(Base):
    """Who signs in to the dashboard."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    password_hash: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)


class Session(Base):
    """One browser that is signed in."""

    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    token_hash: Mapped[str] = mapped_column(Text, unique=True)
    person_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("people.id", ondelete="CASCADE"))
    agent: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(Text)
    seen_at: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[str] = mapped_column(Text)


class LoginLink(Base):
    """A link that signs one browser in, once."""

    __tablename__ = "login_links"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    token_hash: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[str] = mapped_column(Text)


class SignInFailure(Base):
    """One sign-in by password that did not succeed."""

    __tablename__ = "sign_in_failures"
    id: Mapped[int] = mapped_column(IDENTITY, primary_key=True)
    name_hash: Mapped[str] = mapped_column(Text)
    failed_at: Mapped[str] = mapped_column(Text)
