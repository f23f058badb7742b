"""Each recipe's workflow, called as its service calls: the documented headers and the documented shape of the body, written here."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest

from orqo import definition
from orqo.config import PROJECT_DIR
from support import TestBox

RECIPES = PROJECT_DIR / "docs" / "recipes"
FILES = {path.stem: path for path in sorted((PROJECT_DIR / "examples" / "recipes").glob("*.yaml"))}
SECRET = "s3cret of the sender"
JSON = "application/json"
Signer = Callable[[bytes], dict[str, str]]


def hexed(body: bytes) -> str:
    return hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()


def by_slack(body: bytes) -> dict[str, str]:
    stamp = str(int(time.time()))
    signed = hmac.new(SECRET.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signed}", "User-Agent": "Slackbot 1.0"}


def by_stripe(body: bytes) -> dict[str, str]:
    stamp = str(int(time.time()))
    signed = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v1={signed}", "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)"}


@dataclass(frozen=True)
class Sender:
    """What a service sends: a body that starts a run, one that is let pass without, and how it makes itself known."""

    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    sign: Signer | None = None
    form: bool = False
    ignored: dict[str, Any] | None = None
    answer: tuple[int, Any] | None = None

    def bytes_of(self, value: dict[str, Any]) -> bytes:
        return urlencode(value).encode() if self.form else json.dumps(value).encode()

    def headers_of(self, body: bytes) -> dict[str, str]:
        kind = "application/x-www-form-urlencoded" if self.form else JSON
        return {"Content-Type": kind} | self.headers | (self.sign(body) if self.sign else {})


PULL = {
    "action": "opened",
    "number": 7,
    "pull_request": {"title": "Mend the roof", "draft": False, "user": {"login": "ada"}},
    "repository": {"full_name": "ada/house", "name": "house", "owner": {"login": "ada"}},
    "sender": {"login": "ada"},
}
ALERT = {
    "version": "4", "groupKey": '{}:{alertname="DiskFull"}', "truncatedAlerts": 0, "status": "firing", "receiver": "orqo",
    "groupLabels": {"alertname": "DiskFull"}, "commonLabels": {"alertname": "DiskFull", "instance": "box:9100"},
    "commonAnnotations": {"summary": "2 % free"}, "externalURL": "http://alerts.example.com",
    "alerts": [{"status": "firing", "labels": {"alertname": "DiskFull"}, "startsAt": "2026-01-02T03:04:05Z", "fingerprint": "a1"}],
}  # fmt: skip
SENDERS = {
    "github": Sender(
        PULL,
        {"X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "5b8d6e10-0001", "User-Agent": "GitHub-Hookshot/1"},
        lambda body: {"X-Hub-Signature-256": f"sha256={hexed(body)}"},
        ignored=PULL | {"action": "labeled"},
    ),
    "slack-command": Sender(
        {
            "token": "old", "team_id": "T1", "channel_id": "C1", "user_id": "U1", "user_name": "ada", "command": "/deploy",
            "text": "house to prod", "response_url": "https://hooks.slack.com/commands/T1/2/x", "trigger_id": "1.2.3", "api_app_id": "A1",
        },
        sign=by_slack, form=True, answer=(200, {"response_type": "ephemeral", "text": "On it: http://127.0.0.1:{port}/runs/1"}),
    ),
    "slack-events": Sender(
        {
            "token": "old", "team_id": "T1", "api_app_id": "A1", "type": "event_callback", "event_id": "Ev1", "event_time": 1700000000,
            "event": {"type": "app_mention", "user": "U1", "text": "<@U2> hello", "ts": "1700000000.1", "channel": "C1"},
        },
        sign=by_slack,
        ignored={"type": "event_callback", "event_id": "Ev2", "event": {"type": "message", "channel": "C1"}},
    ),
    "stripe": Sender(
        {
            "id": "evt_1", "object": "event", "api_version": "2025-01-01", "created": 1700000000, "livemode": False, "pending_webhooks": 1,
            "type": "payment_intent.succeeded", "data": {"object": {"id": "pi_1", "amount": 1099, "currency": "eur"}},
        },
        sign=by_stripe,
        ignored={"id": "evt_2", "object": "event", "type": "customer.created", "data": {"object": {}}},
    ),
    "zapier": Sender({"name": "Ada", "email": "ada@example.com"}, {"X-Zap-Secret": SECRET, "User-Agent": "Zapier"}),
    "alertmanager": Sender(
        ALERT, {"Authorization": f"Bearer {SECRET}", "User-Agent": "Alertmanager/0.27.0"}, ignored=ALERT | {"status": "resolved"}
    ),
    "grafana": Sender(
        ALERT | {"version": "1", "orgId": 1, "title": "[FIRING:1] DiskFull", "state": "alerting", "message": "2 % free"},
        sign=lambda body: {"X-Grafana-Alerting-Signature": hexed(body)},
        ignored=ALERT | {"status": "resolved", "title": "[RESOLVED] DiskFull"},
    ),
    "cron": Sender({"host": "box", "exit": "0"}, {"User-Agent": "curl/8.5.0"}, form=True),
    "uptime-kuma": Sender(
        {
            "heartbeat": {"monitorID": 1, "status": 0, "msg": "connect ECONNREFUSED", "time": "2026-01-02 03:04:05"},
            "monitor": {"id": 1, "name": "shop"}, "msg": "[shop] down",
        },
        {"User-Agent": "axios/1"},
        ignored={"heartbeat": {"status": 1, "msg": "200 - OK"}, "monitor": {"name": "shop"}, "msg": "[shop] up"},
    ),
}  # fmt: skip


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """A box that knows the secret of every recipe."""
    text = "".join(path.read_text(encoding="utf-8") for path in FILES.values())
    return settings | {f"ORQO_SECRET_{name}": SECRET for name in re.findall(r"\$\{secrets\.(\w+)\}", text)}


@pytest.mark.parametrize("name", FILES)
def test_what_the_service_sends_starts_the_recipes_run(client: Any, box: TestBox, name: str) -> None:
    source, sender = FILES[name].read_text(encoding="utf-8"), SENDERS[name]
    box.apply(source)
    read = definition.parse(source)
    path, body = box.hook(read.name, read.triggers[0].name), sender.bytes_of(sender.body)

    answer = client.post(path, data=body, headers=sender.headers_of(body))

    if sender.answer is None:
        assert answer.status_code == 201
    else:
        text = json.dumps(sender.answer[1]).replace("{port}", str(box.config.port))
        assert (answer.status_code, answer.json) == (sender.answer[0], json.loads(text))
    assert [json.loads(row["input"]) for row in box.rows("SELECT input FROM runs")] == [sender.body]


@pytest.mark.parametrize("name", [name for name, sender in SENDERS.items() if sender.ignored])
def test_what_the_recipe_does_not_want_is_answered_200_and_starts_nothing(client: Any, box: TestBox, name: str) -> None:
    source, sender = FILES[name].read_text(encoding="utf-8"), SENDERS[name]
    box.apply(source)
    read = definition.parse(source)
    body = sender.bytes_of(sender.ignored or {})

    answer = client.post(box.hook(read.name, read.triggers[0].name), data=body, headers=sender.headers_of(body))

    assert (answer.status_code, answer.json["status"]) == (200, "ignored")
    assert box.rows("SELECT id FROM runs") == []


@pytest.mark.parametrize("name", [name for name in FILES if "signature" in FILES[name].read_text(encoding="utf-8")])
def test_what_somebody_else_sends_is_refused(client: Any, box: TestBox, name: str) -> None:
    source, sender = FILES[name].read_text(encoding="utf-8"), SENDERS[name]
    box.apply(source)
    read = definition.parse(source)
    body = sender.bytes_of(sender.body)
    headers = {key: value.replace(SECRET, "guess") for key, value in sender.headers_of(body + b" ").items()}

    assert client.post(box.hook(read.name, read.triggers[0].name), data=body, headers=headers).status_code == 401


def test_every_recipe_has_its_workflow_its_sender_and_its_page() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.md")}
    told = {name for text in pages.values() for name in re.findall(r"examples/recipes/([a-z-]+)\.yaml", text)}

    assert told == set(FILES) == set(SENDERS)
    services = {"github", "slack", "stripe", "zapier", "alertmanager", "grafana", "cron", "uptime-kuma"}
    assert services | {"reachable", "adnanh-webhook", "callbacks"} == set(pages)


def test_the_recipes_yaml_can_be_applied() -> None:
    for path in RECIPES.glob("*.md"):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            if block.startswith("name:"):
                definition.parse(block)


def test_a_command_says_the_same_as_a_file() -> None:
    made = definition.parse_trigger("in", webhook={"signature": "github", "secret": "${secrets.X}"}, filter={"input.a": 1})

    assert made.options == {"secrets": ["X"], "signature": {"name": "github"}, "filter": {"input.a": 1}}
