"""How a URL is shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqo.outgoing import retry_after_s, shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ci.example.com/done", "https://ci.example.com/done"),
        ("https://ci.example.com:8443/done", "https://ci.example.com:8443/done"),
        ("https://user:pw@ci.example.com/done?key=1#frag", "https://***@ci.example.com/done?***#***"),
        ("https://token@ci.example.com", "https://***@ci.example.com"),
        ("http://a@b@c/", "http://***@c/"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("HTTP://EXAMPLE.com/X", "http://example.com/X"),
        ("http://user:p/ss@host/", "(unreadable URL)"),
        ("http:/user:pw@host/", "(unreadable URL)"),
        ("http://[::1/", "(unreadable URL)"),
        ("file:///etc/passwd", "(unreadable URL)"),
        ("ftp://user:pw@host/x", "(unreadable URL)"),
        ("", "(unreadable URL)"),
        ("http://host/\x1b[31m\u202e", "http://host/\ufffd[31m\ufffd"),
    ],
)
def test_shown_url_masks_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(url=st.one_of(st.text(), st.text().map("http://".__add__)))
def test_shown_url_never_raises_and_can_be_printed(url: str) -> None:
    assert shown_url(url).isprintable()


NOW = datetime(2026, 11, 24, 6, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("99999999", 86400),
        ("Tue, 24 Nov 2026 06:01:30 GMT", 90),
        ("Tue, 24 Nov 2026 05:58:30 GMT", 0),
        ("Wed, 24 Nov 2027 06:00:00 GMT", 86400),
    ],
    ids=["seconds", "zero", "at-most-a-day", "date", "past-date", "far-date"],
)
def test_retry_after_is_seconds_or_a_date(value: str, expected: float) -> None:
    assert retry_after_s(value, now=NOW) == expected


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "\u0661", "Mon, 99 Foo 2026", "Mon, 01 Jan 99999999999 00:00:00 GMT"])
def test_unreadable_retry_after_is_none(value: str | None) -> None:
    assert retry_after_s(value, now=NOW) is None
