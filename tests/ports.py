"""A port for a service that is told which one to take."""

from __future__ import annotations

import random
import socket

# Below those that the kernel gives to whoever does not care: between our asking and the service's taking it, it gives many.
LOWEST, HIGHEST = 10_000, 32_000


def free_port() -> int:
    """Give a port of loopback that nobody listens on, and that nobody is given meanwhile."""
    while True:
        port = random.SystemRandom().randint(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
