"""Prompts against a server that speaks /chat/completions over real HTTP: what is asked, what an answer means, what it costs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_server import ModelServer, Reply, chooses, model_server, refuses, says
from orqo import clock, executor, outbound, runs, stages
from orqo.secretstore import SecretStore
from orqo.stages import choice
from stage_context import make_context, make_roots, make_stage
from support import TestBox

KEY = "sk-test-4711-secret"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as made:
        yield made


def ask(
    server: ModelServer, tmp_path: Path, *, stage: dict[str, Any] | None = None, context: dict[str, Any] | None = None, **spec: Any
) -> Any:
    """Execute a prompt on the box's server."""
    made = make_stage("prompt", {"user": "Hello", "model": "m"} | spec, **(stage or {}))
    client = outbound.Client()
    values = {"models": stages.ModelServer(server.base_url, KEY), "client": client} | (context or {})
    try:
        return stages.execute(make_context(tmp_path, made, **values))
    finally:
        client.close()


def completed(result: Any) -> stages.Completed:
    assert isinstance(result, stages.Completed), result
    return result


def failed(result: Any) -> stages.Failed:
    assert isinstance(result, stages.Failed), result
    return result


# ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_request_holds_the_messages_the_model_and_what_was_set(server: ModelServer, tmp_path: Path) -> None:
    roots = make_roots(input={"text": "A ${run.id} is no look-up"})

    result = completed(
        ask(server, tmp_path, context={"roots": roots}, system="You review.", user="See: ${input.text}", temperature=0.2, max_tokens=50,
            options={"top_p": 0.5, "seed": 3})
    )  # fmt: skip

    ((headers, request),) = server.asked
    assert (result.output, result.output_kind, result.outcome) == (b"an answer", "text", None)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert request == {
        "model": "m",
        "messages": [{"role": "system", "content": "You review."}, {"role": "user", "content": "See: A ${run.id} is no look-up"}],
        "temperature": 0.2,
        "max_tokens": 50,
        "top_p": 0.5,
        "seed": 3,
    }


def test_without_a_key_none_is_sent_and_without_system_no_message(server: ModelServer, tmp_path: Path) -> None:
    ask(server, tmp_path, context={"models": stages.ModelServer(server.base_url + "/", "")})

    assert "authorization" not in server.asked[0][0]
    assert server.messages == [("user", "Hello")]


def test_a_stages_own_server_never_gets_the_boxs_key(server: ModelServer, tmp_path: Path) -> None:
    with model_server() as other:
        ask(server, tmp_path, base_url=other.base_url)
        ask(server, tmp_path, base_url=other.base_url, api_key="${secrets.OWN}", context={"roots": make_roots(secrets={"OWN": "own-key"})})

        assert server.asked == []
        assert [headers.get("authorization") for headers, _ in other.asked] == [None, "Bearer own-key"]


def test_without_a_server_the_stage_says_what_to_set(tmp_path: Path, server: ModelServer) -> None:
    result = failed(ask(server, tmp_path, context={"models": stages.ModelServer()}))

    assert (result.reason, result.retryable) == ("stage_failed", False)
    assert "ORQO_LLM_BASE_URL" in result.detail


# ── what an answer means ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_answer_is_data(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says("${secrets.A} $(id) {{x}}")]

    assert completed(ask(server, tmp_path)).output == b"${secrets.A} $(id) {{x}}"


def test_parts_of_text_are_joined(server: ModelServer, tmp_path: Path) -> None:
    reply = says(None)
    reply.body["choices"][0]["message"]["content"] = [{"type": "text", "text": "one "}, {"type": "x"}, {"type": "text", "text": "two"}]
    server.replies = [reply]

    assert completed(ask(server, tmp_path)).output == b"one two"


def test_an_answer_over_max_output_is_cut_and_says_so(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says("x" * 100)]

    result = completed(ask(server, tmp_path, stage={"max_output_bytes": 10}))

    assert (result.output, result.truncated) == (b"x" * 10, True)


def test_an_answer_that_was_cut_at_its_tokens_has_a_note(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says("half an ans", finish_reason="length")]

    result = completed(ask(server, tmp_path))

    assert result.output == b"half an ans"
    assert "max_tokens" in str(result.note)


@pytest.mark.parametrize("text", ['{"a": [1]}', '```json\n{"a": [1]}\n```', ' \n{"a":[1]}\n'])
def test_output_json_is_read_with_or_without_a_fence(server: ModelServer, tmp_path: Path, text: str) -> None:
    server.replies = [says(text)]

    result = completed(ask(server, tmp_path, stage={"output": "json"}))

    assert (result.output, result.output_kind) == (b'{"a":[1]}', "json")
    assert server.asked[0][1]["response_format"] == {"type": "json_object"}


def test_output_json_that_is_none_fails_and_keeps_the_text(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says("Sure! Here it is.")]

    result = failed(ask(server, tmp_path, stage={"output": "json"}))

    assert (result.reason, result.output, result.retryable) == ("stage_failed", b"Sure! Here it is.", True)


