"""What a run does next, as pure decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqo import facts, flow, stages
from orqo.definition import Definition, LoopGuard, Retry, StageDefinition
from orqo.lookup import Unreadable
from orqo.models import RunStatus

FAILED = flow.Failure("stage_failed", "it broke")


def make_stage(name: str, **changes: Any) -> StageDefinition:
    return dataclasses.replace(StageDefinition(name=name, kind="stub", spec={}), **changes)


def make_definition(*changed: StageDefinition, **head: Any) -> Definition:
    """Give the definition of stages a, b, c, some of them changed."""
    named = {stage.name: stage for stage in changed}
    return Definition(id=None, name="w", stages=tuple(named.get(name, make_stage(name)) for name in "abc"), **head)


def after(definition: Definition, name: str, failure: flow.Failure | None = None, **changes: Any) -> flow.Step:
    stage = flow.stage_named(definition, name)
    assert stage is not None
    return flow.after(definition, stage, failure, **({"failures": 1, "reentries": {}} | changes))


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


# ── outcomes and routing ────────────────────────────────────────────────────────────────────────────────────────────


def deciding(name: str, *outcomes: str, **routing: Any) -> StageDefinition:
    return make_stage(name, outcomes=outcomes, routing=routing)


def test_an_outcome_leads_where_its_route_says() -> None:
    definition = make_definition(deciding("b", "back", "over", "away", "plain", back="a", over="end", away={"workflow": "other"}))
    a, _, c = definition.stages

    assert after(definition, "b", outcome="back") == flow.Enter(a)
    assert after(definition, "b", outcome="over") == flow.End(RunStatus.COMPLETED)
    assert after(definition, "b", outcome="away") == flow.End(RunStatus.COMPLETED, starts="other")
    assert after(definition, "b", outcome="plain") == flow.Enter(c)


def test_a_label_counts_in_its_own_case_only() -> None:
    definition = make_definition(deciding("a", "Done", "done", Done="end"))

    assert after(definition, "a", outcome="done") == flow.Enter(definition.stages[1])
    assert after(definition, "a", outcome="Done") == flow.End(RunStatus.COMPLETED)


def test_a_stage_may_lead_to_itself_and_is_guarded_too() -> None:
    definition = make_definition(deciding("a", "again", again="a"))

    assert after(definition, "a", outcome="again", reentries={"a": 2}) == flow.Enter(definition.stages[0])
    assert after(definition, "a", outcome="again", reentries={"a": 3}) == flow.Enter(
        definition.stages[1], "The loop guard: stage a was gone back to 3 times already, so the run went on with stage b."
    )


def test_going_forward_is_never_guarded() -> None:
    definition = make_definition(deciding("a", "x", x="c"))

    assert after(definition, "a", outcome="x", reentries={"c": 99}) == flow.Enter(definition.stages[2])


def test_the_guard_of_the_last_stage_ends_the_run() -> None:
    definition = make_definition(deciding("c", "x", x="a"), loop_guard=LoopGuard(limit=0))

    step = after(definition, "c", outcome="x")

    assert step == flow.End(
        RunStatus.COMPLETED, note="The loop guard: stage a was gone back to 0 times already, so the run went on to its end."
    )


def test_the_guard_can_fail_the_run() -> None:
    definition = make_definition(deciding("b", "x", x="a"), loop_guard=LoopGuard(limit=1, then="fail"))

    step = after(definition, "b", outcome="x", reentries={"a": 1})

    assert isinstance(step, flow.End) and step.error is not None
    assert (step.status, step.error.reason, step.error.stage) == (RunStatus.FAILED, "loop_guard", "b")


def test_a_stage_that_gives_none_of_its_outcomes_leads_to_the_next_and_says_so() -> None:
    definition = make_definition(deciding("a", "x", x="end"))

    assert after(definition, "a") == flow.Enter(definition.stages[1], flow.NO_OUTCOME)
    assert after(make_definition(), "a") == flow.Enter(make_definition().stages[1])


def test_a_failed_stage_is_not_routed() -> None:
    definition = make_definition(deciding("a", "x", x="end"))

    assert isinstance(after(definition, "a", FAILED, outcome="x"), flow.End)


def test_only_going_back_counts_as_going_back() -> None:
    definition = make_definition()

    assert flow.reentries(definition, ["a", "b", "c"]) == {}
    assert flow.reentries(definition, ["a", "b", "a", "b", "b", "gone", "c", "a"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("outcomes", "outcome", "fits"),
    [((), "anything", True), (("a",), None, True), (("a", "b"), "b", True), (("a", "b"), "B", False), (("a",), "", False)],
)
def test_a_label_that_is_not_listed_is_told(outcomes: tuple[str, ...], outcome: str | None, fits: bool) -> None:
    assert (flow.unlisted(make_stage("a", outcomes=outcomes), outcome) is None) is fits


# ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def passed(definition: Definition, name: str, **roots: Any) -> tuple[list[tuple[str, str]], flow.Enter | flow.End]:
    stage = flow.stage_named(definition, name)
    assert stage is not None
    skipped, step = flow.past_skipped(definition, flow.Enter(stage, "why"), {"stages": {}, "input": None} | roots)
    return [(each.stage.name, each.reason) for each in skipped], step


def test_stages_whose_condition_does_not_hold_are_passed_over_with_the_reason() -> None:
    definition = make_definition(make_stage("a", when={"input.x": 1}), make_stage("b", when={"input.x": {"exists": False}}))

    assert passed(definition, "a", input={"x": 2}) == (
        [("a", "input.x is 2, not 1"), ("b", "input.x is there")],
        flow.Enter(definition.stages[2], "why"),
    )
    assert passed(definition, "a", input={"x": 1}) == ([], flow.Enter(definition.stages[0], "why"))


def test_all_skipped_is_the_good_end() -> None:
    never = {"input": "never"}
    definition = make_definition(*(make_stage(name, when=never) for name in "abc"))

    skipped, step = passed(definition, "a")

    assert ([name for name, _ in skipped], step) == (["a", "b", "c"], flow.End(RunStatus.COMPLETED, note="why"))


def test_a_condition_sees_that_the_stage_before_was_skipped() -> None:
    definition = make_definition(
        make_stage("a", when={"input": "never"}),
        make_stage("b", when={"stages.a.output": {"exists": True}}),
        make_stage("c", when={"stages.a.status": "skipped"}),
    )

    skipped, step = passed(definition, "a", stages={"a": {"status": "completed", "output": 1}})

    assert ([name for name, _ in skipped], step) == (["a", "b"], flow.Enter(definition.stages[2], "why"))


def test_a_condition_that_cannot_be_looked_at_fails_the_run() -> None:
    definition = make_definition(make_stage("b", when={"stages.a.output": "x"}))

    _, step = passed(definition, "b", stages={"a": {"output": Unreadable("it was cut")}})

    assert isinstance(step, flow.End) and step.error is not None
    assert (step.error.reason, step.error.stage) == ("lookup_failed", "b")
    assert "it was cut" in step.error.detail


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── always ──────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = "abcd"
ROUTES = ("end", {"workflow": "other"}, *NAMES)
LABELS = ("x", "y")


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """Give a workflow of one to four stages that lead anywhere, guarded anyhow."""
    count = draw(st.integers(1, len(NAMES)))
    known = NAMES[:count]
    routes = st.sampled_from([route for route in ROUTES if route not in (*NAMES,) or route in known])
    stage = st.builds(
        make_stage,
        st.just("?"),
        on_error=st.sampled_from(["fail", "next", *known]),
        retry=st.builds(Retry, st.integers(1, 3), st.just(0.0)),
        outcomes=st.just(LABELS),
        routing=st.dictionaries(st.sampled_from(LABELS), routes),
        when=st.sampled_from([None, None, {"input": 1}, {"stages.a.status": "skipped"}, {"stages.a.outcome": "x"}]),
    )
    drawn = [dataclasses.replace(draw(stage), name=name) for name in known]
    guard = LoopGuard(draw(st.integers(0, 3)), draw(st.sampled_from(["next", "fail"])))
    return Definition(id=None, name="w", stages=tuple(drawn), loop_guard=guard)


@given(definition=definitions(), data=st.data(), value=st.sampled_from([0, 1]))
def test_every_run_ends_within_a_bound_and_never_goes_back_too_often(definition: Definition, data: st.DataObject, value: int) -> None:
    # Each stage is gone back to at most `limit` times, and between two such steps each is entered at most once.
    bound = len(definition.stages) * (definition.loop_guard.limit * len(definition.stages) + 1)
    entered: list[str] = []
    known: dict[str, Any] = {}
    skipped, step = flow.past_skipped(definition, flow.Enter(definition.stages[0]), {"stages": known, "input": value})
    while True:
        for each in skipped:
            entered.append(each.stage.name)
            known[each.stage.name] = facts.skipped_root(each.stage.name)
        if isinstance(step, flow.End):
            break
        entered.append(step.stage.name)
        assert len(entered) <= bound, "the run goes round for ever"
        ended, outcome = attempted(definition, step.stage, entered, data)
        known[step.stage.name] = {"status": "completed", "outcome": outcome, "output": None}
        skipped, step = flow.past_skipped(definition, ended, {"stages": known, "input": value})

    assert set(entered) <= {stage.name for stage in definition.stages}
    assert all(times <= definition.loop_guard.limit for times in flow.reentries(definition, entered).values())
    assert (step.status == RunStatus.FAILED) is (step.error is not None)
    assert step.starts in (None, "other")


def attempted(
    definition: Definition, stage: StageDefinition, entered: list[str], data: st.DataObject
) -> tuple[flow.Enter | flow.End, str | None]:
    """Attempt a stage, failing or not, until it leads on; gives where to and its outcome."""
    reentries = flow.reentries(definition, entered)
    for failures in range(1, stage.retry.attempts + 2):
        outcome = data.draw(st.sampled_from([None, *LABELS, "failed"]))
        failure = FAILED if outcome == "failed" else None
        step = flow.after(definition, stage, failure, outcome=None if failure else outcome, failures=failures, reentries=reentries)
        if not isinstance(step, flow.Retry):
            return step, None if failure else outcome
    raise AssertionError("the stage is retried for ever")
