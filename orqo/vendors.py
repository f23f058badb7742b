"""What particular senders do besides sending: greet before the first event, and send the same event again.

Owns the knowledge of whose requests look how. Never verifies a signature: its caller has.
Sources: GitHub "Webhook events and payloads" (ping), Slack "url_verification" and "Events API: error handling", Meta "Webhooks:
verification requests", Stripe "Handle duplicate events", the Standard Webhooks specification.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orqo.call import Call
from orqo.inbound import Scheme
from orqo.signing import SignatureInvalid

ID = re.compile(r"[\x21-\x7e]{1,255}")
CHALLENGE = re.compile(r"[A-Za-z0-9_.~-]{1,200}")
SLACK_CHALLENGE_MAX = 1000


@dataclass(frozen=True)
class Handshake:
    """A greeting and its answer: JSON, or text where `text` is set. It starts no run."""

    reason: str
    json: Mapping[str, Any] | None = None
    text: str | None = None


def handshake(scheme: Scheme | None, call: Call, value: Any) -> Handshake | None:
    """Give the answer to a greeting by POST, None where the request is none. Its signature has been verified.

    Without a scheme there is no greeting: whatever arrives at a bare webhook starts a run.
    """
    if scheme is None:
        return None
    if scheme.name == "github" and call.headers.get("x-github-event") == "ping":
        return Handshake("GitHub's ping", json={"status": "ignored", "reason": "This is GitHub's ping: the webhook works."})
    if scheme.name == "slack" and isinstance(value, dict) and value.get("type") == "url_verification":
        challenge = value.get("challenge")
        if isinstance(challenge, str) and len(challenge) <= SLACK_CHALLENGE_MAX:
            return Handshake("Slack's url_verification", json={"challenge": challenge})
    return None


def challenge(call: Call, verify_token: str) -> Handshake:
    """Answer Meta's GET; SignatureInvalid where it does not know the verify token, or asks nothing."""
    asked = dict(reversed(call.query))
    if asked.get("hub.mode") != "subscribe" or not CHALLENGE.fullmatch(asked.get("hub.challenge", "")):
        raise SignatureInvalid("hub.mode=subscribe or a usable hub.challenge is missing")
    given = asked.get("hub.verify_token", "")
    if not verify_token or not hmac.compare_digest(given.encode("utf-8", "replace"), verify_token.encode("utf-8", "surrogateescape")):
        raise SignatureInvalid("hub.verify_token is not this trigger's verify_token")
    return Handshake("Meta's hub.challenge", text=asked["hub.challenge"])


def signed_id(scheme: Scheme | None, call: Call, value: Any) -> str | None:
    """Give the event's name where the scheme signs one; None for the other schemes.

    It is then the only name that counts: whoever has a signed request can send it again under any header that is not signed.
    """
    named = {
        "slack": ("slack", _member(value, "event_id")),
        "stripe": ("stripe", _member(value, "id")),
        "standard-webhooks": ("webhook", call.headers.get("webhook-id")),
    }
    sender, text = named.get(scheme.name if scheme else "", ("", None))
    return f"{sender}:{text}" if isinstance(text, str) and ID.fullmatch(text) else None


def event_id(call: Call, value: Any) -> str | None:
    """Give what a sender names this event by, with the sender's name before it; None where it gives none.

    The same whatever the body: a redelivery may carry other counters.
    """
    headers = call.headers
    named = (
        ("github", headers.get("x-github-delivery")),
        ("webhook", headers.get("webhook-id")),
        ("slack", _member(value, "event_id") if "x-slack-request-timestamp" in headers else None),
        ("stripe", _member(value, "id") if "stripe-signature" in headers else None),
    )
    return next((f"{sender}:{text}" for sender, text in named if isinstance(text, str) and ID.fullmatch(text)), None)


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None
