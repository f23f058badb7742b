"""Backup and restore: a box that was filled, saved, lost and put back delivers what was pending, under the old ids."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from inbox import inbox
from orqo import backup, clock, db, deliveries, dispatcher, executor, instance, leases, outbound
from orqo.config import PROJECT_DIR, Config
from orqo.processes import CannotStart
from orqo.queue import Bell
from orqo.secretstore import SecretStore
from support import TestBox, sqlite_only, wait_for

pytestmark = sqlite_only


def cli(settings: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_DIR), **settings}
    return subprocess.run([sys.executable, "-m", "orqo", *words], env=env, capture_output=True, text=True, check=False)


def restored(settings: dict[str, str], data: Path) -> TestBox:
    """Open the box that was put back into `data`."""
    config = Config.from_environ(settings | {"ORQO_DATA": str(data)})
    database = db.Database.open(config.database_url)
    db.check_version(database)
    key = instance.establish(database, config, now=clock.now())
    return TestBox(config, database, key, Bell.of(config, key))


def dispatch(box: TestBox, until: Any) -> None:
    """Run the box's dispatcher until the condition holds."""
    sender = deliveries.Sender(outbound.Client(), SecretStore.from_config(box.config), box.key)
    sending = dispatcher.Dispatcher(box.box, box.bell, sender, (0.1,) * 5, leases.owner(), threading.Event())
    thread = threading.Thread(target=dispatcher.loop, args=(sending,))
    thread.start()
    try:
        wait_for(until)
    finally:
        sending.stopping.set()
        thread.join()


def test_a_restored_box_delivers_its_pending_callbacks_with_their_old_ids(
    box: TestBox, settings: dict[str, str], worker: executor.Worker, tmp_path: Path
) -> None:
    with inbox() as done:
        box.apply(f"name: told\ncallbacks: [{{url: '{done.url()}'}}]\nstages: [{{name: one, stub: {{}}}}]\n")
        hook = box.hook("told")
        run_ids = [box.accept("told") for _ in range(3)]
        executor.work()
        pending = box.accept("told")
        before = {row["webhook_id"]: row["body"] for row in box.rows("SELECT webhook_id, body FROM deliveries")}

        saved = cli(settings, "db", "backup", str(tmp_path / "box.tar"))
        put_back = cli(settings | {"ORQO_DATA": str(tmp_path / "new")}, "db", "restore", str(tmp_path / "box.tar"))
        assert (saved.returncode, put_back.returncode) == (0, 0), saved.stderr + put_back.stderr
        again = restored(settings, tmp_path / "new")
        dispatch(again, lambda: len(done.arrived) == 3)

    assert {arrived.headers["webhook-id"]: arrived.body for arrived in done.arrived} == before
    assert {arrived.json["workflow_run_id"] for arrived in done.arrived} == set(run_ids)
    assert again.run(pending)["status"] == "pending"
    assert again.hook("told") == hook
    again.bell.close()
    again.database.close()


def test_a_backup_is_private_and_holds_a_whole_database_while_others_write(box: TestBox, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            box.accept()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(3):
        backup.save(box.config, tmp_path / "box.tar")
    stop.set()
    writer.join()

    assert stat.S_IMODE((tmp_path / "box.tar").stat().st_mode) == 0o600
    with tarfile.open(tmp_path / "box.tar") as tar:
        assert tar.getnames() == ["orqo.db", "instance.key"]
        assert all(entry.mode == 0o600 for entry in tar)
    assert [path.name for path in tmp_path.iterdir()] == ["box.tar"]


def test_nothing_is_overwritten_by_restoring(box: TestBox, tmp_path: Path) -> None:
    backup.save(box.config, tmp_path / "box.tar")

    with pytest.raises(CannotStart, match="There is a database at"):
        backup.restore(box.config, tmp_path / "box.tar")


def test_a_backup_of_another_box_is_refused_beside_this_ones_key(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    backup.save(box.config, tmp_path / "box.tar")
    other = tmp_path / "other"
    other.mkdir()
    (other / "instance.key").write_text("A" * 43 + "=\n")

    with pytest.raises(CannotStart, match="another instance key"):
        backup.restore(Config.from_environ(settings | {"ORQO_DATA": str(other)}), tmp_path / "box.tar")

    assert not (other / "orqo.db").exists()


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\0" * 10240], ids=["empty", "text", "zeros"])
def test_what_is_no_backup_is_named(content: bytes, settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "data").mkdir()

    with pytest.raises(CannotStart, match="is no backup of orqo's"):
        backup.restore(Config.from_environ(settings | {"ORQO_DATA": str(tmp_path / "data")}), tmp_path / "x")


def test_restoring_waits_for_no_running_service(box: TestBox, settings: dict[str, str], tmp_path: Path) -> None:
    from orqo import serve

    backup.save(box.config, tmp_path / "box.tar")
    data = tmp_path / "data"
    serve.make_data_folder(data)
    with serve.locked(data):
        refused = cli(settings | {"ORQO_DATA": str(data)}, "db", "restore", str(tmp_path / "box.tar"))

    assert refused.returncode == 1
    assert "already runs" in refused.stderr


def test_an_upgrade_keeps_the_database_as_it_was(box: TestBox) -> None:
    file = backup.before_upgrade(box.config, 0)

    assert file is not None
    with tarfile.open(file) as tar:
        assert tar.getmember("orqo.db").size > 0
