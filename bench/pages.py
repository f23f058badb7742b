"""The dashboard's pages: server time of each with a small database and with a large one, side by side.

`python -m bench pages [--runs 100000] [--stages 10]`: the large one holds that many runs with that many stages each, a
delivery and an attempt for each run and a full request log, all within the last 48 hours: the most that Home could have to count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from bench import fill
from orqo import apply, clock, create_app, dashboard, db, definition, instance, people, requestlog, triggers, valkey, workflows
from orqo.config import Config
from orqo.models import Run

SMALL_RUNS = 100
REPEATS = 25
REPETITIONS = 20
LIMIT_MS = 100
WORKFLOW = """
name: build
callbacks:
  - {url: "https://ci.example.com/done"}
input_schema: {type: object, properties: {branch: {type: string}, release: {type: boolean}, tags: {type: array}}}
triggers:
  - {name: nightly, schedule: "15 2 * * 1-5", timezone: Europe/Paris}
stages:
  - {name: fetch, command: [git, fetch]}
  - {name: compile, command: [make]}
  - {name: check, command: [make, check], on_error: next}
  - {name: publish, command: [make, publish]}
"""


def main(arguments: list[str]) -> int:
    """Measure and print; exit status 1 where a page of the large database takes 100 ms or more."""
    parser = argparse.ArgumentParser(prog="python -m bench pages", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--stages", type=int, default=10)
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder, valkey.running(Path(folder)) as redis_url:
        small = _measured(Path(folder) / "small", redis_url, runs=SMALL_RUNS, stages=wanted.stages)
        large = _measured(Path(folder) / "large", redis_url, runs=wanted.runs, stages=wanted.stages)
    print(f"{'page':<44}{SMALL_RUNS:>9,} runs  (first) {wanted.runs:>9,} runs  (first)")
    for path, (median_ms, first_ms) in large.items():
        print(f"{path:<44}{small[path][0]:>11.1f} ms {small[path][1]:>6.0f} ms {median_ms:>11.1f} ms {first_ms:>6.0f} ms")
    return int(any(median_ms >= LIMIT_MS for median_ms, _ in large.values()))


def _measured(data: Path, redis_url: str, *, runs: int, stages: int) -> dict[str, tuple[float, float]]:
    """Give each page's median and first time in ms, by a path in which the newest run's id is `<id>`."""
    config = Config.from_environ({"ORQO_DATA": str(data), "REDIS_URL": redis_url})
    database = db.Database.open(config.database_url)
    db.initialise(database)
    key = instance.establish(database, config, now=clock.now())
    workflow, token = _made(database, key)
    began = time.monotonic()
    fill.history(data / "orqo.db", workflow, runs=runs, stages=stages, now=clock.now(), over=timedelta(hours=48))
    fill.requests(data / "orqo.db", workflow["trigger_id"], count=min(runs, requestlog.KEPT_MAX), now=clock.now())
    with database.transaction() as connection:
        # The newest run was repeated, by runs that are as far away as can be.
        connection.execute(update(Run).where(Run.id <= REPETITIONS).values(rerun_of=runs))
    print(f"filled with {runs:,} runs and {runs * stages:,} stages in {time.monotonic() - began:.1f} s")
    app = create_app(config)
    dashboard.warm(app)
    client = app.test_client()
    client.set_cookie("orqo_session", token)
    found = {name: _times(client, path) for name, path in _paths(runs)}
    app.extensions["orqo"].database.close()
    app.extensions["orqo"].bell.close()
    database.close()
    return found


def _made(database: db.Database, key: bytes) -> tuple[dict[str, Any], str]:
    """Make the workflow with its trigger, and a session; gives what `fill` needs and the session's token."""
    now = clock.now()
    with database.transaction() as connection:
        saved = apply.apply(connection, definition.parse(WORKFLOW), key=key, now=now)
        trigger_id = triggers.create(connection, workflow_id=saved.id, name="push", key=key, origin="cli", now=now)
        row = workflows.get(connection, saved.id)
        link = people.make_link(connection, now=now)
    token = people.sign_in_by_link(database, link, None, agent="bench", now=now)
    names = ["fetch", "compile", "check", "publish"]
    return {"id": saved.id, "version_id": row.version_id, "trigger_id": trigger_id, "callback_id": 1, "stages": names}, token


def _paths(newest: int) -> list[tuple[str, str]]:
    """Give each page's name and the path that is asked for."""
    patterns = (
        "/", "/live", "/workflows", "/workflows/build", "/workflows/build/runs", "/workflows/build/runs?status=failed",
        "/workflows/build/runs?status=stopped", "/workflows/build/runs?before=<middle>", "/workflows/build/runs?status=pending",
        "/workflows/build/callbacks", "/runs", "/runs?status=failed", "/runs?status=stopped&before=<middle>", "/runs/<id>",
        "/runs/<id>/live", "/runs/<id>/stages/1/output", "/deliveries", "/deliveries?status=dead", "/deliveries?status=pending",
        "/deliveries/<id>", "/received", "/received/reports", "/received/reports?verdict=refused", "/received/reports?verdict=duplicate",
        "/requests/1", "/workflows/build/runs?input=json", "/workflows/build/runs?verdict=duplicate", "/workflows/build/edit",
        "/new-workflow", "/docs", "/settings/tokens", "/settings/people", "/settings/instance",
    )  # fmt: skip
    return [(each, each.replace("<id>", str(newest)).replace("<middle>", str(newest // 2))) for each in patterns]


def _times(client: Any, path: str) -> tuple[float, float]:
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        response = client.get(path)
        taken.append((time.perf_counter() - began) * 1000)
        if response.status_code != 200:
            raise SystemExit(f"{path} answered {response.status_code}")
    return statistics.median(taken[1:]), taken[0]
