"""`doctor`: looks at this box and says what to do.

Owns the checks, each a function that gives findings and never ends the others. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import func, select

from orqo import callbacks, clock, db, instance, outbound
from orqo.cli import output
from orqo.cli.arguments import declare
from orqo.cli.opening import hint, is_loopback
from orqo.config import Config, ConfigError
from orqo.db import Database, SchemaMismatch
from orqo.errors import Problem
from orqo.folder import bad_files
from orqo.models import Delivery, DeliveryStatus
from orqo.queue import Bell
from orqo.stages import account
from orqo.stages.result import CannotRun

OK, WARN, FAIL = "ok", "warn", "fail"
# A dispatcher that runs sends what is due within a second; a full one within a minute.
OVERDUE = timedelta(minutes=2)
OVERDUE_COUNTED = 1_000
ROOM_FACTOR = 4
PROBE_TIMEOUT_S = 3.0
PRIVATE = ("orqo.db", "orqo.db-wal", "orqo.db-shm", "instance.key", "redis.url")


@dataclass(frozen=True)
class Finding:
    """What one check came to: ok, warn or fail, and a sentence that says what to do."""

    check: str
    status: str
    detail: str


def add(parser: argparse.ArgumentParser, _word: str) -> None:
    """Declare the command."""
    declare(parser, _doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    config = Config.from_environ()
    findings = list(examine(config))
    if arguments.json:
        output.as_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            output.say(f"{finding.status.ljust(4)}  {finding.check.ljust(width)}  {finding.detail}")
    return 1 if any(finding.status == FAIL for finding in findings) else 0


def examine(config: Config) -> Iterator[Finding]:
    """Give the findings of all checks that can be made: without a database some cannot."""
    yield _sqlite(config)
    yield from _disk(config)
    yield from _modes(config)
    yield _stage_user(config)
    database = Database.open(config.database_url)
    try:
        yield from _box(config, database)
    finally:
        database.close()
    yield from _base_url(config)


# ── the machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _sqlite(config: Config) -> Finding:
    if config.database_path is None:
        return Finding("sqlite", OK, "not used: DATABASE_URL names another database")
    module = db.sqlite_module()
    told = f"{module.sqlite_version} of {module.__name__.partition('.')[0]}"
    if tuple(module.sqlite_version_info) >= db.SAFE_SQLITE:
        return Finding("sqlite", OK, told)
    harm = "can corrupt a database that several processes write (fixed in 3.51.3)"
    return Finding("sqlite", WARN, f"{told} {harm}: install pysqlite3-binary, or a newer Python")


def _disk(config: Config) -> Iterator[Finding]:
    path = config.database_path
    try:
        free = db.free_bytes(path)
    except OSError as fault:
        yield Finding("disk", FAIL, f"{path.parent if path else ''}: {fault.strerror}")
        return
    if free is None:
        return
    told = f"{free // 2**20} MiB free; new runs are refused below {config.disk_free_min_bytes // 2**20} MiB (ORQO_DISK_FREE_MIN)"
    low, lower = free < ROOM_FACTOR * config.disk_free_min_bytes, free < config.disk_free_min_bytes
    yield Finding("disk", FAIL if lower else WARN if low else OK, f"{told}: free some space" if low else told)


def _modes(config: Config) -> Iterator[Finding]:
    """Look whether others may read or write what is the service's alone."""
    paths = [path for path in (config.data / name for name in PRIVATE) if path.exists()]
    wrong = [f"chmod 600 {path}" for path in paths if _mode(path) & (stat.S_IRWXG | stat.S_IRWXO)]
    # As root, stages run as another user and pass through the folder; nobody else may list it or write to it.
    passing = stat.S_IXGRP | stat.S_IXOTH
    if config.data.is_dir() and _mode(config.data) & (stat.S_IRWXG | stat.S_IRWXO) & ~passing:
        wrong.append(f"chmod {'711' if os.geteuid() == 0 else '700'} {config.data}")
    if not config.data.is_dir():
        yield Finding("files", FAIL, f"there is no folder {config.data}: set ORQO_DATA, or make it: {hint(config, 'db init')}")
    elif wrong:
        yield Finding("files", FAIL, f"others may read what is the service's alone: {'; '.join(wrong)}")
    else:
        yield Finding("files", OK, f"{config.data} is the service's alone")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _stage_user(config: Config) -> Finding:
    if os.geteuid() != 0:
        return Finding("stage user", WARN, "commands share the service's account: start it as root, or trust whoever writes workflows")
    try:
        account.stage_account(config.stage_user)
    except CannotRun as fault:
        return Finding("stage user", FAIL, str(fault))
    if config.stage_user == "root":
        return Finding("stage user", WARN, "commands run as root: set ORQO_STAGE_USER to a user that may do no harm")
    return Finding("stage user", OK, f"commands run as {config.stage_user}")


