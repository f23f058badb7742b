"""The larger forms over HTTP: Run now by a schema, reports on waiting stages, schedules; each fault beside its field."""

from __future__ import annotations

import html
import json
import re
import shlex
from typing import Any

import pytest

from orqo import executor
from orqo.dashboard import inputform
from support import TestBox
from visitor import HOSTILE, Visitor, sign_in

ORDER = """name: order
input_schema:
  type: object
  required: [customer, amount, paid]
  properties:
    customer: {type: string, title: Customer, minLength: 2, description: Whoever pays}
    amount: {type: integer, minimum: 1}
    rate: {type: number}
    paid: {type: boolean}
    gift: {type: boolean}
    size: {enum: [small, large, 3, null]}
    due: {type: string, format: date}
    note: {type: [string, "null"], maxLength: 5000}
    address: {type: object, required: [city], properties: {city: {type: string}}}
    tags: {type: array, items: {type: string}, default: [new]}
stages: [{name: a, stub: {output: "${input}"}}]
"""
WAITS = """name: waits
stages:
  - {name: ask, wait: {timeout: 1h}, outcomes: [good, bad]}
  - {name: after, stub: {output: "${stages.ask.output}"}}
"""
NAMES = ("customer", "amount", "rate", "paid", "gift", "size", "due", "note", "address", "tags")
FIELD_OF = {name: f"field-{n}" for n, name in enumerate(NAMES)}


@pytest.fixture
def visitor(box: TestBox, worker: executor.Worker, client: Any) -> Visitor:
    """Somebody who is signed in, on a box whose worker works when it is told to."""
    return sign_in(client, box)


def sent(**values: str) -> dict[str, str]:
    return {"by": "form"} | {FIELD_OF[name]: value for name, value in values.items()}


def described(page: str, name: str) -> str:
    """Give the faults that a field is tied to, by the ids that it names."""
    found = re.search(rf'<(?:input|select|textarea)[^>]*\bname="{name}"[^>]*>', page)
    assert found and 'aria-invalid="true"' in found[0], f"{name} is not marked"
    ids = re.search(r'aria-describedby="([^"]*)"', found[0])
    assert ids, f"{name} is tied to nothing"
    told = [re.search(rf'id="{each}"[^>]*>(.*?)</', page, re.DOTALL) for each in ids[1].split()]
    return html.unescape(" ".join(each[1] for each in told if each))


# ── Run now ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_now_asks_for_each_property_by_its_type(box: TestBox, visitor: Visitor) -> None:
    box.apply(ORDER)

    page = visitor.get("/workflows/order/runs").text

    kinds = re.findall(r'<(?:input type="(\w+)"|(select|textarea))[^>]*? name="field-(\d+)"', page)
    assert [(given or tag) for given, tag, _ in kinds] == [
        *("text", "number", "number", "checkbox", "select", "select", "date", "textarea", "textarea", "textarea")
    ]
    assert 'minlength="2"' in page and 'min="1"' in page and "Whoever pays" in page and "&#34;new&#34;" in page


def test_run_now_starts_a_run_with_what_the_fields_say(box: TestBox, visitor: Visitor) -> None:
    box.apply(ORDER)
    typed = sent(
        customer="Ada", amount="3", rate="0.5", paid="on", gift="false", size="3", due="2026-11-24", address='{"city": "Paris"}', tags=""
    )

    answer = visitor.post("/workflows/order/run", **typed)

    assert answer.status_code == 303, answer.text
    wanted = {
        "customer": "Ada",
        "amount": 3,
        "rate": 0.5,
        "paid": True,
        "gift": False,
        "size": 3,
        "due": "2026-11-24",
        "address": {"city": "Paris"},
    }
    assert box.run(1)["input"] == wanted


WRONG = [
    ({"customer": "A"}, "customer", "must have at least 2 characters"),
    ({"customer": ""}, "customer", "is required"),
    ({"amount": "0"}, "amount", "must be at least 1"),
    ({"amount": "three"}, "amount", "must be a whole number"),
    ({"amount": "1.5"}, "amount", "must be of type integer"),
    ({"rate": "1e999"}, "rate", "must be a number"),
    ({"size": '"huge"'}, "size", "must be one of those that are offered"),
    ({"gift": "maybe"}, "gift", "is not JSON"),
    ({"address": "{"}, "address", "is not JSON"),
    ({"address": "{}"}, "address", "city is required"),
    ({"tags": "[1]"}, "tags", "0 must be of type string"),
]


