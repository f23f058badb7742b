"""The examples of examples/waiting/, each run as its reader would run it, with real services on the other side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from sqlalchemy import text

from inbox import Inbox, inbox
from orqo import clock
from orqo.config import PROJECT_DIR
from support import Service, wait_for

FOLDER = PROJECT_DIR / "examples" / "waiting"
TRIED = {"nightly-report", "publish-report", "alert-triage", "ask-another-orqo", "deploy"}
ALERT = {"status": "firing", "commonLabels": {"alertname": "DiskFull", "severity": "critical", "instance": "db-1"}}


def test_each_example_is_tried_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == TRIED


@pytest.fixture
def slack() -> Iterator[Inbox]:
    with inbox() as made:
        yield made


@pytest.fixture
def settings(settings: dict[str, str], slack: Inbox) -> dict[str, str]:
    """The secrets that the examples name; the other box is this one, which may call itself."""
    box = f"http://127.0.0.1:{settings['ORQO_PORT']}"
    secrets = {"SLACK_URL": slack.url("/services/T0/B0/key"), "OTHER_ORQO": box, "OTHER_TOKEN": "orqo_" + "o" * 43}
    return settings | {f"ORQO_SECRET_{name}": value for name, value in secrets.items()} | {"ORQO_ALLOWED_NETWORKS": "127.0.0.0/8"}


@pytest.fixture
def apply(service: Service) -> Callable[..., None]:
    def applied(*names: str) -> None:
        for name in names:
            service.box.apply((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), folder=FOLDER)

    return applied


def ended(service: Service, run_id: int) -> dict[str, Any]:
    wait_for(lambda: service.box.run(run_id)["finished_at"], within_s=15, what=f"the end of run {run_id}")
    return service.box.run(run_id)


def test_the_nightly_report_fires_is_chained_and_keeps_its_file(service: Service, apply: Callable[..., None]) -> None:
    apply("publish-report", "nightly-report")
    with service.box.database.transaction() as connection:
        connection.execute(text("UPDATE triggers SET next_fire_at = :now"), {"now": clock.to_text(clock.now())})
    wait_for(lambda: service.box.rows("SELECT id FROM runs"), what="the schedule to fire")

    run = ended(service, 1)

    assert run["status"] == "completed", run["error"]
    assert run["output"].startswith("Nightly report: ") and "% of the disk is used" in run["output"]
    assert service.box.rows("SELECT parent_id, status FROM runs WHERE id = 2") == [{"parent_id": 1, "status": "completed"}]
    headers = {"Authorization": f"Bearer {service.box.token('read')}"}
    files = requests.get(f"{service.url}/api/v1/runs/1/artifacts", headers=headers, timeout=5)
    assert [each["path"] for each in files.json()] == ["disk.txt"]


def decide(link: str, outcome: str) -> int:
    """Follow the link and press a button, as a browser does."""
    browser = requests.Session()
    csrf = browser.get(link, timeout=5).text.partition('name="csrf" value="')[2][:64]
    return browser.post(link, data={"csrf": csrf, "outcome": outcome, "by": "Ada"}, timeout=5).status_code


@pytest.mark.parametrize(("outcome", "last"), [("approved", "restarted the service at db-1"), ("rejected", None)])
def test_an_alert_is_decided_by_the_link_in_slack(
    service: Service, apply: Callable[..., None], slack: Inbox, outcome: str, last: str | None
) -> None:
    apply("alert-triage")
    requests.post(service.url + service.box.hook("alert-triage", "alertmanager"), json=ALERT, timeout=5).raise_for_status()
    message = wait_for(lambda: slack.arrived and slack.arrived[0], what="the message in Slack").json

    assert message["blocks"][0]["text"] == {"type": "plain_text", "text": "DiskFull at db-1. Restart the service there?"}
    link = message["blocks"][1]["elements"][0]["url"].replace(service.box.config.base_url, service.url)
    assert decide(link, outcome) == 200
    run = ended(service, 1)

    assert run["status"] == "completed"
    assert [stage["name"] for stage in run["stages"]] == ["triage", "decide", *(["restart"] if last else [])]
    assert run["stages"][1]["outcome"] == outcome
    assert last is None or run["output"] == last
    assert message["text"] and wait_for(lambda: len(slack.arrived) == 2, what="the second message")


def test_an_alert_that_is_not_critical_bothers_nobody(service: Service, apply: Callable[..., None]) -> None:
    apply("alert-triage")
    mild = ALERT | {"commonLabels": {"severity": "info"}}
    requests.post(service.url + service.box.hook("alert-triage", "alertmanager"), json=mild, timeout=5).raise_for_status()

    assert [stage["name"] for stage in ended(service, 1)["stages"]] == ["triage"]


def test_another_orqo_is_asked(service: Service, apply: Callable[..., None]) -> None:
    service.box.token("trigger", token="orqo_" + "o" * 43)
    apply("ask-another-orqo")
    run_id = service.box.accept("ask-another-orqo", input={"name": "Ada"})
    service.box.bell.wake_workers()

    run = ended(service, run_id)

    assert (run["status"], run["output"]) == ("completed", "The other box says: Hello, Ada"), run["error"]


def test_a_newer_deployment_replaces_the_one_under_way(service: Service, apply: Callable[..., None]) -> None:
    apply("deploy")
    ids = []
    for version in ("1", "2"):
        ids.append(service.box.accept("deploy", input={"service": "shop", "version": version}))
        service.box.bell.wake_workers()
        wait_for(lambda: service.box.run(ids[-1])["status"] == "waiting", what="it to settle")
    other = service.box.accept("deploy", input={"service": "blog", "version": "9"})
    service.box.bell.wake_workers()

    assert [ended(service, each)["status"] for each in [*ids, other]] == ["stopped", "completed", "completed"]
    assert service.box.run(ids[1])["output"] == {"service": "shop", "version": "2", "healthy": True}
