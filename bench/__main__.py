"""`python -m bench NAME [OPTION]…`: runs one measurement; without a name, lists them."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench

NOT_MEASUREMENTS = ("__main__", "fill", "receiver", "report")


def main(arguments: list[str]) -> int:
    """Run the measurement that is named first; each takes its own options."""
    names = sorted(each.name for each in pkgutil.iter_modules(bench.__path__) if each.name not in NOT_MEASUREMENTS)
    if not arguments or arguments[0] not in names:
        print("usage: python -m bench NAME [OPTION]…; NAME is one of: " + ", ".join(names), file=sys.stderr)
        return 2
    return int(importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
