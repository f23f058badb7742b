"""Strict YAML: values, lines, refusals."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqo.yamlfile import TEXT_MAX_BYTES, pointer, read, shown

# A busy machine is no finding.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=20,
)
PIECES = ["a: ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "? ", ": ", "&x ", "*x", "!!str ", "|\n", ">-\n", "'", '"', "\\U00", "#", "\t"]
YAMLISH = st.lists(st.sampled_from([*PIECES, "---\n", "%YAML 1.2\n"]), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("042", "042"), ("-07", "-07"), ("01.5", "01.5"),
        ("2026-01-02", "2026-01-02"), ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"), ("1_000", "1_000"), ("<<", "<<"), ("=", "="),
        ("true", True), ("FALSE", False), ("~", None), ("", None), ("Null", None), ("nULL", "nULL"),
        ("12", 12), ("-3", -3), ("+4", 4), ("0", 0), ("0x1F", 31), ("0o17", 15), ("0b1", "0b1"),
        ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1.2.3", "1.2.3"),
        ("'12'", "12"), ('"true"', "true"), ("|-\n  12", "12"), ('"\\ud83d\\ude00"', "😀"),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(written: str, expected: Any) -> None:
    document = read(f"a: {written}\n")

    assert document.faults == ()
    assert document.value == {"a": expected}
    assert type(document.value["a"]) is type(expected)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "stands twice; the first is in line 1"),
        ("a:\n  - {b: 1,\n     b: 2}\n", 3, "a[0].b stands twice"),
        ("a: null\na: 1\n", 2, "stands twice"),
        ("a: &x [1]\n", 1, "anchor"),
        ("a: 1\nb: *x\n", 2, "alias"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: !x b\n", 1, "tag"),
        ("&k a: b\n", 1, "key with an anchor"),
        ("a: 1\n2: x\n", 2, "the key 2, which is not text"),
        ("true: x\n", 1, "the key true"),
        (": x\n", 1, "the key null"),
        ("? [a]\n: b\n", 1, "key that is not text"),
        ("a: 1\nb: .nan\n", 2, "JSON does not have"),
        ("a: -.INF\n", 1, "JSON does not have"),
        ("a: 1e999\n", 1, "JSON does not have"),
        ("a: 9223372036854775808\n", 1, "64 bits"),
        (f"a: {'9' * 5000}\n", 1, "64 bits"),
        (f"a: 0x{'f' * 5000}\n", 1, "64 bits"),
        ('a: "\\0"\n', 1, "NUL"),
        ('a: 1\nb: "\\ud83d"\n', 2, "surrogate"),
        ("a: 1\n---\nb: 2\n", 2, "one document"),
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("a: b\n\tc: d\n", 2, "not YAML"),
        ("a: b\nc: [1, 2\n", 3, "not YAML"),
        ("a: 1\nb: [${x}]\n", 2, "needs quotes"),
        ('"\\U00110000"', 1, "not YAML"),
        ('"\\UFFFFFFFF"', 1, "not YAML"),
        ("a: 1\nb: \x01\n", 2, "not YAML"),
        ("a: 1\r\nb: \ud800\r\n", 2, "surrogate"),
        ("%YAML 3.0\n---\na: b\n", 1, "not YAML"),
        ("[" * 70 + "]" * 70, 1, "levels deep"),
        ("- " * 100_000, 1, "levels deep"),
        ("a: " + "x" * TEXT_MAX_BYTES, None, "at most"),
    ],
    ids=range(34),
)
def test_what_json_does_not_have_is_refused_with_its_line(text: str, line: int | None, said: str) -> None:
    faults = read(text).faults

    assert [fault.line for fault in faults] == [line]
    assert said in faults[0].detail


def test_faults_that_do_not_stop_reading_are_told_together() -> None:
    document = read("a: *x\nb: .nan\na: 2\nc: !t 1\nd: 4\n")

    assert [fault.line for fault in document.faults] == [1, 2, 3, 4]
    assert document.value["d"] == 4


def test_every_place_has_its_line() -> None:
    document = read("\ufeffa: 1\r\nb:\r\n  - x\r\n  - c: |\r\n      text\r\n    d: 2\r\n".removeprefix("\ufeff"))

    assert document.lines == {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "d"): 6}
    assert document.fault(("b", 1, "gone", "x"), "").line == 4


def test_spellings_keep_how_plain_numbers_were_written() -> None:
    assert read("a: [3.10, True, 0x1F, '3.10', text]").spellings == {("a", 0): "3.10", ("a", 1): "True", ("a", 2): "0x1F"}


def test_nested_brackets_are_refused_at_once() -> None:
    # Of this process's own time: a loaded machine is no fault of the parser's.
    started = time.process_time()

    assert read("[" * 200_000).whole is False
    assert read("? " + "[" * 200_000).whole is False
    assert time.process_time() - started < 5


def test_places_are_written_as_pointer_and_for_people() -> None:
    place = ("stages", 1, "env", "A/B~")

    assert pointer(place) == "/stages/1/env/A~1B~0"
    assert shown(place) == "stages[1].env.A/B~"
    assert shown(()) == "the file"


@CALM
@given(JSON_VALUES)
def test_json_is_read_as_itself(value: Any) -> None:
    document = read(json.dumps({"v": value}))

    if not document.faults:
        assert document.value == {"v": value}
    else:
        assert all("NUL" in fault.detail for fault in document.faults)


@CALM
@given(st.text() | st.text(st.characters()) | YAMLISH)
def test_any_text_is_read_or_refused(text: str) -> None:
    document = read(text)

    json.dumps(document.value, allow_nan=False)
    assert document.whole or document.faults
