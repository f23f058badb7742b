"""Inbound signatures: the published vectors, and the vendors' own packages as oracles in both directions."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import random
import time
from collections.abc import Mapping
from typing import Any

import pytest
import slack_sdk.signature
import standardwebhooks
import stripe
from hypothesis import given
from hypothesis import strategies as st

from orqo import inbound
from orqo.inbound import Scheme, verify
from orqo.signing import SignatureInvalid

CASES = 10_000
NOW = 1_700_000_000


def fits(
    scheme: Scheme, secrets: list[str], headers: Mapping[str, str], body: bytes, *, now: int = NOW, tolerance_s: int | None = 300
) -> bool:
    try:
        verify(scheme, secrets, headers, body, now=now, tolerance_s=tolerance_s)
    except SignatureInvalid:
        return False
    return True


def test_githubs_published_vector() -> None:
    headers = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}

    assert fits(Scheme("github"), ["It's a Secret to Everybody"], headers, b"Hello, World!")
    assert not fits(Scheme("github"), ["It's a Secret to Everybody"], headers, b"Hello, World")


def test_the_standard_webhooks_published_vector() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }

    assert fits(Scheme("standard-webhooks"), ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], headers, b'{"test": 2432232314}', now=1614265330)
    assert not fits(Scheme("standard-webhooks"), ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], headers, b'{"test": 2432232314}')


def test_slacks_published_vector() -> None:
    # The request that Slack's page "Verifying requests from Slack" works through.
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA"
        b"&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J"
        b"%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    headers = {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }

    assert fits(Scheme("slack"), ["8f742231b10e8888abcd99yyyzzz85a5"], headers, body, now=1531420618)


# ── the vendors' own packages ───────────────────────────────────────────────────────────────────────────────────────


class At(slack_sdk.signature.Clock):
    """Slack's clock, set."""

    def now(self) -> float:
        return NOW


def mutated(chance: random.Random, headers: dict[str, str], body: bytes, age_s: int) -> tuple[dict[str, str], bytes, int]:
    """Change nothing, or one thing that a sender or somebody between gets wrong."""
    which = chance.randrange(8)
    name = chance.choice(sorted(headers))
    if which == 0:
        body += chance.choice([b" ", b"\n", b"x"])
    elif which == 1:
        body = body[:-1]
    elif which == 2:
        headers = {key: value for key, value in headers.items() if key != name}
    elif which == 3:
        place = chance.randrange(len(headers[name]))
        headers = headers | {name: headers[name][:place] + chance.choice("0aZ=,;v ") + headers[name][place + 1 :]}
    elif which == 4:
        headers = headers | {name: headers[name].upper()}
    return headers, body, age_s


def body_of(chance: random.Random) -> bytes:
    text = "".join(chance.choice('abc{}[]":, \n\u00e9\u20ac\U0001f600') for _ in range(chance.randrange(60)))
    return text.encode()


def secret_of(chance: random.Random) -> str:
    return "".join(chance.choice("abcXYZ019_-+/= \u00e9") for _ in range(chance.randrange(1, 40))) + "!"


def test_slack_sdk_accepts_and_refuses_the_same_requests() -> None:
    chance = random.Random(1)
    seen = set()
    for _ in range(CASES):
        secret, body, age_s = secret_of(chance), body_of(chance), chance.choice([0, 10, 299, 300, 301, 4000, -299, -300, -301])
        oracle = slack_sdk.signature.SignatureVerifier(secret, At())
        stamp = str(NOW - age_s)
        headers = {"x-slack-request-timestamp": stamp, "x-slack-signature": str(oracle.generate_signature(timestamp=stamp, body=body))}
        headers, body, age_s = mutated(chance, headers, body, age_s)
        try:
            theirs = oracle.is_valid_request(body, headers)
        except (ValueError, UnicodeDecodeError):
            theirs = False

        assert fits(Scheme("slack"), [secret], headers, body) == theirs, (secret, headers, body)
        seen.add(theirs)
    assert seen == {True, False}


def test_slack_sdk_makes_the_signatures_that_we_expect_and_the_other_way_round() -> None:
    chance = random.Random(2)
    for _ in range(CASES):
        secret, body, stamp = secret_of(chance), body_of(chance), str(NOW)
        ours = "v0=" + hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()

        assert slack_sdk.signature.SignatureVerifier(secret, At()).is_valid(body, stamp, ours)
        assert fits(Scheme("slack"), [secret], {"x-slack-request-timestamp": stamp, "x-slack-signature": ours}, body)


def stripe_accepts(body: bytes, header: str, secret: str) -> bool:
    try:
        # The package reads the clock itself: its own tolerance is asked for in the next test.
        return bool(stripe.WebhookSignature.verify_header(body.decode(), header, secret))
    except (stripe.SignatureVerificationError, ValueError):
        return False


