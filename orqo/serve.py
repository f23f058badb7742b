"""`make run`: prepares the data folder, starts an embedded Valkey, web and worker, and supervises them.

Owns which processes make up the service, and the sockets that web accepts on. Never accepts, never opens the database and imports
nothing heavy: it stays up for months.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from orqo import listening, valkey
from orqo.config import Config
from orqo.processes import CannotStart
from orqo.supervisor import Program, Supervisor

__all__ = ["CannotStart", "Program", "is_up", "make_data_folder", "programs_of", "run"]

# Web and worker leave at nearly the same time, so that both and Valkey are gone 12 s after SIGTERM.
WEB_HEAD_START_S = 0.3
WEB_STOP_TIMEOUT_S = 11.0
# The worker kills what is left of its own when its time is over, and this much later it must be gone.
WORKER_GRACE_S = 1.2
VALKEY_STOP_TIMEOUT_S = 0.3
WORKER_BACKOFF_MAX_S = 1.0
# A connection waits in the socket's queue until a web process is there; meanwhile the supervisor hears nothing.
READY_TIMEOUT_S = 0.5
WEB = "web-"
SIMULATED = """
!!!  ORQO_SIMULATE=1: this is a stand-in. Whoever asks for a failure gets one, and workflows may refuse, delay and
!!!  spoil on purpose. Never let anything depend on it.
"""


Programs = Callable[[list[socket.socket]], Sequence[Program]]


def _nothing() -> None:
    """Stand in for a step that a caller leaves out."""


def run(
    config: Config,
    *,
    programs: Programs,
    prepare: Callable[[], None] = _nothing,
    on_ready: Callable[[], None] = _nothing,
) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; give the exit status: 0, or 1 after one line on stderr that says what to mend.

    `programs` gives them for the sockets that this process listens on, in the order in which they start and stop. `prepare` runs
    before, while Redis starts, and may raise CannotStart; `on_ready` runs once when all are ready.
    """
    # The database, keys and Valkey's files are the service's alone.
    os.umask(0o077)
    try:
        make_data_folder(config.data)
        with locked(config.data), ExitStack() as stack:
            _run(config, programs, prepare, on_ready, stack)
    except (CannotStart, listening.CannotListen) as fault:
        print(f"orqo: {fault}", file=sys.stderr, flush=True)
        return 1
    return 0


def _run(
    config: Config,
    programs: Programs,
    prepare: Callable[[], None],
    on_ready: Callable[[], None],
    stack: ExitStack,
) -> None:
    # Open from now until the end: while a web process starts again, whoever comes waits for it and is not refused.
    sockets = listening.open_sockets(config.host, config.port)
    stack.callback(_close, sockets)
    if config.simulate:
        _say(SIMULATED)
    env = dict(os.environ)
    supervisor = Supervisor(env=env, say=_say)
    stack.callback(supervisor.close)
    wait_for_valkey = _nothing
    if not config.redis_url:
        # Read again by the children, which would refuse both.
        env.pop("REDIS_URL_FILE", None)
        env["REDIS_URL"], wait_for_valkey = _start_valkey(config, supervisor, stack)
    prepare()
    wait_for_valkey()
    supervisor.add_all(programs(sockets))

    def ready() -> None:
        _say(f"listening on {_shown_address(config)} (Ctrl-C stops)")
        on_ready()

    supervisor.supervise(ready)
    _say("stopping")
    # What the web processes have not taken when they end is refused, not left waiting.
    _close(sockets)
    supervisor.stop()


def programs_of(config: Config, main: Callable[[str], int], sockets: Sequence[socket.socket]) -> list[Program]:
    """Give web, the workers and the dispatcher, in the order in which they stop: forks of this process that call `main` by name."""
    count = config.web_processes
    web = [_web(config, f"{WEB}{number}", main, sockets, last=number == count) for number in range(1, count + 1)]
    # The workers and the dispatcher all at once; what stops after them is what they need.
    workers = [_background(config, f"worker-{number}", main, head_start_s=0.0) for number in range(1, config.workers + 1)]
    return [*web, *workers, _background(config, "dispatcher", main, head_start_s=None)]


