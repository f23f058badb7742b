"""`python -m chaos`: RUNS (1000), SEED (random) and HOSTS (none) from the environment; exit status 1 where the checker found anything."""

from __future__ import annotations

import os
import secrets
import sys

import postgresql
from chaos.hosts import WEB_HOSTS
from chaos.run import chaos

if __name__ == "__main__":
    seed = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
    hosts = int(os.environ.get("HOSTS") or 0)
    if hosts and not (postgresql.IS_WANTED and hosts > WEB_HOSTS):
        sys.exit(f"chaos: HOSTS wants DB=postgresql and more than {WEB_HOSTS}: {WEB_HOSTS} are web, the others execute runs")
    sys.exit(chaos(runs=int(os.environ.get("RUNS") or 1000), seed=seed, hosts=hosts))
