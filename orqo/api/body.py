"""The bytes of a request, bounded, and what they mean as a workflow's input.

Owns reading a body without being fooled about its length. Never trusts a Content-Type further than DESIGN §1 says.
"""

from __future__ import annotations

import binascii
import io
import re
from typing import Any
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from orqo import jsontext
from orqo.errors import Malformed, TooLarge, UnsupportedMedia

CHUNK_BYTES = 65536
PARTS_MAX = 200
FIELDS_MAX = 1000
JSON_TYPE = re.compile(r"[\w.+-]+/(?:json|[\w.-]+\+json)", re.ASCII)
"""A media type whose body is JSON: RFC 6839 §3.1."""


def read(request: Request, max_bytes: int) -> bytes:
    """Read the whole body, or raise TooLarge, Malformed (shorter than declared, broken off) or UnsupportedMedia (encoded).

    Werkzeug's own limit cuts a chunked body at the limit silently, and a body that ends early passes as whole: so the
    stream is read to its end here and counted.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(f"A body with Content-Encoding {encoding[:20]} is not read here: send it uncompressed.")
    declared = _declared_length(request)
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    body = _read_stream(request.environ["wsgi.input"], declared, max_bytes)
    if declared is not None and len(body) < declared:
        raise Malformed(f"The body ended after {len(body)} of the {declared} bytes that Content-Length declares: send it whole.")
    return body


def _declared_length(request: Request) -> int | None:
    """Give Content-Length, None for a chunked body, whose end the server knows."""
    text = request.environ.get("CONTENT_LENGTH", "")
    if "HTTP_TRANSFER_ENCODING" in request.environ or (not text and request.environ.get("wsgi.input_terminated")):
        return None
    if not re.fullmatch(r"[0-9]{0,18}", text):
        raise Malformed("Content-Length is not a number.")
    return int(text or 0)


def _read_stream(stream: Any, declared: int | None, max_bytes: int) -> bytes:
    wanted = max_bytes + 1 if declared is None else declared
    parts: list[bytes] = []
    while wanted > 0:
        try:
            part = stream.read(min(wanted, CHUNK_BYTES))
        except (OSError, ValueError, HTTPException) as fault:
            raise Malformed("The body broke off: send it whole.") from fault
        if not part:
            break
        parts.append(part)
        wanted -= len(part)
    body = b"".join(parts)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is over the limit of {max_bytes} bytes (ORQO_BODY_MAX_BYTES): send less.")


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
        text = body.decode(charset)
        text.encode("utf-8")
    except (UnicodeError, LookupError) as fault:
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
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except (UnicodeError, ValueError) as fault:
        raise Malformed(f"The form cannot be read: percent-encoded UTF-8 and at most {FIELDS_MAX} fields are.") from fault
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
