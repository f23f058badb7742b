"""A small client of ORQO, as one would write it from its page: starts runs, and checks the callbacks that tell of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request


class Refused(Exception):
    """ORQO answered with an error; `status` says which."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


class Orqo:
    """Starts workflows. What is answered 503 is sent again, after the time that the answer asks for."""

    def __init__(self, base_url: str, token: str, *, timeout: float = 10, tries: int = 4) -> None:
        self.base_url, self.token, self.timeout, self.tries = base_url, token, timeout, tries

    def start(self, workflow_id: int, value: object = None, **headers: str) -> int:
        """Start a workflow and give its run's number."""
        for attempt in range(1, self.tries + 1):
            try:
                return self._post("/api/v1/trigger", {"workflow_id": workflow_id, "input": value}, headers)
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == self.tries:
                    raise Refused(error.code, json.load(error)["error"]) from error
                time.sleep(float(error.headers.get("Retry-After", "1")))
        raise AssertionError

    def _post(self, path: str, body: object, headers: dict[str, str]) -> int:
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.base_url + path, json.dumps(body).encode(), sent)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.load(answer)["workflow_run_id"]


class Callbacks:
    """Takes callbacks: refuses what is not signed as Standard Webhooks says, and passes each event on once."""

    def __init__(self, secret: bytes) -> None:
        self.secret, self.seen, self.events = secret, set(), []

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Give the status to answer with."""
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.new(self.secret, signed, hashlib.sha256).digest()).decode()
        if not any(hmac.compare_digest(expected, each) for each in headers["webhook-signature"].split()):
            return 401
        if headers["webhook-id"] not in self.seen:
            self.seen.add(headers["webhook-id"])
            self.events.append(json.loads(body))
        return 200
