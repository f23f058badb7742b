"""What `simulate:` in a workflow file must keep beyond its shape: each rule does one thing, its condition can hold.

Owns these refusals. Takes any JSON value, for files with faults of shape are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterator

from orqo import match
from orqo.errors import Fault
from orqo.yamlfile import Document, Place, shown

ROOTS = ("input", "trigger")
DOES = ("answer", "wait", "callback")


def faults(document: Document) -> Iterator[Fault]:
    """Give the faults of a file's rules."""
    rules = document.value.get("simulate") if isinstance(document.value, dict) else None
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        if isinstance(rule, dict):
            yield from _rule(document, ("simulate", index), rule)


def _rule(document: Document, place: Place, rule: dict[str, object]) -> Iterator[Fault]:
    if not any(key in rule for key in DOES):
        yield document.fault(place, f"{shown(place)} needs one of {', '.join(DOES)}")
    if "answer" in rule and "callback" in rule:
        yield document.fault(place, f"{shown(place)} takes answer or callback; write two rules")
    for at, detail in match.faults(rule["when"], ROOTS) if "when" in rule else ():
        where = (*place, "when", *at)
        yield document.fault(where, f"{shown(where)} {detail}")
