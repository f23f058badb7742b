"""A service for browsers: real processes on a box of its own, Chromium, and a box that has been lived in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Browser, Page, Playwright

from bench import fill
from orqo import clock, db, definition, instance, people, runs, triggers, valkey, workflows
from orqo.config import Config
from orqo.queue import Bell
from support import Service, TestBox, free_port, wait_for

CHROMIUM = next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
SHOP_SECRET = "It's a Secret to Everybody"
TRIAGE = """name: triage
description: Sorts what comes in
stages:
  - name: read
    command: [echo, "${input.subject?}"]
  - name: judge
    stub: {outcome: needs_work}
    outcomes: [approved, needs_work, spam]
    routing: {needs_work: rework, spam: end}
  - name: publish
    stub: {}
    on_error: next
  - name: rework
    stub: {}
    on_error: read
"""
HELLO = """name: hello
description: Greets whoever is named in the input
stages:
  - name: greet
    stub: {output: {greeting: "Hello, ${input.name?}"}}
"""
RELEASE = """name: release
description: Builds what was pushed, checks it, and publishes it
timeout: 15m
callbacks:
  - url: "BASE/api/v1/callback"
  - url: "http://127.0.0.1:9/ci"
    events: [failed]
stages:
  - name: fetch
    command: [echo, "cloned ${input.repository?}"]
  - name: compile
    script: |
      echo "cc -O2 main.c" >&2
      sleep 0.4
      echo '{"artifact": "app-1.4.2.tar.gz", "bytes": 184223}'
    output: json
    timeout: 2m
  - name: check
    script: |
      sleep 0.2
      if [ "$ORQO_RUN_ID" = "$FAILING" ]; then echo "FAIL tests/test_api.py::test_limits" >&2; exit 1; fi
      echo "212 passed"
    env: {FAILING: "${input.failing?}"}
    retry: {attempts: 2, delay: 300ms}
    on_error: report
  - name: publish
    stub: {output: {url: "https://dl.example.com/app-1.4.2.tar.gz"}, delay: 300ms}
  - name: report
    command: [echo, "done"]
"""
SLOW = """name: nightly-import
description: Takes its time
stages:
  - name: download
    stub: {output: {rows: 1840000}, delay: 500ms}
  - name: import
    stub: {output: {ok: true}, delay: 10m}
  - name: index
    stub: {output: {ok: true}, delay: 1s}
"""
DEPLOY = """name: deploy
description: Ships a build once somebody has said yes
triggers:
  - {name: weekly, schedule: "15 6 * * 1", timezone: Europe/Paris, input: {version: next}}
stages:
  - {name: build, stub: {output: {image: "app:${input.version}"}}}
  - name: sign-off
    approval: {message: "Put version ${input.version} in front of everybody?\\nIt was built from main.", timeout: 8h}
  - {name: roll-out, stub: {output: {ok: true}}, when: {stages.sign-off.outcome: approved}}
  - {name: announce, workflow: {name: hello, input: {name: "${stages.build.output.image}"}}}
"""
ORDER = """name: book-order
description: Books what a shop sold
input_schema:
  type: object
  required: [customer, amount, express]
  properties:
    customer: {type: string, title: Customer, minLength: 2, description: Whoever pays for it}
    amount: {type: integer, title: Amount, minimum: 1, maximum: 100, default: 1}
    size: {title: Size, enum: [small, medium, large]}
    due: {type: string, format: date, title: Due}
    express: {type: boolean, title: Send it by express}
    gift: {type: boolean, title: Wrap it as a gift}
    address: {type: object, title: Address, required: [city], properties: {city: {type: string}}}
stages:
  - {name: book, stub: {output: {customer: "${input.customer}", amount: "${input.amount}"}}}
"""
REVIEW = """name: review
description: Waits for somebody else's verdict
stages:
  - {name: send, stub: {output: sent}}
  - {name: verdict, wait: {timeout: 2h}, outcomes: [good, bad], routing: {bad: end}}
  - {name: publish, stub: {output: "${stages.verdict.output}"}}
"""
FLAKY = """name: sync-crm
stages:
  - name: push
    script: |
      echo "connecting to crm.example.com" >&2
      echo "HTTP 503 after 2 s" >&2
      exit 75
    retry: {attempts: 3, delay: 200ms}
