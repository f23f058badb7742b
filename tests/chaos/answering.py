"""Those who are asked: people and systems that answer waits and approvals, and a model. They keep what they said and were told.

Some say two things at once, some come at the deadline, some after it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import requests

FINAL = (200, 404, 409, 410, 422)
GIVE_UP_S = 90.0
OUTCOMES = ("good", "bad")
# Answers come around the deadline of the workflow `hurries`, and some long after it.
AFTER_S, LATE_AFTER_S = 2.2, 4.0
CONTRADICTED, LATE = 0.3, 0.1


@dataclass(frozen=True)
class Given:
    """One answer that somebody gave to a run's wait, and the status that it was answered with; 0: none in time."""

    run_id: int
    outcome: str
    status: int


@dataclass
class Answerer:
    """Answers each wait that it hears of, over and over until it is told what became of the answer."""

    seed: int
    url: str = ""
    token: str = ""
    given: list[Given] = field(default_factory=list)
    links: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    _threads: list[threading.Thread] = field(default_factory=list)

    def asked(self, body: bytes) -> bytes:
        """Take the request of a `wait` stage, which says where to answer."""
        told = json.loads(body)
        self.links[int(told["run"])].add(told["reply_to"])
        self._answer(int(told["run"]), told["reply_to"], {}, {})
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    def told(self, event: dict[str, Any]) -> None:
        """Take the event `waiting` of an approval, which is answered by API token."""
        if event["type"] == "run.waiting":
            run_id = int(event["workflow_run_id"])
            named = {"workflow_run_id": run_id, "stage": event["data"]["stage"]}
            self._answer(run_id, f"{self.url}/api/v1/callback", named, {"Authorization": f"Bearer {self.token}"})

    def finish(self) -> None:
        """Wait for those who still try."""
        for thread in self._threads:
            thread.join(GIVE_UP_S + 20)

    def _answer(self, run_id: int, url: str, named: dict[str, Any], headers: dict[str, str]) -> None:
        chance = random.Random(f"{self.seed} answer {run_id}")
        outcomes = chance.sample(OUTCOMES, 2)[: 2 if chance.random() < CONTRADICTED else 1]
        after_s = LATE_AFTER_S if chance.random() < LATE else chance.uniform(0.0, AFTER_S)
        for outcome in outcomes:
            body = {**named, "status": "completed", "outcome": outcome, "output": {"said": outcome}}
            thread = threading.Thread(target=self._post, args=(run_id, url, body, headers, after_s), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _post(self, run_id: int, url: str, body: dict[str, Any], headers: dict[str, str], after_s: float) -> None:
        time.sleep(after_s)
        until, status = time.monotonic() + GIVE_UP_S, 0
        while status not in FINAL and time.monotonic() < until:
            try:
                status = requests.post(url, json=body, headers=headers, timeout=15).status_code
            except requests.RequestException:
                status = 0
            if status not in FINAL:
                time.sleep(0.15)
        self.given.append(Given(run_id, body["outcome"], status))


@dataclass
class Model:
    """A server of models that chooses at random, and at times refuses a run's first request."""

    seed: int
    healed: bool = False
    asked: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    said: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def answer(self, body: bytes) -> bytes:
        """Give the answer to a chat completion, whose last message is the run's id."""
        run_id = int(json.loads(body)["messages"][-1]["content"])
        self.asked[run_id] += 1
        chance = random.Random(f"{self.seed} model {run_id} {self.asked[run_id]}")
        if self.asked[run_id] == 1 and not self.healed and chance.random() < 0.3:
            return _response(chance.choice(("429 Slow\r\nRetry-After: 1", "503 Later")), {"error": {"message": "no"}})
        outcome = chance.choice(OUTCOMES)
        self.said[run_id].append(outcome)
        message = {"role": "assistant", "content": json.dumps({"answer": "because", "outcome": outcome})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _response("200 OK", {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})


def _response(status: str, value: Any) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
