"""What the state machine is written with: the tables, the claim, and what comes in and goes out.

Owns the shapes that the modules of this package share. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Row, Table, bindparam, update

from orqo.db import Database
from orqo.definition import Definition, StageDefinition
from orqo.models import Run, RunStatus, Stage, Wait
from orqo.prepared import Writing
from orqo.workflows import Definitions

LEASE_S = 30.0
NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_boot": None, "lease_until": None}
RUNS = cast(Table, Run.__table__)
STAGES = cast(Table, Stage.__table__)
WAITS = cast(Table, Wait.__table__)
# Statements of the hot path are built once: building one costs several times what executing it does. What an UPDATE sets
# comes with the parameters, and these are what it is held to.
IS_HELD = (RUNS.c.id == bindparam("held_id"), RUNS.c.fence == bindparam("held_fence"), RUNS.c.status == RunStatus.RUNNING)
CHANGE_HELD = Writing(update(RUNS).where(*IS_HELD).returning(RUNS.c.stop_requested_at))


class LeaseLost(Exception):
    """The run is no longer this worker's: somebody else has it, or it has ended."""


@dataclass(frozen=True)
class Replay:
    """What makes a call the same as an earlier one: `body_hash` None means whatever the body (a vendor's id)."""

    scope: str
    key: str
    body_hash: str | None


@dataclass(frozen=True)
class Parent:
    """The stage execution that starts a run: as its own work, or by `routing`. `depth` is the new run's."""

    run_id: int
    stage: str
    pass_: int
    via: str
    depth: int


@dataclass(frozen=True)
class NewRun:
    """What is accepted. `callbacks` are the request's own, as `callbacks.requested` gives them.

    `awaited`: whoever asked for the run waits for its end, so its worker tells of it.
    """

    workflow_id: int
    version_id: int
    origin: str
    input: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    trigger_id: int | None = None
    token_id: int | None = None
    trigger_facts: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Mapping[str, Any]] = ()
    replay: Replay | None = None
    rerun_of: int | None = None
    parent: Parent | None = None
    awaited: bool = False


@dataclass(frozen=True)
class Accepted:
    """The answer to an accept: the run, and whether it was there before."""

    run_id: int
    duplicate: bool = False


@dataclass(frozen=True)
class StageEnd:
    """What an attempt of a stage came to, as it is recorded; already masked. `error_reason` None: it completed.

    `has_files` tells whether the run's folder holds anything now; None of a stage that has nothing to do with it.
    """

    output: bytes | None = None
    output_kind: str | None = None
    truncated: bool = False
    outcome: str | None = None
    error_reason: str | None = None
    error_detail: str | None = None
    exit_code: int | None = None
    stderr: bytes | None = None
    response: Mapping[str, Any] | None = None
    usage: Mapping[str, int] | None = None
    note: str | None = None
    has_files: bool | None = None


@dataclass(frozen=True)
class WaitEnd:
    """What ended a stage's wait: `completed`, `failed` or `stopped` by an answer or a child's end, or `timed_out`."""

    status: str
    output: Any = None
    truncated: bool = False
    outcome: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Output:
    """A run's result: bytes and how to read them."""

    data: bytes | None
    kind: str | None
    truncated: bool = False


@dataclass(frozen=True)
class Box:
    """What the state machine knows of this box. Without its `key` no wait can be opened, and no token of one be told.

    `machine` is where run folders lie for this process; empty: nowhere, and it claims nothing that is bound.
    """

    database: Database
    definitions: Definitions
    base_url: str
    key: bytes = field(default=b"", repr=False)
    machine: str = ""


@dataclass(frozen=True)
class Claim:
    """What a worker holds: a running run, its definition, the stage execution to work on and those before it.

    `ended` is what ended the stage's wait, where it has waited. Until `leased_until`, by this machine's own boot clock and
    whatever clock the database has, nobody else can have taken the run over. `went_on` says that a stage was passed under
    this claim, so that the workers which were lost before no longer count. `others`: more runs waited to be claimed then,
    `others_here`: and some by this machine alone.
    """

    run: Row[Any]
    definition: Definition
    stage: StageDefinition
    stage_row: Row[Any]
    history: tuple[Row[Any], ...]
    leased_until: float
    ended: WaitEnd | None = None
    went_on: bool = False
    others: bool = False
    others_here: bool = False

    @property
    def held(self) -> dict[str, int]:
        """The parameters of `IS_HELD`: the condition that every write under this claim carries."""
        return {"held_id": self.run.id, "held_fence": self.run.fence}
