"""Webhooks as real services use them: signatures, handshakes, duplicates, filters, limits, and the order of the checks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, hooks, replays
from orqo.config import Config
from orqo.errors import Conflict
from support import TestBox, application

SECRET = "It's a Secret to Everybody"
BODY = b'{"action": "opened", "number": 7}'


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """A box that knows the secrets of these tests, one of them empty."""
    secrets = {"HOOK": SECRET, "OLD": "old secret", "VERIFY": "verify me", "EMPTY": ""}
    return settings | {f"ORQO_SECRET_{name}": value for name, value in secrets.items()}


def workflow(webhook: str = "{}", filter: str = "", name: str = "hooked") -> str:
    trigger = f"  - name: in\n    webhook: {webhook}\n" + (f"    filter: {filter}\n" if filter else "")
    return f"name: {name}\ntriggers:\n{trigger}stages: [{{name: a, stub: {{output: '${{input}}'}}}}]\n"


@pytest.fixture
def hooked(box: TestBox) -> Callable[..., str]:
    """Apply a workflow with this webhook and filter; gives the path of its hook."""

    def applied(webhook: str = "{}", filter: str = "") -> str:
        box.apply(workflow(webhook, filter))
        return box.hook("hooked", "in")

    return applied


@contextmanager
def serving(settings: dict[str, str], **changes: str) -> Iterator[Any]:
    """A web application of the same box with other settings."""
    with application(Config.from_environ(settings | changes)) as app:
        yield app.test_client()


def github(body: bytes, secret: str = SECRET, **headers: str) -> dict[str, str]:
    """Give the headers that GitHub sends with a body."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"Content-Type": "application/json", "X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"} | headers


def slack(body: bytes, secret: str = SECRET, at: int | None = None, **headers: str) -> dict[str, str]:
    """Give the headers that Slack sends with a body."""
    stamp = str(int(time.time()) if at is None else at)
    signature = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return {"Content-Type": "application/json", "X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signature}"} | headers


def last(box: TestBox) -> dict[str, Any]:
    """Give the newest row of the request log."""
    return dict(box.rows("SELECT * FROM requests ORDER BY id DESC LIMIT 1")[0])


def count(box: TestBox, table: str = "runs") -> int:
    return int(box.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"])


# ── signatures ──────────────────────────────────────────────────────────────────────────────────────────────────────

GITHUB = '{signature: github, secret: "${secrets.HOOK}", previous_secret: "${secrets.OLD}"}'


@pytest.mark.parametrize("secret", [SECRET, "old secret"])
def test_a_request_signed_with_either_secret_starts_a_run(client: Any, box: TestBox, hooked: Any, secret: str) -> None:
    answer = client.post(hooked(GITHUB), data=BODY, headers=github(BODY, secret))

    assert answer.status_code == 201
    assert box.run(answer.json["workflow_run_id"])["input"] == {"action": "opened", "number": 7}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Hub-Signature-256": "sha256="},
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        github(BODY, ""),
        github(BODY, "wrong"),
        github(b"other"),
    ],
    ids=["none", "empty", "zeros", "empty-secret", "wrong-secret", "other-body"],
)
def test_a_request_that_is_not_signed_is_refused_and_kept(client: Any, box: TestBox, hooked: Any, headers: dict[str, str]) -> None:
    answer = client.post(hooked(GITHUB), data=BODY, headers=headers)

    assert answer.status_code == 401
    assert "sha256" not in answer.get_data(as_text=True)
    assert count(box) == 0
    row = last(box)
    assert (row["verdict"], row["status_code"], row["body"]) == ("refused", 401, BODY)
    assert "x-hub-signature-256" in row["reason"]


@pytest.mark.parametrize("name", ["EMPTY", "ABSENT"])
def test_a_secret_that_is_not_set_refuses_everything_and_the_log_says_so(client: Any, box: TestBox, hooked: Any, name: str) -> None:
    path = hooked(f'{{signature: github, secret: "${{secrets.{name}}}"}}')

    answer = client.post(path, data=BODY, headers=github(BODY, ""))

    assert answer.status_code == 401
    assert name not in answer.get_data(as_text=True)
    assert f"the secret {name} is not set" in last(box)["reason"]


