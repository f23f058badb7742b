"""What a run does next, as pure decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqo import flow, stages
from orqo.definition import Definition, Retry, StageDefinition
from orqo.models import RunStatus

FAILED = flow.Failure("stage_failed", "it broke")


def make_stage(name: str, **changes: Any) -> StageDefinition:
    return dataclasses.replace(StageDefinition(name=name, kind="stub", spec={}), **changes)


def make_definition(*changed: StageDefinition) -> Definition:
    """Give the definition of stages a, b, c, some of them changed."""
    named = {stage.name: stage for stage in changed}
    return Definition(id=None, name="w", stages=tuple(named.get(name, make_stage(name)) for name in "abc"))


def after(
    definition: Definition, name: str, failure: flow.Failure | None, *, failures: int = 1, reentries: dict[str, int] | None = None
) -> flow.Step:
    stage = flow.stage_named(definition, name)
    assert stage is not None
    return flow.after(definition, stage, failure, failures=failures, reentries=reentries or {})


def test_a_completed_stage_leads_to_the_next_and_the_last_to_the_good_end() -> None:
    definition = make_definition()

    assert after(definition, "a", None) == flow.Enter(definition.stages[1])
    assert after(definition, "c", None) == flow.End(RunStatus.COMPLETED)


def test_a_failed_stage_ends_the_run_and_names_itself() -> None:
    assert after(make_definition(), "b", FAILED) == flow.End(RunStatus.FAILED, flow.RunError("stage_failed", "it broke", "b"))


def test_on_error_next_goes_on_and_after_the_last_the_run_is_completed() -> None:
    definition = make_definition(make_stage("b", on_error="next"), make_stage("c", on_error="next"))

    assert after(definition, "b", FAILED) == flow.Enter(definition.stages[2])
    assert after(definition, "c", FAILED) == flow.End(RunStatus.COMPLETED)


def test_on_error_with_a_name_goes_there_forward_and_back() -> None:
    definition = make_definition(make_stage("a", on_error="c"), make_stage("c", on_error="a"))

    assert after(definition, "a", FAILED) == flow.Enter(definition.stages[2])
    assert after(definition, "c", FAILED, reentries={"a": 1}) == flow.Enter(definition.stages[0])


def test_going_back_is_limited_to_three_times_and_then_goes_forward_with_a_note() -> None:
    definition = make_definition(make_stage("b", on_error="a"))

    steps = [after(definition, "b", FAILED, reentries={"a": times}) for times in range(4)]

    assert steps[:3] == [flow.Enter(definition.stages[0])] * 3
    assert isinstance(steps[3], flow.Enter)
    assert steps[3].stage == definition.stages[2]
    assert "loop guard" in str(steps[3].note)


def test_on_error_to_a_stage_that_an_old_version_lacks_fails_the_run() -> None:
    assert isinstance(after(make_definition(make_stage("a", on_error="gone")), "a", FAILED), flow.End)


@pytest.mark.parametrize(("failures", "delay_s"), [(1, 5), (2, 10), (3, 20), (7, 300), (99, 300)])
def test_the_delay_doubles_up_to_five_minutes(failures: int, delay_s: float) -> None:
    definition = make_definition(make_stage("a", retry=Retry(attempts=100, delay_s=5)))

    assert after(definition, "a", FAILED, failures=failures) == flow.Retry(delay_s)


def test_attempts_count_the_first() -> None:
    definition = make_definition(make_stage("a", retry=Retry(attempts=2, delay_s=1)))

    assert after(definition, "a", FAILED, failures=1) == flow.Retry(1)
    assert isinstance(after(definition, "a", FAILED, failures=2), flow.End)


def test_what_must_not_be_tried_again_is_not() -> None:
    definition = make_definition(make_stage("a", retry=Retry(attempts=5)))

    assert isinstance(after(definition, "a", dataclasses.replace(FAILED, retryable=False)), flow.End)


@pytest.mark.parametrize(("asked_s", "delay_s"), [(None, 5), (2, 5), (60, 60), (9999, 300)])
def test_the_other_side_can_ask_for_a_longer_delay_within_bounds(asked_s: float | None, delay_s: float) -> None:
    definition = make_definition(make_stage("a", retry=Retry(attempts=2, delay_s=5)))

    assert after(definition, "a", dataclasses.replace(FAILED, retry_after_s=asked_s)) == flow.Retry(delay_s)


REPEATABLE = [
    ("command", ["x"], False, False),
    ("script", "x", False, False),
    ("command", ["x"], True, True),
    ("stub", {}, False, True),
    ("http", {"url": "x"}, False, True),
    ("http", {"method": "get"}, False, True),
    ("http", {"method": "HEAD"}, False, True),
    ("http", {"method": "POST"}, False, False),
    ("http", {"method": "delete"}, False, False),
    ("http", {"method": "POST"}, True, True),
    ("prompt", {}, False, True),
    ("delay", "1s", False, True),
    ("approval", {}, False, True),
    ("wait", {}, False, True),
    ("workflow", {}, False, True),
]


@pytest.mark.parametrize(("kind", "spec", "idempotent", "expected"), REPEATABLE)
def test_reads_and_what_says_so_are_repeated_after_a_crash(kind: str, spec: Any, idempotent: bool, expected: bool) -> None:
    assert flow.repeatable(make_stage("a", kind=kind, spec=spec, idempotent=idempotent)) is expected


def test_executor_and_stages_agree_on_every_kind() -> None:
    assert {kind for kind, *_ in REPEATABLE} == set(stages.KINDS)


@given(
    on_error=st.lists(st.sampled_from(["fail", "next", "a", "b", "c"]), min_size=3, max_size=3),
    fails=st.lists(st.booleans(), min_size=400, max_size=400),
    attempts=st.integers(1, 4),
)
def test_no_definition_makes_a_run_go_round_for_ever(on_error: list[str], fails: list[bool], attempts: int) -> None:
    changed = [make_stage(name, on_error=to, retry=Retry(attempts=attempts)) for name, to in zip("abc", on_error, strict=True)]
    definition, entered = make_definition(*changed), ["a"]
    stage, failures = definition.stages[0], 0

    for failed in fails:
        failures += failed
        back = flow.reentries(definition, entered)
        step = flow.after(definition, stage, FAILED if failed else None, failures=failures, reentries=back)
        if isinstance(step, flow.End):
            return
        if isinstance(step, flow.Enter):
            stage, failures = step.stage, 0
            entered.append(stage.name)
    raise AssertionError("the run never ended")
