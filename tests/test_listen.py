"""`listen`: what a real box sends is printed and verified; what it did not sign is told apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
import requests

from orqo.config import PROJECT_DIR
from support import Service, TestBox, wait_for


@contextmanager
def listening(env: dict[str, str], *arguments: str) -> Iterator[tuple[str, IO[str]]]:
    """The command as a real process: where it listens, and what it prints."""
    argv = [sys.executable, "-m", "orqo", "listen", "0", "--json", *arguments]
    process = subprocess.Popen(argv, env=env, cwd=PROJECT_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found
        yield found[0], process.stdout
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_callback_that_arrives_is_printed_and_verified(service: Service) -> None:
    with listening(service.env) as (base, printed):
        service.box.apply(f"name: told\ncallbacks: [{{url: '{base}/done'}}]\nstages: [{{name: one, stub: {{output: 7}}}}]\n")
        requests.post(service.url + service.box.hook("told"), timeout=5).raise_for_status()

        told = json.loads(printed.readline())

    assert told["verified"], told
    assert told["url"] == f"{base}/done"
    assert (told["body"]["type"], told["body"]["data"]["output"]) == ("run.completed", 7)


def test_what_this_box_did_not_sign_is_not_verified(box: TestBox, settings: dict[str, str]) -> None:
    with listening(settings) as (base, printed):
        requests.post(base + "/done", json={"type": "run.completed"}, timeout=5)

        told = json.loads(printed.readline())

    assert not told["verified"]
    assert told["reason"]


def test_the_status_is_the_one_that_was_asked_for(box: TestBox, settings: dict[str, str]) -> None:
    with listening(settings, "--status", "503") as (base, _):
        assert requests.post(base + "/done", data=b"{}", timeout=5).status_code == 503


@pytest.mark.parametrize("words", [["x"], ["70000"], ["--status", "99"]])
def test_an_unreadable_argument_is_a_fault_of_usage(box: TestBox, settings: dict[str, str], words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "orqo", "listen", *words], env=settings, cwd=PROJECT_DIR, capture_output=True)

    assert done.returncode == 2


def test_a_failed_callback_can_be_sent_by_hand_with_the_printed_curl_line(service: Service) -> None:
    with listening(service.env) as (base, printed):
        service.box.apply(f"name: told\ncallbacks: [{{url: '{base}/done'}}]\nstages: [{{name: one, stub: {{}}}}]\n")
        requests.post(service.url + service.box.hook("told"), timeout=5).raise_for_status()
        first: Any = json.loads(printed.readline())
        delivery = wait_for(lambda: service.box.rows("SELECT id FROM deliveries WHERE status = 'delivered'"))[0]["id"]
        show = [sys.executable, "-m", "orqo", "delivery", "show", str(delivery), "--curl"]
        line = subprocess.run(show, env=service.env, cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout

        subprocess.run(["bash", "-c", line.replace("curl ", "curl -sS ", 1)], check=True)
        again: Any = json.loads(printed.readline())

    assert again == first
