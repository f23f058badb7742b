"""The client's own tests, held against a stand-in that fails on demand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from client import Callbacks, Orqo, Refused

ORQO_DIR = Path(os.environ.get("ORQO_DIR", "orqo"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORT, RECEIVER_PORT = free_port(), free_port()
BASE, RECEIVER = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{RECEIVER_PORT}/callback"
TOKEN = "orqo_" + "test" * 10 + "abc"
SECRET = "for the client's own tests"
HOOK = "/api/v1/hooks/stand-in-webhook-0123456789012345678901234-"


@pytest.fixture(scope="session")
def orqo():
    """A stand-in that serves the workflows beside this file, and a client of it."""
    command = [ORQO_DIR / ".venv/bin/python", "-m", "orqo", "dev", Path(__file__).parent / "workflows"]
    env = {"PYTHONPATH": str(ORQO_DIR), "ORQO_PORT": str(PORT), "ORQO_API_TOKEN": TOKEN}
    env |= {"ORQO_SECRET_CALLBACK": SECRET, "ORQO_SECRET_RECEIVER": RECEIVER}
    process = subprocess.Popen(command, env={**os.environ, **env})
    until = time.monotonic() + 60
    while not answers(f"{BASE}/readyz"):
        assert process.poll() is None and time.monotonic() < until, "the stand-in did not start"
        time.sleep(0.1)
    yield Orqo(BASE, TOKEN)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


@pytest.fixture
def callbacks():
    """What takes the callbacks; `statuses` are its answers."""
    taking = Callbacks(SECRET.encode())
    taking.statuses = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = taking.take({name.lower(): value for name, value in self.headers.items()}, body)
            taking.statuses.append(status)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", RECEIVER_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield taking
    server.shutdown()
    server.server_close()


def wait_for(condition, seconds=15):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def events_of(callbacks, run_id):
    return [event["type"] for event in callbacks.events if event["workflow_run_id"] == run_id]


def test_a_run_is_started_and_its_end_is_told(orqo, callbacks):
    run_id = orqo.start(42, {"mode": "good"})
    wait_for(lambda: events_of(callbacks, run_id) == ["run.completed"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 503])
def test_every_refusal_of_the_contract_is_told_as_such(orqo, status):
    client = Orqo(BASE, TOKEN, tries=1)
    with pytest.raises(Refused) as refused:
        client.start(42, None, Prefer=f"code={status}")
    assert refused.value.status == status


def test_an_unknown_workflow_and_a_wrong_token_are_refused(orqo):
    with pytest.raises(Refused, match="404"):
        orqo.start(43)
    with pytest.raises(Refused, match="401"):
        Orqo(BASE, "wrong").start(42)


def test_an_input_that_does_not_fit_is_refused(orqo):
    with pytest.raises(Refused, match="422"):
        orqo.start(42, {"mode": "bad"})


def test_what_fails_for_a_while_is_sent_again(orqo):
    assert orqo.start(42, {"mode": "flaky"}) > 0


def test_what_was_started_before_is_the_same_run(orqo):
    first = orqo.start(42, {"mode": "good"})
    assert orqo.start(42, {"mode": "again"}) == first


def test_a_busy_workflow_is_a_conflict(orqo):
    with pytest.raises(Refused, match="409"):
        orqo.start(42, {"mode": "busy"})


def test_a_slow_answer_is_given_up(orqo):
    with pytest.raises(TimeoutError):
        Orqo(BASE, TOKEN, timeout=0.5).start(42, {"mode": "slow"})


def test_a_callback_that_comes_twice_counts_once(orqo, callbacks):
    run_id = orqo.start(42, {"mode": "twice"})
    wait_for(lambda: callbacks.statuses == [200, 200])
    assert events_of(callbacks, run_id) == ["run.completed"]


def test_a_late_callback_is_waited_for(orqo, callbacks):
    began = time.monotonic()
    run_id = orqo.start(42, {"mode": "late"})
    wait_for(lambda: events_of(callbacks, run_id))
    assert time.monotonic() - began > 2


def test_a_forged_callback_is_refused(orqo, callbacks):
    run_id = orqo.start(42, {"mode": "forged"})
    wait_for(lambda: 401 in callbacks.statuses)
    assert events_of(callbacks, run_id) == []


def test_the_webhook_of_the_settings_starts_it_too(orqo, callbacks):
    answer = urllib.request.urlopen(BASE + HOOK, b"{}", timeout=10)
    assert answer.status == 201
