"""The stand-in: `dev`, simulated failures, strict mode; and the guide's own examples."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

import described
from orqo import description, yamlfile
from orqo.cli import dev
from orqo.config import PROJECT_DIR, Config, ConfigError
from support import TestBox, free_port, wait_for

GUIDE = PROJECT_DIR / "docs" / "test-your-client.md"
EXAMPLE = PROJECT_DIR / "examples" / "stand-in"
RULES = """
id: 42
name: rules
triggers: [{name: in}]
simulate:
  - {answer: 422, when: {input.mode: bad}}
  - {answer: 503, times: 2, when: {input.mode: flaky}}
  - {answer: duplicate, when: {input.mode: again}}
  - {answer: ignored, when: {input.mode: busy}}
stages: [{name: a, stub: {output: 1}}]
"""


@pytest.fixture
def simulating(settings: dict[str, str]) -> None:
    """Asked for before the box, whose setting it is."""
    settings["ORQO_SIMULATE"] = "1"


@pytest.fixture
def strict(settings: dict[str, str]) -> None:
    settings["ORQO_STRICT"] = "1"


def start(client: Any, box: TestBox, value: Any = None, token: str = "", **headers: str) -> Any:
    sent = {"Authorization": f"Bearer {token or box.token('trigger')}"} | headers
    return client.post("/api/v1/trigger", json={"workflow_id": 42, "input": value}, headers=sent)


# ── failures on demand ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("operation", ["trigger", "hook", "callback"])
def test_each_status_of_the_contract_is_answered_on_demand(simulating: None, client: Any, box: TestBox, operation: str) -> None:
    described_one = description.operations()[operation]
    path = described_one.path.replace("{token}", "x")
    for status in described_one.value["responses"]:
        if status in ("201",) or (operation, status) == ("callback", "200"):
            continue
        answer = client.post(path, json={}, headers={"Prefer": f"code={status}"})
        assert str(answer.status_code) == status
        described.check(described_one, answer)


def test_a_status_that_the_contract_does_not_have_is_refused(simulating: None, client: Any) -> None:
    assert client.post("/api/v1/trigger", json={}, headers={"Prefer": "code=418"}).status_code == 400


def test_a_wish_for_success_is_taken_as_usual(simulating: None, client: Any, box: TestBox) -> None:
    box.apply(RULES)

    assert start(client, box, Prefer="code=201").status_code == 201


def test_a_workflow_refuses_as_its_rules_say(simulating: None, client: Any, box: TestBox) -> None:
    box.apply(RULES)

    assert start(client, box, {"mode": "bad"}).status_code == 422
    assert [start(client, box, {"mode": "flaky"}).status_code for _ in range(4)] == [503, 503, 201, 201]
    assert start(client, box, {"mode": "good"}).status_code == 201
    assert client.post(box.hook("rules", "in"), json={"mode": "bad"}).status_code == 422


def test_a_start_is_answered_as_one_that_came_before(simulating: None, client: Any, box: TestBox) -> None:
    box.apply(RULES)
    hook = box.hook("rules", "in")

    none_before = start(client, box, {"mode": "again"})
    answers = [start(client, box, {"mode": "again"}), client.post(hook, json={"mode": "again"})]

    assert (none_before.status_code, none_before.json) == (201, {"workflow_run_id": 1, "status": "started"})
    for answer in answers:
        assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (200, "true")
        assert answer.json == {"workflow_run_id": 1, "status": "started", "duplicate": True}
    assert [row["verdict"] for row in box.rows("SELECT verdict FROM requests ORDER BY id")] == ["accepted", "duplicate", "duplicate"]


def test_a_start_is_ignored_by_a_webhook_and_a_conflict_for_a_token(simulating: None, client: Any, box: TestBox) -> None:
    box.apply(RULES)

    ignored, busy = client.post(box.hook("rules", "in"), json={"mode": "busy"}), start(client, box, {"mode": "busy"})

    assert (ignored.status_code, ignored.json["status"], busy.status_code) == (200, "ignored", 409)
    assert box.rows("SELECT id FROM runs") == []


@pytest.mark.parametrize("name", ["replayed", "ignored", "greeting"])
def test_each_good_answer_of_a_webhook_that_starts_nothing_is_given_on_demand(simulating: None, client: Any, name: str) -> None:
    answer = client.post("/api/v1/hooks/x", json={}, headers={"Prefer": f"code=200, example={name}"})

    operation = description.operations()["hook"]
    examples = description.resolved(operation.value["responses"]["200"])["content"]["application/json"]["examples"]
    assert (answer.status_code, answer.json) == (200, examples[name]["value"])
    described.check(operation, answer)
    assert ("Idempotent-Replayed" in answer.headers) == (name == "replayed")


def test_an_example_that_there_is_not_is_refused(simulating: None, client: Any) -> None:
    answer = client.post("/api/v1/trigger", json={}, headers={"Prefer": "code=200, example=ignored"})

    assert (answer.status_code, "replayed" in answer.json["detail"]) == (400, True)


def test_without_the_setting_nothing_is_simulated(client: Any, box: TestBox) -> None:
    box.apply(RULES)

    assert start(client, box, {"mode": "bad"}, Prefer="code=409").status_code == 201


def test_a_stand_in_is_never_reached_by_https() -> None:
    with pytest.raises(ConfigError, match="ORQO_SIMULATE"):
        Config.from_environ({"ORQO_SIMULATE": "1", "ORQO_BASE_URL": "https://orqo.example.com"})


# ── strict ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_strict_box_serves_the_three_endpoints_alone(strict: None, client: Any, box: TestBox) -> None:
    admin = {"Authorization": f"Bearer {box.token('admin')}"}
    for operation in description.operations().values():
        if operation.path.startswith("/api/") and "endpoints" not in operation.value["tags"]:
            answer = client.open(re.sub(r"\{\w+\}", "1", operation.path), method=operation.method, headers=admin)
            assert answer.status_code == 404, operation.id
    assert client.get("/healthz").status_code == 200


def test_a_strict_box_knows_no_extension(strict: None, client: Any, box: TestBox) -> None:
    box.apply(RULES)
    headers = {"Idempotency-Key": "k", "Prefer": "wait=1"}

    token = box.token("trigger")
    first, again = (start(client, box, token=token, **headers) for _ in range(2))

    assert [each.status_code for each in (first, again)] == [201, 201]
    assert first.json.keys() == {"workflow_run_id", "status"}
    assert {"Location", "Idempotent-Replayed", "Preference-Applied"}.isdisjoint(first.headers.keys())
    sent = {"Authorization": f"Bearer {box.token('trigger')}"}
    refused = client.post("/api/v1/trigger", json={"workflow_id": 42, "metadata": {}}, headers=sent)
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (422, "/metadata")


def test_a_strict_box_takes_each_request_of_a_webhook_for_a_new_one(strict: None, client: Any, box: TestBox) -> None:
    hook = box.hook()

    answers = [client.post(hook, json={}, headers={"X-GitHub-Delivery": "same", "Idempotency-Key": "k"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json["workflow_run_id"] != answers[1].json["workflow_run_id"]


# ── dev ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dev_takes_no_setting_that_would_make_it_last(tmp_path: Path) -> None:
    lasting = {"DATABASE_URL": "sqlite:////kept.db", "ORQO_HOST": "0.0.0.0", "ORQO_BASE_URL": "https://x", "ORQO_KEY_FILE": "/k"}
    given = lasting | {"ORQO_STRICT": "1"}

    config = Config.from_environ(dev.settings(given, tmp_path, tmp_path / "data"))

    assert (config.host, config.simulate, config.strict, config.example) == ("127.0.0.1", True, True, False)
    assert config.database_url == f"sqlite:///{tmp_path}/data/orqo.db"
    assert config.api_token == dev.TOKEN


def test_dev_serves_a_folder_reads_it_again_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "workflows").mkdir()
    file = tmp_path / "workflows" / "rules.yaml"
    file.write_text(RULES)
    port = free_port()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_DIR), "ORQO_PORT": str(port), "TMPDIR": str(tmp_path)}
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {dev.TOKEN}"}
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-m", "orqo", "dev", str(tmp_path / "workflows")]
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out)
    try:
        wait_for(lambda: is_ready(url), within_s=40, what=(tmp_path / "out").read_text())
        assert requests.post(f"{url}/api/v1/trigger", json={"workflow_id": 42}, headers=headers, timeout=5).status_code == 201
        file.write_text(RULES.replace("id: 42", "id: 42\ndescription: changed"))
        wait_for(lambda: requests.get(f"{url}/api/v1/workflows/rules", headers=headers, timeout=5).json()["version"] == 2, within_s=20)
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=30)
    said = (tmp_path / "out").read_text()
    assert status == 0, said
    assert "ORQO_SIMULATE=1" in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "workflows"]


def is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=2).status_code == 200
    except requests.ConnectionError:
        return False


# ── the guide ───────────────────────────────────────────────────────────────────────────────────────────────────────


def block(language: str) -> str:
    """Give the one block of the guide in this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_guide_shows_the_workflow_of_the_example() -> None:
    assert block("yaml title=workflows/answer.yaml") == (EXAMPLE / "workflows" / "answer.yaml").read_text(encoding="utf-8")


@pytest.mark.full
def test_the_guides_line_for_pytest_runs_the_clients_tests(tmp_path: Path) -> None:
    lines = re.findall(r"```sh\n(.*?)\n```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (line,) = [each for each in lines if "-m pytest" in each]
    pasted = line.replace(".venv/bin/python", sys.executable)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    done = subprocess.run(["bash", "-ec", pasted], cwd=PROJECT_DIR, env=env, capture_output=True, text=True, timeout=180)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_guides_workflow_for_github_runs_the_clients_tests(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "checkout")
    (tmp_path / "checkout" / "orqo").symlink_to(PROJECT_DIR)
    steps = yamlfile.read(block("yaml title=.github/workflows/test.yml")).value["jobs"]["test"]["steps"]
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    for step in steps:
        if "run" in step:
            done = subprocess.run(
                ["bash", "-ec", step["run"]], cwd=tmp_path / "checkout", env=env, capture_output=True, text=True, timeout=180
            )
            assert done.returncode == 0, f"{step['run']}\n{done.stdout}{done.stderr}"
    assert "passed" in done.stdout
