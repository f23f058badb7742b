"""The workflows that chaos starts, and what the checker knows about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ALL_EVENTS = ("completed", "failed", "stopped", "output")
LAST_EVENTS = ("completed", "failed", "stopped")
KEYS, SCHEDULES = 2, 5


@dataclass(frozen=True)
class Flow:
    """One workflow: its stages as YAML, which receiver it tells which events, and how it may end when nothing goes wrong.

    `effects` are the stages, in order, that leave a trace outside; those in `once` must not be repeated. Where the outcome
    of the stage `decides` chooses among them, `ways` has the effects of each label. `limit` is that of its concurrency key.
    `share` 0: nobody calls it, something else starts it.
    """

    name: str
    stages: str
    receiver: str
    events: tuple[str, ...]
    share: int
    ends: tuple[str, ...] = ("completed",)
    effects: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    decides: str = ""
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    limit: int = 0
    skips: bool = False
    more: str = ""

    def source(self, receivers: dict[str, str], folder: str) -> str:
        """Give the workflow's file."""
        stages = self.stages.replace("STEADY", receivers["steady"]).replace("FOLDER", folder)
        told = f"callbacks: [{{url: '{receivers[self.receiver]}/cb/{self.name}', events: [{', '.join(self.events)}]}}]"
        return f"name: {self.name}\n{told}\n{self.more}stages:\n{stages}"


def _command(stage: str, sleep: str, again: str) -> str:
    return f"  - {{name: {stage}, command: [sh, FOLDER/effect.sh, '${{run.id}}', {stage}, '{sleep}'], idempotent: {again}}}\n"


def _get(stage: str) -> str:
    return f"  - {{name: {stage}, http: {{url: 'STEADY/effect/${{run.id}}/{stage}'}}}}\n"


def _asking(timeout: str) -> str:
    request = "{method: POST, url: 'STEADY/ask', json: {run: '${run.id}', reply_to: '${wait.url}'}}"
    wait = f"wait: {{timeout: {timeout}, on_timeout: late, request: {request}}}"
    return f"  - {{name: ask, {wait}, outcomes: [good, bad, late], routing: {{bad: b, late: end}}}}\n"


def _calling(stage: str, waits: str) -> str:
    child = f"{{name: child, input: {{call: '${{input.call}}', of: '${{run.id}}'}}{waits}}}"
    return f"  - {{name: {stage}, workflow: {child}}}\n"


def _busy(rule: str, key: str = "${input.key}") -> str:
    return f"concurrency: {{key: '{key}', {rule}}}\n"


WAYS = {"good": ("a", "b"), "bad": ("b",), "late": ()}
# Long enough for others of the key to come meanwhile: the one holds a worker, the other none.
_SLOW = _get("a") + "  - {name: slow, stub: {delay: 1s}}\n" + _get("b")
_SETTLING = _get("a") + "  - {name: settle, delay: 2500ms}\n" + _get("b")
# The nap lets any worker go on, and the file lies on one machine.
_KEEPING = (
    "  - {name: keep, script: 'echo $ORQO_RUN_ID > kept', idempotent: true}\n  - {name: nap, delay: 600ms}\n"
    "  - {name: read, script: 'cat kept', idempotent: true}\n"
)
_THINK = "{base_url: 'STEADY/v1', model: m, user: '${run.id}'}"

FLOWS = (
    Flow("quick", "  - {name: one, stub: {output: '${input}'}}\n  - {name: two, stub: {output: 2}}\n", "steady", ALL_EVENTS, 30),
    Flow(
        "told",
        "".join(f"  - {{name: s{number}, stub: {{output: {number}, delay: 30ms}}}}\n" for number in range(1, 5)),
        "moody", ALL_EVENTS, 20,
    ),
    Flow(
        "once", _command("a", "0.1", "false") + _command("b", "0.05", "false"), "moody", LAST_EVENTS, 16,
        effects=("a", "b"), once=("a", "b"),
    ),
    Flow(
        "again", _command("a", "0.05", "true") + _command("b", "0.2", "true") + _command("c", "0.05", "true"), "vanishing", LAST_EVENTS, 14,
        effects=("a", "b", "c"),
    ),
    Flow(
        "calls", _get("a") + "  - {name: b, http: {method: POST, url: 'STEADY/effect/${run.id}/b', body: x}}\n",
        "steady", LAST_EVENTS, 12, effects=("a", "b"), once=("b",),
    ),
    Flow(
        "fails",
        "  - {name: one, stub: {fail: 'as it should', delay: 20ms}, retry: {attempts: 3, delay: 700ms}}\n",
        "vanishing", LAST_EVENTS, 6, ends=("failed",),
    ),
    Flow("long", _command("a", "5", "true") + _command("b", "0", "true"), "moody", LAST_EVENTS, 2, effects=("a", "b")),
    Flow("keeps", _KEEPING, "steady", LAST_EVENTS, 6),
    Flow("pauses", _get("a") + "  - {name: nap, delay: 400ms}\n" + _get("b"), "steady", LAST_EVENTS, 6, effects=("a", "b")),
    Flow("asks", _asking("60s") + _get("a") + _get("b"), "moody", LAST_EVENTS, 8, effects=("a", "b"), decides="ask", ways=WAYS),
    Flow("hurries", _asking("1s") + _get("a") + _get("b"), "steady", LAST_EVENTS, 6, effects=("a", "b"), decides="ask", ways=WAYS),
    Flow(
        "approves",
        "  - {name: ask, approval: {message: m, timeout: 60s, on_timeout: late}, outcomes: [good, bad, late], "
        "routing: {bad: b, late: end}}\n" + _get("a") + _get("b"),
        "moody", ("waiting", *LAST_EVENTS), 6, effects=("a", "b"), decides="ask", ways=WAYS,
    ),
    Flow("parent", _calling("call", "") + _calling("loose", ", wait: false") + _get("after"), "steady", LAST_EVENTS, 8, effects=("after",)),
    Flow("child", _get("c") + "  - {name: nap, stub: {delay: 50ms}}\n" + _get("d"), "moody", LAST_EVENTS, 0, effects=("c", "d")),
    Flow(
        "thinks", f"  - {{name: think, prompt: {_THINK}, outcomes: [good, bad], routing: {{bad: b}}}}\n" + _get("a") + _get("b"),
        "steady", LAST_EVENTS, 8, effects=("a", "b"), decides="think", ways=WAYS,
    ),
    Flow("queues", _SETTLING, "steady", LAST_EVENTS, 6, effects=("a", "b"), limit=2, more=_busy("limit: 2", "all")),
    Flow("skips", _SLOW, "steady", LAST_EVENTS, 4, effects=("a", "b"), limit=1, skips=True, more=_busy("limit: 1, when_busy: skip")),
    Flow(
        "replaces", _SLOW, "steady", LAST_EVENTS, 4, ends=("completed", "stopped"),
        effects=("a", "b"), limit=1, more=_busy("limit: 1, when_busy: replace"),
    ),
    Flow(
        "ticks", "  - {name: one, stub: {output: 1}}\n", "steady", LAST_EVENTS, 0,
        more="triggers:\n" + "".join(f"  - {{name: tick{number}, schedule: '* * * * *'}}\n" for number in range(SCHEDULES)),
    ),
)  # fmt: skip
BY_NAME = {flow.name: flow for flow in FLOWS}
# Appends two lines to a file: O_APPEND keeps each whole. The parent is the worker.
EFFECT_SH = """\
echo "start $1 $2 $PPID $(date +%s.%N)" >> {folder}/effects
sleep $3
echo "end $1 $2 $PPID $(date +%s.%N)" >> {folder}/effects
"""
