"""Random workflow files, as values: every way of going on that a file can ask for, in stages a to d."""

from __future__ import annotations

from random import Random
from typing import Any

LABELS = ("yes", "no")
NAMES = ("first", "second")
OUTPUTS = (None, 5, {"k": 0}, {"k": 1}, "${stages.a.output?}")
LIMITS = ("40s", "10m", "3h")
KINDS = ("command", "command", "stub", "stub", "approval", "wait", "workflow", "delay")


def concurrency(rng: Random) -> dict[str, Any] | None:
    rule = {"key": "${input.k}", "limit": rng.choice((1, 2)), "when_busy": rng.choice(("queue", "skip", "replace"))}
    return rng.choice((None, rule))


def file(rng: Random, name: str, size: int, rule: dict[str, Any] | None) -> dict[str, Any]:
    """Give a file with so many stages; `rule` is its concurrency."""
    head: dict[str, Any] = {"name": name, "callbacks": [{"url": "http://127.0.0.1:1/"}]}
    head |= {"concurrency": rule} if rule else {}
    if rng.random() < 0.4:
        head["loop_guard"] = {"limit": rng.choice((0, 1, 2)), "then": rng.choice(("next", "fail"))}
    if rng.random() < 0.3:
        head["timeout"] = "60s"
    if rng.random() < 0.3:
        head["output"] = "${stages.b.output?}" if size > 1 else "${stages.a.output?}"
    names = "abcd"[:size]
    return head | {"stages": [_stage(rng, each, names) for each in names]}


def _stage(rng: Random, name: str, names: str) -> dict[str, Any]:
    kind = rng.choice(KINDS)
    stage = {"name": name, kind: _spec(rng, kind)}
    if kind in ("command", "stub", "approval", "wait"):
        stage |= _outcomes(rng, kind, stage[kind], names)
    if kind in ("command", "stub", "wait") and rng.random() < 0.4:
        stage["retry"] = {"attempts": rng.choice((2, 3)), "delay": rng.choice(("0s", "2m"))}
    if rng.random() < 0.5:
        stage["on_error"] = rng.choice(("next", *(each for each in names if each != name)))
    if kind == "command" and rng.random() < 0.5:
        stage["idempotent"] = True
    if rng.random() < 0.3:
        stage["when"] = _condition(rng, rng.choice(names))
    return stage


def _spec(rng: Random, kind: str) -> Any:
    if kind == "stub":
        return {"fail": "it broke"} if rng.random() < 0.3 else {"output": rng.choice(OUTPUTS)}
    if kind == "workflow":
        wanted = {"name": rng.choice((*NAMES, *NAMES, "gone")), "input": rng.choice(({"k": "${input.k?}"}, {"k": 0}, None))}
        return wanted | rng.choice(({}, {"wait": False}, {"timeout": "10m"}))
    if kind == "command":
        return ["true"]
    limit = rng.choice(LIMITS)
    return limit if kind == "delay" else {"timeout": limit} | ({"message": "Well?"} if kind == "approval" else {})


def _outcomes(rng: Random, kind: str, part: Any, names: str) -> dict[str, Any]:
    """Give `outcomes` and `routing` that fit a stage; the label of a stub and the one of a time-out are put into its own part."""
    is_listed = rng.random() < 0.7
    found: dict[str, Any] = {"outcomes": list(LABELS)} if is_listed else {}
    labels = LABELS if is_listed else ("approved", "rejected") if kind == "approval" else ()
    targets = (*names, *names, "end", *({"workflow": each} for each in (*NAMES, "gone")))
    if labels:
        found["routing"] = {label: rng.choice(targets) for label in labels if rng.random() < 0.7}
    if kind == "stub" and "fail" not in part and rng.random() < 0.7:
        part["outcome"] = rng.choice(labels or LABELS)
    if kind in ("approval", "wait") and labels and rng.random() < 0.5:
        part["on_timeout"] = rng.choice(labels)
    return found


def _condition(rng: Random, name: str) -> dict[str, Any]:
    condition: dict[str, Any] = rng.choice(
        (
            {"input.k": 0},
            {"input.k": {"in": [1, 2]}},
            {f"stages.{name}.status": "completed"},
            {f"stages.{name}.status": "skipped"},
            {f"stages.{name}.status": {"exists": False}},
            {f"stages.{name}.outcome": "yes"},
        )
    )
    return {"not": condition} if rng.random() < 0.5 else condition
