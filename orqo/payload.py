"""What the bytes of a request mean as a workflow's input.

Owns the rules of DESIGN §1 for bodies. Never trusts a Content-Type further than they say. Knows Werkzeug's parsers and
no request of Flask's: a kept request is read again by the command line.
"""

from __future__ import annotations

import binascii
import codecs
import io
import re
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from orqo import jsontext
from orqo.errors import Malformed

PARTS_MAX = 200
FIELDS_MAX = 1000
# Python's codecs that are no charsets; idna takes quadratic time.
NOT_CHARSETS = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined")
JSON_TYPE = re.compile(r"[\w.+-]+/(?:json|[\w.-]+\+json)", re.ASCII)
"""A media type whose body is JSON: RFC 6839 §3.1."""


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type names JSON."""
    return bool(JSON_TYPE.fullmatch(parse_options_header(content_type)[0].lower()))


def parse_json(body: bytes) -> Any:
    """Read a JSON body strictly; Malformed says where it is none."""
    try:
        return jsontext.parse(body)
    except jsontext.NotJson as fault:
        raise Malformed(f"The body is not JSON: {fault}.") from fault


def to_input(body: bytes, content_type: str) -> Any:
    """Give the input of a run for a webhook's body, by the rules of DESIGN §1; Malformed where the body is not what it says."""
    if not body:
        return None
    kind, options = parse_options_header(content_type)
    kind = kind.lower()
    if is_json(kind):
        return parse_json(body)
    if not kind:
        return _guessed(body)
    if kind == "application/x-www-form-urlencoded":
        return _form(body)
    if kind == "multipart/form-data":
        return _multipart(body, options)
    if kind.startswith("text/"):
        return _text(body, options.get("charset", "utf-8"))
    return _opaque(body, kind)


def _guessed(body: bytes) -> Any:
    """Without a Content-Type: JSON if it parses, else text, else bytes."""
    try:
        return jsontext.parse(body)
    except jsontext.NotJson:
        try:
            return _text(body, "utf-8")
        except Malformed:
            return _opaque(body, "application/octet-stream")


def _text(body: bytes, charset: str) -> str:
    try:
        if codecs.lookup(charset).name in NOT_CHARSETS:
            raise LookupError(charset)
        text = body.decode(charset)
        text.encode("utf-8")
    except (ValueError, LookupError) as fault:
        raise Malformed(f"The body is not text in {charset[:20]}: name its charset in Content-Type.") from fault
    return text


def _form(body: bytes) -> Any:
    """Give a form as an object; what curl's plain -d makes of JSON is that JSON, and a single JSON `payload` is unwrapped."""
    if body.lstrip()[:1] in (b"{", b"["):
        try:
            value = jsontext.parse(body)
        except jsontext.NotJson:
            value = None
        if isinstance(value, dict | list):
            return value
    try:
        # What is not percent-encoded either, as curl sends -d 'name=José', counts as UTF-8.
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except (UnicodeError, ValueError) as fault:
        raise Malformed(f"The form cannot be read: UTF-8 and at most {FIELDS_MAX} fields are.") from fault
    return _unwrapped(_grouped(pairs))


def _grouped(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give fields as an object; a field that comes again becomes a list."""
    fields: dict[str, list[Any]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _unwrapped(fields: dict[str, Any]) -> Any:
    """Give the JSON of an only field `payload`, as GitHub's and Slack's form encoding send it."""
    if list(fields) != ["payload"] or not isinstance(fields["payload"], str):
        return fields
    try:
        return jsontext.parse(fields["payload"].encode("utf-8"))
    except jsontext.NotJson:
        return fields


def _multipart(body: bytes, options: dict[str, str]) -> dict[str, Any]:
    """Give a multipart form's fields; of a file its name, type and size."""
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= 200 or not boundary.isascii():
        raise Malformed("The multipart body has no usable boundary in its Content-Type.")
    parser = MultiPartParser(max_form_memory_size=len(body) + 1, max_form_parts=PARTS_MAX)
    try:
        form, files = parser.parse(io.BytesIO(body), boundary.encode(), len(body))
    except (ValueError, HTTPException) as fault:
        raise Malformed(f"The multipart body cannot be read: it is broken, or has more than {PARTS_MAX} parts.") from fault
    pairs: list[tuple[str, Any]] = [(name, _clean(value)) for name, value in form.items(multi=True)]
    for name, file in files.items(multi=True):
        size = file.stream.seek(0, io.SEEK_END)
        pairs.append((name, {"filename": _clean(file.filename or ""), "size": size, "content_type": file.mimetype}))
    return _grouped([(_clean(name), value) for name, value in pairs])


def _clean(text: str) -> str:
    """Give text that JSON in UTF-8 can hold: lone surrogates, which no encoder takes, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _opaque(body: bytes, kind: str) -> dict[str, Any]:
    """Give bytes of another type as data."""
    return {"content_type": kind, "size": len(body), "base64": binascii.b2a_base64(body, newline=False).decode("ascii")}