def test_the_log_says_what_would_have_fitted(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: {header: X-Sig}, secret: "${secrets.HOOK}"}')
    made = base64.b64encode(hmac.digest(SECRET.encode(), BODY, "sha512")).decode()

    answer = client.post(path, data=BODY, headers={"X-Sig": made})

    assert answer.status_code == 401
    assert "algorithm: sha512, encoding: base64" in last(box)["reason"]
    assert "sha512" not in answer.get_data(as_text=True)


def test_an_old_slack_request_is_refused_because_of_its_time(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: slack, secret: "${secrets.HOOK}"}')

    answer = client.post(path, data=BODY, headers=slack(BODY, at=int(time.time()) - 400))

    assert answer.status_code == 401
    assert "or a clock is wrong" in last(box)["reason"]


def test_a_plain_secret_header_is_compared_and_never_stored(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: {header: X-Telegram-Bot-Api-Secret-Token, algorithm: plain}, secret: "${secrets.HOOK}"}')
    headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET, "Content-Type": "application/json"}
    wrong = headers | {"X-Telegram-Bot-Api-Secret-Token": "no"}

    answers = [client.post(path, data=BODY, headers=sent).status_code for sent in (headers, wrong)]

    assert answers == [201, 401]
    assert all(SECRET not in str(dict(row)) for row in box.rows("SELECT * FROM requests"))
    kept = json.loads(box.rows("SELECT hidden FROM requests ORDER BY id LIMIT 1")[0]["hidden"])["x-telegram-bot-api-secret-token"]
    assert client.post(path, data=BODY, headers=headers | {"X-Telegram-Bot-Api-Secret-Token": kept}).status_code == 401


# ── handshakes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slack_is_answered_its_challenge_only_when_it_signed(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: slack, secret: "${secrets.HOOK}"}')
    body = b'{"type": "url_verification", "token": "x", "challenge": "3eZbrw1aBm2rZgRNFdxV"}'

    refused = client.post(path, data=body, headers=slack(body, "wrong"))
    answer = client.post(path, data=body, headers=slack(body))

    assert (refused.status_code, "3eZ" in refused.get_data(as_text=True)) == (401, False)
    assert (answer.status_code, answer.json) == (200, {"challenge": "3eZbrw1aBm2rZgRNFdxV"})
    assert (count(box), last(box)["verdict"]) == (0, "handshake")


def test_githubs_ping_starts_no_run(client: Any, box: TestBox, hooked: Any) -> None:
    body = b'{"zen": "Keep it logically awesome.", "hook_id": 1}'

    answer = client.post(hooked(GITHUB), data=body, headers=github(body, **{"X-GitHub-Event": "ping"}))

    assert (answer.status_code, answer.json["status"], count(box)) == (200, "ignored", 0)


META = '{signature: {header: X-Hub-Signature-256, prefix: "sha256="}, secret: "${secrets.HOOK}", verify_token: "${secrets.VERIFY}"}'


def test_metas_challenge_is_answered_to_who_knows_the_verify_token(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked(META)
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": "verify me"}

    wrong = ({"hub.verify_token": "no"}, {"hub.challenge": "<b>"})

    answer = client.get(path, query_string=asked)
    refused = [client.get(path, query_string=asked | changed).status_code for changed in wrong]

    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"1158201444", "text/plain")
    assert refused == [401, 401]
    assert client.put(path).headers["Allow"] == "GET, POST"
    assert all("verify me" not in str(dict(row)) for row in box.rows("SELECT * FROM requests"))
    assert client.post(path, data=BODY, headers=github(BODY)).status_code == 201