# ── the box ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _box(config: Config, database: Database) -> Iterator[Finding]:
    try:
        db.check_version(database)
    except (SchemaMismatch, Problem, OSError) as fault:
        yield Finding("database", FAIL, str(fault))
        return
    yield _integrity(database)
    try:
        key = instance.checked_key(database, config)
    except (ConfigError, OSError) as fault:
        yield Finding("key", FAIL, str(fault))
    else:
        yield Finding("key", OK, "the instance key is this database's")
        yield from _redis(config, key)
    yield from _deliveries(config, database)
    yield from _folder(database)


def _folder(database: Database) -> Iterator[Finding]:
    """Look at the files of folder mode; without it there is nothing to look at."""
    with database.read() as connection:
        folder, bad = instance.workflows_folder(connection), bad_files(connection)
    if folder is None:
        return
    for line in (line for each in bad for line in each.lines):
        yield Finding("workflows", FAIL, f"{folder}: {line}; the last good version holds until it is mended")
    if not bad:
        yield Finding("workflows", OK, f"the files in {folder} say what workflows there are, and all can be read")


def _integrity(database: Database) -> Finding:
    told = f"version {db.SCHEMA_VERSION}"
    if not database.is_sqlite:
        return Finding("database", OK, told)
    try:
        with database.read() as connection:
            faults = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(5)")]
    except Problem as fault:
        return Finding("database", FAIL, str(fault))
    if faults == ["ok"]:
        return Finding("database", OK, f"{told}, {db.sqlite_path(database)} is sound")
    return Finding("database", FAIL, f"{db.sqlite_path(database)} is damaged: stop the service and restore a backup ({faults[0]})")


def _redis(config: Config, key: bytes) -> Iterator[Finding]:
    bell = Bell.of(config, key)
    try:
        if not bell.is_reachable():
            start = "look at the server of REDIS_URL" if config.redis_url else "start the service: make run"
            yield Finding("redis", FAIL, f"it does not answer; runs are accepted and begin when it is back: {start}")
            return
        yield Finding("redis", OK, "it answers")
        heard = bell.workers(now=clock.now())
    finally:
        bell.close()
    if heard:
        yield Finding("workers", OK, f"{len(heard)} heard of in the last minute")
    else:
        yield Finding("workers", FAIL, "none was heard of in the last minute: start the service (make run), or worker.py alone")


def _deliveries(config: Config, database: Database) -> Iterator[Finding]:
    due = (Delivery.status == DeliveryStatus.PENDING, Delivery.next_attempt_at < clock.to_text(clock.now() - OVERDUE))
    with database.read() as connection:
        some = select(Delivery.id).where(*due).limit(OVERDUE_COUNTED + 1).subquery()
        overdue = connection.execute(select(func.count()).select_from(some)).scalar_one()
        paused = [row for row in callbacks.list_all(connection, limit=100_000) if row["paused_at"]]
    for row in paused:
        resume = hint(config, f"callback resume {row['id']}")
        yield Finding("callbacks", WARN, f"callback {row['id']} is paused: {row['pause_reason']} To let it go on: {resume}")
    if overdue:
        number = f"over {OVERDUE_COUNTED:,}" if overdue > OVERDUE_COUNTED else str(overdue)
        yield Finding("deliveries", WARN, f"{number} overdue: no dispatcher sends them; start the service, or look at worker's log")
    else:
        yield Finding("deliveries", OK, "none overdue")


# ── the way in ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _base_url(config: Config) -> Iterator[Finding]:
    shown = outbound.shown_url(config.base_url)
    client = outbound.Client(ca_bundle=config.ca_bundle)
    url = f"{config.base_url}/healthz"
    answer = client.send(method="GET", url=url, headers={}, body=None, guarded=False, timeout_s=PROBE_TIMEOUT_S, max_bytes=1024)
    client.close()
    if isinstance(answer, outbound.Failure):
        detail = f"{shown} does not answer ({answer.detail}): start the service (make run), or set ORQO_BASE_URL"
        yield Finding("base url", FAIL, detail)
    elif answer.status != 200:
        detail = f"{shown}/healthz answers {answer.status}: something else listens there, or a proxy leads elsewhere"
        yield Finding("base url", FAIL, detail)
    elif is_loopback(urlsplit(config.base_url).hostname or ""):
        detail = f"{shown} is reached from this machine only; for webhooks from outside set ORQO_BASE_URL to its public URL"
        yield Finding("base url", WARN, detail)
    else:
        yield Finding("base url", OK, f"{shown} answers")
