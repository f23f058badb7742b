"""Folder mode: the files of ORQO_WORKFLOWS alone say what workflows there are, and a bad one takes nothing away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orqo import clock, folder, instance, triggers, workflows
from orqo.cli import doctor, starting
from orqo.config import PROJECT_DIR, Config
from orqo.errors import Conflict
from orqo.folder import Folder
from support import Service, TestBox, wait_for
from visitor import sign_in

ONE = "name: one\ntriggers: [{name: in}]\nstages: [{name: a, stub: {output: 1}}]\n"
BAD = "name: one\nstages: [{name: a, stubb: {}}]\n"


@pytest.fixture
def files(settings: dict[str, str], tmp_path: Path) -> Path:
    """The folder; asked for before the box, whose settings it is."""
    path = tmp_path / "workflows"
    path.mkdir()
    settings["ORQO_WORKFLOWS"] = str(path)
    return path


@pytest.fixture
def watched(files: Path, box: TestBox) -> Folder:
    return Folder(box.database, files, key=box.key, secrets={})


def look(watched: Folder, times: int = 2) -> list[bool]:
    """Look as often as it takes to see a change and then to see it hold still."""
    return [watched.look(now=clock.now()) for _ in range(times)]


def states(box: TestBox) -> dict[str, tuple[int, bool]]:
    with box.database.read() as connection:
        return {row["name"]: (row["version"], row["enabled"]) for row in workflows.list_all(connection)}


def told(box: TestBox) -> list[str]:
    with box.database.read() as connection:
        return [line for bad in folder.bad_files(connection) for line in bad.lines]


def hook_of(box: TestBox) -> str:
    with box.database.read() as connection:
        row = next(row for row in triggers.list_all(connection) if row["workflow"] == "one")
        return str(triggers.token_of(triggers.get(connection, row["id"]), box.key))


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_look_applies_what_is_there_and_disables_what_is_not(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(ONE)
    (files / "two.yml").write_text(ONE.replace("one", "two"))
    (files / "readme.md").write_text("no workflow")
    (files / ".one.yaml.swp.yaml").write_text("an editor's")

    assert look(watched, 1) == [True]

    assert states(box) == {"hello": (1, False), "one": (1, True), "two": (1, True)}


def test_nothing_is_read_again_where_nothing_has_changed(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(ONE)
    look(watched)
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE workflow_files SET read_at = 'then'")

    assert look(watched, 3) == [False] * 3
    assert box.rows("SELECT read_at FROM workflow_files") == [{"read_at": "then"}]


def test_a_change_is_read_once_it_holds_still(files: Path, watched: Folder, box: TestBox) -> None:
    path = files / "one.yaml"
    path.write_text(ONE)
    look(watched)

    path.write_text(ONE[:-30])
    assert look(watched, 1) == [False]
    path.write_text(ONE.replace("output: 1", "output: 22"))
    assert look(watched, 1) == [False]
    assert look(watched, 1) == [True]

    assert states(box)["one"] == (2, True)
    assert told(box) == []


def test_a_bad_file_keeps_the_last_good_version_and_says_why(files: Path, watched: Folder, box: TestBox) -> None:
    path = files / "one.yaml"
    path.write_text(ONE)
    look(watched)

    path.write_text(BAD)
    look(watched)

    assert states(box)["one"] == (1, True)
    assert told(box) == ["one.yaml:2: stages[0].stubb is not known; did you mean stub?"]


def test_a_mended_file_is_used_again(files: Path, watched: Folder, box: TestBox) -> None:
    path = files / "one.yaml"
    path.write_text(BAD)
    look(watched)
    assert "one" not in states(box)

    path.write_text(ONE)
    look(watched)

    assert (states(box)["one"], told(box)) == ((1, True), [])


def test_a_bad_file_costs_the_others_nothing(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "a.yaml").write_text("{")
    (files / "b.yaml").write_bytes(b"\xff")
    (files / "c.yaml").write_text(ONE.replace("one", "clashes").replace("name: clashes\n", "id: 1\nname: clashes\n"))
    (files / "d.yaml").write_text(ONE)
    (files / "e.yaml").write_text(ONE)

    look(watched)

    assert states(box) == {"hello": (1, False), "one": (1, True)}
    assert [line.partition(":")[0] for line in told(box)] == ["a.yaml", "b.yaml", "c.yaml", "e.yaml"]
    assert "is defined by" in told(box)[-1]


def test_a_webhook_without_its_secret_is_told_and_not_opened(files: Path, watched: Folder, box: TestBox) -> None:
    secret = 'webhook: {signature: github, secret: "${secrets.HOOK}"}'
    (files / "one.yaml").write_text(ONE.replace("{name: in}", f"{{name: in, {secret}}}"))

    look(watched)

    assert "ORQO_SECRET_HOOK" in told(box)[0]
    assert "one" not in states(box)


def test_a_file_that_is_gone_disables_and_one_that_is_back_is_the_same_workflow(files: Path, watched: Folder, box: TestBox) -> None:
    path = files / "one.yaml"
    path.write_text(ONE)
    look(watched)
    before = hook_of(box)

    path.unlink()
    look(watched)
    assert states(box)["one"] == (1, False)

    path.write_text(ONE)
    look(watched)
    assert (states(box)["one"], hook_of(box)) == ((1, True), before)


def test_a_bad_file_that_is_gone_is_forgotten_with_its_faults(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(BAD)
    look(watched)

    (files / "one.yaml").unlink()
    look(watched)

    assert (told(box), box.rows("SELECT * FROM workflow_files")) == ([], [])


def test_what_a_person_disabled_stays_disabled(files: Path, watched: Folder, box: TestBox) -> None:
    path = files / "one.yaml"
    path.write_text(ONE)
    look(watched)
    with box.database.transaction() as connection:
        workflows.set_enabled(connection, "one", enabled=False, now=clock.now())

    path.unlink()
    look(watched)
    path.write_text(ONE + "# changed\n")
    look(watched)

    assert states(box)["one"] == (2, False)


def test_a_workflow_may_move_to_another_file(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(ONE)
    look(watched)

    (files / "one.yaml").rename(files / "other.yaml")
    look(watched)

    assert (states(box)["one"], told(box)) == ((1, True), [])


def test_a_folder_that_is_not_there_takes_nothing_away(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(ONE)
    look(watched)

    files.rename(files.with_name("elsewhere"))
    look(watched, 3)
    assert states(box)["one"] == (1, True)
    assert "cannot be read" in told(box)[0]

    files.with_name("elsewhere").rename(files)
    look(watched)
    assert (states(box)["one"], told(box)) == ((1, True), [])


# ── edits elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────────


def cli(box: TestBox, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an operator does: without the service's ORQO_WORKFLOWS."""
    box_itself = {"ORQO_DATA": str(box.config.data), "DATABASE_URL": box.config.database_url, "REDIS_URL": box.config.redis_url}
    env = {"PATH": os.environ["PATH"], **box_itself}
    return subprocess.run([sys.executable, "-m", "orqo", *arguments], env=env, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)


