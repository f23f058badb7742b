"""Every file of examples/ is run as its reader would run it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from orqo import definition
from orqo.config import PROJECT_DIR
from support import Service, wait_for

EXAMPLES = sorted((PROJECT_DIR / "examples").glob("*.yaml"))
PUSH = {"ref": "refs/heads/main", "pusher": {"name": "ada"}, "commits": [{}, {}]}
# What each example ends with when it is given the input beside it.
EXPECTED: dict[str, tuple[Any, str, Any]] = {
    "hello": ({"name": "Ada"}, "completed", {"greeting": "Hello, Ada!"}),
    "github-push": (PUSH, "completed", "ada pushed 2 commit(s) to main"),
    "page-size": (None, "completed", {"page": {"status": "ok"}, "bytes": 16, "status": 200}),
    "fails": (None, "failed", ""),
}


def test_every_example_is_expected_something_of() -> None:
    assert {path.stem for path in EXAMPLES} == set(EXPECTED)


@pytest.fixture
def results(service: Service) -> dict[str, Any]:
    """The ended run of each example, all started at once."""
    started = {}
    for path in EXAMPLES:
        # The example fetches from a box on the default port; this one has another.
        text = path.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", service.url)
        service.box.apply(text, folder=path.parent)
        wanted = {"workflow": definition.parse(text).name, "input": EXPECTED[path.stem][0]}
        headers = {"Authorization": f"Bearer {service.box.token('trigger')}"}
        answer = requests.post(service.url + "/api/v1/trigger", json=wanted, headers=headers, timeout=10)
        started[path.stem] = answer.json()["workflow_run_id"]
    return {name: wait_for(lambda run_id=run_id: ended(service, run_id), what=name) for name, run_id in started.items()}


def ended(service: Service, run_id: int) -> dict[str, Any] | None:
    run = service.box.run(run_id)
    return run if run["finished_at"] else None


def test_each_example_ends_as_it_says(results: dict[str, Any]) -> None:
    seen = {name: (run["status"], run["output"]) for name, run in results.items()}

    assert seen == {name: (status, output) for name, (_, status, output) in EXPECTED.items()}, json.dumps(results, indent=1)


def test_the_failing_example_says_why(results: dict[str, Any]) -> None:
    run = results["fails"]

    assert run["error"]["reason"] == "stage_failed"
    assert run["error"]["stage"] == "break"
    assert [stage["name"] for stage in run["stages"]] == ["prepare", "break"]
    assert run["stages"][1]["stderr"] == "the reason stands on stderr\n"
    assert run["stages"][1]["exit_code"] == 3
