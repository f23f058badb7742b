"""RQ's Worker as `rq worker` starts it: `python -m bench.handwritten.worker [--preload]`.

It forks for each job; with --preload the application was imported before, without it each child imports it anew.
"""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue, Worker


def main(arguments: list[str]) -> int:
    """Work until told to stop."""
    if "--preload" in arguments:
        import bench.handwritten.jobs  # noqa: F401
    connection = Redis.from_url(os.environ["REDIS_URL"])
    Worker([Queue("runs", connection=connection)], connection=connection).work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
