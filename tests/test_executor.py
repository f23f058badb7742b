"""executor.work() in this process: stages executed for real, secrets masked, leases kept and lost, time limits."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from inbox import inbox
from orqo import clock, executor, runs
from orqo.secretstore import SecretStore
from support import TestBox, wait_for

TOKEN = 'to"ken-ä-123'
PIN = "98765432"


def apply(box: TestBox, *stages: str, **head: str) -> None:
    """Apply the workflow `work` with these stages."""
    lines = "".join(f"{key}: {value}\n" for key, value in head.items())
    box.apply(f"name: work\n{lines}stages:\n" + "".join(f"  - {stage}\n" for stage in stages))


def run(box: TestBox, *stages: str, head: dict[str, str] | None = None, **run: Any) -> dict[str, Any]:
    """Apply, accept, work; gives the run as the API shows it."""
    apply(box, *stages, **(head or {}))
    run_id = box.accept("work", **run)
    executor.work()
    return box.run(run_id)


def sweep(box: TestBox, *, later_s: float) -> None:
    runs.sweep(box.box, stale_s=2, now=clock.now() + timedelta(seconds=later_s))


def after(seconds: float, action: Any) -> None:
    threading.Timer(seconds, action).start()


@pytest.fixture
def secret(worker: executor.Worker) -> executor.Worker:
    """A worker that knows two secrets."""
    worker.secrets = SecretStore({"TOKEN": TOKEN, "PIN": PIN})
    return worker


# ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_are_executed_in_order_each_with_the_outputs_before_it(box: TestBox, worker: executor.Worker) -> None:
    ended = run(
        box,
        "{name: one, command: [echo, '${input.name}']}",
        "{name: two, script: 'cat; echo x > \"$ORQO_OUTCOME_FILE\"', output: json}",
        "{name: three, stub: {output: '${stages.two.output.stages.one.output} ${stages.two.outcome}'}}",
        input={"name": "$(id) -n"},
    )

    assert (ended["status"], ended["output"]) == ("completed", "$(id) -n x")
    assert [(s["name"], s["kind"], s["status"], s["exit_code"]) for s in ended["stages"]] == [
        ("one", "command", "completed", 0),
        ("two", "script", "completed", 0),
        ("three", "stub", "completed", None),
    ]


def test_one_call_drains_the_table(box: TestBox, worker: executor.Worker) -> None:
    ids = [box.accept() for _ in range(20)]

    executor.work()

    assert {box.run(run_id)["status"] for run_id in ids} == {"completed"}


def test_a_run_that_waits_leaves_its_worker_to_the_others(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "{name: one, stub: {fail: no}, retry: {attempts: 2, delay: 1m}}")
    waiting, other = box.accept("work"), box.accept()

    executor.work()

    assert (box.run(waiting)["status"], box.run(other)["status"]) == ("waiting", "completed")


def test_an_empty_run_folder_does_not_stay_and_one_with_files_does(box: TestBox, worker: executor.Worker) -> None:
    empty = run(box, "{name: one, command: ['true']}")["id"]
    kept = run(box, "{name: one, script: 'touch kept'}")["id"]

    assert [(box.config.data / "runs" / str(each)).exists() for each in (empty, kept)] == [False, True]


def test_the_stages_of_a_run_share_a_folder(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, script: 'echo from one > file'}", "{name: two, command: [cat, file]}")

    assert ended["output"] == "from one"


# ── what a stage gets ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_gets_its_environment_and_nothing_of_the_services(
    box: TestBox, worker: executor.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORQO_SECRET_LEAK", "leaked")
    monkeypatch.setenv("REDIS_URL", "leaked")

    ended = run(box, "{name: show, command: [env], env: {TITLE: '${input.t}'}}", input={"t": "a b"})

    env = dict(line.split("=", 1) for line in ended["output"].splitlines())
    assert set(env) - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        *("PATH", "HOME", "LANG", "TZ", "TITLE", "ORQO_RUN_ID", "ORQO_RUN_DIR"),
        *("ORQO_WORKFLOW", "ORQO_STAGE", "ORQO_INPUT_FILE", "ORQO_OUTCOME_FILE"),
    }
    assert (env["TITLE"], env["ORQO_RUN_ID"], env["ORQO_WORKFLOW"], env["ORQO_STAGE"]) == ("a b", str(ended["id"]), "work", "show")


def test_the_context_on_stdin_holds_no_secret(box: TestBox, secret: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {output: 1}}", "{name: two, script: cat, output: json}", input=[1], trigger_facts={"name": "t"})

    context = ended["output"]
    assert set(context) == {"run", "input", "trigger", "stages"}
    assert (context["input"], context["stages"]["one"], context["trigger"]["name"]) == (
        [1],
        {"output": 1, "outcome": None, "status": "completed"},
        "t",
    )
    assert context["run"]["id"] == ended["id"]


def test_a_stage_knows_its_own_attempt_and_pass(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {output: ['${stage.name}', '${stage.pass}', '${stage.attempt}', '${run.status}']}}")

    assert ended["output"] == ["one", 1, 1, "running"]


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_masked_in_output_stderr_and_error(box: TestBox, secret: executor.Worker) -> None:
    script = 'echo "out $T"; echo "err $T" >&2; exit 1'
    ended = run(box, f"{{name: one, script: '{script}', env: {{T: '${{secrets.TOKEN}}'}}}}")

    stage = ended["stages"][0]
    assert (stage["output"], stage["stderr"]) == ("out ***", "err ***\n")
    assert ended["error"]["detail"].endswith("err ***")
    assert TOKEN not in box.dump()


@pytest.mark.parametrize(
    ("printed", "masked"),
    [
        ('{"token": %T, "n": 5}', {"token": "***", "n": 5}),
        ('{%T: [%T, "a"]}', {"***": ["***", "a"]}),
        ('{"pin": 98765432, "sum": 1987654321, "n": 5, "b": true}', {"pin": "***", "sum": "1***1", "n": 5, "b": True}),
        ("98765432", "***"),
        ("[98765432.5]", ["***.5"]),
        ('{"a": "98765432"}', {"a": "***"}),
    ],
    ids=["text", "key", "number", "number alone", "fraction", "number as text"],
)
def test_json_output_stays_json_when_a_secret_is_masked(box: TestBox, secret: executor.Worker, printed: str, masked: Any) -> None:
    printed = printed.replace("%T", json.dumps(TOKEN))

    ended = run(box, "{name: one, script: 'printf %s \"$J\"', env: {J: '${input.j}'}, output: json}", input={"j": printed})

    assert (ended["status"], ended["output"]) == ("completed", masked)
    for hidden in (json.dumps(TOKEN)[1:-1], PIN):
        assert hidden not in json.dumps(box.run(ended["id"])["stages"])


def test_secrets_are_masked_in_what_a_server_answered(box: TestBox, secret: executor.Worker) -> None:
    with inbox() as receiver:
        receiver.answers = [(200, {"X-Echo": f"it is {PIN}"})]
        ended = run(
            box,
            f"{{name: one, http: {{method: POST, url: '{receiver.url()}', headers: {{X-Pin: '${{secrets.PIN}}'}}}}}}",
            "{name: two, stub: {output: '${stages.one.response.headers.x-echo}'}}",
        )

        assert receiver.arrived[0].headers["x-pin"] == PIN
    assert ended["output"] == "it is ***"
    assert PIN not in box.dump()


def test_a_secret_in_binary_output_is_masked(box: TestBox, secret: executor.Worker) -> None:
    ended = run(box, "{name: one, script: 'printf \"\\\\377$T\"', env: {T: '${secrets.PIN}'}}")

    assert ended["output"] == {"base64": "/yoqKg=="}


def test_a_missing_secret_fails_the_stage_by_name(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, command: ['true'], env: {T: '${secrets.ABSENT}'}}")

    assert ended["error"]["reason"] == "lookup_failed"
    assert "ABSENT" in ended["error"]["detail"]


# ── the run's output ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("'${stages.one.output}'", {"n": 1}),
        ("'n is ${stages.one.output.n}'", "n is 1"),
        ("{a: ['${stages.two.output}'], b: '${input.absent?}'}", {"a": ["last"], "b": None}),
        ("'${run.status} ${stages.two.status}'", "running completed"),
    ],
)
def test_the_output_template_says_what_the_run_gives(box: TestBox, worker: executor.Worker, template: str, expected: Any) -> None:
    stages = ("{name: one, stub: {output: {n: 1}}}", "{name: two, stub: {output: last}}")

    ended = run(box, *stages, head={"output": template}, input={})

    assert (ended["status"], ended["output"]) == ("completed", expected)


def test_an_output_template_that_finds_nothing_fails_the_run(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {output: last}}", head={"output": "'${stages.one.output.n}'"})

    assert (ended["status"], ended["error"]["reason"], ended["output"]) == ("failed", "lookup_failed", "last")


def test_an_output_that_was_cut_fails_later_look_ups_with_the_remedy(box: TestBox, worker: executor.Worker) -> None:
    cut = "{name: big, script: 'head -c 3000 /dev/zero | tr \"\\\\0\" x', max_output: 1KiB}"

    ended = run(box, cut, "{name: use, stub: {output: '${stages.big.output}'}}")

    assert len(ended["stages"][0]["output"]) == 1024
    assert (ended["error"]["reason"], ended["error"]["stage"]) == ("lookup_failed", "use")
    assert "max_output" in ended["error"]["detail"]


def test_the_outputs_own_template_cannot_use_a_cut_output_either(box: TestBox, worker: executor.Worker) -> None:
    cut = "{name: big, script: 'head -c 3000 /dev/zero | tr \"\\\\0\" x', max_output: 1KiB}"

    ended = run(box, cut, head={"output": "'${stages.big.output}'"})

    assert ended["error"]["reason"] == "lookup_failed"
    assert "max_output" in ended["error"]["detail"]


def test_each_output_is_told_in_order_and_then_the_end(box: TestBox, worker: executor.Worker) -> None:
    wanted = "[{url: 'http://127.0.0.1:1/', events: [output, completed]}]"

    run(box, "{name: one, stub: {output: 1}}", "{name: two, stub: {output: 2}}", head={"callbacks": wanted})

    told = [json.loads(row["body"]) for row in box.rows("SELECT body FROM deliveries ORDER BY id")]
    assert [(each["type"], each["data"]["stage"], each["data"]["output"], each["data"]["sequence"]) for each in told] == [
        ("run.output", "one", 1, 1),
        ("run.output", "two", 2, 2),
        ("run.completed", None, 2, 3),
    ]


# ── failures and retries ────────────────────────────────────────────────────────────────────────────────────────────

ONCE = "'if [ -e tried ]; then echo ok; else touch tried; echo no >&2; exit 3; fi'"


def test_a_short_retry_happens_in_place(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, f"{{name: one, script: {ONCE}, retry: {{attempts: 2, delay: 50ms}}}}")

    stage = ended["stages"][0]
    assert (ended["status"], ended["output"], stage["attempts"], stage["error"], stage["stderr"]) == ("completed", "ok", 2, None, None)


def test_a_long_retry_waits_without_a_worker(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, f"{{name: one, script: {ONCE}, retry: {{attempts: 2, delay: 30s}}}}")
    assert (ended["status"], ended["stages"][0]["status"], ended["stages"][0]["exit_code"]) == ("waiting", "waiting", 3)

    sweep(box, later_s=31)
    executor.work()

    assert (box.run(ended["id"])["status"], box.run(ended["id"])["stages"][0]["attempts"]) == ("completed", 2)


def test_retries_end_and_the_error_is_the_last_attempts(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, script: 'exit 4', retry: {attempts: 3, delay: 10ms}}")

    assert (ended["status"], ended["stages"][0]["attempts"], ended["stages"][0]["exit_code"]) == ("failed", 3, 4)


def test_on_error_next_leaves_the_error_to_be_looked_up(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, script: 'exit 4', on_error: next}", "{name: two, stub: {output: '${stages.one.error.reason}'}}")

    assert (ended["status"], ended["output"], ended["error"]) == ("completed", "stage_failed", None)
    assert [stage["status"] for stage in ended["stages"]] == ["failed", "completed"]


def test_going_back_ends_after_three_times(box: TestBox, worker: executor.Worker) -> None:
    ended = run(box, "{name: one, stub: {}}", "{name: two, stub: {fail: no}, on_error: one}", "{name: three, stub: {output: forward}}")

    assert (ended["status"], ended["output"]) == ("completed", "forward")
    assert [stage["pass"] for stage in ended["stages"] if stage["name"] == "one"] == [1, 2, 3, 4]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_is_ended_at_its_timeout(box: TestBox, worker: executor.Worker) -> None:
    began = time.monotonic()

    ended = run(box, "{name: one, command: [sleep, '30'], timeout: 200ms}")

    assert time.monotonic() - began < 5
    assert (ended["error"]["reason"], ended["error"]["stage"]) == ("timeout", "one")


@pytest.mark.parametrize("more", ["on_error: next", "retry: {attempts: 5, delay: 10ms}", "on_error: one"])
def test_the_runs_timeout_ends_it_whatever_its_stages_would_do_next(box: TestBox, worker: executor.Worker, more: str) -> None:
    ended = run(
        box, "{name: one, stub: {}}", f"{{name: two, stub: {{delay: 30s}}, {more}}}", "{name: three, stub: {}}", head={"timeout": "300ms"}
    )

    assert (ended["status"], ended["error"]["reason"]) == ("failed", "timeout")
    assert "0.3 s" in ended["error"]["detail"]
    assert [stage["name"] for stage in ended["stages"]] == ["one", "two"]


def test_time_under_earlier_leases_counts_and_waits_do_not(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "{name: one, stub: {delay: 30s}}", timeout="1h")
    run_id = box.accept("work")
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET running_ms = 3599800, created_at = '2020-01-01T00:00:00.000Z'"))

    executor.work()

    assert box.run(run_id)["error"]["reason"] == "timeout"


# ── the worker ends, the lease is lost ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stage", "status", "within_s"),
    [
        ("{name: one, stub: {delay: 30s}}", "pending", 2),
        ("{name: one, command: [sleep, '30'], idempotent: true}", "pending", 5),
        ("{name: one, command: [sleep, '30']}", "failed", 5),
    ],
    ids=["stub", "idempotent command", "command"],
)
def test_a_shutdown_hands_back_or_interrupts(box: TestBox, worker: executor.Worker, stage: str, status: str, within_s: float) -> None:
    worker.config = dataclasses.replace(worker.config, stop_timeout_s=0.5)
    after(0.3, worker.stopping.set)
    began = time.monotonic()

    ended = run(box, stage)

    assert 0.3 <= time.monotonic() - began < within_s
    assert ended["status"] == status
    if status == "failed":
        assert ended["error"]["reason"] == "interrupted"
    else:
        assert box.rows("SELECT claims, lease_owner FROM runs")[0] == {"claims": 0, "lease_owner": None}


@pytest.mark.parametrize("more", ["", ", idempotent: true"], ids=["command", "idempotent command"])
def test_a_command_that_ends_in_time_is_recorded_at_shutdown_and_nothing_new_begins(
    box: TestBox, worker: executor.Worker, more: str
) -> None:
    after(0.2, worker.stopping.set)

    ended = run(box, f"{{name: one, command: [sleep, '0.6']{more}}}", "{name: two, command: ['false']}")

    assert (ended["status"], [(s["name"], s["status"]) for s in ended["stages"]]) == ("pending", [("one", "completed"), ("two", "pending")])
    worker.stopping.clear()
    executor.work()
    assert box.run(ended["id"])["error"]["stage"] == "two"


def test_a_worker_that_is_told_to_end_claims_nothing(box: TestBox, worker: executor.Worker) -> None:
    worker.stopping.set()

    assert run(box, "{name: one, stub: {}}")["status"] == "pending"


def test_a_command_whose_lease_is_lost_is_killed_and_nothing_is_recorded(box: TestBox, worker: executor.Worker) -> None:
    executor.start_renewing(worker)
    apply(box, "{name: one, script: 'echo $$ > pid; sleep 60'}")
    run_id = box.accept("work")
    pid_file = box.config.data / "runs" / str(run_id) / "pid"

    def take_it_away() -> None:
        wait_for(lambda: pid_file.exists() and pid_file.read_text(), within_s=10)
        with box.database.transaction() as connection:
            connection.execute(text("UPDATE runs SET fence = fence + 1, lease_owner = 'another'"))

    thread = threading.Thread(target=take_it_away)
    thread.start()
    began = time.monotonic()
    executor.work()
    thread.join()

    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
    assert box.rows("SELECT status, lease_owner FROM runs")[0] == {"status": "running", "lease_owner": "another"}
    assert box.run(run_id)["stages"][0]["status"] == "running"


def test_a_worker_that_stood_still_begins_no_stage_of_a_run_that_it_lost(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "{name: one, script: 'touch begun'}")
    run_id = box.accept("work")
    claim = runs.claim(box.box, owner="me", now=clock.now())
    assert claim is not None
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET fence = fence + 1, lease_owner = 'another'"))

    executor.drive(worker, dataclasses.replace(claim, leased_until=clock.boot_seconds()), until=0.0)

    assert not (box.config.data / "runs" / str(run_id) / "begun").exists()
    assert box.rows("SELECT status, lease_owner FROM runs")[0] == {"status": "running", "lease_owner": "another"}


def test_a_worker_that_stood_still_and_kept_its_run_goes_on(box: TestBox, worker: executor.Worker) -> None:
    run_id = box.accept()
    claim = runs.claim(box.box, owner="me", now=clock.now())
    assert claim is not None

    executor.drive(worker, dataclasses.replace(claim, leased_until=clock.boot_seconds()), until=0.0)

    assert box.run(run_id)["status"] == "completed"


def test_work_without_its_parts_says_so(worker: executor.Worker) -> None:
    executor.prepare(None)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match=r"prepare\(\)"):
        executor.work()


def test_a_result_is_recorded_although_the_database_was_busy_when_it_came(box: TestBox, worker: executor.Worker) -> None:
    box.apply("name: busy\nstages: [{name: one, script: 'sleep 0.5; echo done'}]\n")
    run_id = box.accept("busy")
    working = threading.Thread(target=executor.work)
    working.start()
    wait_for(lambda: box.rows("SELECT id FROM stages WHERE status = 'running'"), what="the stage runs")

    with box.database.transaction():
        time.sleep(6.5)
    working.join()

    run = box.run(run_id)
    assert (run["status"], run["output"]) == ("completed", "done")
