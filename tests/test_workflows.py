"""Definitions in the database: versions that never change, ids for life, names that come free again."""

from __future__ import annotations

from typing import Any

import pytest

from orqo import clock, workflows
from orqo.errors import Conflict, Invalid, NotFound
from support import HELLO, TestBox

NOW = clock.now()


def source(name: str = "other", text: str = "one", **head: Any) -> str:
    lines = "".join(f"{key}: {value}\n" for key, value in head.items())
    return f"name: {name}\n{lines}stages:\n  - {{name: say, stub: {{output: {text}}}}}\n"


def find(box: TestBox, reference: int | str) -> Any:
    with box.database.read() as connection:
        return workflows.find(connection, reference)


def delete(box: TestBox, reference: int | str) -> int:
    with box.database.transaction() as connection:
        return workflows.delete(connection, reference, now=NOW)


def versions(box: TestBox) -> int:
    return len(box.rows("SELECT id FROM workflow_versions"))


def test_the_same_text_again_changes_nothing(box: TestBox) -> None:
    first, again = box.apply(source()), box.apply(source())

    assert (first.changed, first.version) == (True, 1)
    assert (again.changed, again.version, again.id) == (False, 1, first.id)


def test_another_text_is_a_new_version_and_the_old_one_stays(box: TestBox) -> None:
    first = box.apply(source(text="one"))
    old = find(box, first.id).version_id
    second = box.apply(source(text="two"))

    assert (second.id, second.version) == (first.id, 2)
    with box.database.read() as connection:
        assert workflows.source_of(connection, old) == source(text="one")
        assert workflows.definition_of(connection, old).stages[0].spec == {"output": "one"}
        assert workflows.definition_of(connection, find(box, first.id).version_id).stages[0].spec == {"output": "two"}


def test_a_run_keeps_the_version_that_it_began_with(box: TestBox) -> None:
    box.apply(source(text="one"))
    run_id = box.accept("other")
    box.apply(source(text="two"))

    row = box.rows("SELECT v.number FROM runs r JOIN workflow_versions v ON v.id = r.version_id WHERE r.id = :id", id=run_id)
    assert row[0]["number"] == 1


def test_going_back_to_an_earlier_text_is_a_new_version(box: TestBox) -> None:
    numbers = [box.apply(source(text=text)).version for text in ("one", "two", "one")]

    assert numbers == [1, 2, 3]


def test_a_pinned_id_is_the_id(box: TestBox) -> None:
    assert box.apply(source(id=42)).id == 42
    assert find(box, 42).name == "other"
    assert box.apply(source("next")).id == 43


@pytest.mark.parametrize(
    ("text", "told"),
    [(source("hello", id=99), "fixed for life"), (source("third", id=42), "belongs to workflow other")],
    ids=["another id for a name", "another name for an id"],
)
def test_a_pinned_id_that_contradicts_is_refused_and_changes_nothing(box: TestBox, text: str, told: str) -> None:
    box.apply(source(id=42))
    before = versions(box)

    with pytest.raises(Invalid, match=told) as refused:
        box.apply(text)

    assert refused.value.errors[0].pointer == "/id"
    assert versions(box) == before
    assert find(box, "third") is None


@pytest.mark.parametrize("reference", [0, -1, 999, 2**63, 2**64, 10**30, "", "nope", "HELLO", "hello'; --"])
def test_what_is_not_there_is_not_found(box: TestBox, reference: int | str) -> None:
    assert find(box, reference) is None
    with pytest.raises(NotFound, match="workflow list"), box.database.read() as connection:
        workflows.get(connection, reference)


def test_a_deleted_workflow_is_gone_its_name_free_and_its_runs_readable(box: TestBox) -> None:
    run_id = box.accept()
    old = delete(box, "hello")

    assert find(box, "hello") is None
    assert find(box, old) is None
    assert box.run(run_id)["workflow_id"] == old
    new = box.apply(HELLO)
    assert (new.changed, new.version) == (True, 1)
    assert new.id != old


def test_a_deleted_workflow_with_a_pinned_id_comes_back_under_it(box: TestBox) -> None:
    box.apply(source(id=42))
    delete(box, 42)

    back = box.apply(source(id=42))

    assert (back.id, back.changed, back.version) == (42, True, 2)
    assert find(box, "other").id == 42


def test_a_deleted_workflow_starts_nothing_by_its_webhook(box: TestBox, client: Any) -> None:
    path = box.hook()
    delete(box, "hello")

    assert client.post(path).status_code == 404


def test_disabling_is_a_switch(box: TestBox) -> None:
    for enabled in (False, True):
        with box.database.transaction() as connection:
            workflows.set_enabled(connection, "hello", enabled=enabled, now=NOW)
        assert find(box, "hello").enabled == enabled


def test_applying_again_does_not_enable_what_was_disabled(box: TestBox) -> None:
    with box.database.transaction() as connection:
        workflows.set_enabled(connection, "hello", enabled=False, now=NOW)

    box.apply(HELLO.replace("Hello", "Hi"))

    assert find(box, "hello").enabled == 0


def test_a_file_that_is_refused_leaves_the_last_good_version_whole(box: TestBox) -> None:
    good = source() + "triggers: [{name: mine, webhook: {}}]\n"
    box.apply(good)
    with box.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE triggers SET origin = 'cli'")

    # Its trigger's name is taken: the third of apply's steps refuses it, after the version was written.
    with pytest.raises(Conflict):
        box.apply(good.replace("one", "two"))

    with box.database.read() as connection:
        assert workflows.source_of(connection, find(box, "other").version_id) == good


def test_definitions_are_read_once_and_what_was_read_is_bounded(box: TestBox) -> None:
    known = workflows.Definitions(most=2)
    for text in ("one", "two", "three"):
        box.apply(source(text=text))
    ids = [row["id"] for row in box.rows("SELECT id FROM workflow_versions ORDER BY id")]

    with box.database.read() as connection:
        assert known.of(connection, ids[0]) is known.of(connection, ids[0])
        assert [known.of(connection, each).name for each in ids] == ["hello", "other", "other", "other"]


def test_the_list_is_by_name_with_the_newest_version(box: TestBox) -> None:
    box.apply(source("a-first"))
    box.apply(source("a-first", text="two"))
    box.apply(source("gone"))
    delete(box, "gone")

    with box.database.read() as connection:
        listed = [(each["name"], each["version"], each["enabled"]) for each in workflows.list_all(connection)]

    assert listed == [("a-first", 2, True), ("hello", 1, True)]
