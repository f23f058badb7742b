"""What a run does next: pure decisions on a definition and what has happened so far.

Owns retries, `on_error` and the way from a stage to the next. Reads nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orqo.definition import Definition, StageDefinition
from orqo.models import Reason, RunStatus

RETRY_DELAY_MAX_S = 300.0
LOOP_LIMIT = 3
READING_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class RunError:
    """Why a run failed: a reason of the enum, a sentence, and the stage where it happened."""

    reason: str
    detail: str
    stage: str | None = None


@dataclass(frozen=True)
class Failure:
    """What is asked of a failed attempt: may it be tried again, and not before when."""

    reason: str
    detail: str
    retryable: bool = True
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Retry:
    """Execute the same stage once more after a pause."""

    after_s: float


@dataclass(frozen=True)
class Enter:
    """Go on with this stage."""

    stage: StageDefinition


@dataclass(frozen=True)
class End:
    """The run is over; `error` is set for failed runs alone."""

    status: RunStatus
    error: RunError | None = None


Step = Retry | Enter | End


def stage_named(definition: Definition, name: str) -> StageDefinition | None:
    """Give the stage of this name, None where the definition has none."""
    return next((stage for stage in definition.stages if stage.name == name), None)


def following(definition: Definition, stage: StageDefinition) -> Step:
    """Give the stage after this one in the file's order, or the run's good end."""
    index = definition.stages.index(stage) + 1
    return Enter(definition.stages[index]) if index < len(definition.stages) else End(RunStatus.COMPLETED)


def after(definition: Definition, stage: StageDefinition, failure: Failure | None, *, failures: int, passes: Mapping[str, int]) -> Step:
    """Decide what follows an attempt of a stage.

    `failures` counts the failed attempts of this execution, this one included; `passes` says how often each stage was
    entered in this run.
    """
    if failure is None:
        return following(definition, stage)
    if failure.retryable and failures < stage.retry.attempts:
        return Retry(_retry_delay_s(stage, failure, failures))
    if stage.on_error == "next":
        return following(definition, stage)
    target = stage_named(definition, stage.on_error)
    if target is None:
        return End(RunStatus.FAILED, RunError(failure.reason, failure.detail, stage.name))
    # Back to an earlier stage: past the limit the run goes forward instead, so that no file can make it go round for ever.
    if definition.stages.index(target) <= definition.stages.index(stage) and passes.get(target.name, 0) > LOOP_LIMIT:
        return following(definition, stage)
    return Enter(target)


def _retry_delay_s(stage: StageDefinition, failure: Failure, failures: int) -> float:
    """Double the delay with each failure up to five minutes; wait longer where the other side asked for it."""
    delay_s = min(stage.retry.delay_s * 2.0 ** min(failures - 1, 20), RETRY_DELAY_MAX_S)
    return max(delay_s, min(failure.retry_after_s or 0.0, RETRY_DELAY_MAX_S))


def interrupted(stage: str) -> RunError:
    """Give the error of a run whose stage may have had its effect when its worker was lost."""
    detail = (
        f"The worker was lost while stage {stage} was executing: outcome unknown. "
        "It is not repeated, for it may have had its effect; say idempotent: true where repeating does no harm."
    )
    return RunError(Reason.INTERRUPTED, detail, stage)


def repeatable(stage: StageDefinition) -> bool:
    """Tell whether a stage may be executed again after a crash that left its outcome unknown (DESIGN §5.4)."""
    if stage.idempotent or stage.kind == "stub":
        return True
    return stage.kind == "http" and str(stage.spec.get("method", "GET")).upper() in READING_METHODS
