"""The examples that decide and think, each run against local servers that stand for the real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from inbox import Inbox, inbox
from model_server import ModelServer, chooses, model_server, refuses
from orqo import executor
from orqo.config import PROJECT_DIR
from orqo.errors import Invalid
from orqo.secretstore import SecretStore
from support import TestBox

FILES = {path.stem: path for path in sorted((PROJECT_DIR / "examples" / "deciding").glob("*.yaml"))}
SECRET, TOKEN = "the hook's secret", "ghp_the_token"
DIFF = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-one\n+two\n"


def apply(box: TestBox, name: str, *changes: tuple[str, str]) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    for written, here in changes:
        assert written in text
        text = text.replace(written, here)
    box.apply(text, folder=FILES[name].parent)


def run(box: TestBox, name: str, value: Any) -> dict[str, Any]:
    run_id = box.accept(name, input=value)
    executor.work()
    return box.run(run_id)


@pytest.fixture
def models(worker: executor.Worker) -> Iterator[ModelServer]:
    """A server of models that the worker's prompts go to."""
    with model_server() as server:
        worker.config = dataclasses.replace(worker.config, llm_base_url=server.base_url)
        yield server


def test_every_example_is_in_this_file() -> None:
    assert set(FILES) == {"shorten", "release", "review-pull-request", "sort-alerts"}


def test_the_pages_yaml_is_the_examples() -> None:
    page = (PROJECT_DIR / "docs" / "deciding.md").read_text(encoding="utf-8")
    written = {line.strip() for path in FILES.values() for line in path.read_text(encoding="utf-8").splitlines()}
    lines = [line for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    shown = [re.sub(r" +# .*", "", line).strip() for line in lines]

    assert [line for line in shown if line not in written] == []
    assert len(shown) > 20


# ── routing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said", "checks"),
    [
        ("short", "fits: short", 1),
        ("one two three four five", "fits: one two three", 3),
        ("a much longer text that has far too many words in it", "too_long: a much longer text that has far", 6),
    ],
    ids=["fits at once", "goes back twice", "the guard"],
)
def test_shorten_goes_back_until_it_fits_or_is_guarded(box: TestBox, worker: executor.Worker, text: str, said: str, checks: int) -> None:
    apply(box, "shorten")

    ended = run(box, "shorten", {"text": text})

    assert (ended["status"], ended["output"]) == ("completed", said)
    assert [stage["name"] for stage in ended["stages"]].count("check") == checks
    notes = [stage["note"] for stage in ended["stages"] if "note" in stage]
    assert [note.startswith("The loop guard") for note in notes] == [True] * (checks == 6)


# ── when, input_schema ──────────────────────────────────────────────────────────────────────────────────────────────


def test_release_skips_what_is_not_needed(box: TestBox, worker: executor.Worker) -> None:
    apply(box, "release")

    staging = run(box, "release", {"environment": "staging", "version": "1.4.0"})
    production = run(box, "release", {"environment": "production", "version": "1.4.0", "migrate": True})

    assert staging["output"] == {"said": "staging runs 1.4.0", "migrate": "skipped", "announced": None}
    assert [stage["status"] for stage in staging["stages"]] == ["skipped", "completed", "skipped"]
    assert production["output"] == {
        "said": "production runs 1.4.0",
        "migrate": "completed",
        "announced": "production runs 1.4.0, and everybody knows",
    }


def test_release_refuses_what_does_not_fit(box: TestBox) -> None:
    apply(box, "release")

    with pytest.raises(Invalid) as fault:
        box.accept("release", input={"environment": "prod", "version": "v1"})

    assert sorted(each.pointer for each in fault.value.errors) == ["/input/environment", "/input/version"]


# ── prompt ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class GitHub:
    """What GitHub was asked: (method, path, headers, JSON)."""

    base: str = ""
    asked: list[tuple[str, str, dict[str, str], Any]] = dataclasses.field(default_factory=list)


