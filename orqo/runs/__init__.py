"""The run's state machine: accept, claim, record, wait, answer, hand back, finish, stop, sweep.

Owns the tables runs, stages, waits and idempotency_keys: the only writer of them. Each function is one use case and one commit
unless it takes a connection.
"""

from orqo.runs import result
from orqo.runs.accepting import IDEMPOTENCY_HOURS, accept, earlier
from orqo.runs.answering import ERROR_MAX, Answer, Answered, answer, find_wait, open_waits, wait_of
from orqo.runs.binding import MACHINE_LOST_AFTER_S
from orqo.runs.chaining import Refused, start_child
from orqo.runs.claiming import CLAIMS_MAX, claim, claim_next, pending, renew
from orqo.runs.reading import list_all, show, status_of, workflow_of
from orqo.runs.recording import finish, hand_back, record, record_failure
from orqo.runs.rerunning import rerun
from orqo.runs.state import LEASE_S, RUNS, STAGES, Accepted, Box, Claim, LeaseLost, NewRun, Output, Replay, StageEnd
from orqo.runs.sweeping import SWEEP_LIMIT, Swept, stop, sweep
from orqo.runs.waiting import NewWait, pause, token_of, wait

__all__ = [
    "CLAIMS_MAX",
    "ERROR_MAX",
    "IDEMPOTENCY_HOURS",
    "LEASE_S",
    "MACHINE_LOST_AFTER_S",
    "RUNS",
    "STAGES",
    "SWEEP_LIMIT",
    "Accepted",
    "Answer",
    "Answered",
    "Box",
    "Claim",
    "LeaseLost",
    "NewRun",
    "NewWait",
    "Output",
    "Refused",
    "Replay",
    "StageEnd",
    "Swept",
    "accept",
    "answer",
    "claim",
    "claim_next",
    "earlier",
    "find_wait",
    "finish",
    "hand_back",
    "list_all",
    "open_waits",
    "pause",
    "pending",
    "record",
    "record_failure",
    "renew",
    "rerun",
    "result",
    "show",
    "start_child",
    "status_of",
    "stop",
    "sweep",
    "token_of",
    "wait",
    "wait_of",
    "workflow_of",
]  # fmt: skip