def test_only_post_is_taken_without_a_greeting_by_get(client: Any, hooked: Any) -> None:
    path = hooked()

    answers = [client.open(path, method=method) for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")]

    assert {(answer.status_code, answer.headers["Allow"]) for answer in answers} == {(405, "POST")}
    assert client.get("/api/v1/hooks/" + "x" * 43).status_code == 405


# ── duplicates ──────────────────────────────────────────────────────────────────────────────────────────────────────

EVENT = b'{"type": "event_callback", "event_id": "Ev08MFMKH6", "n": 1}'
CHARGE = b'{"id": "evt_1NG8Du2eZvKYlo2CUI79vXWy", "object": "event", "type": "charge.succeeded"}'


def stripe(body: bytes, secret: str = SECRET, at: int | None = None) -> dict[str, str]:
    """Give the headers that Stripe sends with a body."""
    stamp = str(int(time.time()) if at is None else at)
    made = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": f"t={stamp},v1={made},v0={'0' * 64}"}


# Signed when the test runs: a signature is good for five minutes, and a whole set of tests takes longer.
@pytest.mark.parametrize(
    ("webhook", "body", "headers"),
    [
        (GITHUB, BODY, lambda: github(BODY, **{"X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"})),
        ('{signature: slack, secret: "${secrets.HOOK}"}', EVENT, lambda: slack(EVENT, **{"X-Slack-Retry-Num": "1"})),
        ('{signature: stripe, secret: "${secrets.HOOK}"}', CHARGE, lambda: stripe(CHARGE)),
        ("{}", BODY, lambda: {"webhook-id": "msg_1", "Content-Type": "application/json"}),
        ("{}", BODY, lambda: {"X-GitHub-Delivery": "72d3162e", "Content-Type": "application/json"}),
        ("{}", BODY, lambda: {"Idempotency-Key": "k", "Content-Type": "application/json"}),
    ],
    ids=["github", "slack", "stripe", "standard-webhooks", "unsigned-github", "idempotency-key"],
)
def test_the_same_event_again_is_the_same_run(
    client: Any, box: TestBox, hooked: Any, webhook: str, body: bytes, headers: Callable[[], dict[str, str]]
) -> None:
    path, sent = hooked(webhook), headers()

    first, again = (client.post(path, data=body, headers=sent) for _ in range(2))

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json == first.json | {"duplicate": True}
    assert again.headers["Idempotent-Replayed"] == "true"
    assert [row["verdict"] for row in box.rows("SELECT verdict FROM requests ORDER BY id")] == ["accepted", "duplicate"]


SIGNED: dict[str, tuple[str, bytes, Callable[[bytes], dict[str, str]]]] = {
    "slack": ('{signature: slack, secret: "${secrets.HOOK}"}', EVENT, slack),
    "stripe": ('{signature: stripe, secret: "${secrets.HOOK}"}', CHARGE, stripe),
}


@pytest.mark.parametrize("scheme", SIGNED)
@pytest.mark.parametrize("foreign", ["Idempotency-Key", "X-GitHub-Delivery", "webhook-id"])
def test_a_header_that_is_not_signed_makes_no_second_event_of_one(
    client: Any, box: TestBox, hooked: Any, scheme: str, foreign: str
) -> None:
    webhook, body, sign = SIGNED[scheme]
    path, headers = hooked(webhook), sign(body)
    client.post(path, data=body, headers=headers)

    again = client.post(path, data=body, headers=headers | {foreign: "another-1"})

    assert again.status_code == 200, again.json
    assert count(box) == 1


def test_a_request_to_a_disabled_trigger_is_kept_with_its_body_and_replayed_once(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked()
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET enabled = 0"))
    refused = client.post(path, data=BODY, headers={"Content-Type": "application/json"})
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET enabled = 1"))
    gate = hooks.Gate(box.database, client.application.extensions["orqo"].secrets, box.config.base_url)

    replays.replay(gate, last(box)["id"], now=clock.now())
    with pytest.raises(Conflict, match="was replayed already"):
        replays.replay(gate, 1, now=clock.now())

    assert refused.status_code == 409
    assert [json.loads(row["input"]) for row in box.rows("SELECT input FROM runs")] == [json.loads(BODY)]


def test_redelivering_after_a_failed_run_starts_another(client: Any, box: TestBox, hooked: Any) -> None:
    path, headers = hooked(GITHUB), github(BODY, **{"X-GitHub-Delivery": "72d3162e"})
    first = client.post(path, data=BODY, headers=headers).json["workflow_run_id"]
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET status = 'stopped', finished_at = created_at"))

    again = client.post(path, data=BODY, headers=headers)

    assert again.status_code == 201
    assert again.json["workflow_run_id"] != first


def test_a_forged_delivery_id_does_not_keep_the_real_one_out(client: Any, hooked: Any) -> None:
    path = hooked(GITHUB)
    client.post(path, data=BODY, headers=github(BODY, "wrong", **{"X-GitHub-Delivery": "72d3162e"}))

    answer = client.post(path, data=BODY, headers=github(BODY, **{"X-GitHub-Delivery": "72d3162e"}))

    assert answer.status_code == 201


def test_with_dedupe_off_every_request_is_a_run(client: Any, hooked: Any) -> None:
    path = hooked("{dedupe: off}")

    answers = [client.post(path, data=BODY, headers={"X-GitHub-Delivery": "1", "Idempotency-Key": "1"}).status_code for _ in range(2)]

    assert answers == [201, 201]


# ── filters and answers ─────────────────────────────────────────────────────────────────────────────────────────────

OPENED = "{trigger.headers.x-github-event: pull_request, input.action: {in: [opened, synchronize]}}"


def test_what_the_filter_lets_pass_starts_a_run_and_the_rest_is_told_why(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked(filter=OPENED)
    headers = {"Content-Type": "application/json", "X-GitHub-Event": "pull_request"}

    passed = client.post(path, data=BODY, headers=headers)
    ignored = client.post(path, data=b'{"action": "closed"}', headers=headers)

    assert (passed.status_code, ignored.status_code) == (201, 200)
    assert ignored.json == {"status": "ignored", "reason": hooks.NOT_PASSED}
    why = 'input.action is "closed", none of ["opened", "synchronize"]'
    assert (count(box), last(box)["verdict"], last(box)["reason"]) == (1, "ignored", why)


def test_an_event_that_came_before_is_a_duplicate_whatever_the_filter_says_now(client: Any, box: TestBox, hooked: Any) -> None:
    path, headers = hooked(), {"Content-Type": "application/json", "X-GitHub-Delivery": "1"}
    client.post(path, data=BODY, headers=headers)
    hooked(filter="{input.action: never}")

    assert client.post(path, data=BODY, headers=headers).json["duplicate"] is True


def test_a_triggers_own_answer_replaces_ours(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{response: {status: 200, json: {response_type: ephemeral, text: "Run ${run.id} for ${input.number}"}}}')

    answer = client.post(path, data=BODY, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json) == (200, {"response_type": "ephemeral", "text": "Run 1 for 7"})
    assert count(box) == 1


def test_an_own_answer_that_finds_nothing_gives_way_to_ours(client: Any, hooked: Any) -> None:
    path = hooked('{response: {json: {text: "${input.absent}"}}}')

    assert client.post(path, data=BODY, headers={"Content-Type": "application/json"}).status_code == 201


def test_an_own_answer_without_json_has_no_body(client: Any, hooked: Any) -> None:
    answer = client.post(hooked("{response: {status: 204}}"), data=BODY)

    assert (answer.status_code, answer.data) == (204, b"")


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_over_its_rate_a_trigger_says_when_to_come_back(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked("{rate: 3/m}")

    answers = [client.post(path, data=BODY) for _ in range(5)]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
    assert count(box) == 3


def test_two_web_processes_share_one_rate(box: TestBox, settings: dict[str, str], hooked: Any) -> None:
    path = hooked("{rate: 3/m}")

    with serving(settings) as one, serving(settings) as other:
        answers = [made.post(path, data=BODY).status_code for made in (one, other, one, other)]

    assert answers == [201, 201, 201, 429]


@pytest.mark.parametrize(
    ("networks", "proxies", "forwarded", "status"),
    [
        ("[127.0.0.0/8]", "", None, 201),
        ("[10.0.0.0/8]", "", None, 403),
        ("[10.0.0.0/8]", "", "10.1.2.3", 403),
        ("[10.0.0.0/8]", "127.0.0.1", "10.1.2.3", 201),
        ("[10.0.0.0/8]", "127.0.0.1", "10.1.2.3, 192.0.2.1", 403),
        ("[10.0.0.0/8]", "127.0.0.1,192.0.2.0/24", "10.1.2.3, 192.0.2.1", 201),
        ("[10.0.0.0/8]", "127.0.0.1", "not an address", 403),
        ("['2001:db8::/32']", "127.0.0.1", "[2001:db8::7]:443", 201),
        ("[10.0.0.0/8]", "127.0.0.1", "::ffff:10.0.0.1", 201),
    ],
)
def test_a_trigger_is_open_to_its_networks_alone(
    box: TestBox, settings: dict[str, str], hooked: Any, networks: str, proxies: str, forwarded: str | None, status: int
) -> None:
    path = hooked(f"{{networks: {networks}}}")
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}

    with serving(settings, ORQO_TRUSTED_PROXIES=proxies) as client:
        answer = client.post(path, data=BODY, headers=headers)

    assert answer.status_code == status
    assert last(box)["remote"] == ("127.0.0.1" if not proxies else last(box)["remote"])


def test_a_body_over_the_triggers_own_limit_is_refused(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked("{max_body: 16}")

    assert client.post(path, data=b"x" * 16).status_code == 201
    answer = client.post(path, data=b"x" * 17)

    assert (answer.status_code, "max_body" in answer.json["detail"]) == (413, True)
    assert (last(box)["verdict"], last(box)["body"], last(box)["size"]) == ("refused", None, None)


# ── the order of the checks ─────────────────────────────────────────────────────────────────────────────────────────

ORDER = ["disabled", "size", "network", "rate", "signature", "body", "filter", "workflow"]
STATUS = {"disabled": 409, "size": 413, "network": 403, "rate": 429, "signature": 401, "body": 400, "filter": 200, "workflow": 422}


@pytest.mark.parametrize("first", range(len(ORDER) + 1))
def test_the_first_check_that_fails_is_the_one_that_is_told(client: Any, box: TestBox, hooked: Any, first: int) -> None:
    failing = ORDER[first:]
    network = "10.0.0.0/8" if "network" in failing else "127.0.0.0/8"
    webhook = f'{{signature: github, secret: "${{secrets.HOOK}}", max_body: 1KiB, rate: 1/d, networks: [{network}]}}'
    path = hooked(webhook, "{input.action: opened}")
    body = b'{"action": "opened"}' if "filter" not in failing else b'{"action": "closed"}'
    body = b"{" if "body" in failing else body
    body = b" " * 2000 if "size" in failing else body
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET rate_until = :until"), {"until": time.time() + 86400 if "rate" in failing else None})
        connection.execute(text("UPDATE triggers SET enabled = :on"), {"on": int("disabled" not in failing)})
        connection.execute(text("UPDATE workflows SET enabled = :on"), {"on": int("workflow" not in failing)})

    answer = client.post(path, data=body, headers=github(body, "wrong" if "signature" in failing else SECRET))

    assert answer.status_code == (STATUS[failing[0]] if failing else 201)
    assert last(box)["status_code"] == answer.status_code


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def gate(box: TestBox, **secrets: str) -> hooks.Gate:
    return hooks.Gate(box.database, secrets, box.config.base_url)


def test_a_refused_request_is_replayed_once_the_secret_is_mended_however_old_it_is(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: slack, secret: "${secrets.HOOK}"}')
    client.post(path, data=EVENT, headers=slack(EVENT, "the new one", at=int(time.time()) - 4000))
    refused = last(box)["id"]

    outcome = replays.replay(gate(box, HOOK="the new one"), refused, now=clock.now())

    run = box.run(outcome.run_id or 0)
    assert run["input"] == json.loads(EVENT)
    assert run["metadata"] == {"replayed_request": refused, "signature": "verified"}
    assert (last(box)["verdict"], last(box)["replay_of"]) == ("accepted", refused)
    with pytest.raises(hooks.Problem, match="not refused"):
        replays.replay(gate(box, HOOK="the new one"), last(box)["id"], now=clock.now())


def test_what_cannot_be_verified_runs_only_by_an_admins_word_which_the_run_notes(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked(GITHUB)
    client.post(path, data=BODY, headers={"Content-Type": "application/json"})
    refused = last(box)["id"]

    with pytest.raises(hooks.SignatureRefused):
        replays.replay(gate(box, HOOK=SECRET), refused, now=clock.now())
    outcome = replays.replay(gate(box, HOOK=SECRET), refused, anyway=True, now=clock.now())

    assert box.run(outcome.run_id or 0)["metadata"] == {"replayed_request": refused, "signature": "not verified"}


def test_a_plain_secret_is_verified_again_by_its_digest(client: Any, box: TestBox, hooked: Any) -> None:
    path = hooked('{signature: {header: X-Token, algorithm: plain}, secret: "${secrets.HOOK}"}')
    client.post(path, data=BODY, headers={"X-Token": "the new one", "Content-Type": "application/json"})

    outcome = replays.replay(gate(box, HOOK="the new one"), last(box)["id"], now=clock.now())

    assert box.run(outcome.run_id or 0)["metadata"]["signature"] == "verified"


def test_an_ignored_request_is_replayed_once_the_filter_is_mended(client: Any, box: TestBox, hooked: Any) -> None:
    client.post(hooked(filter="{input.action: closed}"), data=BODY, headers={"Content-Type": "application/json"})
    ignored = last(box)["id"]
    hooked(filter="{input.action: opened}")

    assert replays.replay(gate(box), ignored, now=clock.now()).run_id
