"""The command line against a real box: in a process of its own where that matters, else by main(), which takes a tenth of the time."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import postgresql
from model_server import chooses, model_server
from orqo import callbacks, cli, clock, db, definition, executor, runs, signing, triggers, workflows
from orqo.cli import guarded, main
from orqo.config import PROJECT_DIR, Config
from receiver import OK, Receiver
from support import HELLO, Service, TestBox, sqlite_only, wait_for

Ended = subprocess.CompletedProcess[str]
Orqo = Callable[..., Ended]
COMMAND = [sys.executable, "-m", "orqo"]
SAYS = "name: says\nstages:\n  - {name: say, script: 'printf \"two\\nlines\"'}\n"
FAILS = "name: fails\nstages:\n  - {name: break, script: 'printf \"\\033[31mwhy\" >&2; exit 3'}\n"


def environment(settings: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}


@pytest.fixture
def orqo(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orqo:
    """Run a command to its end in this process."""

    def run(*words: str, **changes: str) -> Ended:
        with monkeypatch.context() as patch:
            for name, value in (settings | changes).items():
                patch.setenv(name, value)
            capsys.readouterr()
            status = main(words)
            said = capsys.readouterr()
        return Ended(list(words), status, said.out, said.err)

    return run


@pytest.fixture
def process(settings: dict[str, str]) -> Orqo:
    """Run a command to its end in a process of its own."""

    def run(*words: str, **changes: str) -> Ended:
        env = environment(settings) | changes
        return subprocess.run([*COMMAND, *words], cwd=PROJECT_DIR, env=env, capture_output=True, text=True, timeout=60)

    return run


def told(ended: Ended) -> Any:
    """Give the JSON that a command printed."""
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return json.loads(ended.stdout)


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_lists_every_word_and_loads_nothing_heavy() -> None:
    heavy = "print({'sqlalchemy', 'flask', 'rq', 'requests'} & sys.modules.keys())"
    script = f"import sys; from orqo.cli import main; main(['--help']); {heavy}"

    shown = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout

    assert re.findall(r"^    ([a-z-]+)\b", shown, re.MULTILINE) == list(cli.WORDS)
    assert shown.endswith("set()\n")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "run",
        "run start",
        "run start hello --input {x",
        "run start hello --input [1,NaN]",
        "run start hello --inp null",
        "run list --status done",
        "run list --limit 0",
        "run show 0",
        "run show -1",
        "run show 99999999999999999999",
        "token create ci --scope root",
        "token create ci --expires soon",
        "token create ci --expires 99999999d",
        "trigger create hello --callback http://x/a=done",
        "trigger update 1",
        "workflow apply",
        "workflow apply --prune examples/hello.yaml",
    ],
)
def test_wrong_use_is_told_and_ends_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(line.split())

    said = capsys.readouterr()
    assert (status, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith("orqo: ")


def test_an_argument_that_is_no_text_is_told(settings: dict[str, str]) -> None:
    ended = subprocess.run([*COMMAND, "token", "create", b"\xff"], cwd=PROJECT_DIR, env=environment(settings), capture_output=True)

    assert (ended.returncode, ended.stderr) == (2, b"orqo: an argument is not UTF-8 text\n")


def test_a_bug_shows_its_traceback_only_to_who_asks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise ZeroDivisionError

    monkeypatch.delenv("ORQO_LOG_LEVEL", raising=False)
    assert guarded(broken) == 1
    assert capsys.readouterr().err == "orqo: this is a fault of orqo's own (ZeroDivisionError); ORQO_LOG_LEVEL=debug shows where\n"

    monkeypatch.setenv("ORQO_LOG_LEVEL", "debug")
    with pytest.raises(ZeroDivisionError):
        guarded(broken)


def test_every_wrong_setting_is_told_at_once(orqo: Orqo) -> None:
    ended = orqo("run", "list", ORQO_PORT="many", ORQO_WORKERS="0")

    assert ended.returncode == 1
    assert [line.split(":")[:2] for line in ended.stderr.splitlines()] == [["orqo", " ORQO_PORT"], ["orqo", " ORQO_WORKERS"]]


def test_json_may_stand_anywhere(box: TestBox, orqo: Orqo) -> None:
    first, last = orqo("--json", "workflow", "list"), orqo("workflow", "list", "--json")

    assert told(first) == told(last)
    assert told(last)[0]["name"] == "hello"


def test_a_reader_that_goes_away_ends_it_quietly(box: TestBox, settings: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run(
        [*COMMAND, "workflow", "list"], cwd=PROJECT_DIR, env=environment(settings), stdout=writer, stderr=subprocess.PIPE, timeout=60
    )

    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_ctrl_c_ends_the_waiting_and_not_the_run(box: TestBox, settings: dict[str, str]) -> None:
    command = [*COMMAND, "run", "start", "hello", "--wait"]
    waiting = subprocess.Popen(command, cwd=PROJECT_DIR, env=environment(settings), stderr=subprocess.PIPE)
    wait_for(lambda: box.rows("SELECT id FROM runs"))

    waiting.send_signal(signal.SIGINT)

    assert (waiting.wait(timeout=10), waiting.communicate()[1]) == (-signal.SIGINT, b"")
    assert box.run(1)["status"] == "pending"


# ── db ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@sqlite_only
def test_only_db_init_makes_a_database(settings: dict[str, str], process: Orqo) -> None:
    data = Path(settings["ORQO_DATA"])

    refused = [process("worker"), process("db", "upgrade"), process("token", "create", "ci")]

    hint = "orqo: There is no database yet. Make it with: .venv/bin/python -m orqo db init\n"
    assert [(ended.returncode, ended.stderr) for ended in refused] == [(1, hint)] * 3
    assert not data.exists()
    assert told(process("db", "init", "--json")) == {"made": True, "version": db.SCHEMA_VERSION}
    assert told(process("db", "init", "--json")) == {"made": False, "version": db.SCHEMA_VERSION}
    assert told(process("db", "upgrade", "--json")) == {"version": db.SCHEMA_VERSION, "migrations": []}
    assert {stat.S_IMODE((data / name).stat().st_mode) for name in ("orqo.db", "instance.key")} == {0o600}
    assert told(process("workflow", "list", "--json")) == []


def test_an_unwritable_data_folder_is_one_line(process: Orqo, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ended = process("db", "init", ORQO_DATA=str(tmp_path / "file"))

    assert ended.returncode == 1
    assert ended.stderr.startswith("orqo: Cannot write to the data folder ") and ended.stderr.count("\n") == 1


# ── workflow ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_apply_gives_id_name_and_version(box: TestBox, orqo: Orqo, tmp_path: Path) -> None:
    file = tmp_path / "says.yaml"
    file.write_text(SAYS)

    first, same = orqo("workflow", "apply", str(file), "--json"), orqo("workflow", "apply", str(file), "--json")
    file.write_text(SAYS + "description: changed\n")
    changed = orqo("workflow", "apply", str(file))

    assert told(first) == told(same) == [{"id": 2, "name": "says", "version": 1}]
    assert changed.stdout == "says (id 2): version 2\n"


def test_apply_is_all_or_nothing_and_tells_each_fault_with_its_line(box: TestBox, process: Orqo, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SAYS)
    (tmp_path / "b.yml").write_text("name: b\nstages: 5\nfoo: 1\n")
    (tmp_path / "c.yaml").write_text(SAYS)
    (tmp_path / "d.yaml").write_bytes(b"name: \xff")

    ended = process("workflow", "apply", str(tmp_path))

    assert ended.returncode == 1
    assert [line.removeprefix(f"{tmp_path}/") for line in ended.stderr.splitlines()] == [
        "b.yml:2: stages does not fit: write a list of 1 to 200 stages",
        "b.yml:3: foo is not known",
        f"c.yaml: workflow says is defined by {tmp_path}/a.yaml too",
        "d.yaml: byte 6 is not UTF-8",
        "orqo: nothing was applied",
    ]
    assert [row["name"] for row in box.rows("SELECT name FROM workflows")] == ["hello"]


def test_a_fault_of_the_second_file_undoes_the_first(box: TestBox, orqo: Orqo, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SAYS)
    (tmp_path / "b.yaml").write_text("id: 1\n" + FAILS)

    ended = orqo("workflow", "apply", str(tmp_path))

    assert ended.stderr.startswith(f"{tmp_path}/b.yaml: The id does not fit: id 1 belongs to workflow hello")
    assert [row["name"] for row in box.rows("SELECT name FROM workflows")] == ["hello"]


def test_prune_deletes_what_came_from_the_folder_and_has_no_file_any_more(box: TestBox, orqo: Orqo, tmp_path: Path) -> None:
    (tmp_path / "says.yaml").write_text(SAYS)
    (tmp_path / "fails.yaml").write_text(FAILS)
    told(orqo("workflow", "apply", str(tmp_path), "--json"))
    (tmp_path / "fails.yaml").unlink()

    kept = orqo("workflow", "apply", str(tmp_path)).stdout
    ended = orqo("workflow", "apply", str(tmp_path), "--prune")

    assert kept == "says (id 3): unchanged, version 1\n"
    assert ended.stdout == "says (id 3): unchanged, version 1\nfails: deleted, for its file is gone\n"
    assert [row["name"] for row in told(orqo("workflow", "list", "--json"))] == ["hello", "says"]


def test_validate_changes_nothing_and_says_what_is_wrong(process: Orqo, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: b\nstages: 5\n")

    good = process("workflow", "validate", "examples/hello.yaml")
    bad = process("workflow", "validate", str(file), "--json")

    assert (good.returncode, good.stdout) == (0, "examples/hello.yaml: workflow hello is valid\n")
    fault = {"pointer": "/stages", "detail": "stages does not fit: write a list of 1 to 200 stages", "line": 2}
    assert json.loads(bad.stdout) == [{"file": str(file), "valid": False, "errors": [fault]}]
    assert (bad.returncode, bad.stderr) == (1, f"{file}:2: {fault['detail']}\n")


def test_what_show_prints_is_the_workflow_file(box: TestBox, orqo: Orqo) -> None:
    shown = orqo("workflow", "show", "hello").stdout

    assert shown == f"# id 1, version 1, enabled\n{HELLO.rstrip()}\n"
    assert definition.parse(shown).name == "hello"
    assert told(orqo("workflow", "show", "1", "--json"))["source"] == HELLO


def test_a_disabled_workflow_is_not_started_and_a_deleted_one_is_gone(box: TestBox, orqo: Orqo) -> None:
    assert told(orqo("workflow", "disable", "hello", "--json")) == {"id": 1, "name": "hello", "enabled": False}
    refused = orqo("run", "start", "hello")
    assert told(orqo("workflow", "enable", "hello", "--json"))["enabled"] is True
    assert told(orqo("workflow", "delete", "hello", "--json")) == {"id": 1, "name": "hello", "deleted": True}
    gone = orqo("run", "start", "hello")

    assert (refused.returncode, gone.returncode) == (1, 1)
    assert refused.stderr.startswith("orqo: Workflow hello is disabled")
    assert gone.stderr == "orqo: There is no workflow hello. List them with: .venv/bin/python -m orqo workflow list\n"
    assert box.rows("SELECT id FROM runs") == []


# ── token ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_printed_once_and_works_until_it_is_revoked(box: TestBox, orqo: Orqo, client: Any) -> None:
    made = told(orqo("token", "create", "ci", "--scope", "read", "--scope", "trigger", "--workflow", "hello", "--json"))
    headers = {"Authorization": f"Bearer {made['token']}"}

    assert made == {"id": 1, "name": "ci", "scopes": ["trigger", "read"], "token": made["token"]}
    assert client.post("/api/v1/trigger", json={"workflow_id": 1}, headers=headers).status_code == 201
    listed = orqo("token", "list")
    assert made["token"] not in listed.stdout
    assert listed.stdout.splitlines()[1].split()[:5] == ["1", "ci", "trigger", "read", "hello"]
    assert orqo("token", "revoke", "1").stdout == "Token 1 is revoked.\n"
    assert client.post("/api/v1/trigger", json={"workflow_id": 1}, headers=headers).status_code == 401


def test_a_token_can_expire(box: TestBox, orqo: Orqo) -> None:
    told(orqo("token", "create", "ci", "--expires", "30d", "--json"))

    listed = told(orqo("token", "list", "--json"))[0]

    lifetime = clock.from_text(listed["expires_at"]) - clock.from_text(listed["created_at"])
    assert (lifetime.days, listed["workflow_ids"]) == (30, None)


# ── trigger ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def found(box: TestBox, url: str) -> Any:
    with box.database.read() as connection:
        return triggers.find(connection, url.rpartition("/")[2])


def test_a_created_trigger_prints_its_url_and_a_curl_line(box: TestBox, orqo: Orqo) -> None:
    made = told(orqo("trigger", "create", "hello", "--json"))
    shown = orqo("trigger", "show", str(made["id"])).stdout

    assert set(made) == {"id", "workflow", "name", "token", "url"}
    assert made["url"] == f"{box.config.base_url}/api/v1/hooks/{made['token']}"
    assert found(box, made["url"]).id == made["id"]
    assert f'\n  curl -d \'{{"name": "Ada"}}\' {made["url"]}\n' in shown
    assert made["token"] not in orqo("trigger", "list", "--json").stdout
    assert told(orqo("trigger", "create", "hello", "--json"))["name"] == "webhook-2"


def test_a_rotated_trigger_has_another_url(box: TestBox, orqo: Orqo) -> None:
    before = told(orqo("trigger", "create", "hello", "--json"))

    after = told(orqo("trigger", "rotate", str(before["id"]), "--json"))

    assert found(box, before["url"]) is None
    assert found(box, after["url"]).id == before["id"]


def test_a_trigger_is_changed_disabled_and_deleted(box: TestBox, orqo: Orqo) -> None:
    url = "https://ci.example.com/done"
    made = told(orqo("trigger", "create", "hello", "--callback", f"{url}=failed,output", "--callback", f"{url}?a=b", "--json"))
    number = str(made["id"])

    before = told(orqo("trigger", "show", number, "--json"))["callbacks"]
    renamed = told(orqo("trigger", "update", number, "--name", "other", "--no-callbacks", "--json"))
    disabled = told(orqo("trigger", "disable", number, "--json"))
    deleted = told(orqo("trigger", "delete", number, "--json"))

    assert [(row["url"], row["events"]) for row in before] == [
        (url, ["failed", "output"]),
        (f"{url}?***", ["completed", "failed", "stopped"]),
    ]
    assert (renamed["name"], disabled["enabled"]) == ("other", False)
    assert deleted == {"id": made["id"], "deleted": True}
    assert found(box, made["url"]) is None


def test_a_schedule_is_changed_and_what_is_not_named_stays(box: TestBox, orqo: Orqo) -> None:
    made = told(
        orqo("trigger", "create", "hello", "--schedule", "15 2 * * *", "--timezone", "Europe/Paris", "--input", '{"a": 1}', "--json")
    )
    number = str(made["id"])

    told(orqo("trigger", "update", number, "--schedule", "30 4 * * *", "--json"))
    shown = told(orqo("trigger", "show", number, "--json"))

    assert shown["options"] == {"schedule": "30 4 * * *", "timezone": "Europe/Paris", "input": {"a": 1}}
    assert [each["local"][11:16] for each in shown["next_times"]] == ["04:30"] * 5


def test_a_webhook_does_not_become_a_schedule_nor_the_other_way_round(box: TestBox, orqo: Orqo) -> None:
    webhook = str(told(orqo("trigger", "create", "hello", "--json"))["id"])
    schedule = str(told(orqo("trigger", "create", "hello", "--schedule", "15 2 * * *", "--json"))["id"])

    refused = [
        orqo("trigger", "update", webhook, "--schedule", "15 2 * * *"),
        orqo("trigger", "update", schedule, "--rate", "60/m"),
        orqo("trigger", "update", schedule, "--rate", "60/m", "--timezone", "Europe/Paris"),
        orqo("trigger", "update", schedule, "--schedule", "never"),
    ]

    assert [ended.returncode for ended in refused] == [1, 1, 2, 1]
    assert "is a webhook and stays one" in refused[0].stderr
    assert "is a schedule: it cannot become a webhook" in refused[1].stderr


def test_a_callback_is_held_to_the_rules_of_a_workflow_file(box: TestBox, orqo: Orqo) -> None:
    ended = orqo("trigger", "create", "hello", "--callback", "ftp://x", "--callback", "http://${input.host}/${secrets.KEY}")

    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "orqo: callbacks[0].url must start with http:// or https:// and a host",
        "orqo: callbacks[1].url: what carries ${secrets.…} must have its scheme, host and port written out or in ${secrets.…}",
    ]
    assert box.rows("SELECT id FROM triggers") == []


# ── run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_started_run_is_shown_as_the_api_shows_it(box: TestBox, orqo: Orqo, client: Any) -> None:
    started = told(orqo("run", "start", "hello", "--input", '{"name": "Zoë"}', "--json"))

    headers = {"Authorization": f"Bearer {box.token('read')}"}
    answered = client.get(f"/api/v1/runs/{started['id']}", headers=headers).get_json()
    assert started == told(orqo("run", "show", "1", "--json")) == answered
    assert started["input"] == {"name": "Zoë"}
    assert box.rows("SELECT origin FROM runs") == [{"origin": "cli"}]
    del answered["stages"]
    assert told(orqo("run", "list", "--workflow", "hello", "--status", "pending", "--json")) == [answered]


def test_a_stopped_run_ends_its_tail_with_1(box: TestBox, orqo: Orqo) -> None:
    box.accept()

    stopped, again, tail = orqo("run", "stop", "1"), orqo("run", "stop", "1"), orqo("run", "tail", "1")

    assert (stopped.stdout, stopped.returncode) == ("Run 1 is stopped.\n", 0)
    assert (again.stderr, again.returncode) == ("orqo: Run 1 has ended already: it is stopped.\n", 1)
    assert tail.returncode == 1
    assert [line[14:] for line in tail.stdout.splitlines()] == ["run 1 of hello is accepted", "run 1 stopped"]
    assert [orqo("run", verb, "9").returncode for verb in ("show", "tail", "stop")] == [1, 1, 1]


def test_waiting_prints_the_result_and_follows_it(service: Service, process: Orqo) -> None:
    service.box.apply(SAYS)
    service.box.apply(FAILS)

    greeted = process("run", "start", "hello", "--input", '{"name": "Ada"}', "--wait")
    said = process("run", "start", "says", "--wait")
    failed = process("run", "start", "fails", "--wait")
    shown = process("run", "show", "3")

    assert (greeted.returncode, json.loads(greeted.stdout)) == (0, {"greeting": "Hello, Ada"})
    assert (said.returncode, said.stdout) == (0, "two\nlines\n")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("orqo: run 3 failed: stage_failed in stage break: ") and failed.stderr.count("\n") == 1
    # What a command wrote is data: it must not move the cursor of who looks at it.
    assert "why" in shown.stdout and "\33" not in shown.stdout + failed.stderr


def test_tail_tells_each_step_and_the_end(service: Service, orqo: Orqo) -> None:
    service.box.apply(
        "name: slow\nstages:\n  - {name: flaky, stub: {fail: nope, delay: 300ms}, retry: {attempts: 2, delay: 500ms}, on_error: next}\n"
        "  - {name: last, stub: {}}\n"
    )
    run_id = service.box.accept("slow")

    live = orqo("run", "tail", str(run_id))
    history = orqo("run", "tail", str(run_id), "--json")

    assert (live.returncode, history.returncode) == (0, 0)
    steps = [re.sub(r"[\d.]+ s", "N s", line[14:]) for line in live.stdout.splitlines()]
    assert steps == [
        "run 1 of slow is accepted",
        "run 1 begins",
        "  flaky begins",
        "  flaky failed, attempt 1, tried again: stage_failed: nope",
        "  flaky failed in N s, 2 attempts: stage_failed: nope",
        "  last begins",
        "  last completed in N s",
        "run 1 completed in N s",
    ]
    events = [json.loads(line) for line in history.stdout.splitlines()]
    assert [(event["stage"], event["event"]) for event in events][-2:] == [("last", "completed"), (None, "completed")]


NOTED = """
name: noted
loop_guard: {limit: 0, then: next}
stages:
  - name: judge
    prompt: {user: Judge., model: m, base_url: MODELS}
    outcomes: [again, fine]
    routing: {again: judge}
  - name: last
    stub: {}
    when: {input.go: true}
