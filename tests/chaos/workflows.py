"""The workflows that chaos starts, and what the checker knows about them."""

from __future__ import annotations

from dataclasses import dataclass

ALL_EVENTS = ("completed", "failed", "stopped", "output")
LAST_EVENTS = ("completed", "failed", "stopped")


@dataclass(frozen=True)
class Flow:
    """One workflow: its stages as YAML, which receiver it tells which events, and how it ends when nothing goes wrong.

    `effects` are the stages, in order, that leave a trace outside; those in `once` must not be repeated.
    """

    name: str
    stages: str
    receiver: str
    events: tuple[str, ...]
    share: int
    ends: str = "completed"
    effects: tuple[str, ...] = ()
    once: tuple[str, ...] = ()

    def source(self, receivers: dict[str, str], folder: str) -> str:
        """Give the workflow's file."""
        stages = self.stages.replace("STEADY", receivers["steady"]).replace("FOLDER", folder)
        told = f"callbacks: [{{url: '{receivers[self.receiver]}/cb/{self.name}', events: [{', '.join(self.events)}]}}]"
        return f"name: {self.name}\n{told}\nstages:\n{stages}"


def _command(stage: str, sleep: str, again: str) -> str:
    return f"  - {{name: {stage}, command: [sh, FOLDER/effect.sh, '${{run.id}}', {stage}, '{sleep}'], idempotent: {again}}}\n"


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
        "calls",
        "  - {name: a, http: {url: 'STEADY/effect/${run.id}/a'}}\n"
        "  - {name: b, http: {method: POST, url: 'STEADY/effect/${run.id}/b', body: x}}\n",
        "steady", LAST_EVENTS, 12, effects=("a", "b"), once=("b",),
    ),
    Flow(
        "fails",
        "  - {name: one, stub: {fail: 'as it should', delay: 20ms}, retry: {attempts: 3, delay: 700ms}}\n",
        "vanishing", LAST_EVENTS, 6, ends="failed",
    ),
    Flow("long", _command("a", "5", "true") + _command("b", "0", "true"), "moody", LAST_EVENTS, 2, effects=("a", "b")),
)  # fmt: skip
BY_NAME = {flow.name: flow for flow in FLOWS}
# Appends two lines to a file: O_APPEND keeps each whole. The parent is the worker.
EFFECT_SH = """\
echo "start $1 $2 $PPID $(date +%s.%N)" >> {folder}/effects
sleep $3
echo "end $1 $2 $PPID $(date +%s.%N)" >> {folder}/effects
"""
