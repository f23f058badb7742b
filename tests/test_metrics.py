"""/metrics: who may read it, what is in it, counted over all processes, and the files that watch it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from inbox import inbox
from orqo import metrics
from orqo.config import PROJECT_DIR
from support import Service, TestBox, wait_for

DEPLOY = PROJECT_DIR / "deploy"


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Give each sample as (name, label values sorted by label) → value."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}


def read(service: Service, token: str) -> dict[tuple[str, ...], float]:
    answer = requests.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8"), answer.text
    return parsed(answer.text)


@pytest.mark.parametrize(("scopes", "status"), [((), 401), (("trigger",), 403), (("read",), 200), (("admin",), 200)])
def test_a_token_of_scope_read_is_wanted(box: TestBox, client: Any, scopes: tuple[str, ...], status: int) -> None:
    headers = {"Authorization": f"Bearer {box.token(*scopes)}"} if scopes else {}

    assert client.get("/metrics", headers=headers).status_code == status


def test_a_token_for_some_workflows_sees_no_figures_of_all(box: TestBox, client: Any) -> None:
    token = box.token("read", workflow_ids=[1])

    assert client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 403


def test_how_full_the_box_is_comes_from_the_database(box: TestBox, client: Any) -> None:
    for _ in range(3):
        box.accept()
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE runs SET created_at = '2020-01-01T00:00:00.000Z' WHERE id = 1")

    answer = client.get("/metrics", headers={"Authorization": f"Bearer {box.token('read')}"})

    found = parsed(answer.text)
    assert (found["orqo_runs", "pending"], found["orqo_runs", "waiting"], found["orqo_redis_up",]) == (3, 0, 1)
    assert found["orqo_oldest_pending_seconds",] > 1e8


def test_all_processes_are_counted(service: Service) -> None:
    box, token = service.box, service.box.token("trigger", "read")
    with inbox() as done:
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{}}}}]\n")
        box.apply("name: fails\nstages: [{name: one, stub: {fail: no}}]\n")
        for name in ("told", "told", "fails"):
            requests.post(
                f"{service.url}/api/v1/trigger", json={"workflow": name}, headers={"Authorization": f"Bearer {token}"}, timeout=10
            )
        requests.get(f"{service.url}/api/v1/hooks/{'x' * 43}", timeout=10)
        wait_for(lambda: read(service, token).get(("orqo_delivery_attempts_total", "delivered", "delivered")) == 2)
        wait_for(lambda: read(service, token).get(("orqo_runs_ended_total", "failed", "fails")) == 1)

    found = read(service, token)
    assert found["orqo_runs_ended_total", "completed", "told"] == 2
    assert found["orqo_stage_seconds_count", "stub", "completed", "told"] == 2
    assert found["orqo_delivery_lag_seconds_count",] == 2
    assert found["orqo_http_requests_total", "POST", "/api/v1/trigger", "201"] == 3
    assert found["orqo_workers", "busy"] + found["orqo_workers", "idle"] == 2
    assert not [name for sample in found for name in sample if "x" * 43 in name]


def test_without_the_package_the_answer_says_what_to_install(box: TestBox, settings: dict[str, str]) -> None:
    script = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "prometheus_client" else find(name, *rest)
sys.modules["prometheus_client"] = None
from app import app
answer = app.test_client().get("/metrics", headers={"Authorization": "Bearer " + sys.argv[1]})
print(answer.status_code, answer.json["detail"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, box.token("read")], cwd=PROJECT_DIR, env=settings, capture_output=True, text=True, timeout=60
    )

    assert ended.stdout.strip() == f"404 {metrics.HOW_TO_INSTALL}", ended.stderr


def test_what_an_ended_process_left_is_not_counted_again(tmp_path: Path) -> None:
    gone, other = tmp_path / "metrics" / "web-999999999", tmp_path / "metrics" / "worker-999999999"
    for each in (gone, other):
        each.mkdir(parents=True)
    script = f"from pathlib import Path; from orqo import metrics; metrics.begin(Path({str(tmp_path)!r}), 'web')"

    subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, check=True, timeout=60)

    assert (gone.exists(), other.exists()) == (False, True)


# ── the files that watch ────────────────────────────────────────────────────────────────────────────────────────────


def names() -> set[str]:
    """Give the metrics that there are, from where they are made."""
    text = "".join((PROJECT_DIR / "orqo" / path).read_text(encoding="utf-8") for path in ("metrics.py", "api/metrics.py"))
    return set(re.findall(r'"(orqo_[a-z_]+)"', text))


def asked(expression: str) -> set[str]:
    """Give the metrics that an expression names, without what Prometheus puts behind their names."""
    return {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"\borqo_[a-z_]+", expression)}


def test_the_dashboard_and_the_alerts_ask_only_for_what_there_is() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    rules = (DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8")

    assert len(expressions) >= 10
    assert asked(" ".join(expressions) + rules) <= names()
    assert asked(" ".join(expressions)) == names()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_takes_the_alerts() -> None:
    ended = subprocess.run(["promtool", "check", "rules", str(DEPLOY / "prometheus-alerts.yml")], capture_output=True, text=True)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_is_explained_where_operators_read() -> None:
    alerts = re.findall(r"alert: (\w+)", (DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8"))
    text = (PROJECT_DIR / "docs" / "operate.md").read_text(encoding="utf-8")

    assert len(alerts) >= 8
    assert [name for name in alerts if f"`{name}`" not in text] == []
