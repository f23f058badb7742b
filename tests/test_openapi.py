"""openapi.yaml is true: it is valid, each of its examples works as it says, and what schemathesis makes of it finds nothing."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import SkipTest

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.stateful import run_state_machine_as_test
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

import described
from orqo import description, executor
from orqo.description import Operation
from support import TestBox, application, fresh_box, fresh_settings

EXPLORING = settings(
    max_examples=400 if os.environ.get("ORQO_TEST_FULL") else 4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# How many requests were made and held against the description, by what was explored.
CASES: Counter[str] = Counter()
# A workflow's own rules, times that are over and what a run waits for are beyond what a schema can say.
BEYOND_SCHEMAS = (
    *("trigger", "greetHook", "callback", "putWorkflow", "createTrigger", "updateTrigger", "createCallback", "createToken"),
    *("answerRun", "rerunRun", "replayRequest", "redeliverDead"),
)
ANSWERED = """
id: 42
name: answered
stages:
  - name: review
    stub: {output: fine}
  - name: sign-off
    approval: {message: Publish?}
"""
TOLD = "name: told\ncallbacks: [{url: 'https://ci.example.com/done'}]\nstages: [{name: a, stub: {}}]\n"
HELD = """
name: held
triggers:
  - name: closed
    filter: {input.action: opened}
    webhook: {}
stages:
  - name: a
    stub: {output: 1}
"""


def test_the_description_is_valid_openapi() -> None:
    validate(description.load())


@pytest.mark.parametrize("path", ["/api/v1/openapi.json", "/api/v1/openapi.yaml"])
def test_the_description_is_served_to_anybody(client: Any, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 200
    if path.endswith("json"):
        assert answer.json == description.load()
    else:
        assert answer.data == description.OPENAPI_FILE.read_bytes()


def test_each_operation_says_where_it_comes_from_and_who_may() -> None:
    for operation in description.operations().values():
        assert operation.value["x-origin"] in ("documented", "inferred", "ours"), operation.id
        assert "security" in operation.value, operation.id


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────


def examples() -> Iterator[Any]:
    """Give each example of a request body."""
    for operation in description.operations().values():
        for media, content in operation.value.get("requestBody", {}).get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                yield pytest.param(operation, media, example["value"], id=f"{operation.id}-{name}")


@pytest.mark.parametrize(("operation", "media", "value"), list(examples()))
def test_each_example_is_answered_as_described(
    client: Any, box: TestBox, worker: executor.Worker, operation: Operation, media: str, value: Any
) -> None:
    path = re.sub(r"\{\w+\}", lambda found: WORLD[operation.id](client, box), operation.path)
    if operation.id in ("trigger", "createToken"):
        box.apply(ANSWERED)
    if operation.id == "redeliverDead":
        box.apply(TOLD)
    data = value if isinstance(value, str) else json.dumps(value)
    headers = {"Authorization": f"Bearer {box.token('admin')}", "Content-Type": media.replace("*/*", "application/json")}

    answer = client.open(path, method=operation.method, data=data, headers=headers)

    assert answer.status_code < 300, answer.json
    described.check(operation, answer)


def answered(client: Any, box: TestBox) -> str:
    """Give a run that waits at sign-off and has passed review."""
    box.apply(ANSWERED)
    run_id = box.accept("answered")
    executor.work()
    return str(run_id)


def ended(client: Any, box: TestBox) -> str:
    run_id = answered(client, box)
    client.post(f"/api/v1/runs/{run_id}/stop", headers={"Authorization": f"Bearer {box.token('admin')}"})
    return run_id


def ignored(client: Any, box: TestBox) -> str:
    """Give a request that a filter held back, and that it lets pass now."""
    box.apply(HELD)
    client.post(box.hook("held", "closed"), json={"action": "closed"})
    box.apply(HELD.replace("opened", "closed"))
    return str(box.rows("SELECT max(id) AS id FROM requests")[0]["id"])


def made(client: Any, box: TestBox) -> str:
    """Give a webhook that no file names."""
    box.hook()
    return "1"


WORLD: dict[str, Callable[[Any, TestBox], str]] = {
    "hook": lambda client, box: box.hook().rpartition("/")[2],
    "answerRun": answered,
    "rerunRun": ended,
    "replayRequest": ignored,
    "updateTrigger": made,
    "putWorkflow": lambda client, box: "greet",
}


def test_each_example_of_an_answer_fits_its_schema() -> None:
    checked = 0
    for operation in description.operations().values():
        for response in operation.value["responses"].values():
            for content in description.resolved(response).get("content", {}).values():
                root = {**content.get("schema", {}), "components": description.load()["components"]}
                for example in content.get("examples", {}).values():
                    jsonschema_rs.Draft202012Validator(root).validate(example["value"])
                    checked += 1
    assert checked


# ── what a machine makes of it ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def explored(redis_url: str) -> Iterator[TestBox]:
    with fresh_settings(redis_url) as environment, fresh_box(environment) as made:
        made.apply(ANSWERED)
        made.apply(HELD)
        yield made


@pytest.fixture(scope="module")
def api(explored: TestBox) -> Iterator[Any]:
    """The description with the real application, for schemathesis."""
    load_all_checks()
    with application(explored.config) as app:
        loaded = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
        # Every request has a valid token, so a missing one must not count as what is wrong with it.
        loaded.config.generation.update(with_security_parameters=False)
        yield loaded


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "not-fitting"])
@pytest.mark.parametrize("operation", list(description.operations().values()), ids=lambda operation: operation.id)
def test_whatever_is_sent_is_answered_as_described(api: Any, explored: TestBox, operation: Operation, mode: GenerationMode) -> None:
    headers = {"Authorization": f"Bearer {explored.token('admin')}"}

    excluded = [positive_data_acceptance] if operation.id in BEYOND_SCHEMAS else []
    if operation.id == "readyz":
        # No worker runs here, and it says so with 503.
        excluded.append(not_a_server_error)

    @EXPLORING
    @given(case=api[operation.path][operation.method].as_strategy(generation_mode=mode))
    def explore(case: Any) -> None:
        CASES[f"{operation.id} {mode.name}"] += 1
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    CASES[f"{operation.id} {mode.name}"] = 0
    try:
        explore()
    except (Unsatisfiable, SkipTest):
        # Nothing that such an operation takes can be wrong.
        assert mode is GenerationMode.NEGATIVE


class Restarted:
    """A WSGI application that is a new one, on a new box, whenever it is asked to be."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._stack = ExitStack()
        self.token = ""

    def restart(self) -> None:
        self.close()
        environment = self._stack.enter_context(fresh_settings(self._redis_url))
        box = self._stack.enter_context(fresh_box(environment))
        self.token = box.token("admin")
        self._app = self._stack.enter_context(application(box.config))

    def close(self) -> None:
        self._stack.close()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._app(environ, start_response)


