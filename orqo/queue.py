"""Redis and RQ: waking workers, telling the dispatcher, and the worker class. Beside redisurl the only module that imports either.

Owns what lies in Redis, none of which matters: the database is the truth, and losing all of Redis costs seconds. Redis
being down is an answer here, never an exception.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from orqo import redisurl
from orqo.config import Config
from orqo.ringing import Soon
from orqo.secretstore import key_check

log = logging.getLogger(__name__)

WORK = "orqo.executor.work"
TIMEOUT_S = 0.25
BREAKER_S = 1.0
WAKE_UP_EXPIRES_S = 5
# One would do; the others are for what somebody else put before ours.
WAITING_MAX = 8
FAILURE_TTL_S = 60
WORKER_TTL_S = 20
WORKER_FRESH_S = 60
PAUSE_FIRST_S, PAUSE_MAX_S = 0.05, 0.5


class WakeUp(Job):
    """The one job there is: no payload, one function, no callbacks.

    RQ imports whatever a job names: a JSON serializer alone does not stop `os.system`. So the name is checked here, and
    what RQ would run beside the function is switched off.
    """

    success_callback = None
    failure_callback = None
    stopped_callback = None

    def perform(self) -> Any:
        """Call `executor.work()` and nothing else."""
        if self.func_name != WORK or self.args or self.kwargs:
            raise PermissionError(f"Only {WORK} without arguments is executed here.")
        return super().perform()

    def send_webhooks(self, *_: object, **__: object) -> None:
        """Send nothing: RQ's own webhooks would take their addresses from Redis."""


def quick_client(url: str) -> Redis:
    """Make a client that gives up after 0.25 s: the defaults block for 4 s and more when Redis is gone."""
    return redisurl.client(url, retry=Retry(NoBackoff(), 0), socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)


def redis_url(config: Config) -> str:
    """Give the Redis to use: the setting, else the embedded server's, which its supervisor noted."""
    if config.redis_url:
        return config.redis_url
    try:
        return config.socket_note.read_text(encoding="utf-8").strip()
    except OSError:
        # Not running: the address is then one where nothing answers, and Redis being down is an answer here.
        return f"unix://{config.data}/redis.sock"


