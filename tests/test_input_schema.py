"""input_schema: refused when it is no schema, and what does not fit it starts nothing, wherever it comes from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orqo import clock, definition, executor, inputschema, runs, workflows
from orqo.errors import Invalid
from receiver import answers, receivers
from support import TestBox

WORK = """
name: work
input_schema:
  type: object
  required: [pull_request]
  properties:
    pull_request: {type: object, required: [id], properties: {id: {type: integer, minimum: 1}}}
    labels: {type: array, items: {type: string, pattern: "^[a-z]+$"}}
  additionalProperties: false
stages: [{name: one, stub: {output: "${input.pull_request.id}"}}]
"""
FITS = {"pull_request": {"id": 7}}
MISFITS = [
    (None, ["/input"]),
    ({}, ["/input/pull_request"]),
    ({"pull_request": {"id": 0}}, ["/input/pull_request/id"]),
    ({"pull_request": {"id": "x"}, "labels": ["ok", "B", 3], "a/b": 1},
     ["/input/a~1b", "/input/labels/1", "/input/labels/2", "/input/pull_request/id"]),
]  # fmt: skip


def refused(schema: Any) -> list[tuple[str, int | None, str]]:
    text = f"name: x\ninput_schema: {json.dumps(schema)}\nstages: [{{name: a, stub: {{}}}}]"
    with pytest.raises(Invalid) as fault:
        definition.parse(text)
    return [(each.pointer, each.line, each.detail) for each in fault.value.errors]


# ── the schema ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "pointer", "said"),
    [
        ([], "/input_schema", "JSON Schema (2020-12)"),
        (True, "/input_schema", "JSON Schema (2020-12)"),
        ({"type": "objekt"}, "/input_schema/type", "not what JSON Schema 2020-12 takes"),
        ({"properties": {"a": {"minimum": "x"}}}, "/input_schema/properties/a/minimum", "not what JSON Schema 2020-12 takes"),
        ({"$ref": "#/$defs/none"}, "/input_schema", "does not exist"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "/input_schema/properties/a/pattern", "linear time"),
        ({"patternProperties": {"(a{1,1000}){1,1000}": {}}}, "/input_schema/patternProperties/(a{1,1000}){1,1000}", "linear time"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/input_schema/$schema", "2020-12"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_line(schema: Any, pointer: str, said: str) -> None:
    faults = refused(schema)

    assert [(each[0], each[1]) for each in faults] == [(pointer, 2)]
    assert said in faults[0][2]


@pytest.mark.parametrize("reference", ["http://127.0.0.1:9/schema.json", "https://example.com/x", "file:///etc/passwd", "other.json"])
def test_a_reference_out_of_the_file_is_refused_and_nothing_is_fetched(reference: str) -> None:
    began = time.monotonic()

    (fault,) = refused({"properties": {"a": {"$ref": reference}}})

    assert "nothing is fetched" in fault[2]
    assert time.monotonic() - began < 1


def test_a_schema_that_a_server_or_a_file_holds_is_not_fetched_either(tmp_path: Path) -> None:
    body = b'{"type": "string"}'
    (tmp_path / "schema.json").write_bytes(body)
    with receivers() as serve:
        server = serve(answers(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n" + body))

        faults = [refused({"$ref": reference}) for reference in (server.url("/schema.json"), (tmp_path / "schema.json").as_uri())]

        assert server.connections == 0
    assert ["nothing is fetched" in fault[0][2] for fault in faults] == [True, True]


def test_references_within_the_schema_work_and_the_dialect_may_be_named() -> None:
    schema = {"$schema": inputschema.DIALECT, "$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    text = f"name: x\ninput_schema: {json.dumps(schema)}\nstages: [{{name: a, stub: {{}}}}]"

    assert definition.parse(text).input_schema == schema


def test_a_pattern_that_ruins_other_engines_costs_nothing() -> None:
    validator = inputschema.compiled({"pattern": "^(a+)+$"})
    began = time.monotonic()

    with pytest.raises(Invalid):
        inputschema.check(validator, "a" * 100_000 + "!")

    assert time.monotonic() - began < 0.5


# ── the input ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("value", "pointers"), MISFITS, ids=["null", "empty", "inside", "several"])
def test_each_fault_of_an_input_has_its_pointer_and_no_run_is_made(box: TestBox, value: Any, pointers: list[str]) -> None:
    box.apply(WORK)

    with pytest.raises(Invalid) as fault:
        box.accept("work", input=value)

    assert sorted(each.pointer for each in fault.value.errors) == pointers
    assert box.rows("SELECT id FROM runs") == []


def test_what_fits_is_accepted_and_executed(box: TestBox, worker: executor.Worker) -> None:
    box.apply(WORK)

    run_id = box.accept("work", input=FITS)
    executor.work()

    assert box.run(run_id)["output"] == 7


def test_without_a_schema_any_input_fits(box: TestBox) -> None:
    assert [box.accept(input=value) > 0 for value in (None, 1, "x", [], {})] == [True] * 5


def test_the_version_that_is_started_says_what_fits(box: TestBox) -> None:
    box.apply(WORK)
    box.accept("work", input=FITS)
    box.apply(WORK.replace("required: [pull_request]", "required: [other]"))

    with pytest.raises(Invalid) as fault:
        box.accept("work", input=FITS)

    assert [each.pointer for each in fault.value.errors] == ["/input/other"]


def test_the_definition_is_read_once_for_a_version(box: TestBox) -> None:
    box.apply(WORK)
    box.accept("work", input=FITS)
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE workflow_versions SET definition = 'not read again'")

        version_id = workflows.get(connection, "work").version_id
        workflows.check_input(connection, version_id, FITS)
        with pytest.raises(Invalid):
            workflows.check_input(connection, version_id, {})


def test_trigger_answers_422_and_keeps_no_run(box: TestBox, client: Any) -> None:
    box.apply(WORK)
    headers = {"Authorization": f"Bearer {box.token('trigger')}"}

    answer = client.post("/api/v1/trigger", json={"workflow": "work", "input": {"pull_request": {}}}, headers=headers)

    assert (answer.status_code, [each["pointer"] for each in answer.json["errors"]]) == (422, ["/input/pull_request/id"])
    assert "input/pull_request/id is required" in answer.json["detail"]
    assert box.rows("SELECT id FROM runs") == []


def test_a_hook_answers_422_and_keeps_no_run(box: TestBox, client: Any) -> None:
    box.apply(WORK)

    answer = client.post(box.hook("work", "in"), json={"pull_request": {"id": 0}})

    assert (answer.status_code, [each["pointer"] for each in answer.json["errors"]]) == (422, ["/input/pull_request/id"])
    assert box.rows("SELECT id FROM runs") == []


def test_a_replay_is_answered_as_the_first_time_whatever_the_schema_says_now(box: TestBox, client: Any) -> None:
    box.apply(WORK)
    headers = {"Authorization": f"Bearer {box.token('trigger')}", "Idempotency-Key": "k"}
    body = {"workflow": "work", "input": FITS}
    first = client.post("/api/v1/trigger", json=body, headers=headers)
    box.apply(WORK.replace("required: [pull_request]", "required: [other]"))

    again = client.post("/api/v1/trigger", json=body, headers=headers)

    assert (again.status_code, again.json["workflow_run_id"]) == (200, first.json["workflow_run_id"])


def test_accept_tells_it_before_anything_is_written(box: TestBox) -> None:
    box.apply(WORK)
    with box.database.transaction() as connection:
        row = workflows.get(connection, "work")
        replay = runs.Replay("token:1", "key:k", "0" * 64)
        new = runs.NewRun(workflow_id=row.id, version_id=row.version_id, origin="api", replay=replay)
        with pytest.raises(Invalid):
            runs.accept(connection, new, now=clock.now())

    assert box.rows("SELECT * FROM idempotency_keys") == []
