"""Conditions: what may be written, what holds, and why not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqo import lookup, match

ROOTS = {
    "input": {"action": "opened", "n": 1, "f": 1.0, "t": True, "z": None, "list": [1, "a"], "o": {"b": 1, "a": 2}, "a.b": {"c": "dotted"}},
    "trigger": {"name": "in", "headers": {"x-github-event": "push"}, "query": {}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"input.action": "opened"}, True),
        ({"input.action": "closed"}, False),
        ({"input.n": 1.0}, True),
        ({"input.f": 1}, True),
        ({"input.t": 1}, False),
        ({"input.n": True}, False),
        ({"input.t": True}, True),
        ({"input.z": None}, True),
        ({"input.absent": None}, False),
        ({"input.n": "1"}, False),
        ({"input.list": [1, "a"]}, True),
        ({"input.list": ["a", 1]}, False),
        ({"input.list.1": "a"}, True),
        ({"input.o": {"in": [{"a": 2, "b": 1}]}}, True),
        ({'input["a.b"].c': "dotted"}, True),
        ({"trigger.headers.x-github-event": "push"}, True),
        ({"input.action": {"in": ["opened", "closed"]}}, True),
        ({"input.action": {"in": []}}, False),
        ({"input.action": {"regex": "^open"}}, True),
        ({"input.action": {"regex": "^pen"}}, False),
        ({"input.n": {"regex": "1"}}, False),
        ({"input.absent": {"exists": False}}, True),
        ({"input.z": {"exists": True}}, True),
        ({"input.action": {"exists": True, "regex": "x"}}, False),
        ({"input.action": "opened", "input.n": 2}, False),
        ({"all": [{"input.n": 1}, {"input.t": True}]}, True),
        ({"any": [{"input.n": 2}, {"input.t": True}]}, True),
        ({"any": [{"input.n": 2}, {"input.t": False}]}, False),
        ({"not": {"input.n": 2}}, True),
        ({"not": {"input.n": 1}}, False),
        ({"not": {"any": [{"input.n": 2}, {"input.absent": 1}]}, "input.n": 1}, True),
        ({"input.n": {"newer-operator": 1}}, False),
    ],
    ids=str,
)
def test_a_condition_holds_or_says_why_not(condition: dict[str, Any], holds: bool) -> None:
    reason = match.explain(condition, ROOTS)

    assert (reason is None) == holds == match.matches(condition, ROOTS)


@pytest.mark.parametrize(
    ("condition", "place", "said"),
    [
        ({}, (), "must be a mapping"),
        ([], (), "must be a mapping"),
        ({"action": 1}, ("action",), "begins with none of input, trigger"),
        ({"input.a?": 1}, ("input.a?",), "is not a path"),
        ({"input.a b": 1}, ("input.a b",), "is not a path"),
        ({"input.a} ${input.b": 1}, ("input.a} ${input.b",), "is not a path"),
        ({"input.a": {"equals": 1}}, ("input.a", "equals"), "is none of in, regex, exists"),
        ({"input.a": {}}, ("input.a",), "needs one of"),
        ({"input.a": {"in": "x"}}, ("input.a", "in"), "must be a list"),
        ({"input.a": {"exists": "yes"}}, ("input.a", "exists"), "must be true or false"),
        ({"input.a": {"regex": "("}}, ("input.a", "regex"), "is not a regular expression"),
        ({"input.a": {"regex": r"(a)\1"}}, ("input.a", "regex"), "is not a regular expression"),
        ({"input.a": {"regex": "(?=a)"}}, ("input.a", "regex"), "is not a regular expression"),
        ({"input.a": {"regex": "((a{500}){500}){500}"}}, ("input.a", "regex"), "is not a regular expression"),
        ({"input.a": {"regex": 1}}, ("input.a", "regex"), "is not a regular expression"),
        ({"any": {"input.a": 1}}, ("any",), "must be a list of conditions"),
        ({"all": []}, ("all",), "must be a list of conditions"),
        ({"not": [{"input.a": 1}]}, ("not",), "must be a mapping"),
        ({"any": [{"not": {"x": 1}}]}, ("any", 0, "not", "x"), "begins with none of"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_at_its_place(condition: Any, place: tuple[Any, ...], said: str) -> None:
    found = list(match.faults(condition, ("input", "trigger")))

    assert [at for at, _ in found] == [place]
    assert said in found[0][1]


@given(JSON)
def test_a_value_equals_itself_and_its_copy_in_any_order(value: Any) -> None:
    turned = dict(reversed(list(value.items()))) if isinstance(value, dict) else value

    assert match.equal(value, turned)
    assert match.matches({"input": {"in": [value]}}, {"input": value})


@given(JSON, JSON)
def test_equality_is_mutual_and_as_pythons_but_for_booleans(one: Any, other: Any) -> None:
    assert match.equal(one, other) == match.equal(other, one)
    if match.equal(one, other):
        assert one == other


@given(JSON, JSON)
def test_not_is_the_opposite_and_any_of_both_always_holds(value: Any, wanted: Any) -> None:
    condition = {"input.x": {"in": [wanted]}}
    roots = {"input": {"x": value}}

    assert match.matches(condition, roots) != match.matches({"not": condition}, roots)
    assert match.matches({"any": [condition, {"not": condition}]}, roots)


@given(st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(["all", "any", "not", "input.a", "x"]), inner, max_size=3)), JSON)
def test_whatever_is_written_is_refused_or_can_be_asked(condition: Any, value: Any) -> None:
    if not list(match.faults(condition, ("input",))):
        reason = match.explain(condition, {"input": {"a": value}})
        assert reason is None or 0 < len(reason) < 1000


def test_a_regular_expression_that_backtracks_elsewhere_takes_no_time() -> None:
    began = time.perf_counter()

    assert not match.matches({"input": {"regex": "^(a+)+$"}}, {"input": "a" * 1_000_000 + "!"})
    assert time.perf_counter() - began < 1


def test_an_output_that_was_cut_fails_the_condition_instead_of_not_matching() -> None:
    with pytest.raises(lookup.LookupFailed, match="was cut"):
        match.matches({"stages.a.output": {"exists": True}}, {"stages": {"a": {"output": lookup.Unreadable("it was cut")}}})
