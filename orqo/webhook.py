"""What a webhook trigger asks of a request: its options, read from a workflow file's keys and from their stored form.

Owns both forms. Knows no request and no secret: only the names of secrets.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orqo.config import DURATION_S, Network, size_bytes
from orqo.inbound import NAMED, Scheme

RATE = re.compile(r"([1-9][0-9]{0,5})/([smhd])")
SECRET = re.compile(r"\$\{secrets\.([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Rate:
    """At most `count` requests within `per_s` seconds."""

    count: int
    per_s: float


@dataclass(frozen=True)
class OwnAnswer:
    """What is answered in place of our 201: a status, and a JSON template where `has_json`."""

    status: int = 200
    json: Any = None
    has_json: bool = False


@dataclass(frozen=True)
class Options:
    """Everything that a webhook asks; `secrets` and `verify_token` are names. The default asks nothing."""

    scheme: Scheme | None = None
    secrets: tuple[str, ...] = ()
    verify_token: str | None = None
    dedupe: bool = True
    rate: Rate | None = None
    networks: tuple[Network, ...] = ()
    max_body_bytes: int | None = None
    answer: OwnAnswer | None = None
    filter: Mapping[str, Any] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this webhook takes: GET only where that is how its sender makes itself known."""
        return ("GET", "POST") if self.verify_token else ("POST",)

    @classmethod
    def from_stored(cls, text: str) -> Options:
        """Read the column triggers.options."""
        stored = json.loads(text)
        answer = stored.get("response")
        return cls(
            scheme=Scheme.from_dict(stored["signature"]) if "signature" in stored else None,
            secrets=tuple(stored.get("secrets", ())),
            verify_token=stored.get("verify_token"),
            dedupe=stored.get("dedupe", True),
            rate=rate(stored["rate"]) if "rate" in stored else None,
            networks=tuple(ipaddress.ip_network(each) for each in stored.get("networks", ())),
            max_body_bytes=stored.get("max_body_bytes"),
            answer=None if answer is None else OwnAnswer(answer.get("status", 200), answer.get("json"), "json" in answer),
            filter=stored.get("filter"),
        )


def stored(trigger: Mapping[str, Any]) -> dict[str, Any]:
    """Give the stored form of a trigger without faults, as a workflow file writes it: only what was said."""
    webhook = trigger.get("webhook") or {}
    names = [_secret_name(webhook[key]) for key in ("secret", "previous_secret") if key in webhook]
    found: dict[str, Any] = {"secrets": names} if names else {}
    if "signature" in webhook:
        found["signature"] = scheme(webhook["signature"]).as_dict()
    if "verify_token" in webhook:
        found["verify_token"] = _secret_name(webhook["verify_token"])
    if webhook.get("dedupe") == "off":
        found["dedupe"] = False
    if "networks" in webhook:
        found["networks"] = [str(ipaddress.ip_network(each)) for each in webhook["networks"]]
    if "max_body" in webhook:
        found["max_body_bytes"] = size_bytes(str(webhook["max_body"]))
    found |= {key: webhook[key] for key in ("rate", "response") if key in webhook}
    return found | ({"filter": trigger["filter"]} if "filter" in trigger else {})


def written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the stored form as a workflow file writes it, `{"webhook", "filter"}`: what `stored` reads gives the same again."""
    signature = Scheme.from_dict(options["signature"]) if "signature" in options else None
    names = dict(zip(("secret", "previous_secret"), options.get("secrets", ()), strict=False))
    found: dict[str, Any] = {"signature": _written_scheme(signature)} if signature else {}
    found |= {key: f"${{secrets.{name}}}" for key, name in names.items()}
    if "verify_token" in options:
        found["verify_token"] = f"${{secrets.{options['verify_token']}}}"
    if options.get("dedupe") is False:
        found["dedupe"] = "off"
    found |= {key: options[key] for key in ("rate", "networks", "response") if key in options}
    if "max_body_bytes" in options:
        found["max_body"] = options["max_body_bytes"]
    return ({"webhook": found} if found else {}) | ({"filter": options["filter"]} if "filter" in options else {})


def _written_scheme(signature: Scheme) -> Any:
    if signature.name != "generic":
        return signature.name
    spelling = {} if signature.is_plain else {"encoding": signature.encoding}
    prefix = {"prefix": signature.prefix} if signature.prefix else {}
    return {"header": signature.header, "algorithm": signature.algorithm, **spelling, **prefix}


def _secret_name(text: str) -> str:
    found = SECRET.fullmatch(text)
    assert found is not None
    return found[1]


def names_of_secrets(options: Mapping[str, Any]) -> list[str]:
    """Give the names of the secrets that a webhook in its stored form needs."""
    return [*options.get("secrets", ()), *([options["verify_token"]] if "verify_token" in options else [])]


def scheme(written: str | Mapping[str, Any]) -> Scheme:
    """Read `signature:`; a mapping is the generic scheme."""
    return Scheme(written) if isinstance(written, str) else Scheme.from_dict({"name": "generic", **written})


def is_scheme(text: str) -> bool:
    """Tell whether a text names a scheme."""
    return text in NAMED


def rate(text: str) -> Rate:
    """Read `60/m`; ValueError on anything else."""
    found = RATE.fullmatch(text)
    if not found:
        raise ValueError("write a number, / and one of s, m, h, d: 60/m")
    return Rate(int(found[1]), DURATION_S[found[2]])


def is_rate(text: str) -> bool:
    """Tell whether a text is a rate."""
    return bool(RATE.fullmatch(text))


def is_network(text: str) -> bool:
    """Tell whether a text is an address or a network, such as 192.0.2.7 or 2001:db8::/32."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
