"""The run's state machine: accept, claim, record, wait, hand back, finish, stop, sweep.

Owns the tables runs, stages and idempotency_keys: the only writer of them. Each function is one use case and one commit
unless it takes a connection.
"""

from orqo.runs import result
from orqo.runs.accepting import IDEMPOTENCY_HOURS, accept, earlier
from orqo.runs.claiming import CLAIMS_MAX, any_pending, claim, claim_next, renew
from orqo.runs.reading import list_all, show, status_of
from orqo.runs.recording import finish, hand_back, record, record_failure
from orqo.runs.state import LEASE_S, RUNS, STAGES, Accepted, Box, Claim, LeaseLost, NewRun, Output, Replay, StageEnd
from orqo.runs.sweeping import SWEEP_LIMIT, Swept, stop, sweep

__all__ = [
    "CLAIMS_MAX", "IDEMPOTENCY_HOURS", "LEASE_S", "RUNS", "STAGES", "SWEEP_LIMIT",
    "Accepted", "Box", "Claim", "LeaseLost", "NewRun", "Output", "Replay", "StageEnd", "Swept",
    "accept", "any_pending", "claim", "claim_next", "earlier", "finish", "hand_back", "list_all", "record", "record_failure", "renew",
    "result", "show", "status_of", "stop", "sweep",
]  # fmt: skip
