"""`--callback URL[=events]`: read from the command line, and held to the rules of a workflow file.

Owns this spelling of a callback. Never writes one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orqo import callbacks, definition, jsontext
from orqo.cli.arguments import Refused
from orqo.definition import CallbackDefinition, Definition
from orqo.errors import Invalid

CHOICE = ",".join(callbacks.EVENTS)
HELP = f"where to send events: URL, or URL={CHOICE} to choose them (default: {','.join(definition.EVENTS)}); again for each"


def destination(text: str) -> tuple[str, tuple[str, ...]]:
    """Read `URL` or `URL=completed,failed`. What follows `=` in a query is the URL's own unless it is a list of events."""
    url, equals, last = text.rpartition("=")
    events = tuple(last.split(","))
    if equals and set(events) <= set(callbacks.EVENTS):
        return url, events
    if equals and "?" not in url:
        raise argparse.ArgumentTypeError(f"{last!r}: choose the events from {', '.join(callbacks.EVENTS)}; in a path write = as %3D")
    return text, definition.EVENTS


def checked(wanted: Sequence[tuple[str, tuple[str, ...]]], of: Definition) -> list[CallbackDefinition]:
    """Give the callbacks as they are configured. Refused where a file of this workflow could not say the same."""
    stages = [{"name": stage.name, "stub": None} for stage in of.stages]
    listed = [{"url": url, "events": list(dict.fromkeys(events))} for url, events in wanted]
    try:
        # JSON is YAML: the file's own rules, not a second set of them.
        parsed = definition.parse(jsontext.dump({"name": of.name, "callbacks": listed, "stages": stages}))
    except Invalid as fault:
        raise Refused(*(f"orqo: {each.detail}" for each in fault.errors)) from fault
    return list(parsed.callbacks)
