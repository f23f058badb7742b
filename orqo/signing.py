"""Signatures on callbacks: Standard Webhooks, signed and verified.

Owns what is signed and with which secret. Never reads a clock, a database or a request.
Source: the Standard Webhooks specification; `X-Signature-256` is the hex HMAC-SHA256 of the body, as ORQO and GitHub sign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

SECRET_PREFIX = "whsec_"
TIMESTAMP = re.compile(r"[0-9]{1,12}")


class SignatureInvalid(Exception):
    """The request was not signed with one of the secrets, or not now; `reason` is a sentence that can be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(secret: bytes, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Give `v1,<base64>` over `<message_id>.<timestamp>.<body>`; `timestamp` in Unix seconds."""
    return f"v1,{base64.b64encode(_signature(secret, message_id, timestamp, body)).decode('ascii')}"


def secret_bytes(text: str) -> bytes:
    """Give the key that a secret's text stands for: base64 after `whsec_` (padding optional), else the text itself in UTF-8.

    ValueError where that is no base64 or nothing at all: every receiver would take another key, or anybody could forge.
    """
    if not text.startswith(SECRET_PREFIX):
        key = text.encode("utf-8")
    else:
        encoded = text.removeprefix(SECRET_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError as fault:
            raise ValueError("what follows whsec_ is not base64") from fault
    if not key:
        raise ValueError("the secret is empty")
    return key


def derived_secret(key: bytes, url: str) -> str:
    """Give the `whsec_…` secret of a callback that has none of its own: no receiver can work out another's."""
    digest = hmac.digest(key, b"callback" + url.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return SECRET_PREFIX + base64.b64encode(digest).decode("ascii")


def callback_headers(secrets: Sequence[bytes], *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Give the headers of one attempt, signed with every secret, the newest first; `X-Signature-256` is the newest's alone."""
    signatures = [sign(secret, message_id=message_id, timestamp=timestamp, body=body) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
        "X-Signature-256": f"sha256={hmac.digest(secrets[0], body, hashlib.sha256).hex()}",
    }


def verify_standard(secrets: Sequence[bytes], headers: Mapping[str, str], body: bytes, *, now: int, tolerance_s: int = 300) -> None:
    """Return where one of `secrets` signed this within `tolerance_s` of `now`; SignatureInvalid else, whatever the input.

    Names of headers count in any case. Nothing is parsed but the signature: the body may be anything.
    """
    found = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = found.get("webhook-id", ""), found.get("webhook-timestamp", "")
    if not message_id or not timestamp or not found.get("webhook-signature"):
        raise SignatureInvalid("webhook-id, webhook-timestamp or webhook-signature is missing")
    if not message_id.isascii() or not TIMESTAMP.fullmatch(timestamp):
        raise SignatureInvalid("webhook-id is not ASCII, or webhook-timestamp is not a number of seconds")
    if abs(now - int(timestamp)) > tolerance_s:
        raise SignatureInvalid(f"webhook-timestamp is more than {tolerance_s} s away from now: the message is old, or a clock is wrong")
    expected = [_signature(secret, message_id, timestamp, body) for secret in secrets if secret]
    given = _given_signatures(found["webhook-signature"])
    if not any(hmac.compare_digest(signature, other) for signature in expected for other in given):
        raise SignatureInvalid("no signature in webhook-signature was made with this secret over this id, timestamp and body")


def _given_signatures(text: str) -> list[bytes]:
    signatures = []
    for part in text.split(" "):
        version, _, encoded = part.partition(",")
        if version == "v1":
            try:
                signatures.append(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                continue
    return signatures


def _signature(secret: bytes, message_id: str, timestamp: int | str, body: bytes) -> bytes:
    return hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
