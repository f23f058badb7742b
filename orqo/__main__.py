"""`.venv/bin/python -m orqo …`: the command line."""

from __future__ import annotations

import sys

from orqo.cli import main

if __name__ == "__main__":
    sys.exit(main())
