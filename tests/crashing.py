"""A process that ends at a crash point: `python crashing.py work|send|accept NAME…`, with ORQO_CRASH_AT set.

Run by test_crashpoints.py. It loads once and forks for each name; the child does one thing and is killed on the way. What
became of each child is printed, one exit status a line: -9 where the point was reached.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from orqo import clock, create_app, db, deliveries, dispatcher, executor, leases, outbound, runs, workflows
from orqo.config import Config
from orqo.queue import Bell
from orqo.secretstore import SecretStore, instance_key


def box_of(config: Config, key: bytes) -> runs.Box:
    return runs.Box(db.Database.open(config.database_url), workflows.Definitions(), config.base_url, key)


def work(config: Config, key: bytes, name: str) -> None:
    """Accept a run of the workflow and execute it."""
    box = box_of(config, key)
    with box.database.transaction() as connection:
        row = workflows.get(connection, name)
        runs.accept(connection, runs.NewRun(workflow_id=row.id, version_id=row.version_id, origin="api"), now=clock.now())
    worker = executor.Worker(
        box=box,
        config=config,
        bell=Bell.of(config, key),
        client=outbound.Client(),
        secrets=SecretStore.from_config(config),
        owner=leases.owner(),
        stopping=threading.Event(),
    )
    executor.prepare(worker)
    executor.work()


def send(config: Config, key: bytes, _name: str) -> None:
    """Be the dispatcher until the point is reached."""
    sender = deliveries.Sender(outbound.Client(), SecretStore.from_config(config), key)
    box = box_of(config, key)
    threading.Timer(20, lambda: os._exit(1)).start()
    dispatcher.loop(dispatcher.Dispatcher(box, Bell.of(config, key), sender, (0.1,) * 9, leases.owner(), threading.Event()))


def accept(config: Config, _key: bytes, path: str) -> None:
    """Take one request as the web process does; `path` is a hook's, or /api/v1/trigger with the token after a space."""
    where, _, token = path.partition(" ")
    headers = {"Idempotency-Key": where} | ({"Authorization": f"Bearer {token}"} if token else {})
    create_app(config).test_client().post(where, json={"workflow": "hello"}, headers=headers)


def forked(act: Callable[[], None]) -> int:
    """Do it in a child and give the child's exit status."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    config = Config.from_environ()
    key = instance_key(config, make=False)
    act = {"work": work, "send": send, "accept": accept}[sys.argv[1]]
    for name in sys.argv[2:]:
        print(forked(lambda name=name: act(config, key, name)), flush=True)  # type: ignore[misc]


if __name__ == "__main__":
    main()
