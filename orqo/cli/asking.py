"""What a webhook asks of its requests, as options of a command: read, and held to the rules of a workflow file.

Owns this spelling of `webhook:` and `filter:`. Never writes a trigger.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from orqo import definition, inbound, webhook
from orqo.cli import output
from orqo.cli.arguments import Refused, json_value
from orqo.config import Config
from orqo.errors import Invalid
from orqo.secretstore import SecretStore

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GENERIC = '{"header": "X-Signature", "prefix": "sha256="}'


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    names = ", ".join(inbound.NAMED)
    parser.add_argument("--signature", metavar="SCHEME", help=f"how requests are signed: {names}, or JSON such as {GENERIC}")
    parser.add_argument("--secret", type=_name, metavar="NAME", help="the secret they are signed with: the NAME of ORQO_SECRET_NAME")
    parser.add_argument("--previous-secret", type=_name, metavar="NAME", help="the one before it, while the sender changes")
    parser.add_argument("--verify-token", type=_name, metavar="NAME", help="the secret by which Meta's GET is answered")
    parser.add_argument("--filter", type=json_value, metavar="JSON", help="the condition that a request must meet to start a run")
    parser.add_argument("--dedupe", choices=("on", "off"), help="off: the same event again is another run")
    parser.add_argument("--rate", metavar="N/UNIT", help="how many requests at most, such as 60/m")
    parser.add_argument("--network", action="append", metavar="NETWORK", help="where requests may come from; again for each")
    parser.add_argument("--max-body", metavar="SIZE", help="the largest body, such as 256KiB")
    answered = 'what is answered instead, such as {"status": 200, "json": {"text": "ok"}}'
    parser.add_argument("--response", type=json_value, metavar="JSON", help=answered)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not the name of a secret: give the NAME of ORQO_SECRET_NAME, not the secret")
    return text


def given(arguments: argparse.Namespace) -> bool:
    """Tell whether a command says anything of it."""
    return any(value is not None for value in [*_webhook(arguments).values(), arguments.filter])


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what a command says in the stored form. Refused where a file could not say the same."""
    said = {key: value for key, value in _webhook(arguments).items() if value is not None}
    try:
        return definition.parse_trigger("cli", webhook=said, filter=arguments.filter).options
    except Invalid as fault:
        raise Refused(*(f"orqo: {each.detail}" for each in fault.errors)) from fault


def _webhook(arguments: argparse.Namespace) -> dict[str, Any]:
    signature = arguments.signature
    if signature is not None and signature.startswith("{"):
        signature = json_value(signature)
    return {
        "signature": signature,
        "secret": _reference(arguments.secret),
        "previous_secret": _reference(arguments.previous_secret),
        "verify_token": _reference(arguments.verify_token),
        "dedupe": arguments.dedupe,
        "rate": arguments.rate,
        "networks": arguments.network,
        "max_body": arguments.max_body,
        "response": arguments.response,
    }


def _reference(name: str | None) -> str | None:
    return None if name is None else f"${{secrets.{name}}}"


def check_secrets(config: Config, options: Mapping[str, Any]) -> None:
    """Refuse a secret that is set and empty; say which are not set here: the service may have them all the same."""
    secrets = SecretStore.from_config(config)
    for name in webhook.names_of_secrets(options):
        if secrets.get(name) == "":
            raise Refused(f"orqo: the secret {name} is empty: nothing could be verified with it")
        if name not in secrets:
            output.note(f"the secret {name} is not set here; the service needs ORQO_SECRET_{name}, and answers 401 until it has it")
