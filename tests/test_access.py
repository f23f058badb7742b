"""Who may call what: every operation of the API by every kind of token, and the tricks that paths can be written with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from orqo import description, tokens
from orqo.api import access
from orqo.description import Operation
from support import TestBox, application, fresh_box, fresh_settings

OTHER = "name: other\ncallbacks: [{url: 'https://x.example.com'}]\nstages:\n  - name: a\n    stub: {output: 1}\n"
FOREIGN = {"run_id", "trigger_id", "delivery_id", "callback_id", "request_id", "name"}
# Their credentials are of other kinds: tests/test_api_{trigger,hooks,callback}.py hold them against theirs.
THE_THREE = ("trigger", "hook", "greetHook", "callback")


def operations() -> list[Operation]:
    """Give the operations that take an API token and nothing else."""
    return [each for each in description.operations().values() if each.id not in THE_THREE and each.scopes]


def ids(operation: Operation) -> str:
    return operation.id


def path_of(operation: Operation, **values: Any) -> str:
    """Give the path with its parameters filled in, `1` where nothing else is said."""
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], "1")), operation.path)


def call(client: Any, operation: Operation, token: str | None, path: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"json": {}} if operation.value.get("requestBody") else {}
    return client.open(path or path_of(operation), method=operation.method, headers=headers, **body)


@pytest.fixture(scope="module")
def box(redis_url: str) -> Iterator[TestBox]:
    """One box for all: what is refused changes nothing."""
    with fresh_settings(redis_url) as settings, fresh_box(settings) as made:
        yield made


@pytest.fixture(scope="module")
def client(box: TestBox) -> Iterator[Any]:
    with application(box.config) as app, app.test_client() as made:
        yield made


@pytest.fixture(scope="module")
def foreign(box: TestBox, client: Any) -> Iterator[dict[str, Any]]:
    """Give a run, a trigger, a delivery, a callback and a request of the workflow `other`."""
    other = box.apply(OTHER)
    hook = box.hook("other", "ci")
    run_id = client.post(hook, json={}).json["workflow_run_id"]
    admin = {"Authorization": f"Bearer {box.token('admin')}"}
    client.post(f"/api/v1/runs/{run_id}/stop", headers=admin)
    nouns = ("triggers", "deliveries", "callbacks", "requests")
    first = {name: client.get(f"/api/v1/{name}", headers=admin).json[0]["id"] for name in nouns}
    yield {
        "name": "other",
        "run_id": run_id,
        "workflow_id": other.id,
        "trigger_id": first["triggers"],
        "delivery_id": first["deliveries"],
        "callback_id": first["callbacks"],
        "request_id": first["requests"],
    }


def test_the_table_and_the_description_say_the_same(client: Any) -> None:
    by_rule = {}
    for rule in client.application.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            by_rule[method, re.sub(r"<[^>]*?(\w+)>", r"{\1}", rule.rule)] = rule.endpoint.rpartition(".")[2]

    for operation in description.operations().values():
        said = access.ACCESS[by_rule[operation.method, operation.path]]
        wanted = access.ITSELF if operation.id in THE_THREE else operation.scopes[0] if operation.scopes else access.PUBLIC
        assert said == wanted, operation.id


@pytest.mark.parametrize("operation", operations(), ids=ids)
def test_without_a_valid_token_there_is_no_answer(client: Any, box: TestBox, operation: Operation) -> None:
    revoked = box.token("admin")
    headers = {"Authorization": f"Bearer {revoked}"}
    newest = client.get("/api/v1/tokens?limit=1", headers=headers).json[0]["id"]
    client.post(f"/api/v1/tokens/{newest}/revoke", headers=headers)

    for token in (None, tokens.mint_api_token(), "x", revoked):
        answer = call(client, operation, token)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("operation", operations(), ids=ids)
def test_a_token_of_every_other_scope_may_not(client: Any, box: TestBox, operation: Operation) -> None:
    (wanted,) = operation.scopes or ()
    others = [scope for scope in tokens.SCOPES if scope not in (wanted, "admin")]

    answer = call(client, operation, box.token(*others))

    assert answer.status_code == 403
    assert wanted in answer.json["detail"]


@pytest.mark.parametrize("operation", [each for each in operations() if FOREIGN & set(re.findall(r"\{(\w+)\}", each.path))], ids=ids)
def test_what_is_foreign_looks_like_what_is_unknown(client: Any, box: TestBox, foreign: dict[str, Any], operation: Operation) -> None:
    limited = box.token("admin", workflow_ids=[1])
    unknown = {name: "999" for name in FOREIGN}
    if operation.id == "putWorkflow":
        text = "name: {}\nstages:\n  - name: a\n    stub: {{output: 2}}\n"
        sent = {"content_type": "application/yaml", "headers": {"Authorization": f"Bearer {limited}"}}
        names = ("other", "unknown")
        answers = [client.put(f"/api/v1/workflows/{name}", data=text.format(name), **sent) for name in names]
    else:
        answers = [call(client, operation, limited, path_of(operation, **values)) for values in (foreign, unknown)]
        names = tuple(path_of(operation, **values) for values in (foreign, unknown))

    assert [answer.status_code for answer in answers] == [404, 404], names
    details = [re.sub(r"\bother\b|\bunknown\b|\d+", "…", answer.json["detail"]) for answer in answers]
    assert details[0] == details[1]


def tricks(path: str) -> Iterator[str]:
    """Give other spellings of a path, none of which may lead past the guard."""
    head, _, tail = path.rpartition("/")
    yield from (f"/{path}", path.replace("/api/v1/", "/api//v1/"), f"{head}//{tail}", f"{path}/", f"{path}//")
    yield from (f"{path};x", f"{head};x/{tail}", f"{path}.", f"{path}..", f"{path}/.", f"{path}/..", f"{head}/./{tail}", f"/x/..{path}")
    yield from (f"{head}%2f{tail}", f"{head}/%2e/{tail}", f"{path}%00", f"{path}%20", f"{path}%0a", f"{path}\\", f"{path}.json")
    yield from (path.upper(), path.replace("/v1/", "/V1/"), path.replace("/api/", "/API/"))


@pytest.mark.parametrize("operation", operations(), ids=ids)
def test_no_other_spelling_of_a_path_leads_past_the_guard(client: Any, box: TestBox, operation: Operation) -> None:
    weak = box.token(*(scope for scope in tokens.SCOPES if scope not in (*(operation.scopes or ()), "admin")))
    before = box.rows("SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM triggers) AS triggers")

    # Two slashes and one name are a host to the test client.
    spellings = [path for path in tricks(path_of(operation, name="hello")) if not re.fullmatch("//[^/]+/*", path)]
    for path in spellings:
        answer = call(client, operation, None, path)
        # A path outside /api is the dashboard's, which sends whoever is not signed in to its sign-in.
        turned_away = answer.status_code == 303 and answer.headers["Location"].startswith("/sign-in")
        assert turned_away or answer.status_code in (401, 404, 405), path
        # %2f is a slash once a WSGI server has decoded it: the same path, and the same guard.
        assert call(client, operation, weak, path).status_code in (303, 403, 404, 405), path
    assert box.rows("SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM triggers) AS triggers") == before


@pytest.mark.parametrize("number", ["0", "01", "+1", "-1", "1.0", "9999999999999999999", "%D9%A1"])
def test_only_one_spelling_of_a_number_is_one(client: Any, box: TestBox, number: str) -> None:
    box.accept()

    answer = client.get(f"/api/v1/runs/{number}", headers={"Authorization": f"Bearer {box.token('read')}"})

    assert answer.status_code == 404


@pytest.mark.parametrize("operation", operations(), ids=ids)
def test_other_methods_are_refused_with_those_that_there_are(client: Any, box: TestBox, operation: Operation) -> None:
    taken = {each.method for each in description.operations().values() if each.path == operation.path} | {"HEAD"}
    # GET is taken by webhooks with a greeting, which this one is not.
    allowed = {"POST"} if operation.id in ("hook", "greetHook") else taken - {"HEAD"}
    headers = {"Authorization": f"Bearer {box.token('admin')}"}

    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - taken:
        answer = client.open(path_of(operation), method=method, headers=headers)
        assert answer.status_code == 405, method
        assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == allowed