"""


@contextmanager
def service(parts: tuple[str, ...] = ("app", "worker"), **changes: str) -> Iterator[Service]:
    """Run web, worker and a Valkey of their own on a fresh box."""
    with tempfile.TemporaryDirectory(prefix="orqo-browser-") as folder, valkey.running(Path(folder)) as redis_url:
        Path(folder).chmod(0o711)
        settings = {"ORQO_DATA": f"{folder}/data", "REDIS_URL": redis_url, "ORQO_PORT": str(free_port()), "ORQO_WORKERS": "2"}
        settings |= {"ORQO_SECRET_SHOP": SHOP_SECRET, **changes}
        box = _box(settings)
        env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}
        made = Service(box, env, log=Path(folder) / "service.log")
        for part in parts:
            made.start(part)
        try:
            made.wait_ready(path="/readyz" if "worker" in parts else "/healthz")
            yield made
        finally:
            for name in list(made.processes):
                made.stop(name)
            box.bell.close()
            box.database.close()


def _box(settings: dict[str, str]) -> TestBox:
    config = Config.from_environ(settings)
    config.data.mkdir(mode=0o711)
    database = db.Database.open(config.database_url)
    db.initialise(database)
    key = instance.establish(database, config, now=clock.now())
    box = TestBox(config, database, key, Bell.of(config, key))
    box.apply(HELLO)
    return box


def launch(playwright: Playwright) -> Browser:
    """Start the system's Chromium."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))


def link(box: TestBox) -> str:
    """Make a sign-in link."""
    with box.database.transaction() as connection:
        return people.link_url(box.config.base_url, people.make_link(connection, now=clock.now()))


def sign_in(page: Page, box: TestBox) -> None:
    """Sign a browser in by a link."""
    page.goto(link(box))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")


# ── a box that has been lived in ────────────────────────────────────────────────────────────────────────────────────


def live_in(made: Service) -> dict[str, int]:
    """Fill a box with a past and a present; gives the ids of runs worth looking at."""
    box = made.box
    for source in (TRIAGE, RELEASE.replace("BASE", made.url), SLOW, FLAKY, DEPLOY, ORDER, REVIEW):
        box.apply(source)
    hooks = {name: box.hook("release", name) for name in ("github", "cron")} | {"hello": box.hook("hello", "example")}
    _past(box)
    ids = {"failed": fire(made, box.hook("sync-crm", "crm"), {"account": "acme", "changes": 42})}
    wait_for(lambda: box.run(ids["failed"])["finished_at"])
    ids["detour"] = fire(made, hooks["github"], {"repository": "acme/app", "failing": str(ids["failed"] + 1)})
    ids["completed"] = fire(made, hooks["github"], {"repository": "acme/app", "ref": "refs/heads/main", "pusher": {"name": "anna"}})
    for name in ("world", "anna", "box"):
        fire(made, hooks["hello"], {"name": name})
    ids["hello"] = fire(made, hooks["hello"], {"name": "world"})
    wait_for(lambda: all(box.run(each)["finished_at"] for each in ids.values()))
    ids["running"] = fire(made, box.hook("nightly-import", "nightly"), {"since": "2026-01-01"})
    wait_for(lambda: len(box.run(ids["running"])["stages"]) == 2)
    arrived = wait_for(lambda: box.rows("SELECT id FROM requests WHERE endpoint = 'callback'"), what="a callback that arrived")
    ids["received"] = arrived[0]["id"]
    ids |= _refused(made)
    ids["decided"] = fire(made, box.hook("deploy", "ci"), {"version": "2.7.0"})
    _decide(box, ids["decided"], "rejected")
    ids["asking"] = fire(made, box.hook("deploy", "ci"), {"version": "2.7.1"})
    wait_for(lambda: box.run(ids["decided"])["finished_at"] and box.run(ids["asking"])["status"] == "waiting")
    ids |= _repeated(box, ids["failed"]) | _reported(made)
    with box.database.transaction() as connection:
        options = definition.parse_schedule("30 7 * * 1-5", zone="Europe/Paris", value={"customer": "Ada"}).options
        row = workflows.get(connection, "book-order")
        triggers.create(connection, workflow_id=row.id, name="mornings", key=box.key, origin="dashboard", now=clock.now(), options=options)
    box.token("trigger", "read")
    box.token("read", expires_at=clock.now() + timedelta(days=30))
    return ids


def _repeated(box: TestBox, run_id: int) -> dict[str, int]:
    """Repeat a run."""
    with box.database.transaction() as connection:
        made = runs.rerun(box.box, connection, run_id, origin="dashboard", now=clock.now())
    box.bell.wake_workers()
    wait_for(lambda: box.run(made)["finished_at"])
    return {"repetition": made}