"""


def test_the_notes_and_tokens_of_stages_are_shown_by_each_way_of_looking(
    box: TestBox, worker: executor.Worker, orqo: Orqo, client: Any
) -> None:
    with model_server() as server:
        server.replies = [chooses("again")]
        box.apply(NOTED.replace("MODELS", server.base_url))
        run_id = box.accept("noted")
        executor.work()

    answered = client.get(f"/api/v1/runs/{run_id}", headers={"Authorization": f"Bearer {box.token('read')}"}).json
    shown, tail = orqo("run", "show", str(run_id)).stdout, orqo("run", "tail", str(run_id)).stdout

    judge, last = answered["stages"]
    guard = "The loop guard: stage judge was gone back to 0 times already, so the run went on with stage last."
    assert (judge["usage"], judge["note"]) == ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, guard)
    assert (last["status"], last["note"]) == ("skipped", "input.go is absent")
    assert re.search(rf"^note on judge +{re.escape(guard)}$", shown, re.MULTILINE)
    assert re.search(r"^tokens of judge +.*total_tokens.*15", shown, re.MULTILINE)
    assert re.search(rf"  judge completed in .*, outcome again, 15 tokens: {re.escape(guard)}$", tail, re.MULTILINE)
    assert "  last skipped: input.go is absent" in tail


# ── callback, delivery ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_secret_of_a_callback_is_the_one_it_is_signed_with(box: TestBox, orqo: Orqo) -> None:
    url = "https://ci.example.com/done"

    shown = told(orqo("callback", "secret", url, "--json"))

    assert shown == {"url": url, "secret": signing.derived_secret(box.key, url)}


def answers_ok(sock: socket.socket, receiver: Receiver) -> None:
    if receiver.read_request(sock):
        sock.sendall(OK)


def test_a_callback_is_tested_with_a_signed_event(box: TestBox, orqo: Orqo) -> None:
    receiver = Receiver(answers_ok)
    url = receiver.url("/done")
    box.apply(f"name: told\ncallbacks: [{{url: '{url}'}}]\nstages: [{{name: a, stub: {{}}}}]\n")

    delivered = orqo("callback", "test", "1")
    receiver.close()
    lost = orqo("callback", "test", "1", "--json")

    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert delivered.returncode == 0 and delivered.stdout.startswith("Delivered to callback 1: the receiver answered 200 in ")
    assert json.loads(body)["type"] == "run.test"
    secret = signing.secret_bytes(signing.derived_secret(box.key, url))
    signing.verify_standard([secret], headers, body, now=int(clock.now().timestamp()))
    assert (lost.returncode, json.loads(lost.stdout)["reason"]) == (1, "refused")
    assert box.rows("SELECT id FROM deliveries") == []


def test_a_paused_callback_is_shown_and_resumed(box: TestBox, orqo: Orqo) -> None:
    box.apply("name: told\ncallbacks: [{url: 'https://ci.example.com'}]\nstages: [{name: a, stub: {}}]\n")
    with box.database.transaction() as connection:
        callbacks.pause(connection, 1, reason="The receiver answered 410 Gone.", now=clock.now())

    listed = orqo("callback", "list")
    resumed = orqo("callback", "resume", "1")

    assert "callback 1 is paused: The receiver answered 410 Gone." in listed.stderr
    assert resumed.stdout == "Callback 1 goes on; what waited is sent now.\n"
    assert told(orqo("callback", "list", "--json"))[0]["paused_at"] is None


def test_a_dead_delivery_is_shown_and_sent_again(box: TestBox, orqo: Orqo) -> None:
    box.apply("name: told\ncallbacks: [{url: 'https://ci.example.com/x?key=1', events: [stopped]}]\nstages: [{name: a, stub: {}}]\n")
    told(orqo("run", "stop", str(box.accept("told")), "--json"))
    pending = orqo("delivery", "redeliver", "1")
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET status = 'dead', next_attempt_at = NULL")

    listed = told(orqo("delivery", "list", "--status", "dead", "--run", "1", "--json"))
    shown = told(orqo("delivery", "show", "1", "--json"))
    again = told(orqo("delivery", "redeliver", "1", "--json"))

    url = "https://ci.example.com/x?***"
    assert listed == [{"id": 1, "workflow_run_id": 1, "event": "run.stopped", "url": url, "status": "dead", "attempts": 0}]
    assert (shown["history"], shown["body"]["type"]) == ([], "run.stopped")
    assert again == {"id": 1, "status": "pending"}
    assert (pending.returncode, pending.stderr) == (1, "orqo: Delivery 1 is pending: it is being sent already.\n")


def test_the_dead_of_a_time_are_sent_again(box: TestBox, orqo: Orqo) -> None:
    box.apply("name: told\ncallbacks: [{url: 'https://ci.example.com/x', events: [stopped]}]\nstages: [{name: a, stub: {}}]\n")
    for hours in (1, 3, 5):
        runs.stop(box.box, box.accept("told"), now=clock.now())
        moment = {"died": clock.to_text(clock.now() - timedelta(hours=hours))}
        with box.database.transaction() as connection:
            died = "UPDATE deliveries SET status = 'dead', next_attempt_at = NULL, finished_at = :died WHERE finished_at IS NULL"
            connection.execute(text(died), moment)

    between = orqo("delivery", "redeliver", "--since", "4h", "--until", "2h", "--json")
    nothing = orqo("delivery", "redeliver")

    assert told(between) == [{"id": 2, "status": "pending"}]
    assert (nothing.returncode, "--until DURATION" in nothing.stderr) == (2, True)


def test_what_receivers_answered_is_shown_as_text(box: TestBox, orqo: Orqo) -> None:
    box.apply("name: told\ncallbacks: [{url: 'https://ci.example.com/x', events: [stopped]}]\nstages: [{name: a, stub: {}}]\n")
    runs.stop(box.box, box.accept("told"), now=clock.now())
    with box.database.transaction() as connection:
        answered = "INSERT INTO attempts (delivery_id, number, started_at, duration_ms, status_code, reason, detail, excerpt)"
        connection.execute(
            text(f"{answered} VALUES (1, 1, 'then', 5, 500, 'status', 'no', :excerpt)"), {"excerpt": "<h1>Oops\n\x1b[2J</h1>"}
        )

    shown = orqo("delivery", "show", "1")

    assert "answer to attempt 1\n    <h1>Oops\n    \N{REPLACEMENT CHARACTER}[2J</h1>\n" in shown.stdout


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def findings(ended: Ended) -> dict[str, str]:
    return {finding["check"]: finding["status"] for finding in json.loads(ended.stdout)}


def test_doctor_finds_nothing_wrong_with_a_box_that_runs(service: Service, process: Orqo) -> None:
    ended = process("doctor", "--json")

    assert ended.returncode == 0, ended.stdout
    well = {name for name, status in findings(ended).items() if status == "ok"}
    assert well >= {"database", "key", "redis", "workers", "files"}
    assert "disk" in well or postgresql.IS_WANTED
    # Of a box on loopback it says that nobody outside can reach it.
    assert findings(ended)["base url"] == "warn"


@sqlite_only
def test_doctor_says_what_is_wrong_and_what_to_do(box: TestBox, orqo: Orqo) -> None:
    key = box.config.data / "instance.key"
    key.chmod(0o644)

    ended = orqo("doctor", ORQO_DISK_FREE_MIN=str(2**60))

    assert ended.returncode == 1
    status = {line[6:18].strip(): line[:4].strip() for line in ended.stdout.splitlines()}
    assert (status["files"], status["disk"], status["workers"], status["base url"], status["key"]) == ("fail", "fail", "fail", "fail", "ok")
    assert f"chmod 600 {key}" in ended.stdout


@sqlite_only
def test_doctor_looks_at_a_box_without_a_database(orqo: Orqo) -> None:
    ended = orqo("doctor", "--json")

    assert ended.returncode == 1
    assert findings(ended)["database"] == "fail"


# ── serve ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Served:
    """`serve` as a process; its stdout is a terminal or a pipe."""

    def __init__(self, settings: dict[str, str], *, terminal: bool) -> None:
        self.reader, writer = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen([*COMMAND, "serve"], cwd=PROJECT_DIR, env=environment(settings), stdout=writer, stderr=writer)
        os.close(writer)
        os.set_blocking(self.reader, False)
        self.said = ""

    def reads(self, pattern: str) -> re.Match[str] | None:
        """Look for a pattern in what it has said so far."""
        try:
            self.said += os.read(self.reader, 65536).decode().replace("\r", "")
        except (BlockingIOError, OSError):
            assert self.process.poll() is None, self.said
        return re.search(pattern, self.said, re.MULTILINE)

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(timeout=20)
        os.close(self.reader)
        return status


def test_the_first_start_makes_an_example_that_works_as_pasted(settings: dict[str, str], process: Orqo, tmp_path: Path) -> None:
    served = Served(settings, terminal=True)
    try:
        curl = wait_for(lambda: served.reads(r"^  (curl .*)$"), within_s=30, what="the curl line")[1]
        listing = wait_for(lambda: served.reads(r"^  (.*run list)$"))[1]
        sent = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True)
        wait_for(lambda: rows(settings, "deliveries", "status") == [("delivered",)], what="the callback is delivered")

        assert json.loads(sent.stdout) == {"workflow_run_id": 1, "status": "started"}
        assert ("run.completed", 1) in rows(settings, "requests", "event, run_id")
        assert told(process("run", "show", "1", "--json"))["output"] == {"greeting": "Hello, Ada!"}
        where = [f"ORQO_DATA={settings['ORQO_DATA']}", f"ORQO_PORT={settings['ORQO_PORT']}"]
        assert shlex.split(listing) == [*where, ".venv/bin/python", "-m", "orqo", "run", "list"]
        # The folders that the service makes let the stage user through.
        (tmp_path / "says.yaml").write_text(SAYS)
        told(process("workflow", "apply", str(tmp_path), "--json"))
        assert process("run", "start", "says", "--wait").stdout == "two\nlines\n"
    finally:
        assert served.stop() == 0
    before = state(settings)
    again = Served(settings, terminal=False)
    try:
        command = wait_for(lambda: again.reads(r"how to start a run says: (.*)$"), within_s=30, what="the command")[1]

        assert "/hooks/" not in again.said
        assert state(settings) == before
        shown = process(*shlex.split(command)[5:])
        assert curl in shown.stdout
    finally:
        assert again.stop() == 0


def rows(settings: dict[str, str], table: str, columns: str) -> list[Any]:
    with closing(db.Database.open(Config.from_environ(settings).database_url)) as database, database.read() as connection:
        return [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM {table}"))]


def state(settings: dict[str, str]) -> list[Any]:
    tables = ("instance", "workflows", "workflow_versions", "triggers", "callbacks", "runs", "api_tokens")
    return [rows(settings, table, "*") for table in tables]


def test_the_examples_callback_follows_the_box_to_another_port(settings: dict[str, str]) -> None:
    Path(settings["ORQO_DATA"]).mkdir()
    for port in ("4001", "4002", "4002"):
        changed = environment(settings) | {"ORQO_PORT": port}
        subprocess.run([sys.executable, "-m", "orqo.cli.starting"], cwd=PROJECT_DIR, env=changed, check=True, capture_output=True)

    kept = rows(settings, "callbacks", "url, removed_at IS NULL")

    assert kept == [("http://127.0.0.1:4001/api/v1/callback", 0), ("http://127.0.0.1:4002/api/v1/callback", 1)]


@pytest.mark.parametrize("changes", [{"ORQO_EXAMPLE": "0"}, {"ORQO_HOST": "0.0.0.0"}], ids=["told not to", "not on loopback"])
def test_a_box_that_began_without_the_example_never_gets_it(settings: dict[str, str], changes: dict[str, str]) -> None:
    prepare = [sys.executable, "-m", "orqo.cli.starting"]
    Path(settings["ORQO_DATA"]).mkdir()

    said = [
        subprocess.run(prepare, cwd=PROJECT_DIR, env=environment(settings) | each, capture_output=True, text=True, check=True).stdout
        for each in (changes, {})
    ]

    assert said == ["{}\n", "{}\n"]


def test_serve_refuses_another_key_in_one_line(box: TestBox, process: Orqo) -> None:
    ended = process("serve", ORQO_KEY="A" * 43 + "=")

    assert ended.returncode == 1
    assert ended.stderr.startswith("orqo: The instance key is not the one that this database was made with.")
    assert (ended.stderr.count("\n"), ended.stdout) == (1, "")


def test_a_workflow_of_the_examples_name_stays_as_it_is(settings: dict[str, str], box: TestBox) -> None:
    subprocess.run([sys.executable, "-m", "orqo.cli.starting"], cwd=PROJECT_DIR, env=environment(settings), capture_output=True, check=True)

    with box.database.read() as connection:
        assert workflows.source_of(connection, workflows.get(connection, "hello").version_id) == HELLO
    assert box.rows("SELECT id FROM triggers") == []
