"""Outcomes, routing, the loop guard and `when`, as a worker drives them: what is executed, what is recorded, what is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event

from orqo import clock, executor, runs
from support import TestBox


def run(box: TestBox, *stages: str, head: str = "", **run: Any) -> dict[str, Any]:
    """Apply, accept, work; gives the run as the API shows it."""
    box.apply(f"name: work\n{head}\nstages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    run_id = box.accept("work", **run)
    executor.work()
    return box.run(run_id)


def told(ended: dict[str, Any]) -> list[tuple[str, int, str, str | None]]:
    return [(s["name"], s["pass"], s["status"], s["outcome"]) for s in ended["stages"]]


# ── outcomes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_outcome_leads_past_stages_that_are_then_not_reached(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: decide, stub: {outcome: yes}, outcomes: [yes, no], routing: {yes: last}}",
        "{name: never, stub: {fail: x}}",
        "{name: last, stub: {output: done}}",
    )

    assert (ended["status"], ended["output"]) == ("completed", "done")
    assert told(ended) == [("decide", 1, "completed", "yes"), ("last", 1, "completed", None)]


def test_end_ends_the_run_with_that_stages_output(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: decide, stub: {outcome: enough, output: so far}, outcomes: [enough], routing: {enough: end}}",
        "{name: never, stub: {}}",
    )

    assert (ended["status"], ended["output"], len(ended["stages"])) == ("completed", "so far", 1)


def test_a_command_decides_by_its_outcome_file(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: decide, script: 'echo small; echo small > \"$ORQO_OUTCOME_FILE\"', outcomes: [small, large], routing: {small: end}}",
        "{name: never, stub: {}}",
    )

    assert told(ended) == [("decide", 1, "completed", "small")]


def test_a_label_that_is_not_listed_fails_the_stage_and_keeps_what_it_gave(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: decide, script: 'echo text; echo Small > \"$ORQO_OUTCOME_FILE\"', outcomes: [small], retry: {attempts: 3, delay: 0s}}",
        "{name: never, stub: {}}",
    )

    (stage,) = ended["stages"]
    assert (ended["status"], ended["error"]["reason"], ended["error"]["stage"]) == ("failed", "outcome_unknown", "decide")
    assert "'Small', which is none of small" in ended["error"]["detail"]
    assert (stage["status"], stage["outcome"], stage["output"], stage["attempts"], stage["exit_code"]) == ("failed", None, "text", 1, 0)


def test_a_stage_that_gives_none_of_its_outcomes_goes_on_and_says_so(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: decide, command: ['true'], outcomes: [a], routing: {a: end}}", "{name: last, stub: {output: on}}")

    assert (ended["status"], ended["output"]) == ("completed", "on")
    assert "none of its outcomes" in ended["stages"][0]["note"]


def test_without_outcomes_any_label_is_kept_and_leads_on(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {outcome: Whatever_1}}", "{name: two, stub: {output: '${stages.one.outcome}'}}")

    assert ended["output"] == "Whatever_1"


# ── the loop guard ──────────────────────────────────────────────────────────────────────────────────────────────────

LOOP = (
    "{name: draft, stub: {output: '${stages.review.outcome?}'}}",
    "{name: review, stub: {outcome: again}, outcomes: [again, good], routing: {again: draft}}",
    "{name: publish, stub: {output: published}}",
)


def test_past_the_guard_the_run_goes_forward_and_the_entry_says_so(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, *LOOP, head="loop_guard: {limit: 2}")

    assert (ended["status"], ended["output"]) == ("completed", "published")
    assert [(s["name"], s["pass"]) for s in ended["stages"]] == [
        *(("draft", 1), ("review", 1), ("draft", 2), ("review", 2), ("draft", 3), ("review", 3)),
        ("publish", 1),
    ]
    assert [s.get("note") for s in ended["stages"]] == [
        *(None,) * 5,
        "The loop guard: stage draft was gone back to 2 times already, so the run went on with stage publish.",
        None,
    ]


def test_the_guard_fails_the_run_where_that_is_wanted(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, *LOOP, head="loop_guard: {then: fail}")

    assert (ended["status"], ended["error"]["reason"], ended["error"]["stage"]) == ("failed", "loop_guard", "review")
    assert [s["name"] for s in ended["stages"]].count("draft") == 4


def test_on_error_backwards_is_guarded_too(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, stub: {}}",
        "{name: two, stub: {fail: no}, on_error: one}",
        "{name: three, stub: {output: on}}",
        head="loop_guard: {limit: 1}",
    )

    assert [(s["name"], s["status"]) for s in ended["stages"]] == [
        *(("one", "completed"), ("two", "failed")) * 2,
        ("three", "completed"),
    ]


# ── another workflow ────────────────────────────────────────────────────────────────────────────────────────────────

AWAY = "{name: decide, stub: {outcome: x, output: {n: 1}}, outcomes: [x], routing: {x: {workflow: other}}}"


def test_a_route_to_a_workflow_starts_it_with_the_output_and_ends_this_run(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: other\nstages: [{name: one, stub: {output: '${input.n}'}}]")

    ended = run(box, AWAY, "{name: never, stub: {}}")

    (other,) = box.rows("SELECT r.id, r.origin, r.input FROM runs r JOIN workflows w ON w.id = r.workflow_id WHERE w.name = 'other'")
    assert (ended["status"], ended["output"], len(ended["stages"])) == ("completed", {"n": 1}, 1)
    assert (other["origin"], other["input"], box.run(other["id"])["output"]) == ("workflow", '{"n":1}', 1)


@pytest.mark.parametrize(
    ("other", "said"),
    [(None, "no workflow other"), ("input_schema: {type: string}", "input_schema")],
    ids=["absent", "the output does not fit"],
)
def test_a_route_to_a_workflow_that_cannot_be_started_fails_the_run(
    box: TestBox, worker: executor.Worker, other: str | None, said: str
) -> None:
    if other is not None:
        box.apply(f"name: other\n{other}\nstages: [{{name: one, stub: {{}}}}]")

    ended = run(box, AWAY)

    assert (ended["status"], ended["error"]["stage"]) == ("failed", "decide")
    assert said in ended["error"]["detail"]
    assert len(box.rows("SELECT id FROM runs")) == 1


def test_workflows_that_lead_to_each_other_end_at_the_limit(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: other\nstages: [{name: a, stub: {outcome: x}, outcomes: [x], routing: {x: {workflow: work}}}]")

    run(box, AWAY)

    ended = box.rows("SELECT status, error_detail FROM runs ORDER BY id")
    assert [row["status"] for row in ended] == ["completed"] * 10 + ["failed"]
    assert "limit" in ended[-1]["error_detail"]


# ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_skipped_stage_is_recorded_with_its_reason_and_the_run_goes_on(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, stub: {outcome: fine}}",
        "{name: two, stub: {fail: x}, when: {stages.one.outcome: broken}}",
        "{name: three, stub: {fail: x}, when: {input.go: true}}",
        "{name: four, stub: {output: end}}",
        input={},
    )

    assert (ended["status"], ended["output"]) == ("completed", "end")
    assert [(s["name"], s["status"], s["attempts"], s.get("note")) for s in ended["stages"]] == [
        ("one", "completed", 1, None),
        ("two", "skipped", 0, 'stages.one.outcome is "fine", not "broken"'),
        ("three", "skipped", 0, "input.go is absent"),
        ("four", "completed", 1, None),
    ]
    assert all(s["finished_at"] for s in ended["stages"])


def test_skipping_costs_no_commit(box: TestBox, worker: executor.Worker) -> None:
    kept = [f"{{name: s{number}, stub: {{}}}}" for number in range(0, 20, 5)]
    mixed = [f"{{name: s{number}, stub: {{}}{', when: {input: never}' if number % 5 else ''}}}" for number in range(20)]

    with writing(box) as commits:
        run(box, *kept)
    with writing(box) as commits_with_skips:
        ended = run(box, *mixed)

    assert [s["status"] for s in ended["stages"]].count("skipped") == 16
    # Apply, accept, the claim, three records, the finish.
    assert (len(commits), len(commits_with_skips)) == (7, 7)


@contextmanager
def writing(box: TestBox) -> Iterator[list[Any]]:
    """Give a list that grows by one with each commit of a writing transaction."""
    seen: list[Any] = []

    def on_commit(connection: Connection) -> None:
        if not {"read_only", "postgresql_readonly"} & set(connection.get_execution_options()):
            seen.append(connection)

    event.listen(box.database.engine, "commit", on_commit)
    try:
        yield seen
    finally:
        event.remove(box.database.engine, "commit", on_commit)


def test_the_first_stage_can_be_skipped(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, stub: {fail: x}, when: {input.a: 1}}",
        "{name: two, stub: {fail: x}, when: {not: {stages.one.status: skipped}}}",
        "{name: three, stub: {output: end}, when: {trigger.name: t}}",
        input={"a": 2},
        trigger_facts={"name": "t"},
    )

    assert (ended["output"], [s["status"] for s in ended["stages"]]) == ("end", ["skipped", "skipped", "completed"])


def test_a_run_of_which_every_stage_is_skipped_is_completed(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {}, when: {input: x}}", "{name: two, stub: {}, when: {input: x}}")

    assert (ended["status"], ended["output"], [s["status"] for s in ended["stages"]]) == ("completed", None, ["skipped"] * 2)
    assert ended["finished_at"]


def test_its_output_is_the_files_all_the_same(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {}, when: {input: x}}", head='output: {was: "${stages.one.status}", input: "${input}"}', input=3)

    assert ended["output"] == {"was": "skipped", "input": 3}


def test_skipped_last_stages_leave_the_last_executed_ones_output(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {output: mine}}", "{name: two, stub: {}, when: {input: x}}")

    assert (ended["status"], ended["output"]) == ("completed", "mine")


def test_the_files_output_sees_what_was_skipped_last(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, stub: {output: mine}}",
        "{name: two, stub: {}, when: {input: x}}",
        head='output: {one: "${stages.one.output}", two: "${stages.two.status}", none: "${stages.two.output?}"}',
    )

    assert ended["output"] == {"one": "mine", "two": "skipped", "none": None}


def test_look_ups_of_a_skipped_stage(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, stub: {output: 1}, when: {input: x}}",
        "{name: two, stub: {output: {status: '${stages.one.status}', maybe: '${stages.one.output?}', outcome: '${stages.one.outcome}'}}}",
        "{name: three, stub: {output: '${stages.one.output}'}}",
    )

    assert ended["stages"][1]["output"] == {"status": "skipped", "maybe": None, "outcome": None}
    assert ended["error"]["reason"] == "lookup_failed"
    assert "stages.one.output is absent" in ended["error"]["detail"]
    assert "the stage one was skipped" in ended["error"]["detail"]


def test_a_command_is_told_of_skipped_stages(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {}, when: {input: x}}", "{name: two, script: cat, output: json}")

    assert ended["output"]["stages"] == {"one": {"output": None, "outcome": None, "status": "skipped"}}


def test_a_condition_on_an_output_that_was_cut_fails_the_run(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, script: 'printf 123456', max_output: 3}", "{name: two, stub: {}, when: {stages.one.output: '123456'}}")

    assert (ended["error"]["reason"], ended["error"]["stage"]) == ("lookup_failed", "two")
    assert "max_output" in ended["error"]["detail"]


def test_a_stage_is_skipped_in_one_pass_and_executed_in_the_next(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: fix, stub: {output: fixed}, when: {stages.check.outcome: {exists: true}}}",
        "{name: check, stub: {outcome: bad}, outcomes: [bad], routing: {bad: fix}}",
        head="loop_guard: {limit: 1}",
    )

    assert told(ended) == [
        ("fix", 1, "skipped", None),
        ("check", 1, "completed", "bad"),
        ("fix", 2, "completed", None),
        ("check", 2, "completed", "bad"),
    ]


def test_skipped_stages_are_kept_when_the_run_is_handed_back(box: TestBox, worker: executor.Worker) -> None:
    box.apply(
        "name: work\nstages: [{name: one, stub: {}, when: {input: x}}, {name: two, stub: {delay: 10s}}, {name: three, stub: {output: on}}]"
    )
    run_id = box.accept("work")
    worker.stopping.set()
    claim = runs.claim(box.box, owner="o", now=clock.now())
    assert claim is not None
    runs.hand_back(box.box, claim, began=True, elapsed_ms=0)

    again = runs.claim(box.box, owner="o", now=clock.now())

    assert again is not None and again.stage.name == "two"
    assert [(s["name"], s["status"]) for s in box.run(run_id)["stages"]] == [("one", "skipped"), ("two", "running")]
