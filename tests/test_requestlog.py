"""The request log: what is written of whom, what is never written, what is kept how long, and the commands that show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, requestlog
from orqo.call import Call
from orqo.config import PROJECT_DIR
from orqo.models import Verdict
from support import TestBox, sqlite_only

SIGNED = """
name: signed
triggers: [{name: in, webhook: {signature: github, secret: "${secrets.HOOK}"}}]
stages: [{name: a, stub: {}}]
"""
JSON = {"Content-Type": "application/json"}


def rows(box: TestBox) -> list[Any]:
    return box.rows("SELECT * FROM requests ORDER BY id")


def write(box: TestBox, number: int, **changes: Any) -> None:
    """Write that many refused requests."""
    entry = requestlog.Entry("hook", Call("POST", body=b"x"), changes.pop("verdict", Verdict.REFUSED), 401, **changes)
    with box.database.transaction() as connection:
        for _ in range(number):
            requestlog.write(connection, entry, now=clock.now())


@sqlite_only
def test_trimming_looks_at_the_oldest_alone_however_long_the_log_is(box: TestBox) -> None:
    steps: list[int] = []
    for number in range(2):
        write(box, 1_000, verdict=Verdict.ACCEPTED)
        counted: list[int] = []
        with box.database.transaction() as connection:
            driver: Any = connection.connection.dbapi_connection
            driver.set_progress_handler(partial(counted.append, number), 1)
            requestlog._trim(connection, clock.now())
            driver.set_progress_handler(None, 1)
        steps.append(len(counted))

    assert steps[0] == pytest.approx(steps[1], abs=20) and 200 < steps[0] < 10_000


def test_each_request_with_a_known_token_is_kept_with_what_was_answered(client: Any, box: TestBox) -> None:
    bearer = {"Authorization": f"Bearer {box.token('trigger')}"}
    reader = {"Authorization": f"Bearer {box.token('read')}"}

    client.post("/api/v1/trigger", json={"workflow_id": 1}, headers=bearer)
    client.post("/api/v1/trigger", data=b"{", headers=bearer | JSON)
    client.post("/api/v1/trigger", json={"workflow_id": 99}, headers=bearer)
    client.post("/api/v1/trigger", json={"workflow_id": 1}, headers=reader)
    client.post("/api/v1/callback", json={"status": "completed", "workflow_run_id": 1}, headers=reader)
    client.post(box.hook(), data=b"hello")
    client.get(box.hook())

    assert [(row["endpoint"], row["status_code"], row["verdict"]) for row in rows(box)] == [
        ("trigger", 201, "accepted"),
        ("trigger", 400, "refused"),
        ("trigger", 404, "refused"),
        ("trigger", 403, "refused"),
        ("callback", 403, "refused"),
        ("hook", 201, "accepted"),
        ("hook", 405, "refused"),
    ]
    assert rows(box)[1]["body"] == b"{"
    assert [row["run_id"] for row in rows(box) if row["verdict"] == "accepted"] == [1, 2]


def test_a_nul_in_a_header_is_written_as_every_database_can_hold_it(client: Any, box: TestBox) -> None:
    answer = client.post(box.hook(), data=b"hello", content_type="text/plain; charset=utf-8; a=\0b")

    assert answer.status_code == 201
    assert [row["content_type"] for row in rows(box)] == ["text/plain; charset=utf-8; a=\ufffdb"]


def test_of_strangers_nothing_is_kept(client: Any, box: TestBox) -> None:
    client.post("/api/v1/hooks/" + "x" * 43, data=b"hello")
    client.post("/api/v1/trigger", json={"workflow_id": 1}, headers={"Authorization": "Bearer orqo_" + "x" * 43})
    client.post("/api/v1/callback?token=" + "x" * 43, json={"status": "completed"})
    client.post("/api/v1/callback", json={"status": "completed"})

    assert rows(box) == []


def test_no_credential_is_written(client: Any, box: TestBox) -> None:
    path, bearer = box.hook(), box.token("trigger")
    token = path.rpartition("/")[2]
    headers = {
        "Authorization": "Bearer in-authorization", "Cookie": "a=in-cookie", "X-Api-Key": "in-api-key", "X-Auth-Token": "in-token",
        "X-Original-Uri": path, "Referer": f"http://x{path}", "X-Request-Id": token, "X-Hub-Signature-256": "sha256=in-signature",
    }  # fmt: skip

    client.post(f"{path}?token=in-query&password=in-password&page=2", data=b"{}", headers=headers)
    client.post("/api/v1/trigger", json={"workflow_id": 1}, headers={"Authorization": f"Bearer {bearer}"})

    kept = str([dict(row) for row in rows(box)]) + str([dict(row) for row in box.rows("SELECT * FROM runs")]).replace("in-query", "", 1)
    assert [word for word in ("in-auth", "in-cookie", "in-api-key", "in-token", token, bearer) if word in kept] == []
    shown, query = json.loads(rows(box)[0]["headers"]), json.loads(rows(box)[0]["query"])
    assert shown["x-hub-signature-256"] == shown["authorization"] == "(hidden)"
    assert query == [["token", "(hidden)"], ["password", "(hidden)"], ["page", "2"]]


def test_a_refusal_is_answered_although_it_cannot_be_logged(client: Any, box: TestBox) -> None:
    path = box.hook()
    with box.database.transaction() as connection:
        connection.execute(text("ALTER TABLE requests RENAME TO away"))

    assert client.get(path).status_code == 405


def test_the_newest_hundred_bodies_of_refused_requests_are_kept_for_each_trigger(box: TestBox) -> None:
    box.hook()
    box.hook(name="other")

    write(box, 5, trigger_id=2)
    write(box, 130, trigger_id=1)

    kept = box.rows("SELECT trigger_id, count(*) AS n, count(body) AS bodies FROM requests GROUP BY trigger_id ORDER BY trigger_id")
    assert [(row["trigger_id"], row["n"], row["bodies"]) for row in kept] == [(1, 130, 100), (2, 5, 5)]
    assert box.rows("SELECT min(id) AS first FROM requests WHERE body IS NOT NULL AND trigger_id = 1")[0]["first"] == 36


def test_what_is_older_than_a_week_goes_as_others_come(box: TestBox) -> None:
    write(box, 30)
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE requests SET received_at = '2020-01-01T00:00:00.000Z'"))

    write(box, 5)

    assert len(rows(box)) <= 5


def test_more_than_ten_thousand_are_not_kept(box: TestBox) -> None:
    write(box, 10)
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE requests SET id = id + 20000 WHERE id > 5"))

    write(box, 40, verdict=Verdict.IGNORED)

    assert min(row["id"] for row in rows(box)) > 5


def test_lists_are_narrowed_and_paged(client: Any, box: TestBox) -> None:
    box.apply(SIGNED)
    client.post(box.hook("signed", "in"), data=b"{}")
    client.post(box.hook(), data=b"{}")
    client.post(box.hook(), data=b"{}")

    with box.database.read() as connection:
        listed = requestlog.list_all(connection)
        refused = requestlog.list_all(connection, verdict="refused")
        of_hello = requestlog.list_all(connection, workflow_id=1, limit=1)
        older = requestlog.list_all(connection, workflow_id=1, before=of_hello[0]["id"])

    assert [row["workflow"] for row in listed] == ["hello", "hello", "signed"]
    assert [(row["workflow"], row["trigger"], row["status_code"]) for row in refused] == [("signed", "in", 401)]
    assert [row["id"] for row in (*of_hello, *older)] == [3, 2]


@pytest.mark.parametrize("body", [b'{"a": "it\'s"}', b"@file", b"\x00\xff\n", b"", b"two\nlines $HOME `id`"], ids=ascii)
def test_the_curl_command_sends_the_same_again(client: Any, box: TestBox, service: Any, body: bytes) -> None:
    path = box.hook()
    client.post(f"{path}?a=b%20c", data=body, headers=JSON | {"X-Request-Id": "1; rm -rf '$HOME'", "Authorization": "Bearer secret"})
    with box.database.read() as connection:
        row = requestlog.find(connection, rows(box)[0]["id"])
    assert row is not None

    command = requestlog.as_curl(row)
    subprocess.run(["sh", "-c", command], env=os.environ | {"URL": service.url + path}, check=True, capture_output=True)

    first, again = rows(box)
    assert "secret" not in command
    assert (again["body"], again["query"], json.loads(again["headers"])["x-request-id"]) == (body, first["query"], "1; rm -rf '$HOME'")


def test_the_commands_list_show_and_replay(client: Any, box: TestBox, settings: dict[str, str]) -> None:
    box.apply(SIGNED)
    client.post(box.hook("signed", "in"), data=b'{"a": 1}', headers=JSON)

    def orqo(*words: str) -> Any:
        env = os.environ | settings | {"ORQO_SECRET_HOOK": "k"}
        done = subprocess.run([sys.executable, "-m", "orqo", *words, "--json"], env=env, cwd=PROJECT_DIR, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    listed, shown = orqo("request", "list", "--verdict", "refused"), orqo("request", "show", "1")
    refused, replayed = orqo("request", "replay", "1"), orqo("request", "replay", "1", "--anyway")

    assert [(row["id"], row["workflow"], row["status_code"]) for row in listed] == [(1, "signed", 401)]
    assert "the secret HOOK is not set" in shown["reason"]
    assert shown["curl"].startswith('curl -X POST "$URL"')
    assert "signature" in refused
    assert replayed["verdict"] == "accepted"
    assert box.run(replayed["workflow_run_id"])["metadata"] == {"replayed_request": 1, "signature": "not verified"}


def test_a_trigger_made_by_a_command_asks_for_the_same_as_one_of_a_file(client: Any, box: TestBox, settings: dict[str, str]) -> None:
    words = ["trigger", "create", "hello", "--name", "in", "--signature", "github", "--secret", "HOOK"]
    words += ["--filter", '{"input.a": 1}', "--json"]
    env = os.environ | settings | {"ORQO_SECRET_HOOK": "k"}

    made = subprocess.run([sys.executable, "-m", "orqo", *words], env=env, cwd=PROJECT_DIR, capture_output=True, text=True)
    wrong = subprocess.run([sys.executable, "-m", "orqo", *words[:7], "--json"], env=env, cwd=PROJECT_DIR, capture_output=True, text=True)
    empty = subprocess.run([sys.executable, "-m", "orqo", *words], env=env | {"ORQO_SECRET_HOOK": ""}, cwd=PROJECT_DIR, capture_output=True)

    path = "/api" + json.loads(made.stdout)["url"].partition("/api")[2]
    assert client.post(path, data=b'{"a": 1}', headers=JSON).status_code == 401
    assert (wrong.returncode, "needs secret" in wrong.stderr) == (1, True)
    assert (empty.returncode, b"is empty" in empty.stderr) == (1, True)
