"""JSON as it is read from outside and written to the database: strict in, compact out.

Owns the one parser of request bodies. Never guesses: what other parsers read differently is refused.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 128
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**64 - 1
BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
LONG_NUMBER = re.compile(rb"\d{19}")
# json.dumps makes one for each call.
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class NotJson(ValueError):
    """The bytes are not the JSON that is accepted here; the text says what and where."""


def parse(body: bytes) -> Any:
    """Read UTF-8 JSON of RFC 8259, or raise NotJson.

    Refused, because parsers differ on them: NaN and infinities (also 1e999), duplicate keys, lone surrogates, a byte-order
    mark, integers outside -2**63 … 2**64-1, nesting deeper than 128.
    """
    _check_depth(body)
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded if LONG_NUMBER.search(body) else None,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError as fault:
        raise NotJson(f"byte {fault.start} is not UTF-8") from fault
    except json.JSONDecodeError as fault:
        raise NotJson(f"line {fault.lineno} column {fault.colno}: {fault.msg}") from fault
    if SURROGATE_ESCAPE.search(body):
        _check_surrogates(value)
    return value


def dump(value: Any) -> str:
    """Write compact JSON; ValueError on what JSON has no word for."""
    return ENCODER.encode(value)


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for found in BRACKET.finditer(body):
        depth += bool(found[1]) - bool(found[2])
        if depth > MAX_DEPTH:
            raise NotJson(f"nested deeper than {MAX_DEPTH} levels at byte {found.start()}")


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON; send null or a string")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:20]} is out of range; send it as a string")
    return value


def _bounded(text: str) -> int:
    # 20 characters hold every 64-bit integer; Python itself refuses to read one of more than 4,300 digits.
    if len(text) > 20 or not SMALLEST_INTEGER <= int(text) <= LARGEST_INTEGER:
        raise NotJson(f"the integer {text[:20]}… does not fit 64 bits; send it as a string")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJson(f"the key {twice[:50]!r} stands twice in one object")
    return value


def _check_surrogates(value: Any) -> None:
    try:
        dump(value).encode("utf-8")
    except UnicodeEncodeError as fault:
        raise NotJson("a lone surrogate (half of a \\uD8xx\\uDCxx pair) is no character") from fault


def value_of(data: bytes | None, kind: str | None) -> Any:
    """Give stored output as a JSON value: JSON as it is, text as a string, other bytes as `{"base64": …}`, none as null."""
    if data is None:
        return None
    if kind == "json":
        return json.loads(data)
    if kind == "text":
        return data.decode("utf-8")
    return {"base64": base64.b64encode(data).decode("ascii")}