@pytest.fixture
def github() -> Iterator[GitHub]:
    """A local GitHub: gives the diff of any pull request, takes comments."""
    made = GitHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, "text/plain; charset=utf-8", DIFF)

        def do_POST(self) -> None:
            self._answer(201, "application/json", '{"id": 1}')

        def _answer(self, status: int, content_type: str, text: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            made.asked.append((self.command, self.path, headers, json.loads(body) if body else None))
            self.send_response(status if headers.get("authorization") == f"Bearer {TOKEN}" else 401)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    made.base = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()


PULL_REQUEST = {
    "action": "opened",
    "number": 7,
    "pull_request": {"title": "Count `two` of them"},
    "repository": {"name": "shop", "owner": {"login": "ada"}},
}


@pytest.fixture
def reviewing(settings: dict[str, str]) -> None:
    """The secrets of the example, as the service gets them."""
    settings |= {"ORQO_SECRET_GITHUB_HOOK": SECRET, "ORQO_SECRET_GITHUB_TOKEN": TOKEN}


def told_by_github(box: TestBox, client: Any, event: dict[str, Any], *, kind: str = "pull_request") -> Any:
    body = json.dumps(event).encode()
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": kind, "X-Hub-Signature-256": signature, "Content-Type": "application/json"}
    return client.post(box.hook("review-pull-request", "github"), data=body, headers=headers)


def test_a_pull_request_is_reviewed_and_the_review_posted_back(
    reviewing: None, box: TestBox, client: Any, models: ModelServer, github: GitHub
) -> None:
    apply(box, "review-pull-request", ("https://api.github.com", github.base))
    models.replies = [chooses("needs_work", "x: two is not one.")]

    answer = told_by_github(box, client, PULL_REQUEST)
    executor.work()

    ended = box.run(answer.json["workflow_run_id"])
    assert (answer.status_code, ended["status"], ended["output"]) == (201, "completed", "x: two is not one.")
    assert models.messages[1] == ("user", "Count `two` of them\n\n" + DIFF.removesuffix("\n"))
    assert [(method, path) for method, path, *_ in github.asked] == [
        ("GET", "/repos/ada/shop/pulls/7"),
        ("POST", "/repos/ada/shop/issues/7/comments"),
    ]
    assert github.asked[0][2]["accept"] == "application/vnd.github.diff"
    assert github.asked[1][3] == {"body": "**Automatic review**\n\nx: two is not one."}
    assert ended["stages"][1]["usage"]["total_tokens"] == 15
    assert TOKEN not in json.dumps(ended)


def test_a_pull_request_that_is_approved_gets_no_comment(
    reviewing: None, box: TestBox, client: Any, models: ModelServer, github: GitHub
) -> None:
    apply(box, "review-pull-request", ("https://api.github.com", github.base))
    models.replies = [chooses("approved", "Nothing to say.")]

    answer = told_by_github(box, client, PULL_REQUEST)
    executor.work()

    assert box.run(answer.json["workflow_run_id"])["status"] == "completed"
    assert [method for method, *_ in github.asked] == ["GET"]


def test_other_events_start_no_review(reviewing: None, box: TestBox, client: Any) -> None:
    apply(box, "review-pull-request")

    answers = [told_by_github(box, client, PULL_REQUEST | {"action": "closed"}), told_by_github(box, client, {"zen": "x"}, kind="ping")]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert box.rows("SELECT id FROM runs") == []


@pytest.fixture
def slack(worker: executor.Worker) -> Iterator[Inbox]:
    """A receiver that stands for Slack, known to the worker as the example's secret."""
    with inbox() as receiver:
        worker.secrets = SecretStore({"SLACK_URL": receiver.url("/services/x")})
        yield receiver


def alert(severity: str) -> dict[str, Any]:
    labels = {"alertname": "DiskFull", "severity": severity}
    return {"status": "firing", "commonLabels": labels, "commonAnnotations": {"summary": "99 %"}}


@pytest.mark.parametrize(
    ("severity", "choice", "texts", "output"),
    [
        ("critical", None, ["An alert that cannot wait"], {"outcome": None, "paged": "completed", "reported": "skipped"}),
        ("warning", "page", ["An alert that cannot wait"], {"outcome": "page", "paged": "completed", "reported": "skipped"}),
        ("warning", "report", ["An alert for the morning"], {"outcome": "report", "paged": None, "reported": "completed"}),
        ("info", "ignore", [], {"outcome": "ignore", "paged": None, "reported": None}),
    ],
    ids=["critical", "page", "report", "ignore"],
)
def test_alerts_go_where_the_model_says(
    box: TestBox, models: ModelServer, slack: Inbox, severity: str, choice: str | None, texts: list[str], output: Any
) -> None:
    apply(box, "sort-alerts")
    models.replies = [chooses(choice, "A reason.")] if choice else []

    ended = run(box, "sort-alerts", alert(severity))

    assert (ended["status"], ended["output"]) == ("completed", output)
    assert [arrived.json["text"] for arrived in slack.arrived] == texts
    assert len(models.asked) == (choice is not None)


def test_an_alert_is_told_even_where_no_model_answers(box: TestBox, models: ModelServer, slack: Inbox) -> None:
    apply(box, "sort-alerts")
    models.otherwise = lambda request: refuses(401, "no")

    ended = run(box, "sort-alerts", alert("warning"))

    assert (ended["status"], [stage["status"] for stage in ended["stages"]]) == ("completed", ["failed", "completed", "skipped"])
    assert slack.arrived[0].json["blocks"][0]["text"]["text"] == "DiskFull: "
