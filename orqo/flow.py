"""What a run does next: pure decisions on a definition and what has happened so far.

Owns retries, `on_error`, routing with its loop guard, and the way past skipped stages. Reads nothing and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from orqo import facts, match
from orqo.definition import Definition, StageDefinition
from orqo.lookup import LookupFailed
from orqo.models import Reason, RunStatus

RETRY_DELAY_MAX_S = 300.0
NO_OUTCOME = "It ended with none of its outcomes, so the run went on with the next stage."
WAITING_KINDS = ("delay", "approval", "wait", "workflow")
KINDS_WITH_FILES = ("command", "script")
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
    """Go on with this stage. `note` is for the record of the stage that ended: why it did not lead where it wanted to."""

    stage: StageDefinition
    note: str | None = None


@dataclass(frozen=True)
class End:
    """The run is over; `error` is set for failed runs alone, `note` as in Enter.

    `starts` names the workflow that is started in this run's place, with the last stage's output as its input.
    """

    status: RunStatus
    error: RunError | None = None
    note: str | None = None
    starts: str | None = None


Step = Retry | Enter | End


def stage_named(definition: Definition, name: str) -> StageDefinition | None:
    """Give the stage of this name, None where the definition has none."""
    return next((stage for stage in definition.stages if stage.name == name), None)


def following(definition: Definition, stage: StageDefinition) -> Enter | End:
    """Give the stage after this one in the file's order, or the run's good end."""
    index = definition.stages.index(stage) + 1
    return Enter(definition.stages[index]) if index < len(definition.stages) else End(RunStatus.COMPLETED)


def after(
    definition: Definition,
    stage: StageDefinition,
    failure: Failure | None,
    *,
    outcome: str | None = None,
    failures: int,
    reentries: Mapping[str, int],
) -> Step:
    """Decide what follows an attempt of a stage.

    `failures` counts the failed attempts of this execution, this one included; `reentries` says how often each stage was
    entered by going back, as `reentries` counts it.
    """
    if failure is None:
        return _routed(definition, stage, outcome, reentries)
    if failure.retryable and failures < stage.retry.attempts:
        return Retry(_retry_delay_s(stage, failure, failures))
    if stage.on_error == "next":
        return following(definition, stage)
    target = stage_named(definition, stage.on_error)
    if target is None:
        return End(RunStatus.FAILED, RunError(failure.reason, failure.detail, stage.name))
    return _toward(definition, stage, target, reentries)


def _routed(definition: Definition, stage: StageDefinition, outcome: str | None, reentries: Mapping[str, int]) -> Step:
    """Follow a completed stage's outcome: to a stage, to the end, to another workflow; else to the next stage."""
    route = None if outcome is None else stage.routing.get(outcome)
    if route is None:
        step = following(definition, stage)
        return replace(step, note=NO_OUTCOME) if stage.outcomes and outcome is None else step
    if isinstance(route, Mapping):
        return End(RunStatus.COMPLETED, starts=str(route["workflow"]))
    if route == "end":
        return End(RunStatus.COMPLETED)
    target = stage_named(definition, route)
    if target is None:
        detail = f"The definition does not hold the stage {route}, to which {outcome} leads."
        return End(RunStatus.FAILED, RunError(Reason.FAULT, detail, stage.name))
    return _toward(definition, stage, target, reentries)


def _toward(definition: Definition, stage: StageDefinition, target: StageDefinition, reentries: Mapping[str, int]) -> Enter | End:
    """Enter a stage, unless that is going back once too often: then the run goes forward (ORQO's rule) or fails."""
    guard, back = definition.loop_guard, definition.stages.index(target) <= definition.stages.index(stage)
    if not back or reentries.get(target.name, 0) < guard.limit:
        return Enter(target)
    told = f"loop guard: stage {target.name} was gone back to {guard.limit} times already"
    if guard.then == "fail":
        detail = f"The {told}, and stage {stage.name} leads there once more."
        return End(RunStatus.FAILED, RunError(Reason.LOOP_GUARD, detail, stage.name))
    step = following(definition, stage)
    way = f"with stage {step.stage.name}" if isinstance(step, Enter) else "to its end"
    return replace(step, note=f"The {told}, so the run went on {way}.")


def reentries(definition: Definition, entered: Sequence[str]) -> Counter[str]:
    """Count how often each stage was entered by going back; `entered` are the names of all executions, oldest first."""
    position = {stage.name: index for index, stage in enumerate(definition.stages)}
    known = [name for name in entered if name in position]
    return Counter(name for before, name in pairwise(known) if position[name] <= position[before])


def unlisted(stage: StageDefinition, outcome: str | None) -> str | None:
    """Say why a label cannot be the outcome of a stage that lists its outcomes; None where it can. Labels are case-sensitive."""
    if outcome is None or not stage.outcomes or outcome in stage.outcomes:
        return None
    return f"the stage ended with the outcome {outcome[:64]!r}, which is none of {', '.join(stage.outcomes)}"


@dataclass(frozen=True)
class Skipped:
    """A stage whose `when` did not hold, and what of it did not."""

    stage: StageDefinition
    reason: str


def past_skipped(definition: Definition, step: Enter | End, roots: Mapping[str, Any]) -> tuple[tuple[Skipped, ...], Enter | End]:
    """Go on past every stage whose `when` does not hold; gives those, in order, and the step that remains.

    `roots` are those of `facts.roots`, the stage that ended just now included; each skipped stage is seen by the next.
    """
    skipped: list[Skipped] = []
    stages = dict(roots["stages"])
    while isinstance(step, Enter) and step.stage.when is not None:
        name = step.stage.name
        try:
            reason = match.explain(step.stage.when, {**roots, "stages": stages})
        except LookupFailed as fault:
            detail = f"The `when` of stage {name} cannot be looked at: {fault.detail}."
            return tuple(skipped), End(RunStatus.FAILED, RunError(Reason.LOOKUP_FAILED, detail, name))
        if reason is None:
            break
        skipped.append(Skipped(step.stage, reason))
        stages[name] = facts.skipped_root(name)
        step = replace(following(definition, step.stage), note=step.note)
    return tuple(skipped), step


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
    if stage.idempotent or stage.kind in ("stub", "prompt", *WAITING_KINDS):
        return True
    return stage.kind == "http" and str(stage.spec.get("method", "GET")).upper() in READING_METHODS
