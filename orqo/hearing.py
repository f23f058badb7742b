"""The other ends of the bell: a worker that waits for a wake-up, the dispatcher for notices, a request for a run's end.

Owns how each waits. Redis being down is an answer here, never an exception: the time passes then.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from redis.client import PubSub
from redis.exceptions import RedisError

from orqo.redisurl import TIMEOUT_S, client, quick_client

PAUSE_FIRST_S, PAUSE_MAX_S = 0.05, 0.5
# So long at most until a Redis that is frozen or cut off is noticed.
SLICE_S = 5.0
# The embedded server looks once a second for waits that are over.
SLICE_MARGIN_S = 2.0
# So soon a Redis that was gone is looked for again.
AGAIN_S = 1.0


class _Interrupted(Exception):
    """A signal came while a wake-up was waited for."""


class WakeUps:
    """A worker's end of `Bell.wake_workers` while it is within its job: it hears at once, without RQ's many round trips.

    For the process's main thread, where signals are handled: a wait of the driver's goes on after one.
    """

    def __init__(self, url: str, keys: list[str], stopping: threading.Event) -> None:
        self._client = client(url, socket_timeout=SLICE_S + SLICE_MARGIN_S, socket_connect_timeout=SLICE_S)
        self._keys, self._stopping = keys, stopping
        self._is_waiting = False

    def wait(self, until: float) -> bool:
        """Wait for a wake-up until then, a value of `time.monotonic()`; False also where Redis is gone or the worker stops."""
        try:
            while (left_s := until - time.monotonic()) > 0 and not self._stopping.is_set():
                if self._heard(min(left_s, SLICE_S)):
                    return True
        except (RedisError, OSError, _Interrupted):
            self._client.close()
        return False

    def _heard(self, timeout_s: float) -> bool:
        try:
            self._is_waiting = True
            # A signal that came before this line was not told by an exception.
            return not self._stopping.is_set() and self._client.blpop(self._keys, timeout=timeout_s) is not None
        finally:
            self._is_waiting = False

    def interrupt(self) -> None:
        """End the wait under way from within a signal's handler, after `stopping` was set."""
        if self._is_waiting:
            raise _Interrupted


class Notices:
    """The dispatcher's end of `Bell.notify`. For one thread."""

    def __init__(self, url: str, channel: str) -> None:
        self._url, self._channel = url, channel
        self._subscription: PubSub | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until something is told or the time is over; tells which. Without Redis the time passes, a second of it at most."""
        try:
            if self._subscription is None:
                self._subscription = quick_client(self._url).pubsub(ignore_subscribe_messages=True)
                self._subscription.subscribe(self._channel)
            return self._subscription.get_message(timeout=timeout_s) is not None
        except (RedisError, OSError):
            self._subscription = None
            time.sleep(min(timeout_s, AGAIN_S))
            return False


class Ends:
    """The other end of `Bell.ended`, for one run and one thread. Without Redis the time passes, the first times little of it."""

    def __init__(self, url: str, channel: str) -> None:
        self._client = quick_client(url)
        self._subscription: PubSub | None = None
        self._channel = channel
        self._pause_s = PAUSE_FIRST_S

    def __enter__(self) -> Ends:
        try:
            subscription = self._client.pubsub()
            subscription.subscribe(self._channel)
            # What Redis confirms: from here on nothing that is told is missed.
            if subscription.get_message(timeout=TIMEOUT_S) is not None:
                self._subscription = subscription
        except (RedisError, OSError):
            self._subscription = None
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RedisError, OSError):
            if self._subscription is not None:
                self._subscription.close()
            self._client.close()

    def wait(self, timeout_s: float) -> None:
        """Return when the run's end is told, or after the time at the latest."""
        try:
            if self._subscription is not None:
                self._subscription.get_message(timeout=timeout_s)
                return
        except (RedisError, OSError):
            self._subscription = None
        time.sleep(min(timeout_s, self._pause_s))
        self._pause_s = min(self._pause_s * 1.5, PAUSE_MAX_S)
