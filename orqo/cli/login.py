"""`login-link`: a one-time link that signs a browser in to the dashboard. It is a credential: printed, never logged."""

from __future__ import annotations

import argparse

from orqo import clock, people
from orqo.cli import output
from orqo.cli.arguments import declare
from orqo.cli.opening import opened


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the command."""
    declare(parser, _link)


def _link(arguments: argparse.Namespace) -> int:
    now = clock.now()
    with opened() as box:
        with box.database.transaction() as connection:
            token = people.make_link(connection, now=now)
        url = people.link_url(box.config.base_url, token)
        near = people.link_url(f"http://127.0.0.1:{box.config.port}", token)
    if arguments.json:
        output.as_json({"url": url, "expires_at": clock.to_text(now + people.LINK_LASTS)})
    else:
        output.note("open this within 15 minutes; it signs one browser in, once:")
        print(url)
        if near != url:
            # A proxy that lets webhooks alone through shows no dashboard.
            output.note("on this machine itself, or through an SSH tunnel to it, the same link is:")
            print(near)
    return 0