def test_a_fault_of_run_now_stands_beside_its_field(box: TestBox, visitor: Visitor) -> None:
    box.apply(ORDER)
    for changes, name, told in WRONG:
        answer = visitor.post("/workflows/order/run", **sent(**({"customer": "Ada Lovelace", "amount": "3"} | changes)))

        assert answer.status_code == 422, changes
        assert told in described(answer.text, FIELD_OF[name])
        assert answer.text.count('aria-invalid="true"') == 1, changes
        assert 'value="Ada Lovelace"' in answer.text or name == "customer"
    assert box.rows("SELECT id FROM runs") == []


def test_a_fault_of_no_field_is_told_above_them(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: few\ninput_schema: {type: object, minProperties: 1, properties: {a: {type: string}}}\nstages: [{name: a, stub: {}}]")

    answer = visitor.post("/workflows/few/run", by="form")

    assert answer.status_code == 422 and "input must have at least 1 members" in answer.text


def test_json_can_be_typed_instead_of_the_form(box: TestBox, visitor: Visitor) -> None:
    box.apply(ORDER)

    page = visitor.get("/workflows/order/runs?input=json").text
    refused = visitor.post("/workflows/order/run", input='{"customer": "Ada"}')

    assert 'name="input"' in page and 'name="field-0"' not in page and "Use the form" in page
    assert refused.status_code == 422
    assert "amount is required" in described(refused.text, "input") and "{&#34;customer&#34;: &#34;Ada&#34;}" in refused.text


PROPERTIES = {"properties": {"a": {}}}
NO_FORM = [
    *(
        None,
        True,
        {},
        {"type": "string"},
        {"type": ["object", "null"]} | PROPERTIES,
        {"type": "object"},
        {"type": "object", "properties": {}},
    ),
    *({"type": "object", "oneOf": [{}]} | PROPERTIES, {"type": "object", "properties": {str(number): {} for number in range(60)}}),
]


@pytest.mark.parametrize("schema", NO_FORM, ids=str)
def test_what_no_form_can_be_made_of_is_typed_as_json(schema: Any) -> None:
    assert inputform.fields(schema) is None


JSON_FIELDS = [
    {},
    {"type": ["string", "integer"]},
    {"$ref": "#/$defs/a"},
    {"type": "string", "anyOf": []},
    True,
    {"enum": []},
    {"type": "null"},
]


@pytest.mark.parametrize("schema", JSON_FIELDS, ids=str)
def test_a_property_of_many_kinds_is_a_field_of_json(schema: Any) -> None:
    (found,) = inputform.fields({"type": "object", "properties": {"a": schema}}) or []

    assert found.kind == "json"


def test_a_required_property_that_may_be_null_is_null_when_it_is_empty() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": ["string", "null"]}, "b": {"type": "string"}}}

    assert inputform.value_of(inputform.fields(schema) or []) == {"a": None}


def test_the_first_curl_line_fits_the_schema_and_is_safe_to_paste(box: TestBox, visitor: Visitor) -> None:
    properties = {"it's": {"type": "string"}, "$(id)": {"enum": ["`id`", "b"]}, "n": {"type": "integer", "default": "no number"}}
    schema = {"type": "object", "required": ["it's", "$(id)", "n"], "properties": properties}
    made = box.apply(f"name: quoted\ninput_schema: {json.dumps(schema)}\nstages: [{{name: a, stub: {{}}}}]")

    line = re.search(r'<pre id="first-run"[^>]*>(.*?)</pre>', visitor.get("/workflows/quoted/runs").text, re.DOTALL)

    assert line
    words = shlex.split(html.unescape(line[1]))
    assert json.loads(words[-1]) == {"workflow_id": made.id, "input": {"it's": "…", "$(id)": "`id`", "n": "no number"}}


def test_a_hostile_schema_and_what_is_typed_are_text(box: TestBox, visitor: Visitor) -> None:
    properties = {HOSTILE: {"title": HOSTILE, "description": HOSTILE, "type": "string"}, "x": {"enum": [HOSTILE, 1]}}
    properties |= {"/": {"type": "integer"}, "y": {"default": {HOSTILE: HOSTILE}}}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    box.apply(f"name: hostile\ninput_schema: {json.dumps(schema)}\nstages: [{{name: a, stub: {{}}}}]")

    shown = visitor.get("/workflows/hostile/runs").text
    refused = visitor.post(
        "/workflows/hostile/run", by="form", **{"field-0": HOSTILE, "field-1": HOSTILE, "field-2": HOSTILE, "field-3": HOSTILE}
    )

    for page in (shown, refused.text):
        assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page and "49}" not in page
    assert refused.status_code == 422 and "must be a whole number" in described(refused.text, "field-2")


# ── reports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def waiting(box: TestBox, visitor: Visitor) -> int:
    """A run that waits for a report."""
    box.apply(WAITS)
    run_id = box.accept("waits")
    executor.work()
    return run_id


def form_of(visitor: Visitor, run_id: int) -> dict[str, str]:
    part = visitor.get(f"/runs/{run_id}/live").json["parts"]["report"]
    return dict(re.findall(r'name="(stage|wait)" value="([^"]+)"', part))


def test_a_report_by_hand_lets_the_run_go_on(box: TestBox, visitor: Visitor, waiting: int) -> None:
    visitor.post("/settings/people/me", name="Anna", password="correct horse battery")

    answer = visitor.post(f"/runs/{waiting}/report", status="completed", output='{"n": 7}', outcome="good", **form_of(visitor, waiting))
    executor.work()

    assert answer.headers["Location"] == f"/runs/{waiting}?done=answered"
    assert (box.run(waiting)["status"], box.run(waiting)["output"]) == ("completed", {"n": 7})
    assert "by Anna, " in visitor.get(f"/runs/{waiting}").text


def test_a_report_of_failure_fails_the_stage_with_its_words(box: TestBox, visitor: Visitor, waiting: int) -> None:
    visitor.post(f"/runs/{waiting}/report", status="failed", error=HOSTILE, **form_of(visitor, waiting))
    executor.work()

    page = visitor.get(f"/runs/{waiting}").text
    assert box.run(waiting)["status"] == "failed" and HOSTILE[:20] in box.run(waiting)["stages"][0]["error"]["detail"]
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_progress_keeps_the_output_and_waits_on(box: TestBox, visitor: Visitor, waiting: int) -> None:
    answer = visitor.post(f"/runs/{waiting}/report", status="output", output='"half way"', **form_of(visitor, waiting))

    assert answer.headers["Location"].endswith("done=noted")
    assert box.run(waiting)["status"] == "waiting" and box.run(waiting)["stages"][0]["output"] == "half way"


UNFIT = [
    ({"status": "completed", "output": "{", "outcome": "good"}, "output", "Expecting property name"),
    ({"status": "completed", "outcome": "maybe"}, "outcome", "must be one of good, bad"),
]


def test_a_report_that_does_not_fit_says_so_at_its_field(box: TestBox, visitor: Visitor, waiting: int) -> None:
    for typed, name, told in UNFIT:
        answer = visitor.post(f"/runs/{waiting}/report", **typed, **form_of(visitor, waiting))

        assert answer.status_code == 422
        assert told in described(answer.text, name)
        # What was typed would be gone with the next live update.
        assert 'data-next=""' in answer.text
    assert box.run(waiting)["status"] == "waiting"


BAD_REPORTS = [({"status": "stopped"}, 422), ({"status": ""}, 422), ({"wait": "99"}, 409), ({"stage": "after"}, 409)]


def test_a_report_for_something_else_changes_nothing(box: TestBox, visitor: Visitor, waiting: int) -> None:
    fits = form_of(visitor, waiting) | {"status": "completed"}
    for changes, status in BAD_REPORTS:
        assert visitor.post(f"/runs/{waiting}/report", **(fits | changes)).status_code == status, changes

    assert box.run(waiting)["status"] == "waiting"


def test_an_approval_is_not_answered_by_a_report(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: asks\nstages: [{name: ask, approval: {message: Go?}}]")
    run_id = box.accept("asks")
    executor.work()
    asked = dict(re.findall(r'name="(stage|wait)" value="([^"]+)"', visitor.get(f"/runs/{run_id}").text))

    assert visitor.post(f"/runs/{run_id}/report", status="failed", **asked).status_code == 409
    assert box.run(run_id)["status"] == "waiting"


def test_calls_of_callback_are_listed_with_why_they_were_refused(box: TestBox, visitor: Visitor, waiting: int) -> None:
    headers = {"Authorization": f"Bearer {box.token('callback')}", "User-Agent": HOSTILE}
    report = {"workflow_run_id": waiting, "stage": "ask", "status": "completed", "outcome": HOSTILE}
    assert visitor.client.post("/api/v1/callback", json=report, headers=headers).status_code == 422
    assert visitor.client.post("/api/v1/callback", json=report | {"outcome": "good"}, headers=headers).status_code == 200

    everything = visitor.get("/received/reports").text
    refused = visitor.get("/received/reports?verdict=refused").text

    assert everything.count('class="entry"') == 2 and refused.count('class="entry"') == 1
    assert "must be one of good, bad" in refused and "/callback by token test" in refused
    one = visitor.get(re.findall(r'class="entry" href="([^"]+)"', refused)[0]).text
    assert "to /api/v1/callback" in one and "&lt;script&gt;" in one and "<script>alert" not in one and ">Replay<" not in one


# ── run again ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_names_those_that_repeat_it_and_they_name_it(box: TestBox, visitor: Visitor) -> None:
    old = box.accept("hello", input={"name": "Ada"})
    executor.work()
    for _ in range(2):
        visitor.post(f"/runs/{old}/again")

    head = visitor.get(f"/runs/{old}/live").json["parts"]["head"]

    assert re.findall(r'href="/runs/(\d+)">run #\d+</a> <span class="status s-(\w+)', head) == [("3", "pending"), ("2", "pending")]
    assert f'<dt>Repeats</dt><dd><a href="/runs/{old}">run #{old}</a>' in visitor.get("/runs/3").text
    assert "Run again as" not in visitor.get("/runs/3").text


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────


def schedule_of(box: TestBox) -> dict[str, Any]:
    (row,) = box.rows("SELECT id, name, kind, enabled, options FROM triggers WHERE kind = 'schedule'")
    return dict(row) | {"options": json.loads(row["options"])}


def test_a_schedule_is_made_changed_paused_resumed_and_deleted(box: TestBox, visitor: Visitor) -> None:
    made = visitor.post(
        "/workflows/hello/schedules", name="nightly", schedule="15  2 * * 1-5", timezone="Europe/Paris", input='{"name": "n"}'
    )
    assert made.headers["Location"] == "/workflows/hello/runs?done=created#trigger-nightly"
    found = schedule_of(box)
    assert found["options"] == {"schedule": "15 2 * * 1-5", "timezone": "Europe/Paris", "input": {"name": "n"}}
    page = visitor.get("/workflows/hello/runs").text
    assert page.count("<li>", page.index("Next times")) >= 5 and 'value="15 2 * * 1-5"' in page and ">Rotate" not in page

    visitor.post(f"/triggers/{found['id']}/schedule", schedule="0 4 * * *", timezone="", input="")
    assert schedule_of(box)["options"] == {"schedule": "0 4 * * *", "timezone": "UTC", "input": None}
    assert len(re.findall(r", 04:00 ", visitor.get("/workflows/hello/runs").text)) == 5

    assert visitor.post(f"/triggers/{found['id']}/switch", enabled="0").headers["Location"].endswith("done=paused#trigger-nightly")
    page = visitor.get("/workflows/hello/runs").text
    assert ">paused<" in page and "Next times" not in page and ">Resume<" in page
    visitor.post(f"/triggers/{found['id']}/switch", enabled="1")
    assert schedule_of(box)["enabled"] == 1

    visitor.post(f"/triggers/{found['id']}/delete")
    assert box.rows("SELECT id FROM triggers WHERE kind = 'schedule'") == []


UNFIT_SCHEDULES = [
    ({"name": "Not A Name"}, "name", "must be 1 to 64"),
    ({"schedule": "every day"}, "schedule", "five fields"),
    ({"schedule": "0 0 30 2 *"}, "schedule", "five fields"),
    ({"timezone": "Mars/Olympus"}, "timezone", "IANA"),
    ({"input": "{"}, "input", "Expecting"),
    ({"input": '{"a": 1}'}, "input", "a must be of type string"),
]


def test_a_schedule_that_cannot_be_says_so_at_its_field(box: TestBox, visitor: Visitor) -> None:
    box.apply("name: typed\ninput_schema: {properties: {a: {type: string}}}\nstages: [{name: a, stub: {}}]")
    fits = {"name": "nightly", "schedule": "0 4 * * *", "timezone": "UTC", "input": '{"a": "x"}'}
    for changes, name, told in UNFIT_SCHEDULES:
        answer = visitor.post("/workflows/typed/schedules", **(fits | changes))

        assert answer.status_code == 422, changes
        assert told in described(answer.text[answer.text.index('id="new-schedule"') :], name)
    assert box.rows("SELECT id FROM triggers") == []


def test_a_change_of_a_schedule_that_cannot_be_keeps_the_old_one_and_what_was_typed(box: TestBox, visitor: Visitor) -> None:
    visitor.post("/workflows/hello/schedules", name="nightly", schedule="0 4 * * *")
    found = schedule_of(box)

    answer = visitor.post(f"/triggers/{found['id']}/schedule", schedule=HOSTILE, timezone="UTC")

    assert answer.status_code == 422 and f'id="schedule-{found["id"]}" open' in answer.text
    assert "five fields" in described(answer.text[answer.text.index(f'id="schedule-{found["id"]}"') :], "schedule")
    assert "<script>alert" not in answer.text and "&lt;script&gt;alert(1)" in answer.text
    assert schedule_of(box) == found


def test_a_schedule_of_a_file_is_changed_in_the_file_and_a_webhook_is_none(box: TestBox, visitor: Visitor) -> None:
    box.apply('name: fixed\ntriggers: [{name: weekly, schedule: "15 6 * * 1"}]\nstages: [{name: a, stub: {}}]')
    weekly = schedule_of(box)
    box.hook("hello", "web")
    webhook = box.rows("SELECT id FROM triggers WHERE kind = 'webhook'")[0]["id"]

    assert visitor.post(f"/triggers/{weekly['id']}/schedule", schedule="0 4 * * *").status_code == 409
    assert visitor.post(f"/triggers/{webhook}/schedule", schedule="0 4 * * *").status_code == 404
    assert "is changed there" in visitor.get("/workflows/fixed/runs").text
    assert schedule_of(box) == weekly


# ── the forms that were there before ────────────────────────────────────────────────────────────────────────────────

TIED = [
    ("/workflows/hello/triggers", {"name": "Not A Name"}, "name", "must be 1 to 64"),
    ("/workflows/hello/run", {"input": "{"}, "input", "not JSON"),
    ("/workflows/hello/callbacks", {"url": "ftp://x/", "events": "failed"}, "url", "http or https"),
    ("/settings/tokens", {"name": "", "scopes": "read"}, "name", "1 to 100 characters"),
    ("/settings/people/me", {"name": "", "password": "short"}, "password", "10 to"),
    ("/sign-in", {"name": "nobody", "password": "wrong"}, "password", ""),
    ("/workflows", {"source": "name: X"}, "source", "Nothing was saved"),
]


def test_a_fault_is_tied_to_the_field_that_it_is_about(visitor: Visitor) -> None:
    for path, typed, name, told in TIED:
        answer = visitor.post(path, **typed)

        assert answer.status_code in (401, 422), path
        assert told in described(answer.text, name), path


def test_faults_of_a_group_are_tied_to_the_group(visitor: Visitor) -> None:
    token = visitor.post("/settings/tokens", name="ci", scopes="read", which="some").text
    callback = visitor.post("/workflows/hello/callbacks", url="https://example.com/").text

    assert '<fieldset aria-describedby="only-fault"><legend>Workflows' in token and 'id="only-fault">choose at least one' in token
    assert 'value="some" checked' in token and 'value="ci"' in token
    assert '<fieldset aria-describedby="events-fault">' in callback and 'id="events-fault">choose at least one' in callback
