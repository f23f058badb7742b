"""Our web processes alone, as `make run` has them: `python -m bench.web`, the environment is the configuration."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from orqo import serve
from orqo.cli.service import Start
from orqo.config import Config


def main() -> int:
    """Serve until SIGTERM; give the exit status."""
    config = Config.from_environ()
    start = Start(config)

    def programs(sockets: list[socket.socket]) -> Sequence[serve.Program]:
        return [each for each in start.programs(sockets) if serve.is_web(each.name)]

    return serve.run(config, programs=programs, prepare=start.prepare)


if __name__ == "__main__":
    sys.exit(main())