def _reported(made: Service) -> dict[str, int]:
    """Let a run wait for a report, and refuse one that does not fit."""
    box = made.box
    run_id = fire(made, box.hook("review", "outside"), {"document": 12})
    wait_for(lambda: box.run(run_id)["status"] == "waiting")
    report = {"workflow_run_id": run_id, "stage": "verdict", "status": "completed", "outcome": "splendid"}
    headers = {"Authorization": f"Bearer {box.token('callback')}", "User-Agent": "Reviewer/2"}
    answer = requests.post(f"{made.url}/api/v1/callback", json=report, headers=headers, timeout=10)
    assert answer.status_code == 422, answer.text
    return {"reporting": run_id, "misreport": int(box.rows("SELECT max(id) AS id FROM requests")[0]["id"])}


def _refused(made: Service) -> dict[str, int]:
    """Let a shop's webhook refuse what is signed in another spelling, and pass over what its filter does not want."""
    box, hook = made.box, made.box.hook("deploy", "shop")
    asked = {"signature": {"header": "X-Shop-Signature", "encoding": "hex"}, "secret": "${secrets.SHOP}", "rate": "60/m"}
    set_options(box, hook, webhook=asked, filter={"input.event": "order.paid"})
    body = json.dumps({"event": "order.paid", "order": {"id": 1042, "total": "129.00", "currency": "EUR"}}).encode()
    other = body.replace(b"paid", b"sent")
    send(made, hook, other, {"X-Shop-Signature": digest(other).hex()}, status=200)
    token = box.token("trigger")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    assert requests.post(f"{made.url}/api/v1/trigger", data=b'{"workflow": "deploy",}', headers=headers, timeout=10).status_code == 400
    send(made, hook, body, {"X-Shop-Signature": base64.b64encode(digest(body)).decode()}, status=401)
    return {"refused": int(box.rows("SELECT max(id) AS id FROM requests WHERE verdict = 'refused'")[0]["id"])}


def set_options(box: TestBox, hook: str, **asked: Any) -> None:
    """Let the webhook of a path ask this, in a file's keys."""
    with box.database.transaction() as connection:
        row = triggers.find(connection, hook.rpartition("/")[2])
        assert row is not None
        triggers.set_options(connection, row.id, options=definition.parse_trigger("x", **asked).options)


def digest(body: bytes) -> bytes:
    """Sign a body as the shop does."""
    return hmac.digest(SHOP_SECRET.encode(), body, hashlib.sha256)


def send(made: Service, hook: str, body: bytes, headers: dict[str, str], *, status: int) -> None:
    """POST bytes to a webhook."""
    told = {"Content-Type": "application/json", "User-Agent": "Shop-Hookshot/3.1", **headers}
    answer = requests.post(made.url + hook, data=body, headers=told, timeout=10)
    assert answer.status_code == status, answer.text


def _decide(box: TestBox, run_id: int, outcome: str) -> None:
    wait_for(lambda: box.run(run_id)["status"] == "waiting")
    with box.database.transaction() as connection:
        wait = runs.wait_of(connection, run_id)
        runs.answer(box.box, connection, wait, runs.Answer("completed", outcome=outcome), by="Anna", now=clock.now())
    box.bell.wake_workers()


def fire(made: Service, hook: str, given: Any) -> int:
    """POST to a webhook and give the run's id."""
    answer = requests.post(made.url + hook, data=json.dumps(given), headers={"Content-Type": "application/json"}, timeout=10)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["workflow_run_id"])


def _past(box: TestBox) -> None:
    """Write two days of runs for three workflows."""
    with box.database.read() as connection:
        rows = {name: workflows.get(connection, name) for name in ("hello", "release", "sync-crm")}
        hooks = {row["workflow"]: row["id"] for row in triggers.list_all(connection)}
    path = db.sqlite_path(box.database)
    assert path is not None
    for seed, (name, count) in enumerate((("hello", 260), ("release", 120), ("sync-crm", 60))):
        workflow = {"id": rows[name].id, "version_id": rows[name].version_id, "trigger_id": hooks.get(name), "stages": ["step"]}
        options = {"now": clock.now() - timedelta(minutes=9), "over": timedelta(hours=47), "seed": seed, "uneven": True}
        fill.history(path, workflow, runs=count, stages=1, **options)
