"""The strict JSON parser: what parsers read differently is refused, and nothing but NotJson ever comes out of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orqo import jsontext

ACCEPTED: dict[str, tuple[bytes, Any]] = {
    "null": (b"null", None),
    "white space": (b' \t\r\n{"a" : [ ] }\n', {"a": []}),
    "text": ('"é \\u00e9 😀 \\ud83d\\ude00"'.encode(), "é é 😀 😀"),
    "nul": (b'"\\u0000"', "\0"),
    "smallest integer": (b"-9223372036854775808", -(2**63)),
    "largest integer": (b"18446744073709551615", 2**64 - 1),
    "minus zero": (b"-0", 0),
    "float": (b"[1.5e3]", [1500.0]),
    "tiny float": (b"1e-400", 0.0),
    "long fraction": (b"0." + b"1" * 5000, 1 / 9),
    "digits in a text": (b'"' + b"9" * 5000 + b'"', "9" * 5000),
    "deep enough": (b"[" * 128 + b"]" * 128, None),
    "many shallow": (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
    "brackets in a text": (b'"' + b"[" * 100_000 + b'"', "[" * 100_000),
    "quotes in a text": (b'["\\"[[", "\\\\"]', ['"[[', "\\"]),
    "same key in two objects": (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
}
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "white space alone": b"  ",
    "two values": b"1 2",
    "nan": b"NaN",
    "infinity": b"[-Infinity]",
    "1e999": b'{"a": 1e999}',
    "-1e999": b"-1e999",
    "too large": b"18446744073709551616",
    "too small": b"-9223372036854775809",
    "5,000 digits": b"9" * 5000,
    "5,000 digits and a fraction": b"9" * 5000 + b".5",
    "duplicate keys": b'{"a":1,"a":1}',
    "duplicate keys by escape": b'{"a":1,"\\u0061":2}',
    "duplicate keys deep down": b'{"x":[{"a":1,"b":2,"a":3}]}',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\uDFFF x"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "lone surrogate in a key": b'{"\\ud800": 1}',
    "surrogate as bytes": b'"\xed\xa0\x80"',
    "byte-order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": '"é"'.encode("latin-1"),
    "overlong utf-8": b'"\xc0\xaf"',
    "cut utf-8": b'"\xe2\x82',
    "raw newline in a text": b'"a\nb"',
    "nul outside": b"\0",
    "single quotes": b"{'a': 1}",
    "comment": b"[1] // x",
    "comma at the end": b"[1,]",
    "leading zero": b"[007]",
    "leading plus": b"+1",
    "bare word": b"hello",
    "129 deep": b"[" * 129 + b"]" * 129,
    "100,000 deep": b"[" * 100_000,
    "100,000 deep after a text": b'["\\\\\\"[", ' + b"[" * 100_000,
    "100,000 objects deep": b'{"a":' * 100_000,
    "an open text full of brackets": b'"' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_json_is_read(name: str) -> None:
    body, value = ACCEPTED[name]

    read = jsontext.parse(body)

    if name == "deep enough":
        assert isinstance(read, list)
    elif isinstance(value, float):
        assert math.isclose(read, value)
    else:
        assert read == value


@pytest.mark.parametrize("name", REFUSED)
def test_what_others_might_read_otherwise_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(jsontext.NotJson) as told:
        jsontext.parse(REFUSED[name])

    assert 0 < len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("body", "told"), [(b'{\n "a": x}', "line 2 column 7"), (b'{"k":1,"k":2}', "'k' stands twice"), (b'"\xff"', "byte 1 is not UTF-8")]
)
def test_the_reason_says_where(body: bytes, told: str) -> None:
    with pytest.raises(jsontext.NotJson, match=told):
        jsontext.parse(body)


PIECES = st.lists(
    st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\\ud800", b"1e999", b"NaN", b"9" * 30, b"-", b"a", b"\xff", b" "]),
    max_size=40,
)


@given(st.one_of(st.binary(max_size=200), PIECES.map(b"".join), PIECES.map(lambda pieces: b"[" * 200 + b"".join(pieces))))
@example(b"-")
@example(b'"\\')
def test_no_bytes_raise_anything_but_not_json(body: bytes) -> None:
    try:
        value = jsontext.parse(body)
    except jsontext.NotJson:
        return
    # What is accepted can be stored: it is UTF-8 JSON again.
    assert json.loads(jsontext.dump(value).encode("utf-8")) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_dumped_is_read_again(value: Any) -> None:
    assert jsontext.parse(jsontext.dump(value).encode("utf-8")) == value


def test_dumping_is_compact_and_keeps_characters() -> None:
    assert jsontext.dump({"a": ["é", None, True]}) == '{"a":["é",null,true]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": -math.inf}])
def test_what_json_has_no_word_for_is_not_dumped(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        jsontext.dump(value)


@pytest.mark.parametrize(
    ("data", "kind", "value"),
    [
        (None, None, None),
        (b'{"a":1}', "json", {"a": 1}),
        ("é".encode(), "text", "é"),
        (b"", "text", ""),
        (b"\xff\0", "bytes", {"base64": "/wA="}),
    ],
    ids=["none", "json", "text", "empty", "bytes"],
)
def test_stored_output_becomes_a_value(data: bytes | None, kind: str | None, value: Any) -> None:
    assert jsontext.value_of(data, kind) == value
