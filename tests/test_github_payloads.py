"""Every payload that GitHub publishes, signed and sent as GitHub does, in both encodings."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from orqo.config import PROJECT_DIR
from support import TestBox

PAYLOADS = PROJECT_DIR / ".cache" / "octokit" / "package" / "api.github.com" / "index.json"
SECRET = "It's a Secret to Everybody"
WORKFLOW = """
name: events
triggers: [{name: github, webhook: {signature: github, secret: "${secrets.HOOK}"}}]
stages: [{name: a, stub: {}}]
"""


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """A box that knows the secret and takes bodies as large as GitHub sends."""
    return settings | {"ORQO_SECRET_HOOK": SECRET, "ORQO_BODY_MAX_BYTES": "25MiB"}


@pytest.mark.skipif(not PAYLOADS.exists(), reason="GitHub's example payloads are not there: npm brings them, see the Makefile")
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_each_payload_becomes_the_input_unchanged(client: Any, box: TestBox, kind: str) -> None:
    box.apply(WORKFLOW)
    path = box.hook("events", "github")
    sent: dict[int, Any] = {}
    pings = 0

    for event in json.loads(PAYLOADS.read_text(encoding="utf-8")):
        for number, payload in enumerate(event["examples"]):
            text = json.dumps(payload, ensure_ascii=False)
            body = text.encode() if kind == "application/json" else urlencode({"payload": text}).encode()
            headers = {
                "Content-Type": kind,
                "User-Agent": "GitHub-Hookshot/044aadd",
                "X-GitHub-Delivery": f"{event['name']}-{number}",
                "X-GitHub-Event": event["name"],
                "X-Hub-Signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
            }
            answer = client.post(path, data=body, headers=headers)
            if event["name"] == "ping":
                assert (answer.status_code, answer.json["status"]) == (200, "ignored")
                pings += 1
                continue
            assert answer.status_code == 201, (event["name"], number, answer.json)
            sent[answer.json["workflow_run_id"]] = payload

    assert len(sent) + pings > 300
    rows = box.rows("SELECT id, input, trigger_facts FROM runs")
    assert {row["id"]: json.loads(row["input"]) for row in rows} == sent
    assert all(json.loads(row["trigger_facts"])["headers"]["x-github-event"] for row in rows)
