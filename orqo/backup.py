"""Backup and restore: the database and the instance key in one file.

Owns the file's form: a tar of `orqo.db` and `instance.key`, mode 0600. Taken while the service works; restored only where
none does. Run folders are not in it, nor secrets: those are the operator's own.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from orqo import db
from orqo.config import Config, ConfigError
from orqo.processes import CannotStart
from orqo.secretstore import instance_key

DATABASE, KEY = "orqo.db", "instance.key"
KEEP_UPGRADE_BACKUPS = 3


def save(config: Config, file: Path) -> int:
    """Write a backup that is whole or absent and give its bytes. Raises ConfigError, OSError."""
    source = _sqlite_file(config)
    key = instance_key(config, make=False)
    with tempfile.TemporaryDirectory(prefix=".orqo-backup-", dir=file.parent) as folder:
        copy, draft = Path(folder) / DATABASE, Path(folder) / "draft"
        _copy_online(source, copy)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            _pack(out, copy, base64.b64encode(key) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, file)
    _sync_folder(file.parent)
    return file.stat().st_size


def _sqlite_file(config: Config) -> Path:
    if config.database_path is None:
        raise ConfigError(["DATABASE_URL names a PostgreSQL database: back it up with pg_dump, and keep instance.key beside it"])
    if not config.database_path.exists():
        raise ConfigError([f"There is no database at {config.database_path}"])
    return config.database_path


def _copy_online(source: Path, copy: Path) -> None:
    """Copy a database that others write: SQLite's own backup gives the state of one moment."""
    module = db.sqlite_module()
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT, 0o600))
    reading: sqlite3.Connection = module.connect(source, timeout=10)
    writing: sqlite3.Connection = module.connect(copy)
    try:
        # All pages in one step: with several, every commit in between would begin the copy anew.
        reading.backup(writing, pages=-1)
        # One file without a log beside it; opened by the service it becomes WAL again.
        writing.execute("PRAGMA journal_mode=DELETE")
    finally:
        writing.close()
        reading.close()


def _pack(out: IO[bytes], copy: Path, key: bytes) -> None:
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(copy, DATABASE, filter=_owned_by_nobody)
        entry = tarfile.TarInfo(KEY)
        entry.size, entry.mode = len(key), 0o600
        tar.addfile(entry, io.BytesIO(key))


def _owned_by_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o600
    return entry


def restore(config: Config, file: Path) -> None:
    """Put a backup's database and key into the data folder; the caller holds the folder's lock.

    Refuses where there is a database already: nothing is ever overwritten. Raises ConfigError, CannotStart, OSError.
    """
    if config.database_path is None:
        raise ConfigError(["DATABASE_URL names a PostgreSQL database: restore it with pg_restore"])
    target = config.database_path
    if target.exists():
        raise CannotStart(f"There is a database at {target}: move it, its -wal and its -shm file away, or set ORQO_DATA anew.")
    with tempfile.TemporaryDirectory(prefix=".orqo-restore-", dir=config.data) as folder:
        key = _unpack(file, Path(folder))
        _check_key(config, key)
        _check_sound(Path(folder) / DATABASE)
        if not config.key:
            os.replace(Path(folder) / KEY, config.data / KEY)
        os.replace(Path(folder) / DATABASE, target)
    _sync_folder(target.parent)


def _unpack(file: Path, folder: Path) -> bytes:
    """Write the two files of a backup into a folder, synced, and give the key's text."""
    try:
        with tarfile.open(file, mode="r:") as tar:
            for name in (DATABASE, KEY):
                member = tar.extractfile(name)
                if member is None:
                    raise KeyError(name)
                with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                    shutil.copyfileobj(member, out)
                    out.flush()
                    os.fsync(out.fileno())
    except (tarfile.TarError, KeyError) as fault:
        raise CannotStart(f"{file} is no backup of orqo's: it was made with `db backup FILE`.") from fault
    return (folder / KEY).read_bytes().strip()


def _check_key(config: Config, key: bytes) -> None:
    own = config.key or _kept_key(config)
    if own and own.strip().encode() != key:
        where = "ORQO_KEY" if config.key else f"{config.data / KEY}"
        raise CannotStart(f"The backup belongs to another instance key than {where} has: take that away and restore again.")


def _kept_key(config: Config) -> str:
    path = config.data / KEY
    return path.read_text(encoding="ascii", errors="replace") if path.exists() else ""


def _check_sound(path: Path) -> None:
    """Refuse a damaged database, or one of a newer release, before anything is put in place."""
    connection: sqlite3.Connection = db.sqlite_module().connect(path)
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        version = connection.execute("SELECT version FROM schema_version").fetchone()[0]
    except db.sqlite_module().DatabaseError as fault:
        raise CannotStart(f"The backup's database cannot be read: {fault}.") from fault
    finally:
        connection.close()
    if found != "ok":
        raise CannotStart(f"The backup's database is damaged: {found}.")
    if version > db.SCHEMA_VERSION:
        raise CannotStart(f"The backup has version {version}, this release knows {db.SCHEMA_VERSION} only: install the newer release.")


def before_upgrade(config: Config, version: int) -> Path | None:
    """Keep the database as it is before a migration, beside it; gives the file, None on PostgreSQL. The newest three are kept."""
    if config.database_path is None:
        return None
    file = config.data / f"before-upgrade-from-{version}.backup"
    save(config, file)
    kept = sorted(config.data.glob("before-upgrade-from-*.backup"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[KEEP_UPGRADE_BACKUPS:]:
        old.unlink()
    return file


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
