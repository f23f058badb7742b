"""The bytes of a request, bounded.

Owns reading a body without being fooled about its length. What the bytes mean is payload.py's.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Request
from werkzeug.exceptions import HTTPException

from orqo.errors import Malformed, TooLarge, UnsupportedMedia
from orqo.payload import is_json, parse_json, to_input

__all__ = ["is_json", "parse_json", "read", "to_input"]

CHUNK_BYTES = 65536


def read(request: Request, max_bytes: int, *, set_by: str = "ORQO_BODY_MAX_BYTES") -> bytes:
    """Read the whole body, or raise TooLarge, Malformed (shorter than declared, broken off) or UnsupportedMedia (encoded).

    Werkzeug's own limit cuts a chunked body at the limit silently, and a body that ends early passes as whole: so the
    stream is read to its end here and counted.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(f"A body with Content-Encoding {encoding[:20]} is not read here: send it uncompressed.")
    declared = _declared_length(request)
    too_large = TooLarge(f"The body is over the limit of {max_bytes} bytes ({set_by}): send less.")
    if declared is not None and declared > max_bytes:
        raise too_large
    body = _read_stream(request.environ["wsgi.input"], declared, max_bytes)
    if len(body) > max_bytes:
        raise too_large
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
    return b"".join(parts)
