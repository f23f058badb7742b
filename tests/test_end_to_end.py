"""The whole service as real processes: nothing accepted is lost while workers die and Redis forgets."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import standardwebhooks
from redis import Redis

from orqo import signing, valkey
from orqo.config import PROJECT_DIR
from support import Service, wait_for

PAYLOADS = PROJECT_DIR / ".cache" / "octokit" / "package" / "api.github.com" / "index.json"
RUNS = 2000 if os.environ.get("ORQO_TEST_FULL") else 200
TERMINAL = ("completed", "failed", "stopped")


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A real HTTP receiver: its URL, and what arrived as headers and bytes."""
    arrived: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/done", arrived
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def children_of(pid: int) -> list[int]:
    """Give the direct children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def workflow(name: str, url: str, stages: str) -> str:
    return f"name: {name}\ncallbacks: [{{url: '{url}', events: [completed, failed, stopped]}}]\nstages:\n{stages}"


def test_no_run_and_no_callback_is_lost_while_workers_die_and_redis_forgets(service: Service, redis_url: str) -> None:
    chance = random.Random(7)
    with receiver() as (url, arrived):
        service.box.apply(workflow("quick", url, "  - {name: one, stub: {output: '${input}'}}\n  - {name: two, stub: {}}\n"))
        service.box.apply(workflow("script", url, "  - {name: say, script: 'sleep 0.05; echo done', idempotent: true}\n"))
        hook, token = service.url + service.box.hook("script"), service.box.token("trigger")
        faults = faults_between(service, redis_url)
        accepted = []
        for number in range(RUNS):
            if number % (RUNS // 8) == RUNS // 16:
                next(faults, None)
            accepted.append(start(service, hook, token, number, chance))

        wait_for(lambda: all_ended(service, accepted), within_s=60 + RUNS / 20, what="every run ends")
        told = wait_for(lambda: len(ids(arrived)) == RUNS and ids(arrived), within_s=30, what="a callback for each run")

    assert set(told.values()) == set(accepted)
    assert service.box.rows("SELECT id, status, error_reason, error_detail, claims, fence FROM runs WHERE status != 'completed'") == []
    webhook = standardwebhooks.Webhook(signing.derived_secret(service.box.key, url))
    for headers, body in arrived:
        webhook.verify(body, headers)
    # The same event comes with the same id and the same bytes, however often.
    assert len({(headers["webhook-id"], body) for headers, body in arrived}) == RUNS


def start(service: Service, hook: str, token: str, number: int, chance: random.Random) -> int:
    """Start one run by one of the two endpoints and give its id."""
    if chance.random() < 0.5:
        answer = requests.post(hook, json={"number": number}, timeout=5)
    else:
        wanted = {"workflow": "quick", "input": number}
        answer = requests.post(service.url + "/api/v1/trigger", json=wanted, headers={"Authorization": f"Bearer {token}"}, timeout=5)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["workflow_run_id"])


def faults_between(service: Service, redis_url: str) -> Iterator[None]:
    """Kill with -9 four children of the worker and then the worker itself, and empty Redis twice, one at each step."""
    for step in ("child", "child", "flush", "child", "child", "flush", "worker"):
        if step == "flush":
            Redis.from_url(redis_url).flushall()
        elif step == "child":
            os.kill(wait_for(lambda: children_of(service.processes["worker"].pid))[0], signal.SIGKILL)
        else:
            service.stop("worker", signal.SIGKILL)
            service.start("worker")
        yield


def statuses(service: Service, accepted: list[int]) -> list[Any]:
    rows = service.box.rows("SELECT id, status FROM runs")
    assert {row["id"] for row in rows} == set(accepted)
    return rows


def all_ended(service: Service, accepted: list[int]) -> bool:
    return all(row["status"] in TERMINAL for row in statuses(service, accepted))


def ids(arrived: list[tuple[dict[str, str], bytes]]) -> dict[str, int]:
    """Give the run that each webhook-id told of."""
    return {headers["webhook-id"]: json.loads(body)["workflow_run_id"] for headers, body in list(arrived)}


# ── Redis away ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_valkey(tmp_path: Path, settings: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A Valkey of this test's own: its URL and the command that starts it again on the same socket."""
    with valkey.socket_folder() as sockets:
        path = sockets / "s"
        (tmp_path / "valkey").mkdir()
        settings["REDIS_URL"] = valkey.url_of(path)
        yield settings["REDIS_URL"], valkey.command(valkey.needed_program(), folder=tmp_path / "valkey", socket_path=path)