# ── a choice ────────────────────────────────────────────────────────────────────────────────────────────────────────

CHOOSING = {"outcomes": ("approved", "needs_work")}


def test_the_model_is_made_to_choose_by_structured_output(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [chooses("needs_work", "Line 3 is wrong.")]

    result = completed(ask(server, tmp_path, stage=CHOOSING, system="You review."))

    assert (result.outcome, result.output) == ("needs_work", b"Line 3 is wrong.")
    asked = server.asked[0][1]["response_format"]
    assert asked["json_schema"]["schema"]["properties"]["outcome"]["enum"] == ["approved", "needs_work"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)
    assert server.messages[0][1].startswith("You review.\n\n") and "approved, needs_work" in server.messages[0][1]


def test_a_server_without_structured_output_is_asked_again_without(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [refuses(400, "response_format is not supported"), says("All is fine.\n\n**Outcome: approved**")]

    result = completed(ask(server, tmp_path, stage=CHOOSING))

    assert (result.outcome, result.output) == ("approved", b"All is fine.")
    assert ["response_format" in request for _, request in server.asked] == [True, False]


def test_a_choice_that_is_none_is_asked_for_once_more_and_both_are_counted(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says("I would say it is not approved."), chooses("needs_work")]

    result = completed(ask(server, tmp_path, stage=CHOOSING))

    assert result.outcome == "needs_work"
    assert result.usage == {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    assert [role for role, _ in server.messages] == ["system", "user", "assistant", "user"]
    assert server.messages[2][1] == "I would say it is not approved."


def test_a_model_that_never_chooses_fails_the_stage(server: ModelServer, tmp_path: Path) -> None:
    server.otherwise = lambda request: says("Well, it depends.")

    result = failed(ask(server, tmp_path, stage=CHOOSING))

    assert (result.reason, result.output, len(server.asked)) == ("outcome_unknown", b"Well, it depends.", 2)
    assert result.usage == {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}


def test_an_answer_cut_before_its_choice_is_not_asked_for_again(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [says('{"answer": "very long', finish_reason="length")]

    result = failed(ask(server, tmp_path, stage=CHOOSING))

    assert (result.reason, len(server.asked)) == ("outcome_unknown", 1)
    assert "max_tokens" in result.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answer": "a", "outcome": "yes"}', ("yes", "a")),
        ('{"outcome": "no"}', ("no", "")),
        ('{"answer": {"b": 1}, "outcome": "yes"}', ("yes", '{"b":1}')),
        ('Here:\n```json\n{"answer": "a", "outcome": "yes"}\n```\nDone.', ("yes", "a")),
        ('<think>hm</think> {"answer": "a", "outcome": "Yes"}', ("yes", "a")),
        ("yes", ("yes", "yes")),
        ("Reasons.\nYES.", ("yes", "Reasons.")),
        ("Reasons.\nFinal decision: `no`", ("no", "Reasons.")),
        ("Reasons.\n**Outcome:** no", ("no", "Reasons.")),
        ("It is not yes", None),
        ("yes or no", None),
        ("yes\nbut then again", None),
        ('{"outcome": "maybe"}', None),
        ('{"outcome": ["yes"]}', None),
        ('{"outcome": "yes"', None),
        ("[" * 100_000, None),
        ("", None),
    ],
)  # fmt: skip
def test_a_choice_is_read_tolerantly_and_never_guessed(text: str, expected: tuple[str, str] | None) -> None:
    found = choice.read(text, ("yes", "no"))

    assert (None if found is None else (found.outcome, found.answer)) == expected


def test_labels_that_differ_in_case_alone_are_told_apart() -> None:
    assert [getattr(choice.read(text, ("Go", "go")), "outcome", None) for text in ("Go", "go", "GO")] == ["Go", "go", None]


def test_reading_a_hostile_answer_takes_no_time() -> None:
    began = time.monotonic()

    choice.read("```json\n" * 20_000 + "outcome : " * 20_000, ("yes", "no"))

    assert time.monotonic() - began < 1


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reply", "retryable", "after_s"),
    [
        (refuses(429, "slow down", retry_after="7"), True, 7.0),
        (refuses(500), True, None),
        (refuses(503, retry_after="1"), True, 1.0),
        (refuses(401, "bad key"), False, None),
        (refuses(404), False, None),
        (Reply({}, 302, {"Location": "http://example.com/"}), False, None),
        (Reply(b"<html>", 200), True, None),
        (Reply({"choices": []}, 200), True, None),
        (Reply({"choices": [{"message": "x"}]}, 200), True, None),
        (says(""), True, None),
        (says(None, refusal="I cannot help with that."), False, None),
    ],
    ids=["429", "500", "503", "401", "404", "302", "html", "no choices", "no message", "empty", "refusal"],
)
def test_what_fails_says_whether_another_attempt_can_help(
    server: ModelServer, tmp_path: Path, reply: Reply, retryable: bool, after_s: float | None
) -> None:
    server.replies = [reply]

    result = failed(ask(server, tmp_path))

    assert (result.reason, result.retryable, result.retry_after_s) == ("stage_failed", retryable, after_s)


def test_the_servers_own_words_are_told(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [refuses(400, "max_tokens is too large")]

    assert failed(ask(server, tmp_path)).detail == "the server of models answered 400: max_tokens is too large"


def test_a_server_that_is_not_there_can_be_tried_again(tmp_path: Path, server: ModelServer) -> None:
    assert failed(ask(server, tmp_path, base_url="http://127.0.0.1:9/v1")).retryable


def test_a_slow_model_times_out_and_can_be_tried_again(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [Reply({}, after_s=1.0)]

    result = failed(ask(server, tmp_path, context={"deadline": time.monotonic() + 0.3}))

    assert (result.reason, result.retryable) == ("timeout", True)


def test_a_stop_ends_the_waiting_for_an_answer(server: ModelServer, tmp_path: Path) -> None:
    server.replies = [Reply({}, after_s=2.0)]
    began, until = time.monotonic(), time.monotonic() + 0.3

    result = failed(ask(server, tmp_path, context={"cancelled": lambda: "stopped" if time.monotonic() > until else None}))

    assert (result.reason, time.monotonic() - began < 1.5) == ("cancelled", True)


@pytest.mark.parametrize("usage", [None, "x", {}, {"prompt_tokens": "3"}, {"total_tokens": -1}, {"total_tokens": True}])
def test_a_server_that_does_not_tell_its_tokens_is_no_fault(server: ModelServer, tmp_path: Path, usage: Any) -> None:
    server.replies = [says("fine", usage=usage)]

    assert completed(ask(server, tmp_path)).usage is None


# ── in a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def asking(worker: executor.Worker, server: ModelServer) -> executor.Worker:
    """A worker whose prompts go to the server."""
    worker.config = dataclasses.replace(worker.config, llm_base_url=server.base_url, llm_api_key=KEY)
    worker.secrets = SecretStore.from_config(worker.config)
    return worker


REVIEW = """
name: work
stages:
  - name: review
    prompt: {system: You review., user: "${input}", model: m}
    outcomes: [approved, needs_work]
    routing: {approved: end}
    retry: {attempts: 3, delay: 0s}
  - name: tell
    stub: {output: "Please: ${stages.review.output}"}
"""


def run(box: TestBox, source: str = REVIEW) -> dict[str, Any]:
    box.apply(source)
    run_id = box.accept("work", input="the diff")
    executor.work()
    return box.run(run_id)


def test_a_model_decides_where_a_run_goes_and_its_tokens_are_shown(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    server.replies = [chooses("needs_work", "mend it")]

    ended = run(box)

    assert (ended["status"], ended["output"]) == ("completed", "Please: mend it")
    assert [(s["kind"], s["outcome"], s.get("usage")) for s in ended["stages"]] == [
        ("prompt", "needs_work", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}),
        ("stub", None, None),
    ]


def test_attempts_are_repeated_and_their_tokens_add_up(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    unsure = says("unsure")
    server.replies = [refuses(503), unsure, unsure, chooses("approved", "good")]

    ended = run(box)

    (stage,) = ended["stages"]
    assert (ended["status"], stage["attempts"], stage["outcome"]) == ("completed", 3, "approved")
    assert stage["usage"]["total_tokens"] == 45


def test_retry_after_lets_the_run_wait_without_a_worker(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    server.replies = [refuses(429, retry_after="60")]

    ended = run(box, REVIEW.replace("retry: {attempts: 3, delay: 0s}", ""))

    (row,) = box.rows("SELECT status, wake_at FROM runs")
    assert (ended["status"], ended["stages"][0]["status"]) == ("waiting", "waiting")
    assert 50 < (clock.from_text(row["wake_at"]) - clock.now()).total_seconds() <= 60


def test_without_a_word_a_prompt_is_tried_three_times(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    server.otherwise = lambda request: refuses(500)

    ended = run(box, REVIEW.replace("retry: {attempts: 3, delay: 0s}", "retry: {delay: 0s}"))

    assert (ended["status"], ended["error"]["reason"], len(server.asked)) == ("failed", "stage_failed", 3)


def test_the_servers_key_is_masked_in_whatever_is_recorded(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    server.replies = [refuses(401, f"Incorrect API key provided: {KEY}")]

    ended = run(box)

    assert "***" in ended["error"]["detail"]
    assert KEY not in json.dumps(ended)


def test_a_prompt_is_repeated_after_its_worker_was_lost(box: TestBox, asking: executor.Worker, server: ModelServer) -> None:
    server.replies = [chooses("approved")]
    box.apply(REVIEW)
    run_id = box.accept("work", input="the diff")
    claim = runs.claim(box.box, owner="gone", now=clock.now())
    assert claim is not None
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE runs SET lease_until = 0")
    runs.sweep(box.box, stale_s=2, now=clock.now())

    executor.work()

    ended = box.run(run_id)
    assert (ended["status"], ended["stages"][0]["attempts"]) == ("completed", 2)
