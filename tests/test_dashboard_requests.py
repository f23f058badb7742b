"""The request log and the triggers' options on the dashboard: why something was refused, the mend, the replay."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import re
import shlex
import time
from typing import Any

import pytest
from sqlalchemy import text

from orqo import definition, webhook
from orqo.dashboard import options
from orqo.errors import Invalid
from support import TestBox
from visitor import HOSTILE, Visitor, sign_in

SECRET = "It's a Secret to Everybody"
BODY = b'{"action": "opened", "number": 7}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """A box that knows two secrets."""
    return settings | {"ORQO_SECRET_HOOK": SECRET, "ORQO_SECRET_OLD": "old secret"}


@pytest.fixture
def visitor(box: TestBox, client: Any) -> Visitor:
    """Somebody who is signed in."""
    return sign_in(client, box)


def digest(body: bytes, secret: str = SECRET) -> bytes:
    return hmac.new(secret.encode(), body, hashlib.sha256).digest()


def signed_by(signature: str) -> dict[str, str]:
    return JSON | {"X-Signature": signature}


def ask(box: TestBox, visitor: Visitor, asked: str) -> str:
    """Let a webhook that was made by hand ask this; gives its path."""
    path = box.hook()
    answer = visitor.post("/triggers/1/options", options=asked)
    assert answer.status_code == 303, answer.text
    return path


GENERIC = 'webhook: {signature: {header: X-Signature, encoding: ENCODING}, secret: "${secrets.HOOK}"}'
GITHUB = 'webhook: {signature: github, secret: "${secrets.HOOK}"}'


# ── the list ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tab_lists_what_its_triggers_and_the_api_received(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: other\nstages: [{name: a, stub: {}}]")
    bearer = {"Authorization": f"Bearer {box.token('trigger')}"}
    visitor.client.post(box.hook(), data=b"{", headers=JSON)
    visitor.client.post(box.hook("other", "else"), json=1)
    visitor.client.post("/api/v1/trigger", json={"workflow": "hello"}, headers=bearer)
    visitor.client.post("/api/v1/trigger", json={"workflow": "other"}, headers=bearer)
    visitor.client.post("/api/v1/trigger", data=b"[", headers=bearer | JSON)

    listed = {name: re.findall(r'href="/requests/(\d+)"', visitor.get(f"/workflows/{name}/requests/live").text.replace('\\"', '"'))
              for name in ("hello", "other")}  # fmt: skip

    assert listed == {"hello": ["5", "3", "1"], "other": ["5", "4", "2"]}
    page = visitor.get("/workflows/hello/runs").text
    assert "/trigger by token test" in page and "The body is not JSON" in page


def test_requests_are_filtered_by_verdict_and_go_on_page_by_page(box: TestBox, visitor: Visitor) -> None:
    path = box.hook()
    for number in range(60):
        visitor.client.post(path, data=b"{" if number % 2 else b"{}", headers=JSON)
    seen: list[int] = []
    at = "/workflows/hello/runs?verdict=refused"
    while at:
        page = visitor.get(at).text
        table = page.partition('data-part="requests"')[2].partition('id="run-now"')[0]
        seen += [int(number) for number in re.findall(r'href="/requests/(\d+)"', table)]
        older = re.search(r'href="([^"]+)" rel="next"', table)
        at = html.unescape(older[1]).partition("#")[0] if older else ""

    assert seen == list(range(60, 0, -2))


def test_an_older_page_of_requests_is_not_asked_for_again(box: TestBox, visitor: Visitor) -> None:
    assert visitor.get("/workflows/hello/requests/live?earlier=5").json["next_ms"] is None
    assert visitor.get("/workflows/hello/requests/live").json["next_ms"] > 0


def test_a_trigger_says_that_its_last_request_was_refused(box: TestBox, visitor: Visitor) -> None:
    path = box.hook()
    visitor.client.post(path, data=b"{", headers=JSON)
    before = visitor.get("/workflows/hello/runs").text
    visitor.client.post(path, data=b"{}", headers=JSON)

    assert "The last request was" in before
    assert "The last request was" not in visitor.get("/workflows/hello/runs").text


# ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_shows_what_was_sent_and_no_credential(box: TestBox, visitor: Visitor) -> None:
    path = box.hook()
    headers = JSON | {"Authorization": "Bearer in-authorization", "X-Api-Key": "in-key", "X-GitHub-Event": HOSTILE}
    visitor.client.post(f"{path}?a={HOSTILE}&token=in-query", data=json.dumps({"a": HOSTILE}), headers=headers)

    page = visitor.get("/requests/1").text

    assert "<script>alert" not in page and html.escape("<script>alert(1)") in page
    assert "(hidden)" in page and not [word for word in ("in-authorization", "in-key", "in-query") if word in page]
    raw = visitor.get("/requests/1/body")
    assert (raw.content_type, json.loads(raw.data)) == ("text/plain; charset=utf-8", {"a": HOSTILE})


def test_a_body_of_any_kind_is_shown_cut_and_had_whole(box: TestBox, visitor: Visitor) -> None:
    path = box.hook()
    for number, body in enumerate([b"\x00\xff\xfe", b"", b"x" * 100_000, ("é" * 9000).encode()], 1):
        visitor.client.post(path, data=body, headers={"Content-Type": "text/plain" if body[:1] != b"\0" else "image/png"})

        page = visitor.get(f"/requests/{number}")

        assert page.status_code == 200 and len(page.text) < 60_000
        assert visitor.get(f"/requests/{number}/body").data == body
        assert ("save the" in page.text) == (len(body) > 16 * 1024)


def test_the_curl_line_of_a_request_is_safe_to_paste(box: TestBox, visitor: Visitor) -> None:
    bearer = box.token("trigger")
    body = json.dumps({"workflow": "hello", "input": HOSTILE + " it's $HOME `id`"})
    visitor.client.post("/api/v1/trigger", data=body, headers=JSON | {"Authorization": f"Bearer {bearer}"})

    page = html.unescape(visitor.get("/requests/1").text)
    line = page.partition('aria-label="curl line">')[2].partition("</pre>")[0]

    words = shlex.split(line)
    assert words[words.index("--data-raw") + 1] == body
    assert "Authorization: Bearer $ORQO_API_TOKEN" in words and bearer not in page


def test_a_request_that_is_not_kept_is_a_page_that_says_so(visitor: Visitor) -> None:
    for path in ("/requests/0", "/requests/9", f"/requests/{2**70}"):
        assert visitor.get(path).status_code == 404
        assert visitor.get(f"{path}/body").status_code == 404
        assert visitor.post(f"{path}/replay").status_code == 404


# ── why a signature does not fit ────────────────────────────────────────────────────────────────────────────────────


def test_a_signature_in_another_encoding_is_understood_mended_and_replayed(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GENERIC.replace("ENCODING", "hex"))
    assert visitor.client.post(path, data=BODY, headers=signed_by(base64.b64encode(digest(BODY)).decode())).status_code == 401
    before = visitor.get("/requests/1").text

    ask(box, visitor, GENERIC.replace("ENCODING", "base64"))
    after = visitor.get("/requests/1").text
    answer = visitor.post("/requests/1/replay")

    assert "it fits with algorithm: sha256, encoding: base64" in before and "Run anyway" in before
    assert "its signature fits: it can be replayed" in after and "Run anyway" not in after
    assert answer.headers["Location"].startswith("/runs/1?done=replayed")
    assert box.run(1)["metadata"] == {"replayed_request": 1, "signature": "verified"}
    page = visitor.get("/runs/1").text
    assert 'href="/requests/1"' in page and 'href="/requests/2"' in page
    assert 'href="/requests/2"' in visitor.get("/requests/1").text and 'href="/requests/1"' in visitor.get("/requests/2").text


ON_THE_WAY = [
    (b'{"action":"opened","number":7}', "JSON without spaces was signed"),
    (b'{\n  "action": "opened",\n  "number": 7\n}', "indented JSON was signed"),
    (BODY + b"\n", "the body lost a line break"),
    (b"something else", "was not made with this secret over this body"),
]


def test_what_happened_to_the_body_on_its_way_is_named(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GITHUB)
    for number, (signed, said) in enumerate(ON_THE_WAY, 1):
        visitor.client.post(path, data=BODY, headers=JSON | {"X-Hub-Signature-256": f"sha256={digest(signed).hex()}"})

        assert said in visitor.get(f"/requests/{number}").text


def test_how_old_a_signature_was_is_shown(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GITHUB.replace("github", "slack"))
    stamp = str(int(time.time()) - 4000)
    given = hmac.new(SECRET.encode(), f"v0:{stamp}:".encode() + BODY, hashlib.sha256).hexdigest()
    visitor.client.post(path, data=BODY, headers=JSON | {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={given}"})
    visitor.client.post(path, data=BODY, headers=JSON | {"X-Slack-Request-Timestamp": "9" * 12, "X-Slack-Signature": "v0=00"})

    assert "1 h 6 min before it arrived" in visitor.get("/requests/1").text
    assert "after it arrived" in visitor.get("/requests/2").text


def test_a_missing_signature_and_an_unset_secret_are_named(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GITHUB)
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET options = replace(options, 'HOOK', 'GONE')"))
    visitor.client.post(path, data=BODY, headers=JSON)

    page = visitor.get("/requests/1").text

    assert "was missing" in page and "is not set: ORQO_SECRET_GONE" in page
    assert "is not set: give the service ORQO_SECRET_GONE" in visitor.get("/workflows/hello/runs").text


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_verified_runs_by_somebodys_word_alone(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GITHUB)
    visitor.client.post(path, data=BODY, headers=JSON)

    plain = visitor.post("/requests/1/replay")
    runs_then = box.rows("SELECT 1 FROM runs")
    anyway = visitor.post("/requests/1/replay", anyway="1")

    assert plain.status_code == 422 and 'role="alert"' in plain.text and runs_then == []
    assert anyway.headers["Location"].startswith("/runs/1?")
    assert "not verified" in visitor.get("/runs/1").text


def test_what_was_accepted_is_not_replayed(box: TestBox, visitor: Visitor) -> None:
    visitor.client.post(box.hook(), json=1)

    assert visitor.post("/requests/1/replay", anyway="1").status_code == 409
    assert "Replay" not in visitor.get("/requests/1").text.replace("Replay of", "")


def test_an_ignored_request_that_is_still_ignored_says_so(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, "filter: {input.action: closed}")
    visitor.client.post(path, data=BODY, headers=JSON)

    answer = visitor.post("/requests/1/replay")

    assert answer.headers["Location"] == "/requests/1?done=replayed-to-nothing"
    assert "replay of 1" in visitor.get("/requests/1").text


def test_a_request_outlives_its_trigger(box: TestBox, visitor: Visitor) -> None:
    visitor.client.post(box.hook(), data=b"{", headers=JSON)
    visitor.post("/triggers/1/delete")

    page = visitor.get("/requests/1")

    assert page.status_code == 200 and "is gone" in page.text
    assert visitor.post("/requests/1/replay").status_code == 409


# ── what a trigger asks ─────────────────────────────────────────────────────────────────────────────────────────────

ASKED = [
    {},
    {"webhook": {"signature": "github", "secret": "${secrets.A}", "previous_secret": "${secrets.B}"}},
    {"webhook": {"signature": {"header": "X-Sig", "algorithm": "sha1", "encoding": "base64", "prefix": "v1="}, "secret": "${secrets.A}"}},
    {"webhook": {"signature": {"header": "X-Tok", "algorithm": "plain"}, "secret": "${secrets.A}", "verify_token": "${secrets.V}"}},
    {"webhook": {"dedupe": "off", "rate": "60/m", "networks": ["192.0.2.0/24", "2001:db8::1"], "max_body": "256KiB"}},
    {"webhook": {"response": {"status": 202, "json": {"text": "é \u2028 \x7f ${run.id}", "yes": [1, 1.5, True, None, "true", "042"]}}}},
    {"filter": {"trigger.headers.x-event-name": "a", "any": [{"input.a": {"in": ["a: b", "#"]}}, {"not": {"input.b": {"exists": True}}}]}},
]


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_trigger_asks_is_written_as_it_is_read(asked: dict[str, Any]) -> None:
    stored = definition.parse_trigger("x", **asked).options
    secrets = dict.fromkeys(webhook.names_of_secrets(stored), "set")

    assert options.read(options.as_yaml(stored), secrets) == stored


@pytest.mark.parametrize(
    ("typed", "line", "said"),
    [
        ("webhook:\n  rate: often\n", 2, "rate"),
        ("webhook:\n  signature: github\n", 2, "needs secret"),
        ("webhook:\n  dedupe: off\n  token: " + "x" * 43 + "\n", 3, "is for workflow files"),
        ("webhook: []\n", 1, "must be a mapping"),
        ("webhook: {}\nfilters: {}\n", 2, "is not known here"),
        ("filter:\n  trigger.name: x\n  nonsense: 1\n", 3, "nonsense"),
        ("- webhook\n", 1, "as a workflow file"),
        ("webhook: {\n", 2, "not YAML"),
        ('webhook:\n  signature: github\n  secret: "${secrets.NONE}"\n', 3, "NONE is not set"),
        ("webhook:\n  networks:\n    - 192.0.2.0/24\n    - everywhere\n", 4, "networks[1]"),
    ],
)
def test_faults_in_what_a_trigger_asks_are_told_by_their_line(typed: str, line: int, said: str) -> None:
    with pytest.raises(Invalid) as raised:
        options.read(typed, {})

    assert [(fault.line, said in fault.detail) for fault in raised.value.errors][:1] == [(line, True)], raised.value.errors


def test_a_fault_leaves_the_options_and_keeps_what_was_typed(box: TestBox, visitor: Visitor) -> None:
    ask(box, visitor, GITHUB)

    answer = visitor.post("/triggers/1/options", options="webhook:\n  rate: often\n")

    assert answer.status_code == 422
    assert "rate: often" in answer.text and 'data-line="2"' in answer.text
    assert json.loads(box.rows("SELECT options FROM triggers")[0]["options"])["secrets"] == ["HOOK"]


def test_emptied_options_ask_nothing(box: TestBox, visitor: Visitor) -> None:
    path = ask(box, visitor, GITHUB)

    visitor.post("/triggers/1/options", options=" \r\n")

    assert visitor.client.post(path, data=BODY, headers=JSON).status_code == 201


def test_a_trigger_of_a_file_is_changed_in_the_file(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: filed\ntriggers: [{name: in, webhook: {rate: 5/s}}]\nstages: [{name: a, stub: {}}]")

    page = visitor.get("/workflows/filed/runs").text

    assert "5 in 1.0 s" in page and "is changed there" in page and 'name="options"' not in page
    assert visitor.post("/triggers/1/options", options="").status_code == 409


def test_a_schedule_shows_its_next_five_times(box: TestBox, visitor: Visitor) -> None:
    box.apply('name: timed\ntriggers: [{name: nightly, schedule: "15 2 * * 1-5", timezone: Europe/Paris}]\nstages: [{name: a, stub: {}}]')

    page = visitor.get("/workflows/timed/runs").text

    times = re.findall(r"<li>(\w+) \d+ \w+ \d+, (\d\d:\d\d) ", page)
    assert [at for _, at in times] == ["02:15"] * 5 and {day for day, _ in times} <= {"Mon", "Tue", "Wed", "Thu", "Fri"}
    assert visitor.post("/triggers/1/options", options="").status_code == 404