def start_valkey(url: str, command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command)
    wait_for(lambda: valkey.answers(valkey.socket_of(url)), what="Valkey answers")
    return process


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_accepting_goes_on_without_redis_and_the_runs_finish_when_it_is_back(
    away: str, own_valkey: tuple[str, list[str]], request: pytest.FixtureRequest
) -> None:
    url, command = own_valkey
    server = start_valkey(url, command)
    try:
        service = request.getfixturevalue("service")
        hook = service.url + service.box.hook()
        server.kill() if away == "stopped" else server.send_signal(signal.SIGSTOP)

        took_s = []
        for number in range(20):
            began = time.monotonic()
            assert requests.post(hook, json={"number": number}, timeout=5).status_code == 201
            took_s.append(time.monotonic() - began)
        assert requests.get(service.url + "/readyz", timeout=5).status_code == 503
        if away == "stopped":
            server.wait()
            server = start_valkey(url, command)
        else:
            server.send_signal(signal.SIGCONT)

        # Whoever asks Redis each time waits for a quarter of a second each time.
        assert statistics.median(took_s) < 0.25
        unfinished = "SELECT id FROM runs WHERE status != 'completed'"
        wait_for(lambda: not service.box.rows(unfinished), within_s=30, what="all runs complete")
    finally:
        server.send_signal(signal.SIGCONT)
        service.stop("worker")
        service.stop("app")
        server.kill()
        server.wait()


def test_stopping_the_worker_while_redis_is_gone_hands_its_runs_back(
    own_valkey: tuple[str, list[str]], request: pytest.FixtureRequest
) -> None:
    url, command = own_valkey
    server = start_valkey(url, command)
    try:
        service = request.getfixturevalue("service")
        service.box.apply("name: slow\nstages: [{name: one, stub: {delay: 20s}}]\n")
        requests.post(service.url + service.box.hook("slow"), timeout=5).raise_for_status()
        wait_for(lambda: service.box.rows("SELECT id FROM stages WHERE status = 'running'"), what="the stage runs")

        server.kill()
        server.wait()
        service.stop("worker")

        assert [row["status"] for row in service.box.rows("SELECT status FROM runs")] == ["pending"]
    finally:
        service.stop("app")
        server.kill()
        server.wait()


# ── real payloads ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not PAYLOADS.exists(), reason="GitHub's example payloads are not there: npm brings them, see the Makefile")
def test_github_payloads_sent_by_curl_reach_the_script_unchanged(service: Service, tmp_path: Path) -> None:
    service.box.apply(
        "name: payload\nstages:\n  - {name: read, script: cat, output: json, max_output: 4MiB}\noutput: ${stages.read.output.input}\n"
    )
    hook = service.url + service.box.hook("payload")
    events = {event["name"]: event["examples"][0] for event in json.loads(PAYLOADS.read_text(encoding="utf-8"))}
    wanted = {name: events[name] for name in ("push", "pull_request", "ping", "check_run", "issues", "release")}

    for name, payload in wanted.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(payload), encoding="utf-8")
        sent = ["curl", "-sS", "-H", "Content-Type: application/json", "-H", f"X-GitHub-Event: {name}", "--data-binary", f"@{file}", hook]
        answer = json.loads(subprocess.run(sent, check=True, capture_output=True).stdout)
        run = wait_for(lambda run_id=answer["workflow_run_id"]: finished(service, run_id), what=name)

        assert run["status"] == "completed", run["error"]
        assert run["output"] == payload


def finished(service: Service, run_id: int) -> dict[str, Any] | None:
    run = service.box.run(run_id)
    return run if run["finished_at"] else None
