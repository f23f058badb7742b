"""One received request as data, and who may see which part of it.

Owns the lists: what a workflow is told, what the request log shows, what it keeps hidden, what is kept nowhere. Never
parses a body.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from orqo import inbound
from orqo.config import Network
from orqo.inbound import Scheme

# Headers that a workflow may see. What could be a credential or a signature is not among them, whatever its prefix.
TOLD_HEADERS = ("content-type", "user-agent", "webhook-id", "webhook-timestamp")
TOLD_PREFIXES = (
    *("x-github-", "x-gitlab-", "x-gitea-", "x-forgejo-", "x-event-", "x-request-", "x-slack-retry-", "x-shopify-"),
    *("x-atlassian-", "x-bitbucket-", "x-grafana-", "x-sentry-", "x-linear-", "x-discord-", "x-zapier-", "x-wc-webhook-", "ce-"),
)
SECRET_WORDS = re.compile(
    r"auth(?!or(s|ed)?($|[-_]))|cookie|token|secret|signature|hmac|password|passwd|credential|session|api-?_?key"
    r"|jwt|assertion|passphrase|(^|[-_])(sig|key|pass|pwd|otp|code)($|[-_])"
)
NOT_SECRET = ("idempotency-key", "x-event-key")
HIDDEN = "(hidden)"
WAIT_MAX_S = 60
PREFERRED_WAIT = re.compile(r'wait\s*=\s*"?([0-9]{1,9})"?', re.IGNORECASE)
HEADERS_MAX, VALUE_MAX = 100, 4096
SIGNATURE_HEADERS = frozenset(name for names in inbound.HEADERS.values() for name in names)
SHOWN_HEADERS = frozenset(("webhook-id", "webhook-timestamp", "x-slack-request-timestamp"))
HIDDEN_HEADERS = SIGNATURE_HEADERS - SHOWN_HEADERS


@dataclass(frozen=True)
class Call:
    """One request. Header names are lower-case; `query` keeps its order; `body` None was not read."""

    method: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Sequence[tuple[str, str]] = ()
    remote: str = ""
    body: bytes | None = b""

    @property
    def content_type(self) -> str:
        """The Content-Type as sent."""
        return self.headers.get("content-type", "")


def wait_s(headers: Mapping[str, str]) -> int:
    """Give the seconds of the preference `wait` (RFC 7240), at most 60; 0 where there is none that can be read."""
    for preference in headers.get("prefer", "").split(","):
        found = PREFERRED_WAIT.fullmatch(preference.partition(";")[0].strip())
        if found:
            # The first of several holds (RFC 7240 §2).
            return min(int(found[1]), WAIT_MAX_S)
    return 0


def is_told(name: str) -> bool:
    """Tell whether a workflow may see a header of this lower-case name."""
    return (name in TOLD_HEADERS or name.startswith(TOLD_PREFIXES)) and not is_secret(name)


def is_secret(name: str) -> bool:
    """Tell whether a header or parameter of this name may hold a credential or a signature."""
    lower = name.lower()
    return lower not in NOT_SECRET and _holds_secret_word(lower)


@lru_cache(maxsize=1024)
def _holds_secret_word(name: str) -> bool:
    return SECRET_WORDS.search(name) is not None


def told_headers(call: Call) -> dict[str, str]:
    """Give the headers that a workflow may see."""
    return {name: clean(value) for name, value in call.headers.items() if is_told(name)}


def told_query(call: Call) -> dict[str, str]:
    """Give the query string as the workflow sees it: of a name that comes again, the first."""
    return {clean(name): clean(value) for name, value in reversed(call.query)}


def shown_headers(call: Call, scheme: Scheme | None = None) -> dict[str, str]:
    """Give the headers as the request log shows them: of a credential only that it was there."""
    hidden = HIDDEN_HEADERS | (set(scheme.headers) - SHOWN_HEADERS) if scheme else HIDDEN_HEADERS
    shown = {name: HIDDEN if name in hidden or is_secret(name) else clean(value) for name, value in call.headers.items()}
    return {clean(name): value[:VALUE_MAX] for name, value in list(shown.items())[:HEADERS_MAX]}


def hidden_headers(call: Call, scheme: Scheme | None = None) -> dict[str, str]:
    """Give what a later verification needs: signatures, which show no secret, and of a header that is a secret its digest."""
    kept = {name: value for name, value in call.headers.items() if name in SIGNATURE_HEADERS or "signature" in name or "hmac" in name}
    for name in scheme.headers if scheme else ():
        if name in call.headers:
            kept[name] = inbound.digest(call.headers[name]) if scheme and scheme.is_plain else call.headers[name]
    return {clean(name): clean(value) for name, value in kept.items() if len(value) <= VALUE_MAX}


def shown_query(call: Call) -> list[list[str]]:
    """Give the query string as the request log shows it."""
    return [[clean(name), HIDDEN if is_secret(name) else clean(value)[:VALUE_MAX]] for name, value in list(call.query)[:HEADERS_MAX]]


def clean(text: str) -> str:
    """Give text that JSON in UTF-8 and each database can hold: PostgreSQL's takes no NUL."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def remote_address(peer: str, forwarded_for: str, trusted: Iterable[Network]) -> str:
    """Give the address of whoever sent the request: the peer, or what the last trusted proxy saw.

    X-Forwarded-For is read from its end, as each proxy appends; the first address that is no trusted proxy's is the
    sender's, and what stands before it was written by the sender.
    """
    proxies = tuple(trusted)
    hops = [hop.strip() for hop in forwarded_for.split(",")] if forwarded_for else []
    address = peer
    while hops and within(address, proxies):
        address = _without_port(hops.pop())
    return address


def within(address: str, networks: Iterable[Network]) -> bool:
    """Tell whether an address lies in one of the networks; an IPv4 address written as IPv6 counts as what it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed.version == network.version and parsed in network for network in networks)


def _without_port(hop: str) -> str:
    # Azure's gateway writes 192.0.2.1:443, RFC 7239 people write [2001:db8::1]:443.
    found = re.fullmatch(r"\[([^\]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+", hop)
    return (found[1] or found[2]) if found else hop
