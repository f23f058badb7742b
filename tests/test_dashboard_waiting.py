"""Runs that wait, chain and are run again, as the dashboard shows them: what is asked and answered, by whom, what came of it."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orqo import clock, executor
from support import TestBox
from visitor import HOSTILE, Visitor, sign_in

APPROVAL = """name: release
stages:
  - {name: build, stub: {output: built}}
  - {name: sign-off, approval: {message: 'Publish ${input.what}?', timeout: 2h}}
  - {name: publish, stub: {}, when: {stages.sign-off.outcome: approved}}
"""


@pytest.fixture
def visitor(box: TestBox, worker: executor.Worker, client: Any) -> Visitor:
    """Somebody who is signed in, on a box whose worker works when it is told to."""
    return sign_in(client, box)


def call(visitor: Visitor, name: str) -> None:
    """Give whoever is signed in a name."""
    visitor.post("/settings/people/me", name=name, password="correct horse battery")


def started(box: TestBox, source: str, given: Any = None) -> int:
    """Apply a workflow, accept a run and let the worker go as far as it can."""
    name = box.apply(source).name
    run_id = box.accept(name, input=given)
    executor.work()
    return run_id


def head(visitor: Visitor, run_id: int) -> str:
    return str(visitor.get(f"/runs/{run_id}/live").json["parts"]["head"])


def wait_of(page: str) -> dict[str, str]:
    return dict(re.findall(r'name="(stage|wait)" value="([^"]+)"', page))


# ── approvals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_approval_is_asked_answered_and_remembered(box: TestBox, visitor: Visitor) -> None:
    call(visitor, "Anna")
    run_id = started(box, APPROVAL, {"what": HOSTILE})
    asked = head(visitor, run_id)

    answer = visitor.post(f"/runs/{run_id}/answer", outcome="approved", **wait_of(asked))
    executor.work()

    assert "sign-off asks" in asked and "Publish &lt;script&gt;" in asked and ">Approve</button>" in asked and "<script>" not in asked
    assert answer.headers["Location"] == f"/runs/{run_id}?done=answered"
    assert box.run(run_id)["status"] == "completed"
    page = visitor.get(f"/runs/{run_id}").text
    assert "by Anna, " in page and "outcome approved" in page and "asks" not in page


def test_a_skipped_stage_says_why(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, APPROVAL, {"what": "it"})
    visitor.post(f"/runs/{run_id}/answer", outcome="rejected", **wait_of(head(visitor, run_id)))
    executor.work()

    parts = visitor.get(f"/runs/{run_id}/live").json["parts"]

    note = box.rows("SELECT note FROM stages WHERE status = 'skipped'")[0]["note"]
    assert "s-skipped" in parts["stages"] and html.escape(note).replace("&quot;", "&#34;") in parts["stages"]
    assert "skipped</span>" in parts["timeline"]


DOES_NOT_FIT = [({"outcome": "maybe"}, 422), ({"outcome": ""}, 422), ({"wait": "99"}, 409), ({"stage": "build"}, 409)]


def test_an_answer_that_does_not_fit_changes_nothing(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, APPROVAL, {"what": "it"})
    fits = wait_of(head(visitor, run_id)) | {"outcome": "approved"}
    for changes, status in DOES_NOT_FIT:
        assert visitor.post(f"/runs/{run_id}/answer", **(fits | changes)).status_code == status, changes

    assert box.run(run_id)["status"] == "waiting"


def test_a_second_answer_of_another_kind_is_told_that_it_came_too_late(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, APPROVAL, {"what": "it"})
    wait = wait_of(head(visitor, run_id))
    visitor.post(f"/runs/{run_id}/answer", outcome="approved", **wait)

    assert visitor.post(f"/runs/{run_id}/answer", outcome="rejected", **wait).status_code == 409
    assert visitor.post(f"/runs/{run_id}/answer", outcome="approved", **wait).status_code == 303


# ── what else waits ─────────────────────────────────────────────────────────────────────────────────────────────────


WAITING = [
    ("{name: ask, approval: {message: 'Go?'}}", "ask asks", "<b>an answer</b>: Go?"),
    ("{name: ask, wait: {timeout: 1h}}", "waits for a report", "a report"),
    ("{name: pause, delay: 10m}", "Stage pause goes on", "its time"),
    ("{name: sub, workflow: {name: slow}}", "waits for <a", 'href="/runs/5">run #5'),
    ("{name: flaky, stub: {fail: no}, retry: {attempts: 2, delay: 5m}}", "goes on", "its next attempt"),
]


def test_a_waiting_run_says_what_for(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: slow\nstages: [{name: a, delay: 5m}]")
    for number, (stage, told, at_home) in enumerate(WAITING):
        run_id = started(box, f"name: waits-{number}\nstages:\n  - {stage}\n")

        assert told in head(visitor, run_id)
        assert at_home in visitor.get("/live").json["parts"]["now"]


def test_a_wait_is_reported_by_the_shown_line(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, "name: waits\nstages: [{name: ask, wait: {timeout: 1h}}]")
    page = visitor.get(f"/runs/{run_id}/live").json["parts"]["report"]
    assert "/api/v1/callback" in page and f"&#34;workflow_run_id&#34;: {run_id}" in page

    report = {"workflow_run_id": run_id, "stage": "ask", "status": "completed", "output": None}
    answer = visitor.client.post("/api/v1/callback", json=report, headers={"Authorization": f"Bearer {box.token('callback')}"})

    assert answer.status_code == 200


def test_a_run_that_another_of_its_key_holds_up_says_so(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: one\nconcurrency: {key: k}\nstages: [{name: a, delay: 5m}]")
    first, second = box.accept("one"), box.accept("one")

    assert "Waits for another run of its key" in head(visitor, second)
    visitor.post(f"/runs/{first}/stop")
    assert "Waits for a worker" in head(visitor, second)


# ── chains and repetitions ──────────────────────────────────────────────────────────────────────────────────────────


def test_parent_and_child_lead_to_each_other(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, "name: outer\nstages:\n  - {name: sub, workflow: {name: hello, input: {name: Ada}}}\n")
    executor.work()

    parent, child = visitor.get(f"/runs/{run_id}").text, visitor.get(f"/runs/{run_id + 1}").text

    assert f'<a href="/runs/{run_id + 1}">run #{run_id + 1}</a> of hello' in parent
    assert f'href="/runs/{run_id}#stages">run #{run_id}</a>' in child


def test_a_run_goes_on_from_a_stage_with_what_came_before(box: TestBox, visitor: Visitor) -> None:
    source = "name: two\nstages:\n  - {name: first, stub: {output: once}}\n  - {name: second, stub: {FAIL}}\n"
    old = started(box, source.replace("FAIL", "fail: 'not yet'"))
    box.apply(source.replace("FAIL", "output: '${stages.first.output}'"))

    answer = visitor.post(f"/runs/{old}/again", stage="second")
    executor.work()

    new = int(re.search(r"/runs/(\d+)", answer.headers["Location"])[1])  # type: ignore[index]
    assert box.run(new)["output"] == "once"
    page = visitor.get(f"/runs/{new}").text
    assert f'<dt>Repeats</dt><dd><a href="/runs/{old}">' in page and page.count(">inherited</span>") == 2
    assert "dashboard by somebody who came by link" in page
    assert len(re.findall("Run again from here", visitor.get(f"/runs/{old}").text)) == 1


def test_what_cannot_be_gone_on_from_has_no_button(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, APPROVAL, {"what": "it"})
    assert "Run again from here" not in visitor.get(f"/runs/{run_id}").text
    visitor.post(f"/runs/{run_id}/stop")
    assert visitor.post(f"/runs/{run_id}/again", stage="publish").status_code == 422

    visitor.post("/workflows/release/switch", enabled="0")

    assert "Run again from here" not in visitor.get(f"/runs/{run_id}").text
    assert visitor.post(f"/runs/{run_id}/again").status_code == 409


def test_tokens_that_a_prompt_used_are_shown(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, "name: thinks\nstages: [{name: a, stub: {}}]")
    with box.database.transaction() as connection:
        used = '{"prompt_tokens":1200,"completion_tokens":34}'
        connection.execute(text("UPDATE stages SET usage = :used, kind = 'prompt'"), {"used": used})

    assert "1,200 prompt, 34 completion" in visitor.get(f"/runs/{run_id}").text


def test_an_unanswered_approval_ends_with_its_deadline(box: TestBox, visitor: Visitor) -> None:
    run_id = started(box, APPROVAL, {"what": "it"})
    past = clock.to_text(clock.now() - timedelta(seconds=1))
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE waits SET deadline_at = :past"), {"past": past})
        connection.execute(text("UPDATE runs SET status = 'pending', wake_at = NULL"))
    wait = wait_of(head(visitor, run_id))
    executor.work()

    assert visitor.post(f"/runs/{run_id}/answer", outcome="approved", **wait).status_code in (409, 410)
    assert "timeout" in head(visitor, run_id)
