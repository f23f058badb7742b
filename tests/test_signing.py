"""Signatures against the published vectors, and against the `standardwebhooks` package in both directions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from orqo import clock
from orqo.signing import SignatureInvalid, callback_headers, derived_secret, secret_bytes, sign, verify_standard

SECRET_TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRET = secret_bytes(SECRET_TEXT)
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
NOW = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def make_headers(**changes: str) -> dict[str, str]:
    return {"webhook-id": ID, "webhook-timestamp": str(NOW), "webhook-signature": SIGNATURE} | {
        name.replace("_", "-"): value for name, value in changes.items()
    }


def test_published_standard_webhooks_vector_is_signed_as_published() -> None:
    assert sign(SECRET, message_id=ID, timestamp=NOW, body=BODY) == SIGNATURE


def test_published_standard_webhooks_vector_is_verified() -> None:
    verify_standard([SECRET], make_headers(), BODY, now=NOW)


def test_published_github_vector_is_what_x_signature_256_holds() -> None:
    secret = secret_bytes("It's a Secret to Everybody")

    headers = callback_headers([secret], message_id=ID, timestamp=NOW, body=b"Hello, World!")

    assert headers["X-Signature-256"] == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_headers_hold_one_signature_for_each_secret_newest_first() -> None:
    headers = callback_headers([b"new", b"old"], message_id=ID, timestamp=NOW, body=BODY)

    assert headers["webhook-id"] == ID
    assert headers["webhook-timestamp"] == str(NOW)
    assert headers["webhook-signature"].split(" ") == [
        sign(b"new", message_id=ID, timestamp=NOW, body=BODY),
        sign(b"old", message_id=ID, timestamp=NOW, body=BODY),
    ]
    assert headers["X-Signature-256"] == "sha256=" + hmac.digest(b"new", BODY, hashlib.sha256).hex()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("whsec_aGVsbG8=", b"hello"),
        ("whsec_aGVsbG8", b"hello"),
        ("plain text", b"plain text"),
        ("caf\u00e9", "caf\u00e9".encode()),
        ("aGVsbG8=", b"aGVsbG8="),
    ],
)
def test_secret_text_is_read(text: str, expected: bytes) -> None:
    assert secret_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_a", "whsec_aGVs bG8=", "whsec_\u00e9\u00e9\u00e9\u00e9", "whsec_a-_b"])
def test_secret_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|empty"):
        secret_bytes(text)


def test_derived_secret_differs_by_url_and_by_box() -> None:
    made = {derived_secret(key, url) for key in (b"k1" * 16, b"k2" * 16) for url in ("https://a.example/x", "https://b.example/x")}

    assert len(made) == 4
    assert all(secret.startswith("whsec_") and len(secret_bytes(secret)) == 32 for secret in made)


def test_derived_secret_stays_what_it_was() -> None:
    """A receiver keeps its secret for years: no release may derive another."""
    expected = base64.b64encode(hmac.new(b"k" * 32, b"callbackhttps://a.example/x", hashlib.sha256).digest()).decode()

    assert derived_secret(b"k" * 32, "https://a.example/x") == f"whsec_{expected}"


@given(body=st.text(), secret=st.binary(min_size=1, max_size=64), message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_standardwebhooks_verifies_what_is_sent(body: str, secret: bytes, message_id: str) -> None:
    timestamp = int(clock.now().timestamp())

    headers = callback_headers([b"another", secret], message_id=message_id, timestamp=timestamp, body=body.encode("utf-8"))

    standardwebhooks.Webhook(secret).verify(body.encode("utf-8"), headers, json_parse=False)


@given(body=st.text(), secret=st.binary(min_size=1, max_size=64), message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_what_standardwebhooks_signs_is_verified(body: str, secret: bytes, message_id: str) -> None:
    moment = clock.now()
    signature = standardwebhooks.Webhook(secret).sign(message_id, moment, body)
    headers = {"Webhook-Id": message_id, "Webhook-Timestamp": str(int(moment.timestamp())), "Webhook-Signature": signature}

    verify_standard([b"another", secret], headers, body.encode("utf-8"), now=int(moment.timestamp()))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param(make_headers(webhook_id=""), id="no id"),
        pytest.param(make_headers(webhook_id="msg_other"), id="another id"),
        pytest.param(make_headers(webhook_id="m\u00e9"), id="id beyond ASCII"),
        pytest.param(make_headers(webhook_id="\ud800"), id="id is a surrogate"),
        pytest.param(make_headers(webhook_timestamp=str(NOW + 1)), id="another timestamp"),
        pytest.param(make_headers(webhook_timestamp="soon"), id="timestamp is a word"),
        pytest.param(make_headers(webhook_timestamp="1e9"), id="timestamp is a float"),
        pytest.param(make_headers(webhook_timestamp="9" * 5000), id="timestamp is huge"),
        pytest.param(make_headers(webhook_timestamp="-1"), id="timestamp is negative"),
        pytest.param(make_headers(webhook_timestamp=f"{NOW}\n"), id="timestamp ends in a newline"),
        pytest.param(make_headers(webhook_timestamp="\u0661" * 10), id="timestamp in other digits"),
        pytest.param(make_headers(webhook_signature=""), id="no signature"),
        pytest.param(make_headers(webhook_signature="v1"), id="no comma"),
        pytest.param(make_headers(webhook_signature="v1,"), id="empty signature"),
        pytest.param(make_headers(webhook_signature="v1,AAAA"), id="short signature"),
        pytest.param(make_headers(webhook_signature="v1,====,,,"), id="no base64"),
        pytest.param(make_headers(webhook_signature=SIGNATURE.replace("g0h", "g0!h")), id="letters that are no base64 between"),
        pytest.param(make_headers(webhook_signature="v1,\u00e9\u00e9\u00e9\u00e9"), id="signature beyond ASCII"),
        pytest.param(make_headers(webhook_signature=SIGNATURE.replace("v1", "v2")), id="another version"),
        pytest.param(make_headers(webhook_signature=SIGNATURE[:-2] + "A="), id="one letter changed"),
    ],
)
def test_signature_that_does_not_fit_is_invalid(headers: dict[str, str]) -> None:
    with pytest.raises(SignatureInvalid):
        verify_standard([SECRET], headers, BODY, now=NOW)


@pytest.mark.parametrize("body", [b"", BODY + b" ", b"\xff\xfe"])
def test_another_body_is_invalid(body: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        verify_standard([SECRET], make_headers(), body, now=NOW)


@pytest.mark.parametrize("secrets", [[], [b""], [b"another"]])
def test_another_secret_is_invalid(secrets: list[bytes]) -> None:
    with pytest.raises(SignatureInvalid):
        verify_standard(secrets, make_headers(), BODY, now=NOW)


def test_empty_secret_verifies_nothing() -> None:
    forged = sign(b"", message_id=ID, timestamp=NOW, body=BODY)

    with pytest.raises(SignatureInvalid):
        verify_standard([b""], make_headers(webhook_signature=forged), BODY, now=NOW)


@pytest.mark.parametrize(("away_s", "valid"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)])
def test_timestamp_counts_for_five_minutes(away_s: int, valid: bool) -> None:
    expectation = contextlib.nullcontext() if valid else pytest.raises(SignatureInvalid)

    with expectation:
        verify_standard([SECRET], make_headers(), BODY, now=NOW + away_s)


def test_one_fitting_signature_among_others_is_enough() -> None:
    verify_standard([SECRET], make_headers(webhook_signature=f"v1a,xyz v1,AAAA {SIGNATURE} junk"), BODY, now=NOW)


@given(
    headers=st.dictionaries(
        st.sampled_from(["webhook-id", "Webhook-Timestamp", "WEBHOOK-SIGNATURE", "x"]),
        st.one_of(st.text(), st.sampled_from([ID, str(NOW), SIGNATURE, "v1,", "v1,AAA"]), st.from_regex(r"v1,[A-Za-z0-9+/=]*( v1,.*)?")),
    ),
    body=st.binary(),
)
def test_hostile_input_is_invalid_and_nothing_else(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        verify_standard([SECRET], headers, body, now=NOW)