class Bell:
    """Wakes workers and tells the dispatcher, best effort. Thread-safe.

    `name` keeps the boxes that share one Redis apart.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.queue_name = f"orqo-{name}"
        self._client = quick_client(url)
        self._queue = Queue(self.queue_name, connection=self._client, serializer=JSONSerializer, job_class=WakeUp)
        self._flag = f"{self.queue_name}:wake-up"
        self._channel = f"{self.queue_name}:notice"
        self._silent_until = 0.0
        self._waking = Soon(lambda: bool(self._try(self._wake)), name="wake")

    @classmethod
    def of(cls, config: Config, key: bytes) -> Bell:
        """Make the bell of a box: its name is told by its key, its Redis by its settings."""
        return cls(redis_url(config), key_check(key)[:12])

    def wake_workers(self) -> bool:
        """Enqueue a wake-up unless one is outstanding; False where Redis cannot be reached: the sweep wakes later."""
        return self._try(self._wake) is not None

    def wake_workers_soon(self) -> None:
        """Have it done off the caller's way, once for a burst; the sweep wakes where this process ends before."""
        self._waking.ask()

    def _wake(self) -> bool:
        """Tell whether there was none outstanding."""
        # The flag's expiry is what heals a wake-up that was lost on its way.
        if not self._client.set(self._flag, b"1", nx=True, ex=WAKE_UP_EXPIRES_S):
            return False
        # The flag expires while all workers are busy; the wake-up that it stood for may wait in the queue still.
        if self._client.llen(self._queue.key) < WAITING_MAX:
            self._queue.enqueue(WORK, job_timeout=-1, result_ttl=0, failure_ttl=FAILURE_TTL_S)
        return True

    def answered(self) -> None:
        """Say that a wake-up arrived, so that the next accept rings again."""
        self._try(lambda: self._client.delete(self._flag))

    def notify(self) -> None:
        """Tell the dispatcher that something is due."""
        self._try(lambda: self._client.publish(self._channel, b"1"))

    def ended(self, run_id: int) -> None:
        """Tell whoever waits for this run that it has ended."""
        self._try(lambda: self._client.publish(self._channel_of(run_id), b"1"))

    def ends(self, run_id: int) -> Ends:
        """Give what hears of this run's end; to be entered before its status is looked at, so that nothing falls between."""
        return Ends(self.url, self._channel_of(run_id))

    def _channel_of(self, run_id: int) -> str:
        return f"{self.queue_name}:ended:{run_id}"

    def is_reachable(self) -> bool:
        """Tell whether Redis answers now."""
        try:
            return bool(self._client.ping())
        except (RedisError, OSError):
            return False

    def _try(self, call: Callable[[], Any]) -> Any:
        """Call Redis; None where it fails, and for one second after a failure without trying."""
        if time.monotonic() < self._silent_until:
            return None
        try:
            return call()
        except (RedisError, OSError) as fault:
            self._silent_until = time.monotonic() + BREAKER_S
            log.warning("step=redis status=unreachable error=%s", type(fault).__name__)
            return None

    def workers(self, *, now: datetime) -> list[dict[str, Any]]:
        """Give `{"name", "state", "heard_s"}` for each worker heard of in the last minute; empty where Redis is down."""
        # RQ's worker objects raise the time-out of the client that they are given to minutes: it gets one of its own.
        client = quick_client(self.url)
        try:
            found = SimpleWorker.all(connection=client, queue=Queue(self.queue_name, connection=client, serializer=JSONSerializer))
            heard = [(worker, (now - _aware(worker.last_heartbeat)).total_seconds()) for worker in found if worker.last_heartbeat]
            return [{"name": w.name, "state": str(w.get_state()), "heard_s": round(s, 1)} for w, s in heard if s <= WORKER_FRESH_S]
        except (RedisError, OSError):
            return []
        finally:
            client.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Notices:
    """The dispatcher's end of `Bell.notify`. For one thread."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._subscription: PubSub | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until something is told or the time is over; tells which. Without Redis the time simply passes."""
        try:
            if self._subscription is None:
                self._subscription = quick_client(self._bell.url).pubsub(ignore_subscribe_messages=True)
                self._subscription.subscribe(self._bell._channel)
            return self._subscription.get_message(timeout=timeout_s) is not None
        except (RedisError, OSError):
            self._subscription = None
            time.sleep(timeout_s)
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


class Worker(SimpleWorker):
    """RQ's worker without a fork for each job: a stage's isolation is its own process.

    Sooner than RQ's defaults in all that concerns a lost worker; SIGTERM sets `stopping`, which the job looks at.
    """

    max_connection_wait_time = 5.0
    log_result_lifespan = False
    job_class = WakeUp

    def __init__(self, bell: Bell, *, name: str, stopping: threading.Event) -> None:
        self.stopping, self.bell = stopping, bell
        super().__init__(
            [bell.queue_name],
            name=name,
            connection=redisurl.client(bell.url),
            job_class=WakeUp,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_S,
            maintenance_interval=5,
            job_monitoring_interval=5,
            log_job_description=False,
        )

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Let the job under way know, then stop as RQ does."""
        self.stopping.set()
        super().request_stop(signum, frame)

    def set_shutdown_requested_date(self) -> None:
        """Write nothing: this runs within the signal's handler, and with Redis gone its fault would be raised into a stage."""

    def teardown(self) -> None:
        """Sign off from Redis where it answers; a frozen one must not take the time that running commands have to end."""
        if self.bell.is_reachable():
            super().teardown()

    def request_force_stop(self, signum: Any, frame: Any) -> None:
        """Ignore further signals: the supervisor's time-out, not a second signal, ends a stage that will not end."""


def run_worker(bell: Bell, *, name: str, stopping: threading.Event, on_start: Callable[[Worker], None]) -> None:
    """Work until told to stop or until RQ gives up, as it does when Redis is lost; the caller starts it again."""
    try:
        worker = Worker(bell, name=name, stopping=stopping)
        on_start(worker)
        worker.work(logging_level="WARNING")
    except (RedisError, OSError) as fault:
        # RQ asks Redis for its own address before it can wait for it.
        log.warning("step=redis status=unreachable error=%s", type(fault).__name__)


def beat(worker: Worker) -> None:
    """Say that a worker lives while a long stage keeps it from RQ's own heartbeat."""
    try:
        worker.heartbeat()
    except (RedisError, OSError):
        log.debug("step=heartbeat status=unreachable")
