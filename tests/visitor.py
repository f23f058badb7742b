"""Somebody in front of the dashboard, without a browser."""

from __future__ import annotations

import re
from typing import Any

from orqo import clock, people
from support import TestBox

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>{{7*7}}${input}"


class Visitor:
    """A browser without a script: keeps cookies, sends the tokens of the forms that it was shown."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def token(self, path: str = "/settings/people") -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get(path).text)
        assert found, path
        return found[1]

    def post(self, path: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        return self.client.post(path, data={"csrf": self.token()} | fields, headers=headers or {})


def link(box: TestBox) -> str:
    with box.database.transaction() as connection:
        return people.make_link(connection, now=clock.now())


def sign_in(client: Any, box: TestBox) -> Visitor:
    token = people.sign_in_by_link(box.database, link(box), None, agent=HOSTILE, now=clock.now())
    client.set_cookie("orqo_session", token)
    return Visitor(client)
