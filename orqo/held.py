"""What a worker process works with, and the claim that it holds.

Owns the answer to why a stage must end now. Writes nothing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from orqo import clock, flow, outbound, runs
from orqo.config import Config
from orqo.hearing import WakeUps
from orqo.queue import Bell
from orqo.secretstore import SecretStore


@dataclass
class Worker:
    """What one worker process works with. `held` is the claim under way, which the renewing thread looks at.

    Without `wake_ups` the job ends where nothing is pending; with them it stays for what comes next.
    """

    box: runs.Box
    config: Config
    bell: Bell
    client: outbound.Client
    secrets: SecretStore
    owner: str
    stopping: threading.Event
    wake_ups: WakeUps | None = None
    held: Held | None = None
    on_renew: Any = None


@dataclass
class Held:
    """A claim under way: when it began on the monotonic clock, and why its stage must end, once it must.

    `had_files`: the files that an earlier claim left were there when the first stage wanted them.
    """

    claim: runs.Claim
    since: float
    must_end: str | None = None
    stop_seen_at: float | None = None
    renewed_until: float = 0.0
    had_files: bool = False

    @property
    def is_leased(self) -> bool:
        """Tell whether nobody can have taken the run over; a worker that was frozen does not know."""
        return clock.boot_seconds() < max(self.claim.leased_until, self.renewed_until)

    @property
    def elapsed_ms(self) -> int:
        """Give the milliseconds since the claim."""
        return round((time.monotonic() - self.since) * 1000)


def why_end(worker: Worker, held: Held) -> str | None:
    """Give why the stage must end now: it was stopped, its lease is lost, or the worker is told to end."""
    if held.must_end is None and worker.stopping.is_set():
        held.stop_seen_at = held.stop_seen_at or time.monotonic()
        # Commands are given their time even where repeating does no harm: most are done within it.
        stage = held.claim.stage
        at_once = flow.repeatable(stage) and stage.kind not in flow.KINDS_WITH_FILES
        patience_s = 0.0 if at_once else worker.config.stop_timeout_s
        if time.monotonic() - held.stop_seen_at >= patience_s:
            return "shutdown"
    return held.must_end
