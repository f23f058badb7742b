"""Something that is done soon, off the caller's way, and once for all who asked meanwhile.

Owns one thread, started at the first wish: in the process that has it, so that a server may fork after it was set up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# After it was done for several at once, or for nothing, this much is waited for more: a burst costs fifty a second.
PAUSE_S = 0.02


class Soon:
    """Does `act` soon after `ask`; what is asked while it is being done has it done once more. Thread-safe.

    `act` tells whether it had to be done.
    """

    def __init__(self, act: Callable[[], bool], *, name: str) -> None:
        self._act, self._name = act, name
        self._asked = threading.Event()
        self._count = 0
        self._pid = -1
        self._starting = threading.Lock()

    def ask(self) -> None:
        """Return at once; it is done by the thread. Where the process ends first it is not done."""
        if self._pid != os.getpid():
            self._start()
        # Two threads may count as one, and a burst is a burst all the same.
        self._count += 1
        self._asked.set()

    def _start(self) -> None:
        with self._starting:
            if self._pid != os.getpid():
                self._asked = threading.Event()
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._pid = os.getpid()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            count, self._count = self._count, 0
            try:
                needed = self._act()
            except Exception:
                log.exception("step=%s status=fault", self._name)
                needed = False
            if count > 1 or not needed:
                time.sleep(PAUSE_S)
