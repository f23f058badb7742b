"""The dashboard's pages over HTTP: who may see them, what forms refuse, what is shown and how."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import url_for

from orqo import clock, db, executor, instance, leases, outbound, people, tokens
from orqo.config import PROJECT_DIR, Config
from orqo.dashboard import access
from orqo.models import Delivery, Instance
from orqo.queue import Bell
from orqo.secretstore import SecretStore
from support import HELLO, TestBox, application
from visitor import HOSTILE, Visitor, link, sign_in

ARGUMENTS = {"name": "hello", "run_id": 1, "trigger_id": 1, "callback_id": 1, "delivery_id": 1, "request_id": 1, "sequence": 1}
IDS = {"path": "a.txt", "token": "x" * 43, "token_id": 1, "person_id": 1, "session_id": 1, "filename": "orqo.css"}
BROKEN = """
name: broken
callbacks:
  - {url: "http://127.0.0.1:1/never?key=hidden", events: [failed]}
stages:
  - name: burst
    script: echo "$HOSTILE"; echo "$HOSTILE" >&2; exit 3
    env: {HOSTILE: "${input}"}
"""


@pytest.fixture
def visitor(box: TestBox, client: Any) -> Visitor:
    """Somebody who is signed in."""
    return sign_in(client, box)


def live(box: TestBox, client: Any) -> None:
    """Let two workflows run, one of them with hostile input to its failure."""
    client.post(box.hook(), json={"name": HOSTILE}, headers={"X-GitHub-Event": HOSTILE})
    box.apply(BROKEN)
    client.post(box.hook("broken", "wild"), json=HOSTILE)
    executor.work()


@pytest.fixture
def past(box: TestBox, worker: executor.Worker, client: Any) -> TestBox:
    """A box on which two workflows have run."""
    live(box, client)
    return box


@pytest.fixture(scope="module")
def shown(redis_url: str) -> Iterator[Visitor]:
    """Somebody who is signed in to a box on which two workflows have run; for tests that change nothing."""
    with made_box({"REDIS_URL": redis_url}) as box, in_process_worker(box), application(box.config) as app, app.test_client() as client:
        live(box, client)
        with box.database.transaction() as connection:
            tokens.create(connection, name=HOSTILE, now=clock.now())
        visitor = sign_in(client, box)
        visitor.post("/settings/people/me", name=HOSTILE[:60].strip(), password="correct horse battery")
        yield visitor


@contextmanager
def made_box(settings: dict[str, str]) -> Iterator[TestBox]:
    with tempfile.TemporaryDirectory(prefix="orqo-test-") as folder:
        Path(folder).chmod(0o711)
        config = Config.from_environ(settings | {"ORQO_DATA": f"{folder}/data"})
        config.data.mkdir(mode=0o711)
        database = db.Database.open(config.database_url)
        db.initialise(database)
        key = instance.establish(database, config, now=clock.now())
        box = TestBox(config, database, key, Bell.of(config, key))
        box.apply(HELLO)
        yield box
        box.bell.close()
        database.close()


@contextmanager
def in_process_worker(box: TestBox) -> Iterator[None]:
    client, secrets = outbound.Client(), SecretStore({})
    owner, stopping = leases.owner(), threading.Event()
    parts = {"box": box.box, "config": box.config, "bell": box.bell, "client": client, "secrets": secrets}
    executor.prepare(executor.Worker(**parts, owner=owner, stopping=stopping))
    yield


def dashboard_rules(client: Any) -> list[Any]:
    return [rule for rule in client.application.url_map.iter_rules() if rule.endpoint.startswith("dashboard.")]


def path_of(client: Any, rule: Any) -> str:
    known = ARGUMENTS | IDS
    with client.application.test_request_context():
        return url_for(rule.endpoint, **{name: known[name] for name in rule.arguments})


# ── who may see what ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_route_stands_in_the_table(client: Any) -> None:
    assert {rule.endpoint for rule in dashboard_rules(client)} == set(access.ACCESS)


def test_nobody_sees_anything_without_signing_in(shown: Visitor) -> None:
    client = shown.client.application.test_client()
    for rule in dashboard_rules(client):
        if access.ACCESS[rule.endpoint] == access.PUBLIC:
            continue
        path = path_of(client, rule)
        if "GET" in rule.methods:
            assert client.get(path).status_code == (401 if path.endswith("/live") else 303), path
        else:
            assert client.post(path, data={"a": "b"}).status_code == 401, path


def test_a_route_outside_the_table_is_closed(box: TestBox) -> None:
    with application(box.config) as app, app.test_client() as client:
        app.add_url_rule("/forgotten", "forgotten", lambda: "open")

        assert client.get("/forgotten").status_code == 303


def test_who_is_sent_to_sign_in_comes_back(box: TestBox, client: Any) -> None:
    answer = client.get("/runs?status=failed")

    assert answer.headers["Location"] == "/sign-in?next=/runs?status%3Dfailed"


@pytest.mark.parametrize("follow", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "/a\nb", "", "/a b"])
def test_signing_in_leads_nowhere_else(shown: Visitor, follow: str) -> None:
    with shown.client.application.test_request_context():
        assert access.next_path(follow) == "/"


def test_looking_at_a_link_does_not_consume_it(box: TestBox, client: Any) -> None:
    token = link(box)
    for _ in range(3):
        assert client.get(f"/sign-in?link={token}").status_code == 200

    csrf = Visitor(client).token(f"/sign-in?link={token}")

    assert client.post("/sign-in/link", data={"csrf": csrf, "link": token}).status_code == 303


def test_the_command_line_makes_a_link_that_signs_in(box: TestBox, settings: dict[str, str], client: Any) -> None:
    command = [sys.executable, "-m", "orqo", "login-link", "--json"]
    ended = subprocess.run(command, cwd=PROJECT_DIR, env=settings | {"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    url = json.loads(ended.stdout)["url"]

    token = url.removeprefix(f"{box.config.base_url}/sign-in?link=")
    answer = client.post("/sign-in/link", data={"csrf": Visitor(client).token(f"/sign-in?link={token}"), "link": token})

    assert answer.status_code == 303


def test_a_used_link_says_how_to_get_another(box: TestBox, client: Any, visitor: Visitor) -> None:
    answer = client.get("/sign-in?link=" + "x" * 43)

    assert answer.status_code == 410
    assert "login-link" in answer.text


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(box: TestBox, client: Any) -> None:
    token = link(box)
    csrf = Visitor(client).token(f"/sign-in?link={token}")

    cookies = client.post("/sign-in/link", data={"csrf": csrf, "link": token}).headers.getlist("Set-Cookie")

    session = next(cookie for cookie in cookies if cookie.startswith("orqo_session="))
    assert "HttpOnly" in session and "SameSite=Lax" in session and "Max-Age=43200" in session and "Secure" not in session


def test_behind_https_the_cookie_is_bound_to_the_host(settings: dict[str, str], box: TestBox) -> None:
    token = link(box)
    with application(Config.from_environ(settings | {"ORQO_BASE_URL": "https://orqo.example"})) as app, app.test_client() as client:
        csrf = Visitor(client).token(f"https://orqo.example/sign-in?link={token}")
        answer = client.post("https://orqo.example/sign-in/link", data={"csrf": csrf, "link": token})

    cookie = next(each for each in answer.headers.getlist("Set-Cookie") if each.startswith("__Host-orqo_session="))
    assert "Secure" in cookie and "Path=/" in cookie and "Domain" not in cookie


def test_signing_out_ends_the_session(visitor: Visitor) -> None:
    cookie = visitor.client.get_cookie("orqo_session").value
    visitor.post("/sign-out")
    visitor.client.set_cookie("orqo_session", cookie)

    assert visitor.get("/runs").status_code == 303


def test_name_and_password_sign_in(visitor: Visitor) -> None:
    visitor.post("/settings/people/me", name="Anna", password="correct horse battery")
    visitor.post("/sign-out")

    csrf = visitor.token("/sign-in")
    answer = visitor.client.post("/sign-in", data={"csrf": csrf, "name": "Anna", "password": "correct horse battery", "next": "/runs"})

    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs")


def test_too_many_wrong_passwords_are_answered_429(client: Any) -> None:
    csrf = Visitor(client).token("/sign-in")
    given = {"csrf": csrf, "name": "Anna", "password": "wrong"}

    codes = [client.post("/sign-in", data=given).status_code for _ in range(people.GUESSES_PER_NAME + 1)]

    assert codes == [401] * people.GUESSES_PER_NAME + [429]


# ── forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "null"},
    {"Sec-Fetch-Site": "none"},
]


def forms(client: Any) -> list[str]:
    return [path_of(client, rule) for rule in dashboard_rules(client) if "POST" in rule.methods]


def test_no_form_takes_another_sites_origin(shown: Visitor) -> None:
    csrf = shown.token()
    for path in forms(shown.client):
        for headers in FOREIGN:
            assert shown.client.post(path, data={"csrf": csrf}, headers=headers).status_code == 403, (path, headers)


@pytest.mark.parametrize("csrf", ["", "0" * 64, "é"])
def test_no_form_goes_without_its_token(shown: Visitor, csrf: str) -> None:
    for path in forms(shown.client):
        assert shown.client.post(path, data={"csrf": csrf}).status_code == 403, path


def test_a_token_of_before_signing_in_is_no_good_afterwards(box: TestBox, client: Any) -> None:
    token = link(box)
    csrf = Visitor(client).token(f"/sign-in?link={token}")
    client.post("/sign-in/link", data={"csrf": csrf, "link": token})

    assert client.post("/sign-out", data={"csrf": csrf}).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}])
def test_our_own_forms_are_taken(shown: Visitor, headers: dict[str, str]) -> None:
    assert shown.post("/settings/people/link", headers=headers).status_code == 200


def test_a_form_of_another_type_is_refused(shown: Visitor) -> None:
    assert shown.client.post("/sign-out", json={"csrf": shown.token()}).status_code == 400


# ── every page ──────────────────────────────────────────────────────────────────────────────────────────────────────

PAGES = [
    "/", "/workflows", "/workflows/hello", "/workflows/hello/edit", "/workflows/hello/runs", "/workflows/broken/callbacks",
    "/new-workflow", "/runs", "/runs/1", "/runs/2", "/deliveries", "/deliveries/1", "/received", "/received/reports",
    "/requests/1", "/requests/2", "/settings/tokens", "/settings/people", "/settings/instance",
]  # fmt: skip
LIVE = ["/live", "/runs/live", "/runs/2/live", "/workflows/broken/runs/live", "/workflows/broken/requests/live"]
RAW = ["/runs/1/input", "/runs/1/output", "/runs/2/stages/1/output", "/runs/2/stages/1/stderr", "/deliveries/1/body", "/requests/1/body"]


def test_every_page_carries_the_headers(shown: Visitor) -> None:
    for path in [*PAGES, *LIVE, *RAW, "/sign-in", "/nowhere", "/runs/999"]:
        headers = shown.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'"), path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_every_page_answers_and_holds_nothing_inline(shown: Visitor) -> None:
    for path in PAGES:
        answer = shown.get(path)
        assert answer.status_code == 200, path
        tags = re.sub(r'="[^"]*"', "=", answer.text)
        assert not re.search(r"<[^>]+\s(style|on\w+)=", tags), path
        assert not re.search(r"<script(?! src=)|<style", answer.text), path


def test_hostile_text_is_text(shown: Visitor) -> None:
    pages = [shown.get(path).text for path in PAGES] + ["".join(shown.get(path).json["parts"].values()) for path in LIVE]

    assert all("<script>alert" not in each and "<img src=x" not in each and "&gt;49" not in each for each in pages)
    assert sum(html.escape("<script>alert(1)") in each for each in pages) > 4


def test_raw_bytes_are_plain_text(shown: Visitor) -> None:
    for path in RAW:
        answer = shown.get(path)
        assert (answer.status_code, answer.content_type) == (200, "text/plain; charset=utf-8"), path

    assert HOSTILE in shown.get("/runs/2/stages/1/stderr").text


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/runs/0", "/runs/999", f"/runs/{2**70}", "/workflows/none", "/workflows/none/runs", "/deliveries/99",
     f"/deliveries/{2**70}",
     "/received/9", "/runs/1/stages/9/output", f"/runs/1/stages/{2**70}/output", "/workflows/hello?version=9", "/runs/"],
)  # fmt: skip
def test_what_is_not_there_is_a_page_that_says_so(shown: Visitor, path: str) -> None:
    answer = shown.get(path)

    assert answer.status_code == 404
    assert "<h1>Not found</h1>" in answer.text


@pytest.mark.parametrize("query", ["before=x", "before=-1", "before=" + "9" * 40, "status=nonsense", "status=failed&before=1", "done=<b>"])
def test_nonsense_in_a_query_is_passed_over(shown: Visitor, query: str) -> None:
    for path in ("/runs", "/workflows/hello/runs", "/deliveries", "/received", "/"):
        assert shown.get(f"{path}?{query}").status_code == 200


def test_a_forms_post_with_ids_out_of_range_finds_nothing(shown: Visitor) -> None:
    for path in ("/triggers/{}/switch", "/callbacks/{}/resume", "/deliveries/{}/redeliver", "/settings/tokens/{}/revoke", "/runs/{}/stop",
                 "/runs/{}/again", "/runs/{}/answer", "/triggers/{}/options", "/requests/{}/replay",
                 "/settings/people/{}/remove", "/settings/sessions/{}/end"):  # fmt: skip
        for number in (0, 999, 2**70):
            assert shown.post(path.format(number)).status_code == 404, (path, number)


# ── live ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_not_changed_is_answered_304(shown: Visitor) -> None:
    first = shown.get("/runs/1/live")

    again = shown.get("/runs/1/live", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status_code, again.data) == (304, b"")


def test_a_page_names_the_state_that_it_shows(shown: Visitor) -> None:
    page = shown.get("/runs/1").text

    assert f'data-etag="{shown.get("/runs/1/live").headers["ETag"].strip(chr(34))}"' in page


def test_an_ended_run_is_not_asked_for_again(shown: Visitor) -> None:
    assert shown.get("/runs/1/live").json["next_ms"] is None
    assert shown.get("/runs/live").json["next_ms"] > 0


def test_an_unfinished_run_is_asked_for_every_second(box: TestBox, visitor: Visitor) -> None:
    run_id = box.accept()

    assert visitor.get(f"/runs/{run_id}/live").json["next_ms"] == 1000


# ── what can be done ────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_now_starts_a_run_with_the_typed_input(box: TestBox, visitor: Visitor) -> None:
    answer = visitor.post("/workflows/hello/run", input='{"name": "Anna"}')

    run = box.run(int(re.search(r"/runs/(\d+)", answer.headers["Location"])[1]))  # type: ignore[index]
    assert (run["input"], run["status"]) == ({"name": "Anna"}, "pending")


@pytest.mark.parametrize("typed", ["{", '{"a": 1, "a": 2}', "NaN", "[1,]"])
def test_run_now_says_what_is_no_json_and_keeps_it(shown: Visitor, typed: str) -> None:
    answer = shown.post("/workflows/hello/run", input=typed)

    assert answer.status_code == 422
    assert html.escape(typed, quote=True).replace("&quot;", "&#34;") in answer.text


def test_who_pressed_run_now_is_shown(box: TestBox, visitor: Visitor) -> None:
    visitor.post("/settings/people/me", name="Anna", password="correct horse battery")
    visitor.post("/workflows/hello/run", input="")

    assert "dashboard by Anna" in visitor.get("/runs/1").text


def test_run_again_takes_input_and_metadata_along(box: TestBox, visitor: Visitor) -> None:
    old = box.accept(input={"a": 1}, metadata={"ticket": "A-1"})

    answer = visitor.post(f"/runs/{old}/again")

    new = box.run(int(re.search(r"/runs/(\d+)", answer.headers["Location"])[1]))  # type: ignore[index]
    assert (new["input"], new["metadata"]) == ({"a": 1}, {"ticket": "A-1"})


def test_a_disabled_workflow_starts_nothing(box: TestBox, visitor: Visitor) -> None:
    visitor.post("/workflows/hello/switch", enabled="0")

    assert visitor.post("/workflows/hello/run", input="").status_code == 409
    assert box.rows("SELECT 1 FROM runs") == []


def test_stop_ends_a_pending_run(box: TestBox, visitor: Visitor) -> None:
    run_id = box.accept()

    visitor.post(f"/runs/{run_id}/stop")

    assert box.run(run_id)["status"] == "stopped"
    assert visitor.post(f"/runs/{run_id}/stop").status_code == 409


def test_a_trigger_is_made_used_switched_rotated_and_deleted(box: TestBox, visitor: Visitor) -> None:
    def url() -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+(/api/v1/hooks/[\w-]{43})", visitor.get("/workflows/hello/runs").text)
        assert found
        return found[1]

    visitor.post("/workflows/hello/triggers", name="github")
    first = url()
    assert visitor.client.post(first, json=1).status_code == 201
    visitor.post("/triggers/1/switch", enabled="0")
    assert visitor.client.post(first, json=1).status_code == 409
    visitor.post("/triggers/1/switch", enabled="1")
    visitor.post("/triggers/1/rotate")
    assert url() != first
    assert visitor.client.post(first, json=1).status_code == 404
    visitor.post("/triggers/1/delete")
    assert box.rows("SELECT 1 FROM triggers") == []


@pytest.mark.parametrize(("name", "status"), [("Not A Name", 422), ("example", 409), ("", 422)])
def test_a_trigger_that_cannot_be_made_says_why(shown: Visitor, name: str, status: int) -> None:
    answer = shown.post("/workflows/hello/triggers", name=name)

    assert answer.status_code == status
    assert 'role="alert"' in answer.text


def test_an_api_token_is_shown_once_and_works(box: TestBox, visitor: Visitor) -> None:
    answer = visitor.post("/settings/tokens", name="ci", scopes=["trigger", "read"], which="all", expires="30")
    token = re.search(r"orqo_[\w-]{43}", answer.text)
    assert token

    started = visitor.client.post("/api/v1/trigger", json={"workflow_id": 1}, headers={"Authorization": f"Bearer {token[0]}"})

    assert started.status_code == 201
    assert token[0] not in visitor.get("/settings/tokens").text


def test_a_token_for_some_workflows_is_for_those_alone(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: other\nstages: [{name: a, stub: {}}]")
    answer = visitor.post("/settings/tokens", name="ci", scopes=["trigger"], which="some", workflow_ids=["2"])
    token = re.search(r"orqo_[\w-]{43}", answer.text)[0]  # type: ignore[index]

    codes = [
        visitor.client.post("/api/v1/trigger", json={"workflow_id": number}, headers={"Authorization": f"Bearer {token}"}).status_code
        for number in (1, 2)
    ]

    assert codes == [404, 201]


def test_a_revoked_token_is_refused(box: TestBox, visitor: Visitor) -> None:
    token = box.token("trigger")
    visitor.post("/settings/tokens/1/revoke")

    answer = visitor.client.post("/api/v1/trigger", json={"workflow_id": 1}, headers={"Authorization": f"Bearer {token}"})

    assert answer.status_code == 401


def test_a_new_workflow_is_saved(box: TestBox, visitor: Visitor) -> None:
    answer = visitor.post("/workflows", source="name: fresh\r\nstages:\r\n  - {name: a, stub: {}}\r\n")

    assert answer.headers["Location"].startswith("/workflows/fresh")
    assert visitor.get("/workflows/fresh").status_code == 200


@pytest.mark.parametrize(
    ("source", "line"),
    [("name: fresh\nstages:\n  - name: a\n    stubb: {}\n", 4), ("name: hello\nstages: [{name: a, stub: {}}]\n", 1), ("a: [", 1)],
    ids=["unknown key", "taken name", "no YAML"],
)
def test_a_file_with_faults_is_not_saved_and_the_line_is_named(shown: Visitor, source: str, line: int) -> None:
    answer = shown.post("/workflows", source=source)

    assert answer.status_code == 422
    assert f'data-line="{line}"' in answer.text
    assert "version 1," in shown.get("/workflows/hello").text


def test_editing_makes_a_version_and_refuses_another_name(box: TestBox, visitor: Visitor) -> None:
    good = "name: hello\nstages: [{name: b, stub: {}}]\n"

    assert visitor.post("/workflows/hello/edit", source=good, version="1").status_code == 303
    assert visitor.post("/workflows/hello/edit", source=good.replace("hello", "bye"), version="2").status_code == 422
    assert "version 2" in visitor.get("/workflows/hello").text


def test_two_who_edit_at_once_do_not_overwrite_each_other(box: TestBox, visitor: Visitor) -> None:
    visitor.post("/workflows/hello/edit", source="name: hello\nstages: [{name: b, stub: {}}]\n", version="1")

    answer = visitor.post("/workflows/hello/edit", source="name: hello\nstages: [{name: c, stub: {}}]\n", version="1")

    assert answer.status_code == 409
    assert "name: c" in answer.text


def test_where_files_are_the_only_truth_nothing_is_edited_here(box: TestBox, visitor: Visitor) -> None:
    with box.database.transaction() as connection:
        connection.execute(Instance.__table__.update().values(workflows_folder="/srv/workflows"))
    good = "name: hello\nstages: [{name: b, stub: {}}]\n"

    assert visitor.get("/workflows/hello/edit").status_code == 409
    assert visitor.post("/workflows/hello/edit", source=good, version="1").status_code == 409
    assert visitor.post("/workflows", source=good.replace("hello", "fresh")).status_code == 409
    assert visitor.post("/workflows/hello/delete").status_code == 409
    assert "/edit" not in visitor.get("/workflows/hello").text and "/srv/workflows" in visitor.get("/workflows").text


def test_a_deleted_workflow_leaves_its_runs_readable(past: TestBox, visitor: Visitor) -> None:
    visitor.post("/workflows/hello/delete")

    assert visitor.get("/workflows/hello").status_code == 404
    assert visitor.get("/runs/1").status_code == 200
    assert visitor.post("/runs/1/again").status_code == 409


def test_a_callback_is_added_shown_and_removed(box: TestBox, visitor: Visitor) -> None:
    visitor.post("/workflows/hello/callbacks", url="https://ci.example.com/done?key=secret", events=["completed"])

    page = visitor.get("/workflows/hello/callbacks").text
    assert "https://ci.example.com/done?***</h2>" in page and "key=secret" not in page
    assert "whsec_" not in page and "whsec_" in visitor.post("/callbacks/1/secret").text
    visitor.post("/callbacks/1/remove")
    assert "https://ci.example.com/done?***</h2>" not in visitor.get("/workflows/hello/callbacks").text


UNUSABLE = ["", "ftp://x/", "https://", "javascript:alert(1)", "http://x:99999/", "https://x/${run.id}", "https://a b/"]


@pytest.mark.parametrize("url", UNUSABLE)
def test_an_unusable_callback_is_refused(shown: Visitor, url: str) -> None:
    assert shown.post("/workflows/hello/callbacks", url=url, events=["completed"]).status_code == 422


def test_a_callback_of_a_file_is_removed_in_the_file(past: TestBox, visitor: Visitor) -> None:
    assert visitor.post("/callbacks/1/remove").status_code == 409


def test_a_dead_delivery_is_redelivered(past: TestBox, visitor: Visitor) -> None:
    with past.database.transaction() as connection:
        connection.execute(Delivery.__table__.update().values(status="dead", next_attempt_at=None))

    visitor.post("/deliveries/1/redeliver", back="run")

    assert past.rows("SELECT status FROM deliveries")[0]["status"] == "pending"
    assert "hidden" not in visitor.get("/deliveries/1").text.replace('type="hidden"', "").replace(" hidden>", "")


def test_all_dead_deliveries_of_a_callback_are_redelivered(past: TestBox, visitor: Visitor) -> None:
    callback = past.rows("SELECT callbacks.id, name FROM callbacks JOIN workflows ON workflows.id = workflow_id")[0]
    tab, path = f"/workflows/{callback['name']}/callbacks", f"/callbacks/{callback['id']}/redeliver"
    before = visitor.get(tab).text
    with past.database.transaction() as connection:
        connection.execute(Delivery.__table__.update().values(status="dead", next_attempt_at=None))

    offered = visitor.get(tab).text
    visitor.post(path)

    assert (path in before, path in offered, path in visitor.get(tab).text) == (False, True, False)
    assert {row["status"] for row in past.rows("SELECT status FROM deliveries")} == {"pending"}


def test_secrets_are_named_and_never_shown(settings: dict[str, str], box: TestBox) -> None:
    config = Config.from_environ(settings | {"ORQO_SECRET_GITHUB": "top-secret-value", "ORQO_API_TOKEN": "orqo_" + "x" * 43})
    token = link(box)
    with application(config) as app, app.test_client() as client:
        made = Visitor(client)
        client.post("/sign-in/link", data={"csrf": made.token(f"/sign-in?link={token}"), "link": token})
        page = made.get("/settings/instance").text

    assert "GITHUB" in page and "top-secret-value" not in page and "orqo_xxx" not in page


def test_large_output_is_cut_on_the_page_and_whole_in_raw(box: TestBox, worker: executor.Worker, visitor: Visitor) -> None:
    box.apply("name: big\nstages:\n  - name: a\n    script: head -c 100000 /dev/zero | tr '\\0' 'x'\n")
    run_id = box.accept("big")
    executor.work()

    page = visitor.get(f"/runs/{run_id}").text

    assert "Only the beginning is shown" in page and len(page) < 60_000
    assert len(visitor.get(f"/runs/{run_id}/output").data) == 100_000


def test_lists_go_on_page_by_page(box: TestBox, visitor: Visitor) -> None:
    for _ in range(60):
        box.accept()
    seen: list[int] = []
    path = "/workflows/hello/runs?status=pending"
    while path:
        page = visitor.get(path).text
        seen += [int(number) for number in re.findall(r">#(\d+)</a>", page)]
        older = re.search(r'href="([^"]+)" rel="next"', page)
        path = html.unescape(older[1]) if older else ""

    assert seen == list(range(60, 0, -1))


def test_the_curl_line_of_a_run_is_safe_to_paste(shown: Visitor) -> None:
    page = html.unescape(shown.get("/runs/1").text)

    line = re.search(r"-d ('.*')", page)
    assert line
    assert json.loads(shlex.split(line[1])[0])["input"] == {"name": HOSTILE}


def test_a_web_process_has_its_templates_before_the_first_request(settings: dict[str, str], box: TestBox) -> None:
    script = "from app import app; print(len(app.jinja_env.cache), len(app.jinja_env.list_templates()))"
    env = {"PATH": os.environ["PATH"], **settings}

    ended = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, env=env, capture_output=True, text=True, timeout=60)

    in_memory, there = map(int, ended.stdout.split())
    assert in_memory == there > 40, ended.stderr
