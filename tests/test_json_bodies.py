"""What is JSON and what is not, as RFC 8259 says: the kinds of case that the JSONTestSuite has, generated here.

Where the RFC leaves parsers free we refuse on purpose what they read differently; those cases stand apart.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from support import TestBox

SPACE = (b" ", b"\t", b"\n", b"\r")
SCALARS = [
    b"0", b"-0", b"1", b"-1", b"1.5", b"1e2", b"1E+2", b"0e-1", b"123456789012", b"-0.1", b"1e-999", b"null", b"true", b"false",
    b'""', b'"a"',
]  # fmt: skip
STRINGS = [
    rb'"\"\\\/\b\f\n\r\t"', rb'"\u0060\u012a\u12AB"', rb'"\uD801\udc37"', '"\u20ac\U00024b62"'.encode(), b'"\x7f"', rb'"\u0000"',
    '"\u2028"'.encode(), rb'"\\u0000"',
    b'"' + b"a" * 10_000 + b'"', '"\ufdd0"'.encode(), b'"a/*b*/c"',
]  # fmt: skip
ACCEPTED = [
    *SCALARS, *STRINGS,
    *(space + b"[1]" + space for space in SPACE), b"[]", b"{}", b"[[]]", b'[{"a":[]}]', b'{"":0}', b'{"a":{"a":1}}', b'[ "a" , 1 ]',
    b'{ "a" : 1 , "b" : 2 }',
    b"[" * 100 + b"]" * 100, b"[" + b",".join([b"1"] * 5000) + b"]", b"18446744073709551615", b"-9223372036854775808",
]  # fmt: skip
REFUSED = [
    b" ", b"[", b"]", b"{", b"}", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1,,2]", b"[1 2]", b"[1]]", b"[1]x", b"[1]{}", b"[1},", b'{"a"',
    b'{"a":', b'{"a":1', b'{"a":1,}',
    b'{,"a":1}', b'{"a" 1}', b'{"a"::1}', b'{1:1}', b"{a:1}", b"{'a':1}", b'{"a":1 "b":2}', b'{"a":"b"}#', b'{"a":"b"}/**/', b"// c\n1",
    b"[1]\0", b"[\x0c]", b"[\xc2\xa0]",
    b"01", b"-01", b"+1", b".5", b"1.", b"1.e1", b"1e", b"1e+", b"-", b"--1", b"0x1", b"1_000", b"1 000", b"-a", b"2.", b"0.e1",
    b"Infinity", b"-Infinity", b"NaN", b"nan",
    b"True", b"nul", b"truex", b"undefined", b"a", b"'a'", b'"', b'"a', b'a"', b'"\n"', b'"\t"', b'"\x00"', b'"\x1f"', rb'"\a"',
    rb'"\x00"', rb'"\u"', rb'"\u12"',
    rb'"\u12G4"', rb'"\uD8"', b'"\\', rb'"\"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe2\x82"',
    b"\xff", b"<null>", b"[<null>]",
    "\uff11".encode(), "[\u2060]".encode(), b"*", b"${x}", b"abc", b"[*]", b'["a",\n4\n,1,', b"[" * 129, b'{"a":' * 129, b"[" * 100_000,
    b'[{"":' * 50_000,
]  # fmt: skip
# RFC 8259 lets parsers choose; what they read differently is refused here.
REFUSED_ON_PURPOSE = [
    b'{"a":1,"a":1}', b'{"a":1,"b":{"c":1,"c":2}}', rb'{"a":1,"\u0061":2}', b"\xef\xbb\xbf1", '"x"'.encode("utf-16"), rb'"\uD800"',
    rb'"\uDC00\uD800"', rb'["\uD834x"]',
    b"1e999", b"-1e999", b"123123e100000", b"18446744073709551616", b"-9223372036854775809", b"1" * 5000, b"[" * 129 + b"]" * 129,
]  # fmt: skip


def named(case: bytes) -> str:
    return ascii(case[:24].decode("latin-1"))


@pytest.mark.parametrize("wrap", [b"%s", b"[%s]", b'{"k": %s}', b" %s\n"], ids=["bare", "in-list", "in-object", "in-space"])
def test_what_is_json_starts_a_run(client: Any, box: TestBox, wrap: bytes) -> None:
    path = box.hook()
    for case in ACCEPTED:
        body = wrap % case

        answer = client.post(path, data=body, headers={"Content-Type": "application/json"})

        assert answer.status_code == 201, named(body)
    kept = [json.loads(row["input"]) for row in box.rows("SELECT input FROM runs ORDER BY id")]
    assert kept == [json.loads(wrap % case) for case in ACCEPTED]


@pytest.mark.parametrize("wrap", [b"%s", b"[%s", b'{"k": %s', b"[%s]"], ids=["bare", "open-list", "open-object", "in-list"])
def test_what_is_not_json_is_400(client: Any, box: TestBox, wrap: bytes) -> None:
    path = box.hook()
    # Some are whole only when they are wrapped: those are looked at bare.
    cases = REFUSED if wrap == b"%s" else [case for case in REFUSED if not closes(wrap, case)]
    for case in cases:
        answer = client.post(path, data=wrap % case, headers={"Content-Type": "application/json"})

        assert answer.status_code == 400, named(wrap % case)
        assert answer.json["detail"].startswith("The body is not JSON")
    assert box.rows("SELECT id FROM runs") == []


def closes(wrap: bytes, case: bytes) -> bool:
    try:
        json.loads(wrap % case)
    except (ValueError, RecursionError):
        return False
    return True


def test_what_parsers_read_differently_is_400_too(client: Any, box: TestBox) -> None:
    for body in REFUSED_ON_PURPOSE:
        answer = client.post(box.hook(), data=body, headers={"Content-Type": "application/json"})

        assert answer.status_code == 400, named(body)


def test_both_json_endpoints_judge_alike(client: Any, box: TestBox) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {box.token('trigger')}"}
    body = b'{"workflow_id": 1, "input": %s}'
    statuses = {
        verdict: {client.post("/api/v1/trigger", data=body % case, headers=headers).status_code for case in cases}
        for verdict, cases in (("accepted", ACCEPTED), ("refused", [*REFUSED_ON_PURPOSE, b"01", b"[1,]", b'"\xff"', b"NaN", b"'a'"]))
    }

    assert statuses == {"accepted": {201}, "refused": {400}}
