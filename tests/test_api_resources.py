"""The resources under /api/v1: lists in pages, what can be changed, and what a limited token sees."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import insert, text
from werkzeug.test import TestResponse

import described
from inbox import inbox
from orqo import catalog, clock, executor
from orqo.models import Run
from support import TestBox

OTHER = """
name: other
stages:
  - name: only
    stub: {output: other}
"""
Ask = Callable[..., TestResponse]


@pytest.fixture
def ask(client: Any, box: TestBox) -> Ask:
    """Call the API with a token of all scopes, or with the one that is given; every answer is one that the description gives."""
    admin = box.token("admin")

    def asked(method: str, path: str, body: Any = None, *, token: str = admin, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {token}"}
        sent = {"json": body} if body is not None else {}
        answer = client.open(f"/api/v1{path}", method=method, headers=headers, **sent, **options)
        described.check(described.operation_of(method, f"/api/v1{path}".partition("?")[0]), answer)
        # As a server does once the answer is out.
        answer.close()
        return answer  # type: ignore[no-any-return]

    return asked


def next_page(answer: TestResponse) -> str | None:
    """Give the path of the next page as its Link says it."""
    link = answer.headers.get("Link")
    return link.partition(">")[0].partition("/api/v1")[2] if link else None


# ── workflows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workflow_is_put_by_name_as_yaml_and_as_json(ask: Ask) -> None:
    made = ask("PUT", "/workflows/other", data=OTHER, content_type="application/yaml")
    same = ask("PUT", "/workflows/other", data=OTHER, content_type="text/yaml; charset=utf-8")
    changed = ask("PUT", "/workflows/other", {"name": "other", "stages": [{"name": "only", "stub": {"output": 2}}]})

    assert [(each.status_code, each.json["version"]) for each in (made, same, changed)] == [(201, 1), (200, 1), (200, 2)]
    assert made.headers["Location"] == "/api/v1/workflows/other"
    assert ask("GET", "/workflows/other").json["source"].startswith('{"name"')
    assert ask("GET", f"/workflows/{made.json['id']}").json["name"] == "other"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (OTHER.replace("stub", "stubb"), "application/yaml", 422),
        (OTHER.replace("name: other", "name: another"), "application/yaml", 422),
        (b"\xff", "application/yaml", 400),
        (OTHER, "text/plain", 415),
        ("", "application/yaml", 422),
    ],
    ids=["fault", "another-name", "no-text", "type", "empty"],
)
def test_a_definition_that_does_not_fit_changes_nothing(ask: Ask, body: Any, content_type: str, status: int) -> None:
    answer = ask("PUT", "/workflows/other", data=body, content_type=content_type)

    assert answer.status_code == status, answer.json
    assert ask("GET", "/workflows/other").status_code == 404


def test_the_faults_of_a_definition_have_their_lines(ask: Ask) -> None:
    answer = ask("PUT", "/workflows/other", data=OTHER.replace("stub", "stubb"), content_type="application/yaml")

    assert answer.json["errors"][0]["line"] == 5


def test_a_disabled_workflow_is_not_started_and_a_deleted_one_is_gone(ask: Ask, box: TestBox) -> None:
    assert ask("POST", "/workflows/hello/disable").json["enabled"] is False
    assert ask("POST", "/trigger", {"workflow": "hello"}).status_code == 409
    assert ask("POST", "/workflows/hello/enable").json["enabled"] is True

    assert ask("DELETE", "/workflows/hello").status_code == 204

    assert ask("GET", "/workflows/hello").status_code == 404


# ── triggers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trigger_is_made_fired_rotated_disabled_and_deleted(ask: Ask, client: Any) -> None:
    made = ask("POST", "/triggers", {"workflow": "hello", "name": "ci"})
    assert made.status_code == 201
    path, old = f"/triggers/{made.json['id']}", made.json["url"].partition("/api/v1")[2]
    assert ask("POST", old).status_code == 201

    rotated = ask("POST", f"{path}/rotate").json["url"].partition("/api/v1")[2]

    assert ask("POST", old).status_code == 404
    assert ask("POST", f"{path}/disable").json["enabled"] is False
    assert ask("POST", rotated).status_code == 409
    assert ask("POST", f"{path}/enable").json["enabled"] is True
    assert ask("DELETE", path).status_code == 204
    assert ask("GET", path).status_code == 404


def test_a_trigger_has_what_it_asks_and_its_callbacks(ask: Ask, box: TestBox) -> None:
    wanted = {"workflow": "hello", "name": "ci", "webhook": {"rate": "60/m"}, "filter": {"input.a": 1}}

    made = ask("POST", "/triggers", wanted | {"callbacks": [{"url": "https://ci.example.com", "events": ["failed"]}]})

    assert made.json["options"] == {"rate": "60/m", "filter": {"input.a": 1}}
    assert [(each["trigger_id"], each["events"]) for each in ask("GET", "/callbacks").json] == [(made.json["id"], ["failed"])]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"name": "NO"}, 422),
        ({"workflow": "none"}, 404),
        ({"webhook": {"rate": "fast"}}, 422),
        ({"webhook": {"signature": "github", "secret": "${secrets.ABSENT}"}}, 422),
        ({"callbacks": [{"url": "ftp://x"}]}, 422),
        ({"workflow": 99.0}, 404),
        ({"more": 1}, 422),
    ],
    ids=["name", "workflow", "rate", "secret", "callback", "no-such-number", "unknown-field"],
)
def test_a_trigger_that_does_not_fit_is_not_made(ask: Ask, changes: dict[str, Any], status: int) -> None:
    assert ask("POST", "/triggers", {"workflow": "hello", "name": "ci"} | changes).status_code == status
    assert ask("GET", "/triggers").json == []


def test_a_fault_of_a_callback_says_which_of_them_it_is(ask: Ask) -> None:
    two = [{"url": "ftp://x"}, {"url": "https://ci.example.com/"}]

    answer = ask("POST", "/triggers", {"workflow": "hello", "name": "ci", "callbacks": two})

    assert [each["pointer"] for each in answer.json["errors"]] == ["/callbacks/0/url"]
    assert "callbacks[0].url" in answer.json["detail"]


def test_a_number_is_the_same_however_json_spells_it(ask: Ask) -> None:
    number = float(ask("GET", "/workflows/hello").json["id"])

    assert ask("POST", "/triggers", {"workflow": number, "name": "ci"}).status_code == 201
    assert ask("POST", "/tokens", {"name": "ci", "workflow_ids": [number]}).json["workflow_ids"] == [int(number)]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/deliveries/redeliver?since=2026-01-31T08:00:00Z", {"callback": 1}),
        ("PUT", "/workflows/hello?dry_run=1", {"name": "hello", "stages": [{"name": "changed", "stub": {}}]}),
        ("POST", "/workflows/hello/disable?until=tomorrow", None),
        ("DELETE", "/workflows/hello?dry_run=1", None),
    ],
    ids=["redeliver", "put", "disable", "delete"],
)
def test_a_query_that_would_be_passed_over_changes_nothing(ask: Ask, method: str, path: str, body: Any) -> None:
    ask("POST", "/callbacks", {"workflow": "hello", "url": "https://ci.example.com/"})
    before = ask("GET", "/workflows/hello").json

    answer = ask(method, path, body)

    assert (answer.status_code, "There is no parameter" in answer.json["detail"]) == (400, True)
    assert ask("GET", "/workflows/hello").json == before


NIGHTLY = {"workflow": "hello", "name": "nightly", "schedule": "15  2 * * 1-5", "timezone": "Europe/Paris", "input": {"name": "Ada"}}


def test_a_schedule_is_made_and_shown_with_its_next_five_times(ask: Ask, box: TestBox) -> None:
    made = ask("POST", "/triggers", NIGHTLY)

    assert made.status_code == 201
    assert (made.json["kind"], made.json["url"], made.json["token"]) == ("schedule", None, None)
    assert made.json["options"] == {"schedule": "15 2 * * 1-5", "timezone": "Europe/Paris", "input": {"name": "Ada"}}
    times = ask("GET", f"/triggers/{made.json['id']}", token=box.token("read")).json["next_times"]
    assert times == made.json["next_times"]
    assert [each["local"][11:16] for each in times] == ["02:15"] * 5
    assert made.json["next_fire_at"] == times[0]["at"]
    assert ask("POST", f"/triggers/{made.json['id']}/disable").json["next_times"] == []
    assert ask("POST", f"/triggers/{made.json['id']}/rotate").status_code == 409


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"schedule": "15 2 * *"}, "/schedule"),
        ({"timezone": "Paris"}, "/timezone"),
        ({"webhook": {}}, "/webhook"),
        ({"filter": {"input.a": 1}}, "/filter"),
        ({"schedule": None}, "/schedule"),
    ],
    ids=["fields", "zone", "webhook", "filter", "null"],
)
def test_a_schedule_that_does_not_fit_is_not_made(ask: Ask, changes: dict[str, Any], pointer: str) -> None:
    answer = ask("POST", "/triggers", NIGHTLY | changes)

    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, pointer)
    assert ask("GET", "/triggers").json == []


def test_what_belongs_to_schedules_is_refused_for_a_webhook(ask: Ask) -> None:
    answer = ask("POST", "/triggers", {"workflow": "hello", "name": "ci", "timezone": "UTC"})

    assert (answer.status_code, answer.json["errors"]) == (422, [{"pointer": "/schedule", "detail": "is required"}])


def test_a_trigger_is_changed_in_what_is_named(ask: Ask) -> None:
    ci = f"/triggers/{ask('POST', '/triggers', {'workflow': 'hello', 'name': 'ci'}).json['id']}"
    nightly = f"/triggers/{ask('POST', '/triggers', NIGHTLY).json['id']}"

    renamed = ask("PATCH", ci, {"name": "main", "webhook": {"rate": "60/m"}, "callbacks": [{"url": "https://ci.example.com"}]}).json
    filtered = ask("PATCH", ci, {"filter": {"input.a": 1}}).json
    moved = ask("PATCH", nightly, {"timezone": "UTC"}).json

    assert (renamed["name"], renamed["options"], filtered["name"]) == ("main", {"rate": "60/m"}, "main")
    assert filtered["options"] == {"filter": {"input.a": 1}}
    assert [each["url"] for each in ask("GET", "/callbacks").json] == ["https://ci.example.com"]
    assert moved["options"] == {"schedule": "15 2 * * 1-5", "timezone": "UTC", "input": {"name": "Ada"}}
    assert {each["local"][10:] for each in moved["next_times"]} == {" 02:15 +00:00"}
    assert ask("PATCH", ci, {"callbacks": []}).status_code == 200
    assert ask("GET", "/callbacks").json == []


def test_a_trigger_keeps_its_kind_its_file_and_its_name(ask: Ask, box: TestBox) -> None:
    box.apply("name: filed\ntriggers: [{name: in}]\nstages: [{name: a, stub: {}}]\n")
    made = [ask("POST", "/triggers", body).json["id"] for body in ({"workflow": "hello", "name": "ci"}, NIGHTLY)]
    filed = ask("GET", "/triggers?workflow=filed").json[0]["id"]

    refused = [
        ask("PATCH", f"/triggers/{made[0]}", {"schedule": "15 2 * * *"}),
        ask("PATCH", f"/triggers/{made[1]}", {"filter": {"input.a": 1}}),
        ask("PATCH", f"/triggers/{filed}", {"filter": {"input.a": 1}}),
        ask("PATCH", f"/triggers/{made[0]}", {"name": "nightly"}),
        ask("PATCH", f"/triggers/{made[0]}", {"timezone": "UTC"}),
    ]
    unfit = [ask("PATCH", f"/triggers/{made[0]}", body) for body in ({}, {"more": 1}, {"filter": {}})]

    assert [answer.status_code for answer in refused] == [409] * 5
    assert [answer.status_code for answer in unfit] == [422] * 3


def test_a_reader_does_not_see_the_url_of_a_webhook(ask: Ask, box: TestBox) -> None:
    made = ask("POST", "/triggers", {"workflow": "hello", "name": "ci"}).json

    shown = ask("GET", f"/triggers/{made['id']}", token=box.token("read"))

    assert (shown.json["url"], shown.json["token"]) == (None, None)
    assert ask("GET", f"/triggers/{made['id']}", token=box.token("read", "write")).json["url"] == made["url"]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_made_used_and_revoked(ask: Ask) -> None:
    made = ask("POST", "/tokens", {"name": "ci", "scopes": ["read"], "expires_at": "2100-01-01T00:00:00+02:00"})
    assert (made.status_code, made.json["expires_at"]) == (201, "2099-12-31T22:00:00.000Z")
    assert ask("GET", "/runs", token=made.json["token"]).status_code == 200

    revoked = ask("POST", f"/tokens/{made.json['id']}/revoke")

    assert revoked.json["revoked_at"] and revoked.json["last_used_at"]
    assert ask("GET", "/runs", token=made.json["token"]).status_code == 401
    assert all("token" not in each for each in ask("GET", "/tokens").json)


@pytest.mark.parametrize(
    "changes",
    [{"scopes": []}, {"scopes": ["all"]}, {"workflow_ids": [999]}, {"expires_at": "2020-01-01"}, {"expires_at": "soon"}, {"name": "a\nb"}],
    ids=str,
)
def test_a_token_that_does_not_fit_is_not_made(ask: Ask, changes: dict[str, Any]) -> None:
    before = len(ask("GET", "/tokens").json)

    assert ask("POST", "/tokens", {"name": "ci"} | changes).status_code == 422
    assert len(ask("GET", "/tokens").json) == before


def test_a_limited_admin_makes_no_token(ask: Ask, box: TestBox) -> None:
    limited = box.token("admin", workflow_ids=[1])

    assert ask("POST", "/tokens", {"name": "wide"}, token=limited).status_code == 403
    assert ask("GET", "/tokens", token=limited).status_code == 403


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_come_newest_first_in_pages(ask: Ask, box: TestBox) -> None:
    made = [box.accept() for _ in range(5)]

    seen, path = [], "/runs?limit=2&status=pending"
    while path:
        answer = ask("GET", path)
        seen.append([run["id"] for run in answer.json])
        path = next_page(answer) or ""

    assert seen == [made[:2:-1], made[2:0:-1], made[:1]]


def test_runs_are_found_by_workflow_status_trigger_metadata_and_time(ask: Ask, box: TestBox) -> None:
    box.apply(OTHER)
    hook = box.hook()
    trigger_id = ask("GET", "/triggers").json[0]["id"]
    plain, other = box.accept(), box.accept("other", metadata={"pr": 7, "by": "Ada"})
    fired = ask("POST", hook.removeprefix("/api/v1")).json["workflow_run_id"]
    ask("POST", f"/runs/{plain}/stop")

    def found(query: str) -> list[int]:
        return [run["id"] for run in ask("GET", f"/runs?{query}").json]

    assert found("workflow=hello") == [fired, plain]
    assert found("workflow=2") == [other]
    assert found("status=stopped") == [plain]
    assert found(f"trigger={trigger_id}") == [fired]
    assert found("metadata[pr]=7&metadata[by]=Ada") == [other]
    assert found("metadata[pr]=8") == []
    assert found("since=2026-01-01T00:00:00Z") == [fired, other, plain]
    assert found("since=" + clock.to_text(clock.now() + timedelta(hours=1))) == []
    # The ends of the calendar, and beyond them in UTC.
    for early in ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00%2B00:01", "0001-01-01T00:00:00-23:59"):
        assert found(f"since={early}") == [fired, other, plain]
    for late in ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-00:01"):
        assert found(f"since={late}") == []


@pytest.mark.parametrize("text", ["\u00b9", "1\u00b2", "\u0663", "9" * 30], ids=["superscript", "mixed", "arabic", "long"])
def test_what_only_looks_like_a_number_names_no_workflow(ask: Ask, text: str) -> None:
    answers = [ask("GET", f"/{kind}?{urlencode({'workflow': text})}") for kind in ("runs", "triggers", "callbacks", "requests")]

    assert [answer.status_code for answer in answers] == [404] * 4


def test_a_workflow_with_a_nul_in_its_name_is_unknown_and_no_fault(ask: Ask) -> None:
    assert ask("GET", "/runs?workflow=a%00b").status_code == 404


def test_the_first_run_since_a_time_is_found_without_reading_all(box: TestBox) -> None:
    for _ in range(20):
        box.accept()
    begin = clock.now() - timedelta(hours=10)
    with box.database.transaction() as connection:
        for number in range(1, 21):
            moment = clock.to_text(begin + timedelta(minutes=number))
            connection.execute(text("UPDATE runs SET created_at = :at WHERE id = :id"), {"at": moment, "id": number})

    with box.database.read() as connection:
        firsts = [catalog.first_since(connection, begin + timedelta(minutes=minutes)) for minutes in (0, 1, 7, 20, 21)]

    assert firsts == [1, 1, 7, 20, 21]


def test_a_metadata_filter_looks_at_so_many_runs_and_goes_on_with_the_next_page(
    ask: Ask, box: TestBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = box.accept(metadata={"pr": "1"})
    with box.database.transaction() as connection:
        others = dict(connection.execute(text("SELECT * FROM runs")).mappings().one()) | {"metadata": "{}"}
        del others["id"]
        connection.execute(insert(Run), [others] * catalog.EXAMINED_MAX)

    empty = ask("GET", "/runs?metadata[pr]=1")
    path = next_page(empty)

    assert empty.json == [] and path
    assert [run["id"] for run in ask("GET", path).json] == [first]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=x", "before=0", "status=done", "since=yesterday"),
        *("limit=1&limit=2", "colour=red", "metadata=1", "metadata[a]=1&metadata[a]=2", "metadata[a][b]=1", "trigger=a"),
    ],
)
def test_a_query_that_does_not_fit_is_refused_by_name(ask: Ask, query: str) -> None:
    answer = ask("GET", f"/runs?{query}")

    assert answer.status_code == 400
    assert query.partition("=")[0].partition("[")[0] in answer.json["detail"]


@pytest.mark.parametrize(
    ("stub", "content_type", "body"),
    [
        ("stub: {output: Hello}", "text/plain; charset=utf-8", b"Hello"),
        ("stub: {output: {a: 1}}", "application/json", b'{"a":1}'),
        (r"script: printf '\377'", "application/octet-stream", b"\xff"),
    ],
    ids=["text", "json", "bytes"],
)
def test_an_output_is_had_as_it_is(ask: Ask, box: TestBox, worker: executor.Worker, stub: str, content_type: str, body: bytes) -> None:
    box.apply(f"name: out\nstages:\n  - name: a\n    {stub}\n")
    run_id = box.accept("out")
    assert ask("GET", f"/runs/{run_id}/output").status_code == 404

    executor.work()

    answer = ask("GET", f"/runs/{run_id}/output")
    assert (answer.content_type, answer.data) == (content_type, body)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# ── callbacks and deliveries ────────────────────────────────────────────────────────────────────────────────────────


def test_a_callback_is_made_tested_paused_resumed_and_removed(ask: Ask) -> None:
    with inbox() as receiver:
        made = ask("POST", "/callbacks", {"workflow": "hello", "url": receiver.url(), "events": ["failed"]})
        path = f"/callbacks/{made.json['id']}"
        tested = ask("POST", f"{path}/test")

        assert (made.status_code, tested.json["delivered"], receiver.arrived[0].json["type"]) == (201, True, "run.test")
    assert ask("POST", f"{path}/test").json["delivered"] is False
    assert ask("POST", f"{path}/pause").json["paused_at"]
    assert ask("POST", f"{path}/resume").json["paused_at"] is None
    assert ask("DELETE", path).status_code == 204
    assert ask("GET", path).status_code == 404


def test_a_callback_that_does_not_fit_is_not_made(ask: Ask, box: TestBox) -> None:
    box.apply(OTHER)
    ask("POST", "/triggers", {"workflow": "other", "name": "ci"})

    for changes in ({"url": "ftp://x/"}, {"url": "https://x/${nothing.a}"}, {"events": []}, {"trigger_id": 1}, {"secret": "plain"}):
        answer = ask("POST", "/callbacks", {"workflow": "hello", "url": "https://ci.example.com/"} | changes)
        assert answer.status_code == 422, changes
    assert ask("GET", "/callbacks").json == []


def test_a_delivery_is_shown_with_its_body_and_redelivered_once_it_is_dead(ask: Ask, box: TestBox, worker: executor.Worker) -> None:
    ask("POST", "/callbacks", {"workflow": "hello", "url": "https://ci.example.com/"})
    run_id = box.accept()
    executor.work()
    (listed,) = ask("GET", f"/deliveries?run={run_id}&status=pending").json
    path = f"/deliveries/{listed['id']}"

    shown = ask("GET", path)

    assert shown.json["body"]["workflow_run_id"] == run_id and shown.json["history"] == []
    assert ask("POST", f"{path}/redeliver").status_code == 409
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET status = 'dead', next_attempt_at = NULL")
    assert ask("POST", f"{path}/redeliver").json["status"] == "pending"


def dead(box: TestBox, *moments: str, callback_id: int = 1) -> None:
    """Write one dead delivery for each moment at which it died, each of a run of its own."""
    for moment in moments:
        row = {"run_id": box.accept(), "moment": moment, "callback": callback_id}
        with box.database.transaction() as connection:
            connection.execute(
                text(
                    "INSERT INTO deliveries"
                    " (webhook_id, run_id, callback_id, channel, sequence, event, url, host, body, status, finished_at, created_at)"
                    " VALUES ('msg_' || :run_id, :run_id, :callback, 'callback:1', 1, 'run.failed', '[\"http://x\"]', 'x:80', :body,"
                    " 'dead', :moment, :moment)"
                ),
                row | {"body": b"{}"},
            )


MOMENTS = [f"2026-01-31T0{hour}:00:00.000Z" for hour in (7, 8, 9)]


@pytest.mark.parametrize(
    ("wanted", "again"),
    [
        ({"callback": 1}, [1, 2, 3]),
        ({"since": "2026-01-31T08:00:00Z"}, [2, 3]),
        ({"until": "2026-01-31T10:00:00+02:00"}, [1]),
        ({"callback": 1, "since": "2026-01-31T08:00:00", "until": "2026-01-31T08:30:00Z"}, [2]),
        ({"callback": 2}, []),
    ],
)
def test_dead_deliveries_are_redelivered_by_callback_and_time_once(ask: Ask, box: TestBox, wanted: Any, again: list[int]) -> None:
    for number in (1, 2):
        ask("POST", "/callbacks", {"workflow": "hello", "url": f"https://ci.example.com/{number}"})
    dead(box, *MOMENTS)

    first, second = ask("POST", "/deliveries/redeliver", wanted), ask("POST", "/deliveries/redeliver", wanted)

    assert (first.json, second.json) == ({"ids": again, "more": False}, {"ids": [], "more": False})
    assert [row["id"] for row in box.rows("SELECT id FROM deliveries WHERE status = 'pending' AND next_attempt_at IS NOT NULL")] == again


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        *(({}, ""), ({"callback": 0}, "/callback"), ({"since": "soon"}, "/since"), ({"until": 7}, "/until"), ({"all": 1}, "/all")),
        ({"since": "2026-01-31T09:00:00Z", "until": "2026-01-31T08:00:00Z"}, "/until"),
    ],
)
def test_what_is_to_be_redelivered_is_said_plainly(ask: Ask, wanted: Any, pointer: str) -> None:
    answer = ask("POST", "/deliveries/redeliver", wanted)

    assert (answer.status_code, [each["pointer"] for each in answer.json["errors"]]) == (422, [pointer])


def test_a_limited_token_redelivers_its_own_alone(ask: Ask, box: TestBox) -> None:
    box.apply(OTHER)
    ask("POST", "/callbacks", {"workflow": "hello", "url": "https://ci.example.com/"})
    dead(box, *MOMENTS)
    other = next(each["id"] for each in ask("GET", "/workflows").json if each["name"] == "other")
    own = box.token("write", workflow_ids=[other])

    assert ask("POST", "/deliveries/redeliver", {"since": MOMENTS[0]}, token=own).json["ids"] == []
    assert ask("POST", "/deliveries/redeliver", {"callback": 1}, token=own).status_code == 404
    assert ask("POST", "/deliveries/redeliver", {"callback": 99}).status_code == 404


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_request_is_shown_and_replayed_after_what_refused_it_was_mended(ask: Ask, box: TestBox) -> None:
    hook = box.hook()
    ask("POST", "/workflows/hello/disable")
    assert ask("POST", hook.removeprefix("/api/v1"), {"name": "Ada"}).status_code == 422
    (listed,) = ask("GET", "/requests?endpoint=hook&verdict=refused&workflow=hello").json
    path = f"/requests/{listed['id']}"
    assert ask("GET", path).json["body"] == '{"name": "Ada"}'
    assert ask("POST", f"{path}/replay").status_code == 422
    ask("POST", "/workflows/hello/enable")

    replayed = ask("POST", f"{path}/replay", {})

    assert (replayed.status_code, replayed.json["status"]) == (201, "started")
    assert box.run(replayed.json["workflow_run_id"])["input"] == {"name": "Ada"}


def test_only_an_admin_replays_a_request_without_its_signature(ask: Ask, box: TestBox) -> None:
    token = base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")
    box.apply(f'name: signed\ntriggers:\n  - name: a\n    webhook: {{token: "{token}", signature: github, secret: "${{secrets.ABSENT}}"}}\n'
              "stages:\n  - name: b\n    stub: {output: 1}\n")  # fmt: skip
    assert ask("POST", f"/hooks/{token}", {"a": 1}).status_code == 401
    path = f"/requests/{ask('GET', '/requests?verdict=refused').json[0]['id']}/replay"

    assert ask("POST", path, {}).status_code == 422
    assert ask("POST", path, {"anyway": True}, token=box.token("write")).status_code == 403
    assert ask("POST", path, {"anyway": True}).status_code == 201


# ── who sees what ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limited_token_sees_its_workflows_and_nothing_else(ask: Ask, box: TestBox, worker: executor.Worker) -> None:
    other = box.apply(OTHER)
    for name in ("hello", "other"):
        ask("POST", "/triggers", {"workflow": name, "name": "ci"})
        ask("POST", "/callbacks", {"workflow": name, "url": f"https://{name}.example.com/"})
        ask("POST", box.hook(name, "ci").removeprefix("/api/v1"), {})
    executor.work()
    limited = box.token("read", "write", workflow_ids=[other.id])

    for path in ("/workflows", "/triggers", "/runs", "/deliveries", "/callbacks", "/requests"):
        seen = ask("GET", path, token=limited).json
        assert len(ask("GET", path).json) == 2, path
        assert len(seen) == 1 and "hello" not in json.dumps(seen), path
    assert ask("GET", "/runs?workflow=hello", token=limited).status_code == 404


def test_a_limited_token_changes_its_workflow_and_makes_none(ask: Ask, box: TestBox) -> None:
    other = box.apply(OTHER)
    limited = box.token("write", workflow_ids=[other.id])

    def put(name: str) -> int:
        text = OTHER.replace("name: other", f"name: {name}").replace("output: other", "output: changed")
        return ask("PUT", f"/workflows/{name}", data=text, content_type="application/yaml", token=limited).status_code

    assert [put(name) for name in ("other", "hello", "new")] == [200, 404, 404]


def test_the_instance_tells_its_limits_and_how_it_is(ask: Ask, box: TestBox) -> None:
    shown = ask("GET", "/instance", token=box.token("read")).json

    assert shown["limits"] == {"body_max_bytes": 1048576, "metadata_max_bytes": 16384, "page_max": 100}
    assert shown["health"]["status"] == "unready" and "worker" in shown["health"]["reasons"][0]
