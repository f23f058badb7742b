"""Redis and RQ: waking workers, telling the dispatcher, and the worker class. The bell's other ends are in hearing.py.

Owns what lies in Redis, none of which matters: the database is the truth, and losing all of Redis costs seconds. Redis
being down is an answer here, never an exception.
"""

from __future__ import annotations

import logging
import secrets as random_tokens
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from orqo import redisurl
from orqo.config import Config
from orqo.hearing import Ends, Notices, WakeUps
from orqo.redisurl import quick_client
from orqo.ringing import Soon
from orqo.secretstore import key_check

log = logging.getLogger(__name__)

WORK = "orqo.executor.work"
BREAKER_S = 1.0
WAKE_UP_EXPIRES_S = 5
# One would do; the others are for what somebody else put before ours.
WAITING_MAX = 8
FAILURE_TTL_S = 60
# An idle worker waits for 15 s less at a time; in between RQ makes some 17 round trips, whatever the wait.
WORKER_TTL_S = 35
WORKER_FRESH_S = 60


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

    `name` keeps the boxes that share one Redis apart. With a `machine` its workers have a second queue, which no others hear.
    """

    def __init__(self, url: str, name: str, machine: str = "") -> None:
        self.url = url
        self.queue_name = f"orqo-{name}"
        self._client = quick_client(url)
        names = [self.queue_name, *([f"{self.queue_name}-{machine}"] if machine else [])]
        self._queues = [Queue(each, connection=self._client, serializer=JSONSerializer, job_class=WakeUp) for each in names]
        self._channel = f"{self.queue_name}:notice"
        self._silent_until = 0.0
        self._waking = Soon(lambda: bool(self._try(lambda: self._wake(self._queues[0]))), name="wake")

    @classmethod
    def of(cls, config: Config, key: bytes, machine: str = "") -> Bell:
        """Make the bell of a box: its name is told by its key, its Redis by its settings. On SQLite there is one machine."""
        return cls(redis_url(config), key_check(key)[:12], "" if config.database_path else machine)

    @property
    def queue_names(self) -> list[str]:
        """What the workers listen to."""
        return [queue.name for queue in self._queues]

    def wake_workers(self) -> bool:
        """Wake one worker unless a wake-up is outstanding; False where Redis cannot be reached: the sweep wakes later."""
        return self._try(lambda: self._wake(self._queues[0])) is not None

    def wake_here(self) -> bool:
        """Do so for the workers of this machine alone, where it is one of several: for what only they can execute."""
        return self._try(lambda: self._wake(self._queues[-1])) is not None

    def wake_workers_soon(self) -> None:
        """Have it done off the caller's way, once for a burst; the sweep wakes where this process ends before."""
        self._waking.ask()

    def _wake(self, queue: Queue) -> bool:
        """Tell whether there was none outstanding. One that listens within its job is woken itself, else RQ wakes one."""
        if self._handed_over(_hand(queue)):
            return True
        # The flag's expiry is what heals a wake-up that was lost on its way.
        if not self._client.set(_flag(queue), b"1", nx=True, ex=WAKE_UP_EXPIRES_S):
            return False
        # The flag expires while all workers are busy; the wake-up that it stood for may wait in the queue still.
        if self._client.llen(queue.key) < WAITING_MAX:
            queue.enqueue(WORK, job_timeout=-1, result_ttl=0, failure_ttl=FAILURE_TTL_S)
        return True

    def _handed_over(self, hand: str) -> bool:
        """Put a wake-up where workers listen within their job; what none of them took at once is taken back."""
        wake_up = random_tokens.token_hex(8)
        put = self._client.pipeline(transaction=False)
        put.rpush(hand, wake_up)
        put.lrem(hand, 1, wake_up)
        return bool(put.execute()[1] == 0)

    def wake_ups(self, stopping: threading.Event) -> WakeUps:
        """Give what a worker hears the next wake-up with while it is within its job."""
        return WakeUps(self.url, [_hand(queue) for queue in self._queues], stopping)

    def notices(self) -> Notices:
        """Give the dispatcher's end of `notify`."""
        return Notices(self.url, self._channel)

    def answered(self) -> None:
        """Say that a wake-up arrived, so that the next accept rings again."""
        self._try(lambda: self._client.delete(*map(_flag, self._queues)))

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


def _flag(queue: Queue) -> str:
    """Name what says that a wake-up of this queue is outstanding."""
    return f"{queue.name}:wake-up"


def _hand(queue: Queue) -> str:
    """Name the list where those listen who would otherwise hear of this queue through RQ."""
    return f"{queue.name}:hand"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Worker(SimpleWorker):
    """RQ's worker without a fork for each job: a stage's isolation is its own process.

    Sooner than RQ's defaults in all that concerns a lost worker; SIGTERM sets `stopping`, which the job looks at.
    """

    max_connection_wait_time = 5.0
    log_result_lifespan = False
    job_class = WakeUp

    def __init__(self, bell: Bell, *, name: str, stopping: threading.Event, wake_ups: WakeUps | None = None) -> None:
        self.stopping, self.bell, self._wake_ups = stopping, bell, wake_ups
        super().__init__(
            bell.queue_names,
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
        if self._wake_ups is not None:
            self._wake_ups.interrupt()

    def set_shutdown_requested_date(self) -> None:
        """Write nothing: this runs within the signal's handler, and with Redis gone its fault would be raised into a stage."""

    def teardown(self) -> None:
        """Sign off from Redis where it answers; a frozen one must not take the time that running commands have to end."""
        if self.bell.is_reachable():
            super().teardown()

    def request_force_stop(self, signum: Any, frame: Any) -> None:
        """Ignore further signals: the supervisor's time-out, not a second signal, ends a stage that will not end."""


def run_worker(bell: Bell, *, name: str, stopping: threading.Event, wake_ups: WakeUps | None, on_start: Callable[[Worker], None]) -> None:
    """Work until told to stop or until RQ gives up, as it does when Redis is lost; the caller starts it again."""
    try:
        worker = Worker(bell, name=name, stopping=stopping, wake_ups=wake_ups)
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
