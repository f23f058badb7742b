"""The disk's limit: one writer that commits one small row after another, raw sqlite3, `synchronous=FULL`."""

from __future__ import annotations

import tempfile
import time

from bench import boxes
from orqo import db


def per_second(seconds: float) -> float:
    """Give the commits a second."""
    with tempfile.TemporaryDirectory(prefix="orqo-bench-") as folder:
        connection = db.sqlite_module().connect(f"{folder}/limit.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, status TEXT NOT NULL, input TEXT NOT NULL)")
        count, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO runs (status, input) VALUES (?, ?)", ("pending", str(boxes.INPUT)))
            connection.execute("COMMIT")
            count += 1
        taken = time.perf_counter() - began
        connection.close()
        return count / taken