def is_web(name: str) -> bool:
    """Tell whether a program of this name is a web process."""
    return name.startswith(WEB)


def _web(config: Config, name: str, main: Callable[[str], int], sockets: Sequence[socket.socket], *, last: bool) -> Program:
    return Program(
        name=name,
        main=lambda: main(name),
        descriptors=[one.fileno() for one in sockets],
        ready=lambda: is_up(config),
        stop_timeout_s=WEB_STOP_TIMEOUT_S,
        # All at once; then the others.
        head_start_s=WEB_HEAD_START_S if last else 0.0,
    )


def _background(config: Config, name: str, main: Callable[[str], int], *, head_start_s: float | None) -> Program:
    return Program(
        name=name,
        main=lambda: main(name),
        stop_timeout_s=config.stop_timeout_s + WORKER_GRACE_S,
        head_start_s=head_start_s,
        # A fork costs little, and while all workers wait no run goes on.
        backoff_max_s=WORKER_BACKOFF_MAX_S,
    )


def make_data_folder(folder: Path) -> None:
    """Make the data folder where it is absent, closed to others; CannotStart where it cannot be written to.

    As root, others may pass through it but not list it: the stage user's run folders lie inside. A folder that exists
    keeps its mode: it may be one that others use too.
    """
    # A umask that keeps others from our files must not keep them from the way through.
    umask = os.umask(0o022)
    try:
        folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        os.umask(umask)
        with open(folder / "lock", "a", encoding="ascii"):
            pass
    except OSError as fault:
        raise CannotStart(f"Cannot write to the data folder {folder}: {fault.strerror}: change its owner or set ORQO_DATA.") from fault
    finally:
        os.umask(umask)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second supervisor off this data; the kernel lifts the lock however this process ends."""
    with open(folder / "lock", "r+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            holder = lock.read().strip() or "unknown"
            raise CannotStart(
                f"orqo already runs on the data folder {folder} (process {holder}): stop it, or set ORQO_DATA and ORQO_PORT."
            ) from fault
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _start_valkey(config: Config, supervisor: Supervisor, stack: ExitStack) -> tuple[str, Callable[[], None]]:
    """Start the embedded server and write where it is into `config.socket_note`; give its URL and what waits until it is up."""
    with suppress(OSError):
        valkey.shut_down(config.socket_note.read_text(encoding="utf-8"))
    folder = config.data / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    socket_path = stack.enter_context(valkey.socket_folder()) / valkey.SOCKET_NAME
    # When a step fails: registered after the socket's folder, so that the server is gone before its folder.
    stack.callback(supervisor.kill)
    program = Program(
        name="valkey",
        argv=valkey.command(valkey.needed_program(), folder=folder, socket_path=socket_path),
        stop_timeout_s=VALKEY_STOP_TIMEOUT_S,
        orphan_signal=signal.SIGKILL,
        end=lambda: valkey.ask_to_end(socket_path),
    )
    process = supervisor.add(program)

    def wait() -> None:
        try:
            valkey.wait_until_up(socket_path, process, folder=folder)
        except CannotStart:
            # Files of a newer version, or spoilt ones. The database is the truth: an empty Redis costs seconds.
            _set_aside(folder)
            valkey.wait_until_up(socket_path, supervisor.start_again(program), folder=folder)

    url = valkey.url_of(socket_path)
    config.socket_note.write_text(url + "\n", encoding="utf-8")
    stack.callback(config.socket_note.unlink, missing_ok=True)
    return url, wait


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + ".unreadable")
    _say(f"Valkey cannot start on {folder}, which is set aside as {aside.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    folder.mkdir(mode=0o700)


def is_up(config: Config) -> bool:
    """Say whether GET /healthz answers 200."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    try:
        with socket.create_connection((host, config.port), timeout=READY_TIMEOUT_S) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _shown_address(config: Config) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"


def _say(line: str) -> None:
    print(f"orqo: {line}", flush=True)
