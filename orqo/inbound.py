"""Signatures on what other services send to a webhook: one scheme a vendor, and a generic one for the rest.

Owns how each of them signs and the search for why one does not fit. Always over the raw bytes, in constant time, and
closed: what cannot be verified is refused. Never reads a clock, a setting or a database.
Sources: GitHub "Validating webhook deliveries", Slack "Verifying requests from Slack", Stripe "Check the webhook
signatures", the Standard Webhooks specification.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orqo import jsontext, signing
from orqo.signing import SignatureInvalid

TOLERANCE_S = 300
NAMED = ("github", "slack", "stripe", "standard-webhooks")
ALGORITHMS = ("sha256", "sha1", "sha512", "plain")
ENCODINGS = ("hex", "base64")
UNIX_TIME = re.compile(r"[0-9]{1,12}")
DIGEST_PREFIX = "sha256:"
# A header's whole value stands in for it where it is itself the secret: that is all the request log keeps of it.
KEPT_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What may stand before a signature to name it: sha256=, v1=
LABEL = re.compile(r"[A-Za-z0-9_-]{1,20}=(?=.)")
STRIPE_TIME = re.compile(r"(?:^|,)t=([0-9]{1,12})(?:,|$)")
RESPELLED_MAX_BYTES = 64 * 1024
HEADERS = {
    "github": ("x-hub-signature-256",),
    "slack": ("x-slack-signature", "x-slack-request-timestamp"),
    "stripe": ("stripe-signature",),
    "standard-webhooks": ("webhook-signature", "webhook-id", "webhook-timestamp"),
}


@dataclass(frozen=True)
class Scheme:
    """How a trigger's requests are signed. What stands after `name` is of `generic`; `plain` compares with the secret itself."""

    name: str
    header: str = ""
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that a signature needs, lower-case."""
        return HEADERS.get(self.name, (self.header.lower(),))

    @property
    def is_plain(self) -> bool:
        """Tell whether the header is the secret itself."""
        return self.name == "generic" and self.algorithm == "plain"

    def as_dict(self) -> dict[str, str]:
        """Give the stored form."""
        return asdict(self) if self.name == "generic" else {"name": self.name}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Scheme:
        """Read the stored form."""
        return cls(**{key: str(value) for key, value in stored.items() if key in cls.__dataclass_fields__})


def verify(
    scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, *, now: int, tolerance_s: int | None = TOLERANCE_S
) -> None:
    """Return where one of `secrets` signed these bytes, SignatureInvalid else, whatever was sent.

    `headers` have lower-case names. `tolerance_s` None: the time is not looked at, as when a kept request is replayed.
    """
    usable = [secret for secret in secrets if secret]
    if not usable:
        raise SignatureInvalid("there is no secret to check it with")
    check = CHECKS.get(scheme.name)
    if check is None:
        raise SignatureInvalid(f"the scheme {scheme.name[:40]} is not known")
    check(scheme, usable, headers, body, now, tolerance_s)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise SignatureInvalid(f"the header {name} is missing")
    return value


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _any(given: Sequence[str], expected: Sequence[str], header: str) -> None:
    """Compare each with each, all of them: how long it takes tells nothing."""
    fits = [_same(one, other) for one in given for other in expected]
    if not any(fits):
        raise SignatureInvalid(f"{header} was not made with this secret over this body")


def _hex(secret: str, signed: bytes) -> str:
    return hmac.digest(_bytes(secret), signed, hashlib.sha256).hex()


def _bytes(secret: str) -> bytes:
    # As the environment had it, also where that is no UTF-8.
    return secret.encode("utf-8", "surrogateescape")


def _seconds(text: str, name: str, now: int, tolerance_s: int | None, *, future: bool) -> int:
    """Read when something was signed; SignatureInvalid where that is too long ago or, with `future`, too far ahead."""
    if not UNIX_TIME.fullmatch(text):
        raise SignatureInvalid(f"{name} is not a number of seconds")
    age_s = now - int(text)
    if tolerance_s is not None and (age_s > tolerance_s or (future and -age_s > tolerance_s)):
        side = "ago" if age_s > 0 else "ahead"
        raise SignatureInvalid(f"it was signed {abs(age_s)} s {side}, more than {tolerance_s} s: it is old, or a clock is wrong")
    return int(text)


def _github(_scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, _now: int, _tolerance: int | None) -> None:
    name = "x-hub-signature-256"
    _any([_header(headers, name)], [f"sha256={_hex(secret, body)}" for secret in secrets], name)


def _slack(_scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: int, tolerance_s: int | None) -> None:
    stamp, given = _header(headers, "x-slack-request-timestamp"), _header(headers, "x-slack-signature")
    _seconds(stamp, "x-slack-request-timestamp", now, tolerance_s, future=True)
    signed = b"v0:" + stamp.encode() + b":" + body
    _any([given], [f"v0={_hex(secret, signed)}" for secret in secrets], "x-slack-signature")


def _stripe(_scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: int, tolerance_s: int | None) -> None:
    # Several v1 while a secret is being rolled; other versions are test signatures or to come, and are not looked at.
    pairs = [part.split("=")[:2] for part in _header(headers, "stripe-signature").split(",") if "=" in part]
    stamp = next((value for key, value in pairs if key == "t"), "")
    # As Stripe's own library does, only an old one is refused: the time is within what was signed.
    _seconds(stamp, "t in stripe-signature", now, tolerance_s, future=False)
    signed = stamp.encode() + b"." + body
    _any([value for key, value in pairs if key == "v1"], [_hex(secret, signed) for secret in secrets], "v1 in stripe-signature")


def _standard(_scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: int, tolerance_s: int | None) -> None:
    try:
        keys = [signing.secret_bytes(secret) for secret in secrets]
    except ValueError as fault:
        raise SignatureInvalid(f"the secret cannot be used: {fault}") from fault
    signing.verify_standard(keys, headers, body, now=now, tolerance_s=2**62 if tolerance_s is None else tolerance_s)


def _generic(scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, _now: int, tolerance_s: int | None) -> None:
    name = scheme.header.lower()
    given = _header(headers, name)
    if scheme.is_plain:
        # Only a kept request has the digest in the secret's place: sent in earnest, it is a wrong secret like any other.
        shown = given if tolerance_s is None and KEPT_DIGEST.fullmatch(given) else digest(given)
        _any([shown], [digest(scheme.prefix + secret) for secret in secrets], name)
        return
    if not given.startswith(scheme.prefix):
        raise SignatureInvalid(f"{name} does not begin with {scheme.prefix}")
    given = given[len(scheme.prefix) :]
    _any([given.lower() if scheme.encoding == "hex" else given], [_encoded(scheme, secret, body) for secret in secrets], name)


def _encoded(scheme: Scheme, secret: str, body: bytes) -> str:
    made = hmac.digest(_bytes(secret), body, scheme.algorithm)
    return made.hex() if scheme.encoding == "hex" else base64.b64encode(made).decode("ascii")


def digest(value: str) -> str:
    """Give what the request log keeps in place of a header that is itself the secret."""
    return DIGEST_PREFIX + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


CHECKS = {"github": _github, "slack": _slack, "stripe": _stripe, "standard-webhooks": _standard, "generic": _generic}


def signed_at(scheme: Scheme, headers: Mapping[str, str]) -> int | None:
    """Give when a request says that it was signed, in seconds since 1970; None where its scheme has no time or it says none."""
    if scheme.name == "stripe":
        found = STRIPE_TIME.search(headers.get("stripe-signature", ""))
        return int(found[1]) if found else None
    stamp = headers.get({"slack": "x-slack-request-timestamp", "standard-webhooks": "webhook-timestamp"}.get(scheme.name, ""), "")
    return int(stamp) if UNIX_TIME.fullmatch(stamp) else None


# ── why it does not fit ─────────────────────────────────────────────────────────────────────────────────────────────


def diagnose(scheme: Scheme, secrets: Sequence[str], headers: Mapping[str, str], body: bytes) -> str | None:
    """Give what would have to differ for the signature to fit, for the people who own the secret; None where nothing is found.

    Never for the sender: it tells that a guess was near.
    """
    named = LABEL.match(headers.get(scheme.header.lower(), ""))
    for hint, other_scheme, other_secrets, other_body in _variations(scheme, secrets, body, named[0] if named else ""):
        try:
            verify(other_scheme, other_secrets, headers, other_body, now=0, tolerance_s=None)
        except SignatureInvalid:
            continue
        return hint
    return None


def _variations(scheme: Scheme, secrets: Sequence[str], body: bytes, label: str) -> list[tuple[str, Scheme, Sequence[str], bytes]]:
    """Give what people get wrong, each with how the request would then be verified."""
    stripped = [secret.strip() for secret in secrets]
    ended = [f"{secret}\n" for secret in secrets]
    found: list[tuple[str, Scheme, Sequence[str], bytes]] = [
        ("the time alone: it is old, or a clock is wrong", scheme, secrets, body),
        ("the secret has white space around it here; the sender's has not", scheme, stripped, body),
        ("the sender's secret ends with a line break", scheme, ended, body),
        ("the body lost a line break at its end on the way", scheme, secrets, body + b"\n"),
        ("the body got a line break at its end on the way", scheme, secrets, body.rstrip(b"\r\n")),
        ("the sender signed an empty body", scheme, secrets, b""),
    ]
    decoded = [text for secret in secrets if (text := _decoded(secret))]
    found.append(("the sender takes the secret as base64 and signs with what that stands for", scheme, decoded, body))
    found += [(f"the JSON was written anew on the way: {how} was signed", scheme, secrets, other) for how, other in _respelled(body)]
    if scheme.name == "generic" and not scheme.is_plain:
        # What was taken for the prefix may be part of the value, and the other way round.
        others = [(a, e, p) for a in ALGORITHMS[:3] for e in ENCODINGS for p in dict.fromkeys((scheme.prefix, "", label))]
        found += [(_called(a, e, p), Scheme("generic", scheme.header, a, e, p), secrets, body) for a, e, p in others]
    return found


def _respelled(body: bytes) -> list[tuple[str, bytes]]:
    """Give a JSON body as other programs write the same value: what a sender signs and its client or a proxy then writes anew."""
    if len(body) > RESPELLED_MAX_BYTES or body.lstrip()[:1] not in (b"{", b"["):
        return []
    try:
        value = jsontext.parse(body)
    except jsontext.NotJson:
        return []
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    escaped = json.dumps(value, separators=(",", ":"))
    found = {
        "JSON without spaces": compact,
        "JSON without spaces, other letters as \\u escapes": escaped,
        "JSON as PHP writes it (\\/ and \\u escapes)": escaped.replace("/", "\\/"),
        "JSON as Python writes it (a space after , and :)": json.dumps(value),
        "JSON as Python writes it, sorted by key": json.dumps(value, sort_keys=True),
        "JSON without spaces, sorted by key": json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True),
        "indented JSON": json.dumps(value, indent=2, ensure_ascii=False),
    }
    return [(how, text.encode("utf-8")) for how, text in found.items()]


def _called(algorithm: str, encoding: str, prefix: str) -> str:
    return f"it fits with algorithm: {algorithm}, encoding: {encoding}" + (f", prefix: {prefix}" if prefix else " and no prefix")


def _decoded(secret: str) -> str | None:
    try:
        return base64.b64decode(secret.removeprefix(signing.SECRET_PREFIX), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
