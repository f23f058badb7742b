"""`python -m bench [NAME [OPTION]…]`: takes one measurement; without a name, all ten figures of bench/RESULTS.md."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from types import ModuleType

import bench
from bench import report

# What measurements are made of; `peers` needs what is no part of the set-up, so it is asked for by name.
PARTS = (
    "__main__",
    "boxes",
    "bulk",
    "commits",
    "fill",
    "handwritten",
    "load",
    "operations",
    "receiver",
    "report",
    "samples",
    "steady",
    "web",
)
ORDER = ("accept", "drain", "deliveries", "idle")
ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Run the measurement that is named first, which takes its own options; without one run all that give figures."""
    names = sorted(each.name for each in pkgutil.iter_modules(bench.__path__) if each.name not in PARTS)
    if not arguments:
        return _all(names)
    if arguments[0] not in names:
        print("usage: python -m bench [NAME [OPTION]…]; NAME is one of: " + ", ".join(names), file=sys.stderr)
        return 2
    return int(_module(arguments[0]).main(arguments[1:]) or 0)


def _all(names: list[str]) -> int:
    """Take every figure, print the table as it grows and write it down; exit status 1 where a goal is missed."""
    rounds = int(os.environ.get("ROUNDS") or ROUNDS)
    print(report.HEAD, flush=True)
    found: list[report.Figure] = []
    for name in sorted(names, key=lambda each: (ORDER.index(each) if each in ORDER else len(ORDER), each)):
        measure = getattr(_module(name), "figures", None)
        for figure in measure(rounds) if measure else ():
            print(figure.row(), flush=True)
            found.append(figure)
    report.write(found, rounds=rounds)
    print(f"\nwritten to {report.RESULTS}")
    return int(not all(figure.reached for figure in found))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"bench.{name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
