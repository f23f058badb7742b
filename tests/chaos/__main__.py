"""`python -m chaos`: RUNS (1000) and SEED (random) from the environment; exit status 1 where the checker found anything."""

from __future__ import annotations

import os
import secrets
import sys

from chaos.run import chaos

if __name__ == "__main__":
    seed = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
    sys.exit(chaos(runs=int(os.environ.get("RUNS") or 1000), seed=seed))
