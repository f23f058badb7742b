"""The senders: each call has its idempotency key and is repeated until it is answered, as a careful client does.

Keeps every answer: what was acknowledged is what the checker holds the service to.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import requests

from chaos.workflows import FLOWS, KEYS, Flow

SENDERS = 8
GIVE_UP_S = 120.0
AGAIN_AFTER_S = 0.15


@dataclass
class Call:
    """One thing that a sender wants to happen once, and what it was told."""

    number: int
    flow: Flow
    by_hook: bool
    gone: bool
    quiet: bool = False
    ignored: bool = False
    answers: list[tuple[int, int]] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"call-{self.number}"

    @property
    def run_ids(self) -> set[int]:
        return {run_id for _, run_id in self.answers}


@dataclass
class Load:
    """All calls of one run of chaos, spread over a time."""

    seed: int
    url: str
    token: str
    hooks: dict[str, str]
    gone_url: str
    calls: list[Call] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def send(self, count: int, *, within_s: float, quiet: bool = False) -> None:
        """Make so many calls, evenly spread, and return when all are acknowledged."""
        calls = [self._call(len(self.calls) + number, quiet) for number in range(count)]
        self.calls += calls
        began = time.monotonic()
        threads = [
            threading.Thread(target=self._sender, args=(calls[sender::SENDERS], began, within_s / count * SENDERS))
            for sender in range(SENDERS)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _call(self, number: int, quiet: bool) -> Call:
        chance = random.Random(f"{self.seed} call {number}")
        flow = chance.choices(FLOWS, [flow.share for flow in FLOWS])[0]
        by_hook = chance.random() < 0.5
        return Call(number, flow, by_hook, gone=not by_hook and chance.random() < 0.1, quiet=quiet)

    def _sender(self, calls: list[Call], began: float, pace_s: float) -> None:
        with requests.Session() as session:
            for place, call in enumerate(calls):
                time.sleep(max(0.0, began + place * pace_s - time.monotonic()))
                chance = random.Random(f"{self.seed} again {call.number}")
                self._until_acknowledged(session, call)
                if chance.random() < 0.15:
                    # A client that did not hear the first answer.
                    self._until_acknowledged(session, call)

    def _until_acknowledged(self, session: requests.Session, call: Call) -> None:
        until = time.monotonic() + GIVE_UP_S
        while time.monotonic() < until:
            try:
                answer = self._post(session, call)
            except requests.RequestException as fault:
                self.statuses[type(fault).__name__] += 1
            else:
                self.statuses[str(answer.status_code)] += 1
                if call.flow.skips and (answer.status_code == 409 or '"ignored"' in answer.text):
                    call.ignored = True
                    return
                if answer.status_code in (200, 201):
                    call.answers.append((answer.status_code, int(answer.json()["workflow_run_id"])))
                    return
                if answer.status_code != 503:
                    self.refused.append(f"call {call.number}: {answer.status_code} {answer.text[:200]}")
                    return
            time.sleep(AGAIN_AFTER_S)
        self.refused.append(f"call {call.number}: not acknowledged within {GIVE_UP_S:g} s")

    def _post(self, session: requests.Session, call: Call) -> requests.Response:
        headers = {"Idempotency-Key": call.key, "Content-Type": "application/json"}
        wanted = {"call": call.number, "key": call.number % KEYS}
        if call.by_hook:
            return session.post(self.hooks[call.flow.name], data=json.dumps(wanted), headers=headers, timeout=15)
        body = {"workflow": call.flow.name, "input": wanted} | ({"callback_url": self.gone_url} if call.gone else {})
        headers["Authorization"] = f"Bearer {self.token}"
        return session.post(f"{self.url}/api/v1/trigger", data=json.dumps(body), headers=headers, timeout=15)
