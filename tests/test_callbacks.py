"""The outbox: which callbacks are told what, in the transaction of the change, with no secret in what is stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from orqo import callbacks, flow, runs
from orqo.errors import Conflict, NotFound
from orqo.models import RunStatus
from support import TestBox, plant

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DONE = runs.StageEnd(output=b'{"n":1}', output_kind="json", exit_code=0)
BROKE = runs.StageEnd(output=b"", output_kind="text", error_reason="stage_failed", error_detail="it broke")
OUTPUT = runs.Output(b'{"n":1}', "json")
VERDICTS = {
    "completed": flow.End(RunStatus.COMPLETED),
    "failed": flow.End(RunStatus.FAILED, flow.RunError("stage_failed", "it broke", "one")),
    "stopped": flow.End(RunStatus.STOPPED),
}
URL = "http://127.0.0.1:1/done"


def apply(box: TestBox, *wanted: str, triggers: str = "") -> None:
    """Apply the workflow `told` with these callbacks."""
    listed = "".join(f"  - {each}\n" for each in wanted)
    head = (f"callbacks:\n{listed}" if wanted else "") + triggers
    box.apply(f"name: told\n{head}stages:\n  - {{name: one, stub: {{}}}}\n")


def end(box: TestBox, verdict: str = "completed", *, stage: runs.StageEnd | None = None, output: runs.Output = OUTPUT, **run: Any) -> int:
    """Accept a run and end it; gives its id."""
    run_id = box.accept("told", **run)
    held = runs.claim(box.box, owner="w1", now=NOW)
    assert held is not None
    ended = stage or (DONE if verdict == "completed" else BROKE)
    runs.finish(box.box, held, ended, VERDICTS[verdict], output, elapsed_ms=1, next_owner=None, now=NOW)
    return run_id


def outbox(box: TestBox) -> list[Any]:
    return box.rows("SELECT * FROM deliveries ORDER BY id")


def events(box: TestBox) -> list[tuple[str, str]]:
    return [(row["event"], row["channel"].split(":")[0]) for row in outbox(box)]


def rendered_url(row: Any) -> str:
    return "".join(part if isinstance(part, str) else f"<{part['secret']}>" for part in json.loads(row["url"]))


# ── the same transaction ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_a_run_and_its_delivery_are_one_commit(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")

    run_id = end(box)

    assert [(row["run_id"], row["event"], row["status"]) for row in outbox(box)] == [(run_id, "run.completed", "pending")]


@pytest.mark.parametrize(("table", "change"), [("deliveries", "INSERT"), ("runs", "UPDATE OF finished_at")], ids=["delivery", "run"])
def test_neither_is_written_without_the_other(box: TestBox, table: str, change: str) -> None:
    apply(box, f"{{url: '{URL}'}}")
    plant(box, f"{change} ON {table}")

    with pytest.raises(IntegrityError):
        end(box)

    assert outbox(box) == []
    assert [row["status"] for row in box.rows("SELECT status FROM runs")] == ["running"]
    assert [row["status"] for row in box.rows("SELECT status FROM stages")] == ["running"]


def test_a_run_that_is_stopped_before_it_began_is_told_too(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")

    runs.stop(box.box, box.accept("told"), now=NOW)

    assert events(box) == [("run.stopped", "callback")]
    assert json.loads(outbox(box)[0]["body"])["data"]["started_at"] is None


# ── who is told what ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verdict", VERDICTS)
def test_by_default_every_end_is_told_and_nothing_else(box: TestBox, verdict: str) -> None:
    apply(box, f"{{url: '{URL}'}}")

    end(box, verdict)

    assert events(box) == [(f"run.{verdict}", "callback")]


def test_a_callback_gets_the_events_that_it_names(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}1', events: [failed]}}", f"{{url: '{URL}2', events: [output, completed]}}")

    end(box)

    assert [(row["event"], rendered_url(row), row["sequence"]) for row in outbox(box)] == [
        ("run.output", f"{URL}2", 1),
        ("run.completed", f"{URL}2", 2),
    ]


def test_a_failed_stage_has_no_output_event(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}', events: [output]}}")

    end(box, "failed")

    assert events(box) == []


def test_a_triggers_callbacks_are_for_its_own_runs(box: TestBox) -> None:
    listed = "".join(f"  - {{name: {name}, webhook: {{}}, callbacks: [{{url: '{URL}/{name}'}}]}}\n" for name in ("a", "b"))
    apply(box, f"{{url: '{URL}/workflow'}}", triggers=f"triggers:\n{listed}")
    by_name = {row["name"]: row["id"] for row in box.rows("SELECT id, name FROM triggers")}

    end(box, trigger_id=by_name["b"])
    end(box)

    assert [rendered_url(row) for row in outbox(box)] == [f"{URL}/workflow", f"{URL}/b", f"{URL}/workflow"]


def test_other_workflows_callbacks_are_not_told(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")
    box.accept("hello")
    held = runs.claim(box.box, owner="w1", now=NOW)
    assert held is not None

    runs.finish(box.box, held, DONE, VERDICTS["completed"], OUTPUT, elapsed_ms=1, next_owner=None, now=NOW)

    assert events(box) == []


def test_a_requests_own_callback_is_guarded_and_told(box: TestBox) -> None:
    apply(box)

    end(box, callbacks=[callbacks.requested(URL)])

    row = outbox(box)[0]
    assert (row["event"], row["callback_id"], row["channel"], row["guarded"]) == ("run.completed", None, "request:0", 1)


@pytest.mark.parametrize(
    ("url", "guarded"), [(URL, 0), ("${secrets.BASE}/x", 0), ("http://${input.host}/x", 1), ("http://a.example/${input.host}", 0)]
)
def test_what_a_request_can_point_elsewhere_is_guarded(box: TestBox, url: str, guarded: int) -> None:
    apply(box, f"{{url: '{url}'}}")

    end(box, input={"host": "internal"})

    assert outbox(box)[0]["guarded"] == guarded


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_has_the_documented_form(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")

    run_id = end(box, "failed", metadata={"ref": 7})

    created = box.run(run_id)["created_at"]
    assert json.loads(outbox(box)[0]["body"]) == {
        "type": "run.failed",
        "timestamp": "2026-01-02T03:04:05.000Z",
        "workflow_run_id": run_id,
        "status": "failed",
        "data": {
            "workflow_id": 2,
            "workflow": "told",
            "output": {"n": 1},
            "error": {"reason": "stage_failed", "detail": "it broke", "stage": "one"},
            "metadata": {"ref": 7},
            "stage": "one",
            "sequence": 1,
            "trigger_id": None,
            "created_at": created,
            "started_at": "2026-01-02T03:04:05.000Z",
            "finished_at": "2026-01-02T03:04:05.000Z",
            "url": f"{box.config.base_url}/runs/{run_id}",
        },
    }


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (runs.Output(b"x" * 65536, "text"), {"output": "x" * 65536}),
        (runs.Output(b"x" * 65537, "text"), {"output": None, "output_truncated": True}),
        (runs.Output(b"\xff", "bytes"), {"output": {"base64": "/w=="}}),
        (runs.Output(None, None), {"output": None}),
    ],
    ids=["64 KiB", "more", "bytes", "none"],
)
def test_an_output_of_up_to_64_kib_is_told(box: TestBox, output: runs.Output, told: dict[str, Any]) -> None:
    apply(box, f"{{url: '{URL}'}}")

    end(box, output=output)

    data = json.loads(outbox(box)[0]["body"])["data"]
    assert {key: data[key] for key in data if key.startswith("output")} == told


def test_own_body_url_and_headers_are_rendered_from_the_run(box: TestBox) -> None:
    apply(
        box,
        "{url: 'http://127.0.0.1:1/${input.team}/${run.id}', headers: {X-Who: '${input.team}'},"
        " json: {text: 'Run ${run.id}: ${run.status}', out: '${stages.one.output}', error: '${run.error}'}}",
    )

    run_id = end(box, input={"team": "a/b ü"})

    row = outbox(box)[0]
    assert rendered_url(row) == f"http://127.0.0.1:1/a%2Fb%20%C3%BC/{run_id}"
    assert json.loads(row["headers"]) == {"X-Who": ["a/b ü"]}
    assert json.loads(row["body"]) == {"text": f"Run {run_id}: completed", "out": {"n": 1}, "error": None}


def test_the_error_is_there_for_templates(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}', json: {{why: '${{run.error.detail}}', where: '${{run.error.stage}}'}}}}")

    end(box, "failed")

    assert json.loads(outbox(box)[0]["body"]) == {"why": "it broke", "where": "one"}


def test_a_callback_that_cannot_be_rendered_is_dead_and_the_run_does_not_suffer(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}', json: {{x: '${{input.absent}}'}}}}", f"{{url: '{URL}2'}}")

    run_id = end(box, input={})

    assert box.run(run_id)["status"] == "completed"
    assert [(row["status"], row["finished_at"] is not None) for row in outbox(box)] == [("dead", True), ("pending", False)]
    attempt = box.rows("SELECT * FROM attempts")[0]
    assert attempt["reason"] == "lookup_failed"
    assert "absent" in attempt["detail"]


@pytest.mark.parametrize("host", ["", "a b", "[::1", "x:99999", "x@y", "\0", "é" * 300])
def test_a_host_that_a_request_made_unusable_is_the_deliverys_fault_alone(box: TestBox, host: str) -> None:
    apply(box, "{url: 'http://${input.host}/x'}")

    run_id = end(box, input={"host": host})

    assert box.run(run_id)["status"] == "completed"
    assert len(outbox(box)) == 1


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_stored_by_name_only(box: TestBox, settings: dict[str, str]) -> None:
    apply(
        box,
        "{url: 'http://127.0.0.1:1/${secrets.PATH_TOKEN}?k=${secrets.QUERY}', secret: '${secrets.SIGNING}',"
        " headers: {Authorization: 'Bearer ${secrets.BEARER}'}}",
    )

    end(box)

    row = outbox(box)[0]
    assert json.loads(row["url"]) == ["http://127.0.0.1:1/", {"secret": "PATH_TOKEN"}, "?k=", {"secret": "QUERY"}, ""]
    assert json.loads(row["headers"]) == {"Authorization": ["Bearer ", {"secret": "BEARER"}, ""]}
    assert (row["secret"], row["host"]) == ("SIGNING", "127.0.0.1:1")


def test_a_url_that_is_a_secret_is_bounded_by_its_name(box: TestBox) -> None:
    apply(box, "{url: '${secrets.SLACK_URL}'}")

    end(box)

    assert (outbox(box)[0]["host"], rendered_url(outbox(box)[0])) == ("secrets.SLACK_URL", "<SLACK_URL>")


@pytest.mark.parametrize("payload", ["${secrets.TOKEN}", "$${secrets.TOKEN}", "x${run.id}y", "${"])
def test_what_a_payload_says_is_never_rendered(box: TestBox, payload: str) -> None:
    apply(box, f"{{url: '{URL}/${{input.t}}', headers: {{X-T: '${{input.t}}'}}, json: {{t: '${{input.t}}', more: 'a ${{input.t}}'}}}}")

    end(box, input={"t": payload})

    row = outbox(box)[0]
    assert json.loads(row["body"]) == {"t": payload, "more": f"a {payload}"}
    assert json.loads(row["headers"]) == {"X-T": [payload]}
    assert len(json.loads(row["url"])) == 1


@pytest.mark.parametrize("path", ["${secrets.TOKEN}", "$${secrets.TOKEN}", "$$${input}", "${", "$"])
def test_a_requests_callback_url_is_no_template(box: TestBox, path: str) -> None:
    apply(box)

    end(box, callbacks=[callbacks.requested(f"http://a.example/{path}")])

    row = outbox(box)[0]
    assert (row["status"], json.loads(row["url"])) == ("pending", [f"http://a.example/{path}"])


# ── configuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def configured(box: TestBox) -> list[Any]:
    with box.database.read() as connection:
        return callbacks.list_all(connection)


def test_applying_again_keeps_the_row_of_a_url_and_its_pause(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")
    with box.database.transaction() as connection:
        callbacks.pause(connection, 1, reason="by hand", now=NOW)

    apply(box, f"{{url: '{URL}', events: [failed]}}", f"{{url: '{URL}2'}}")

    assert [(each["id"], each["events"], each["pause_reason"]) for each in configured(box)] == [
        (1, ["failed"], "by hand"),
        (2, ["completed", "failed", "stopped"], None),
    ]


def test_a_callback_that_left_the_file_is_told_nothing_more_and_its_deliveries_stay(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")
    end(box)

    apply(box)
    end(box)

    assert configured(box) == []
    assert [row["status"] for row in outbox(box)] == ["pending"]


def test_applying_leaves_callbacks_made_by_hand_alone(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")
    with box.database.transaction() as connection:
        wanted = callbacks.definition(f"{URL}/by-hand", ["failed"])
        callbacks.add(connection, workflow_id=2, trigger_id=None, callback=wanted, origin="cli", now=NOW)

    apply(box)

    assert [each["url"] for each in configured(box)] == [f"{URL}/by-hand"]


def test_a_files_callback_is_removed_in_its_file_only(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")

    with pytest.raises(Conflict), box.database.transaction() as connection:
        callbacks.remove(connection, 1, now=NOW)
    with pytest.raises(NotFound), box.database.transaction() as connection:
        callbacks.resume(connection, 99, now=NOW)


def test_a_paused_callback_records_and_holds(box: TestBox) -> None:
    apply(box, f"{{url: '{URL}'}}")
    with box.database.transaction() as connection:
        callbacks.pause(connection, 1, reason="by hand", now=NOW)

    end(box)

    assert [(row["status"], row["next_attempt_at"]) for row in outbox(box)] == [("pending", None)]
    with box.database.transaction() as connection:
        callbacks.resume(connection, 1, now=NOW + timedelta(hours=1))
    assert outbox(box)[0]["next_attempt_at"] == "2026-01-02T04:04:05.000Z"