def test_whatever_is_done_one_after_the_other_is_answered_as_described(redis_url: str) -> None:
    load_all_checks()
    app = Restarted(redis_url)
    app.restart()
    loaded = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    loaded.config.generation.update(with_security_parameters=False)

    class Following(loaded.as_state_machine()):  # type: ignore[misc]
        """Follows the description's links, from what was made to what can be done with it; each time on a fresh box."""

        def setup(self) -> None:
            app.restart()

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": {"Authorization": f"Bearer {app.token}"}}

        def validate_response(self, response: Any, case: Any, **options: Any) -> None:
            CASES["links"] += 1
            excluded = [positive_data_acceptance, *([not_a_server_error] if case.operation.path == "/readyz" else [])]
            case.validate_response(response, excluded_checks=excluded, headers={"Authorization": f"Bearer {app.token}"})

    examples = 200 if os.environ.get("ORQO_TEST_FULL") else 5
    run_state_machine_as_test(Following, settings=settings(EXPLORING, max_examples=examples, stateful_step_count=8))
    app.close()


@pytest.mark.skipif("not os.environ.get('ORQO_TEST_FULL')", reason="counts the cases of the full set")
def test_the_full_set_has_twenty_thousand_cases_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    if len(CASES) < 2 * len(description.operations()) + 1:
        pytest.skip("counts what all tests of this file tried, in one process")

    with capsys.disabled():
        print(f"\n{CASES.total()} cases of {len(description.operations())} operations, {CASES['links']} of them following links")
    assert CASES.total() >= 20_000