def test_commands_refuse_to_change_what_files_say(files: Path, box: TestBox, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(ONE)

    for command in (("workflow", "apply", str(mine)), ("workflow", "delete", "hello")):
        refused = cli(box, *command)
        assert refused.returncode == 1
        assert f"the files in {files}" in refused.stderr
    assert states(box) == {"hello": (1, True)}


def test_the_api_refuses_with_409(files: Path, box: TestBox, client: Any) -> None:
    headers = {"Authorization": f"Bearer {box.token('write')}", "Content-Type": "application/yaml"}

    answers = [
        client.put("/api/v1/workflows/one", data=ONE, headers=headers),
        client.delete("/api/v1/workflows/hello", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert str(files) in answers[0].json["detail"]
    assert states(box) == {"hello": (1, True)}


def test_what_has_no_file_cannot_be_enabled_while_files_say_what_there_is(files: Path, watched: Folder, box: TestBox) -> None:
    look(watched)

    with box.database.transaction() as connection, pytest.raises(Conflict, match="put one there"):
        workflows.set_enabled(connection, "hello", enabled=True, now=clock.now())


def test_without_the_setting_workflows_are_edited_again(files: Path, settings: dict[str, str], watched: Folder, box: TestBox) -> None:
    look(watched)
    del settings["ORQO_WORKFLOWS"]
    instance.establish(box.database, Config.from_environ(settings), now=clock.now())

    with box.database.transaction() as connection:
        instance.check_editable(connection)
        workflows.set_enabled(connection, "hello", enabled=True, now=clock.now())

    assert states(box)["hello"] == (1, True)


# ── where it shows ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_start_applies_the_files_and_says_what_is_bad(
    files: Path, settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "one.yaml").write_text(ONE)
    (files / "two.yaml").write_text(BAD)
    config = Config.from_environ(settings)

    starting.prepare(config)

    database = starting.Database.open(config.database_url)
    with database.read() as connection:
        listed = [row["name"] for row in workflows.list_all(connection)]
    database.close()
    # The example is no file of the folder's.
    assert listed == ["one"]
    assert "two.yaml:2: stages[0].stubb is not known" in capsys.readouterr().err


def test_doctor_names_the_bad_files(files: Path, watched: Folder, box: TestBox) -> None:
    (files / "one.yaml").write_text(BAD)
    look(watched)

    found = [each for each in doctor.examine(box.config) if each.check == "workflows"]

    assert [each.status for each in found] == ["fail"]
    assert "one.yaml:2: stages[0].stubb" in found[0].detail


def test_home_shows_the_bad_files_and_pages_refuse_to_edit(files: Path, watched: Folder, box: TestBox, client: Any) -> None:
    (files / "<b>.yaml").write_text(BAD)
    look(watched)
    visitor = sign_in(client, box)

    home = visitor.get("/").text

    assert "&lt;b&gt;.yaml:2: stages[0].stubb" in home
    assert visitor.post("/workflows", source=ONE).status_code == 409
    assert visitor.post("/workflows/hello/delete").status_code == 409


def test_the_dispatcher_reads_changes_while_the_service_runs(files: Path, box: TestBox, service: Service) -> None:
    (files / "one.yaml").write_text(ONE)
    wait_for(lambda: states(box).get("one") == (1, True), within_s=12, what="the new file")

    (files / "one.yaml").write_text(BAD)

    assert wait_for(lambda: told(box), within_s=12, what="the fault") == ["one.yaml:2: stages[0].stubb is not known; did you mean stub?"]
    assert states(box)["one"] == (1, True)


def test_a_look_at_an_unchanged_folder_costs_little(files: Path, watched: Folder) -> None:
    for number in range(50):
        (files / f"w{number}.yaml").write_text("name: not one")
    look(watched)
    began = time.monotonic()

    look(watched, 20)

    assert (time.monotonic() - began) / 20 < 0.02
