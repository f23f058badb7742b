"""Restarts under load: SIGTERM costs no run, repeats no stage and no callback, and leaves no lease to be waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from inbox import inbox
from support import Service, TestBox, wait_for

RESTARTS = 20 if os.environ.get("ORQO_TEST_FULL") else 2
WORKFLOWS = """
name: quick
callbacks: [{{url: '{url}'}}]
stages: [{{name: one, stub: {{output: '${{input}}'}}}}, {{name: two, stub: {{delay: 30ms}}}}]
---
name: works
callbacks: [{{url: '{url}'}}]
stages:
  - {{name: one, script: 'sleep 0.2; echo "$ORQO_RUN_ID one" >> {effects}'}}
  - {{name: two, script: 'echo "$ORQO_RUN_ID two" >> {effects}'}}
"""
HELD = "SELECT id FROM runs WHERE status = 'running' OR lease_owner IS NOT NULL"
ENDED = "SELECT count(*) AS count FROM runs WHERE finished_at IS NOT NULL"
SENDING = "SELECT id FROM deliveries WHERE lease_owner IS NOT NULL"


@dataclass
class Load:
    """A client that starts runs, each with its key until it is acknowledged, from a few threads until told to end."""

    url: str
    token: str
    accepted: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def send(self, sender: int) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            self._until_acknowledged(f"{sender}-{number}", "works" if number % 5 == 0 else "quick")
            time.sleep(0.15)

    def _until_acknowledged(self, key: str, workflow: str) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        while not self.over.is_set():
            try:
                answer = requests.post(f"{self.url}/api/v1/trigger", json={"workflow": workflow}, headers=headers, timeout=15)
            except requests.RequestException:
                answer = None
            if answer is not None and answer.status_code in (200, 201):
                self.accepted[key] = answer.json()["workflow_run_id"]
                return
            if answer is not None and answer.status_code != 503:
                self.surprises.append(f"{answer.status_code} {answer.text}")
                return
            time.sleep(0.05)


@dataclass
class Whole:
    """The whole service, as its operators start it."""

    service: Service
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.service.log.open("ab") as log:
            argv = [sys.executable, "-m", "orqo", "serve"]
            self.process = subprocess.Popen(argv, env=self.service.env, stdout=log, stderr=log, cwd=Path(__file__).parents[1])

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            assert self.process.wait(timeout=40) == 0, self.service.log.read_text()
            self.process = None


@dataclass
class WorkerAlone(Whole):
    """The worker, beside a web process that stays."""

    def start(self) -> None:
        if "app" not in self.service.processes:
            self.service.start("app")
        self.service.start("worker")

    def stop(self) -> None:
        if "worker" in self.service.processes:
            assert self.service.stop("worker") == 0, self.service.log.read_text()


@pytest.mark.parametrize("what", [Whole, WorkerAlone])
def test_restarts_under_load_lose_nothing_and_leave_no_lease(
    box: TestBox, settings: dict[str, str], tmp_path: Path, what: type[Whole]
) -> None:
    effects = Path(settings["ORQO_DATA"]).with_name("effects")
    effects.touch()
    effects.chmod(0o666)
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "ORQO_EXAMPLE": "0", **settings}
    service = Service(box, env, log=tmp_path / "service.log")
    restarted, load = what(service), Load(service.url, box.token("trigger"))
    senders = [threading.Thread(target=load.send, args=(number,)) for number in range(4)]
    with inbox() as told:
        for source in WORKFLOWS.format(url=told.url(), effects=effects).split("---\n"):
            box.apply(source)
        try:
            restarted.start()
            service.wait_ready()
            for sender in senders:
                sender.start()
            for _ in range(RESTARTS):
                before = box.rows(ENDED)[0]["count"]
                wait_for(lambda before=before: box.rows(ENDED)[0]["count"] > before + 6, within_s=60, what="runs end")
                restarted.stop()
                # Whoever comes next finds all of it free: there is no lease to wait for.
                assert (box.rows(HELD), box.rows(SENDING)) == ([], [])
                restarted.start()
            service.wait_ready(within_s=60)
            wait_for(lambda: len(load.accepted) > 30, within_s=60, what="there was a load")
            load.over.set()
            for sender in senders:
                sender.join()
            wait_for(lambda: not box.rows("SELECT id FROM runs WHERE finished_at IS NULL"), within_s=60, what="every run ends")
            wait_for(lambda: not box.rows("SELECT id FROM deliveries WHERE status = 'pending'"), within_s=60, what="all is delivered")
        finally:
            load.over.set()
            restarted.stop()
            for name in list(service.processes):
                service.stop(name)

    assert load.surprises == []
    runs = {row["id"]: row for row in box.rows("SELECT r.id, r.status, w.name FROM runs r JOIN workflows w ON w.id = r.workflow_id")}
    # What was not acknowledged when the load ended may be there all the same; what was acknowledged must be.
    assert set(load.accepted.values()) <= set(runs)
    assert len(set(load.accepted.values())) == len(load.accepted)
    assert Counter(row["status"] for row in runs.values()) == {"completed": len(runs)}
    works = {f"{run} {stage}" for run, row in runs.items() if row["name"] == "works" for stage in ("one", "two")}
    assert Counter(effects.read_text().splitlines()) == dict.fromkeys(works, 1)
    assert Counter(each.json["workflow_run_id"] for each in told.arrived) == dict.fromkeys(runs, 1)
