"""What a URL and headers must be like to go out, and how a URL is shown.

Owns the checks of text that others wrote. Never opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from orqo.deadline import Ended

# Spaces, controls and backslashes are where two readers of one URL disagree about its host.
FORBIDDEN_IN_URL = re.compile(r"[\x00-\x20\x7f\\]")
FORBIDDEN_IN_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = {"content-length", "transfer-encoding"}
LOOKUP = re.compile(r"\$\{[^}]*\}")
UNREADABLE = "(unreadable URL)"
RETRY_AFTER_MAX_S = 86400.0


def check_request(method: str, url: str) -> None:
    """Refuse, by Ended `bad_url`, what is no http(s) URL or no method."""
    if FORBIDDEN_IN_URL.search(url) or not re.match(r"https?://", url, re.IGNORECASE):
        raise Ended("bad_url", "the URL is not an http:// or https:// URL without spaces, backslashes and control characters")
    if not TOKEN.fullmatch(method):
        raise Ended("bad_url", "the method is not a word that HTTP allows")


def merged_headers(defaults: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str | bytes]:
    """Give the headers to send; Ended `bad_url` where one is not allowed. Framing is ours; values beyond ASCII go out as UTF-8."""
    given = {name.lower() for name in headers}
    merged: dict[str, str | bytes] = {name: value for name, value in defaults.items() if name.lower() not in given}
    for name, value in headers.items():
        text = value.strip()
        if not TOKEN.fullmatch(name) or FORBIDDEN_IN_HEADER.search(text):
            raise Ended("bad_url", f"the header {name[:64]!a} has a name or a value that HTTP does not allow")
        if name.lower() not in FRAMING:
            merged[name] = text if text.isascii() else text.encode("utf-8", "replace")
    return merged


def shown_url(url: str) -> str:
    """Give `url` with its user info, query and fragment masked, for logs and pages; its path is kept."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return UNREADABLE
    if not host or parts.scheme not in ("http", "https"):
        return UNREADABLE
    user = "***@" if "@" in parts.netloc else ""
    address = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{user}{address}{'' if port is None else f':{port}'}{parts.path}"
    shown += ("?***" if parts.query else "") + ("#***" if parts.fragment else "")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)


def shown_template(text: str) -> str:
    """Do the same for a URL in which look-ups stand, which are kept; a URL that begins with one shows its look-ups alone."""
    found = LOOKUP.findall(text)
    if not found:
        return shown_url(text)
    shown = shown_url(re.sub(LOOKUP, lambda each: f"zq{found.index(each[0])}qz", text))
    if shown == UNREADABLE:
        return " ".join(found)
    return re.sub(r"zq(\d+)qz", lambda each: found[int(each[1])], shown)


def retry_after_s(value: str | None, *, now: datetime) -> float | None:
    """Read a Retry-After header, seconds or a date (RFC 9110 §10.2.3): the seconds from `now`, at most a day; None if unreadable."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII):
        return min(float(value), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(value)
        left_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    except (ValueError, OverflowError):
        # A year of eleven digits is one of the things that receivers send.
        return None
    return min(max(left_s, 0.0), RETRY_AFTER_MAX_S)
