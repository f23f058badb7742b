"""The kind `http`: one request, its answer is the output.

Owns how a request is written from a stage's definition and what an answer means: is it expected, may the request be
sent again. Sending, the address rule and the limits are outbound's. Redirects are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from orqo import clock, flow, jsontext, lookup
from orqo.outbound import Answer, Failure, retry_after_s
from orqo.stages.context import Context, Why, cancelled, timed_out
from orqo.stages.result import Completed, Failed, Result, as_text

# A server that says one of these has not done what it was asked; the others leave it open, so a write is not sent again.
NOT_DONE = frozenset({429, 502, 503, 504})
TRANSIENT = NOT_DONE | {408, 425, 500}
PERMANENT_REASONS = frozenset({"address_refused", "bad_url"})
UNCONNECTED_REASONS = frozenset({"refused", "dns"})
JSON_TYPE = re.compile(r"[\w.-]+/([\w.-]+\+)?json", re.IGNORECASE)


def execute(context: Context) -> Result:
    """Send the request of the stage and judge the answer."""
    spec, why = context.stage.spec, Why(context.cancelled)
    headers, body = _content(spec, context.roots)
    answer = context.client.send(
        method=_method(spec),
        url=_url(spec, context.roots),
        headers=headers,
        body=body,
        guarded=lookup.influences_host(spec["url"]),
        timeout_s=context.left_s,
        max_bytes=context.stage.max_output_bytes,
        cancelled=why,
    )
    return _failed(context, answer, why) if isinstance(answer, Failure) else _answered(context, answer)


def is_expected(status: int, expect: Any) -> bool:
    """Say whether a status fits `2xx`, `200` or a list of those."""
    patterns = expect if isinstance(expect, list) else [expect]
    return any(re.fullmatch(str(pattern).lower().replace("x", r"\d"), str(status)) for pattern in patterns)


def _method(spec: Mapping[str, Any]) -> str:
    return str(spec.get("method", "GET")).upper()


def _url(spec: Mapping[str, Any], roots: Mapping[str, Any]) -> str:
    url = lookup.render_url(spec["url"], roots)
    query = _encoded(spec.get("query") or {}, roots)
    if not query:
        return url
    address, mark, fragment = url.partition("#")
    return f"{address}{'&' if '?' in address else '?'}{query}{mark}{fragment}"


def _content(spec: Mapping[str, Any], roots: Mapping[str, Any]) -> tuple[dict[str, str], bytes | None]:
    headers = {name: lookup.render_text(str(value), roots) for name, value in (spec.get("headers") or {}).items()}
    body, content_type = None, ""
    if "json" in spec:
        body, content_type = jsontext.dump(lookup.render(spec["json"], roots)).encode("utf-8", "replace"), "application/json"
    elif "form" in spec:
        body, content_type = _encoded(spec["form"], roots).encode("ascii"), "application/x-www-form-urlencoded"
    elif "body" in spec:
        body, content_type = lookup.render_text(spec["body"], roots).encode("utf-8", "replace"), "text/plain; charset=utf-8"
    if content_type and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = content_type
    return headers, body


def _encoded(fields: Mapping[str, Any], roots: Mapping[str, Any]) -> str:
    """Encode a query or a form: a list repeats its name, null leaves it out."""
    pairs = [(name, text) for name, value in fields.items() for text in _texts(lookup.render(value, roots))]
    return urlencode(pairs, quote_via=quote, errors="replace", safe="")


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            yield item if isinstance(item, str) else jsontext.dump(item)


def _failed(context: Context, failure: Failure, why: Why) -> Failed:
    if failure.reason == "cancelled":
        return cancelled(why.reason)
    repeats = flow.repeatable(context.stage)
    if context.left_s <= 0:
        return timed_out(context, retryable=repeats)
    never_sent = failure.reason in UNCONNECTED_REASONS and not failure.sent
    retryable = failure.reason not in PERMANENT_REASONS and (repeats or never_sent)
    return Failed("stage_failed", failure.detail, retryable=retryable)


def _answered(context: Context, answer: Answer) -> Result:
    output, kind = _output(answer)
    response = {"status": answer.status, "headers": dict(answer.headers)}
    expect = context.stage.spec.get("expect", "2xx")
    if is_expected(answer.status, expect):
        return Completed(output, kind, answer.truncated, response=response)
    hint = "; redirects are not followed: write the new address" if 300 <= answer.status < 400 else ""
    return Failed(
        "stage_failed",
        f"the answer's status is {answer.status}, expected is {_shown(expect)}{hint}",
        output=output,
        output_kind=kind,
        truncated=answer.truncated,
        response=response,
        retryable=answer.status in (TRANSIENT if flow.repeatable(context.stage) else NOT_DONE),
        retry_after_s=retry_after_s(answer.headers.get("retry-after"), now=clock.now()),
    )


def _shown(expect: Any) -> str:
    return " or ".join(str(pattern) for pattern in expect) if isinstance(expect, list) else str(expect)


def _output(answer: Answer) -> tuple[bytes, str]:
    content_type = answer.headers.get("content-type", "")
    if JSON_TYPE.match(content_type) and not answer.truncated:
        try:
            return jsontext.dump(jsontext.parse(answer.body)).encode("utf-8"), "json"
        except ValueError:
            pass  # Servers that say JSON and send something else are common: it is kept as the text that it is.
    return as_text(answer.body, truncated=answer.truncated)