def test_stripe_accepts_and_refuses_the_same_requests() -> None:
    chance = random.Random(3)
    seen = set()
    for _ in range(CASES):
        secret, body = secret_of(chance), body_of(chance)
        header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, NOW)
        if chance.random() < 0.3:
            other = stripe.WebhookSignature.generate_signature_header(body.decode(), secret_of(chance), NOW)
            header += "," + other.split(",")[1] + ",v0=" + "0" * 64
        headers, body, _ = mutated(chance, {"stripe-signature": header}, body, 0)
        try:
            theirs = stripe_accepts(body, headers.get("stripe-signature", ""), secret)
        except IndexError:
            theirs = False

        assert fits(Scheme("stripe"), [secret], headers, body, tolerance_s=None) == theirs, (secret, headers, body)
        seen.add(theirs)
    assert seen == {True, False}


@pytest.mark.parametrize("age_s", [-4000, -300, 0, 298, 302, 4000])
def test_stripe_draws_the_same_line_in_time(age_s: int) -> None:
    now = int(time.time())
    header = stripe.WebhookSignature.generate_signature_header("{}", "whsec_x", now - age_s)
    try:
        theirs = stripe.WebhookSignature.verify_header("{}", header, "whsec_x", 300)
    except stripe.SignatureVerificationError:
        theirs = False

    assert fits(Scheme("stripe"), ["whsec_x"], {"stripe-signature": header}, b"{}", now=now) == theirs


def test_standardwebhooks_signs_what_we_accept() -> None:
    chance = random.Random(4)
    at = datetime.datetime.fromtimestamp(NOW, tz=datetime.UTC)
    for number in range(CASES // 10):
        secret = "whsec_" + base64.b64encode(chance.randbytes(24)).decode()
        body = body_of(chance)
        signature = standardwebhooks.Webhook(secret).sign(f"msg_{number}", at, body.decode())
        headers = {"webhook-id": f"msg_{number}", "webhook-timestamp": str(NOW), "webhook-signature": signature}

        assert fits(Scheme("standard-webhooks"), ["other", secret], headers, body)


# ── the generic scheme, and what holds for all ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "sha256="])
def test_the_generic_scheme_in_all_its_forms(algorithm: str, encoding: str, prefix: str) -> None:
    scheme = Scheme("generic", "X-Sig", algorithm, encoding, prefix)
    made = hmac.digest(b"k", b"body", algorithm)
    text = prefix + (made.hex() if encoding == "hex" else base64.b64encode(made).decode())

    assert fits(scheme, ["old", "k"], {"x-sig": text}, b"body")
    assert not fits(scheme, ["k"], {"x-sig": text}, b"body2")
    assert not fits(scheme, ["k"], {"x-sig": "x" + text}, b"body")
    assert inbound.diagnose(Scheme("generic", "X-Sig"), ["k"], {"x-sig": text}, b"body") is not None


SCHEMES = [*(Scheme(name) for name in inbound.NAMED), Scheme("generic", "x-sig"), Scheme("generic", "x-sig", "plain"), Scheme("unknown")]
PIECES = ["t=1,v1=", "v0=", "v1,", "sha256=", "1700000000", "v1,AA=="]
TEXT = st.text(st.characters(max_codepoint=255), max_size=40) | st.sampled_from(PIECES)
HEADERS = st.fixed_dictionaries({}, optional={name: TEXT for names in inbound.HEADERS.values() for name in names} | {"x-sig": TEXT})


@given(st.sampled_from(SCHEMES), HEADERS, st.binary(max_size=40), st.lists(st.text(max_size=10), max_size=2), st.sampled_from([None, 300]))
def test_nothing_that_is_sent_is_accepted_or_raises_anything_else(
    scheme: Scheme, headers: dict[str, str], body: bytes, secrets: list[str], tolerance_s: int | None
) -> None:
    if scheme.is_plain and headers.get("x-sig") in secrets:
        return
    assert not fits(scheme, secrets, headers, body, tolerance_s=tolerance_s)
    inbound.diagnose(scheme, secrets, headers, body)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name + scheme.algorithm)
@pytest.mark.parametrize("secrets", [[], [""], ["", ""]])
def test_without_a_secret_nothing_fits(scheme: Scheme, secrets: list[str]) -> None:
    empty: dict[str, Any] = {
        "x-hub-signature-256": "sha256=" + hmac.digest(b"", b"{}", "sha256").hex(),
        "x-sig": hmac.digest(b"", b"{}", "sha256").hex(),
        "x-slack-request-timestamp": str(NOW),
        "x-slack-signature": "v0=" + hmac.digest(b"", f"v0:{NOW}:{{}}".encode(), "sha256").hex(),
        "stripe-signature": f"t={NOW},v1=" + hmac.digest(b"", f"{NOW}.{{}}".encode(), "sha256").hex(),
    }

    assert not fits(scheme, secrets, empty, b"{}")


@pytest.mark.parametrize(
    ("secret", "body", "said"),
    [(" k", b"body", "white space"), ("k", b"body\n", "got a line break"), ("k", b"bod", None)],
)
def test_what_people_get_wrong_is_named(secret: str, body: bytes, said: str | None) -> None:
    headers = {"x-hub-signature-256": "sha256=" + hmac.digest(b"k", b"body", "sha256").hex()}

    hint = inbound.diagnose(Scheme("github"), [secret], headers, body)

    assert (hint is None) if said is None else (said in str(hint))
