"""/healthz and /readyz: what supervisors are told, and the form of errors on every path."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from sqlalchemy import text

import postgresql
from http_api import check_problem, raw, request
from orqo import db
from support import Service, TestBox, sqlite_only, wait_for


def ready(service: Service) -> requests.Response:
    return requests.get(service.url + "/readyz", timeout=10)


def test_a_process_that_answers_is_healthy_whatever_else_is_away(web: Service) -> None:
    with web.box.database.transaction():
        answer = requests.get(web.url + "/healthz", timeout=1)

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_without_a_worker_the_service_is_not_ready_and_says_what_to_start(web: Service) -> None:
    answer = raw(web, request("GET", "/readyz"))

    assert "worker.py" in check_problem(answer, 503)["detail"]
    assert answer.headers["retry-after"]


def test_with_all_its_parts_the_service_is_ready_and_without_a_worker_not(service: Service) -> None:
    assert (ready(service).status_code, ready(service).json()) == (200, {"status": "ready"})

    service.stop("worker")
    assert wait_for(lambda: ready(service).status_code == 503, within_s=5)


@sqlite_only
def test_with_its_database_locked_the_service_is_not_ready(service: Service) -> None:
    with service.box.database.transaction():
        answer = ready(service)

    assert (answer.status_code, "database is locked" in answer.json()["detail"]) == (503, True)


def test_every_reason_is_told_at_once(settings: dict[str, str], request: pytest.FixtureRequest, tmp_path: Any) -> None:
    settings["ORQO_DISK_FREE_MIN"] = "999999GiB"
    settings["REDIS_URL"] = f"unix://{tmp_path}/nobody"
    client = request.getfixturevalue("client")

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert "ORQO_DISK_FREE_MIN" in answer.json["detail"] or postgresql.IS_WANTED
    assert "Redis" in answer.json["detail"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_health_is_read_only(web: Service, path: str, method: str) -> None:
    answer = raw(web, request(method, path))

    check_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_path_outside_the_api_is_a_page(web: Service) -> None:
    answer = raw(web, request("GET", "/no/such/page<script>"))

    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert b"<script>" not in answer.body


def test_a_fault_of_ours_is_told_by_an_id_alone(box: TestBox, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    token = box.token("read")
    run_id = box.accept(input="hunter2hunter2")
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE runs SET metadata = 'no json'"))
    client.application.testing = False

    answer = client.get(f"/api/v1/runs/{run_id}", headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
    fault_id = answer.json["detail"].split()[-1].rstrip(".")
    assert f"id={fault_id}" in caplog.text
    assert "Traceback" not in answer.text
    assert "hunter2" not in answer.text


def test_a_box_whose_database_is_of_another_version_does_not_answer(box: TestBox, request: pytest.FixtureRequest) -> None:
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))

    with pytest.raises(db.SchemaMismatch, match="newer release"):
        request.getfixturevalue("client")
