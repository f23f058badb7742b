"""Webhook triggers: their tokens stay as they are, whatever is applied, and the database alone reveals none."""

from __future__ import annotations

from typing import Any

import pytest

from orqo import runs, triggers, workflows
from orqo.clock import now
from orqo.errors import Conflict, Invalid, NotFound
from support import TestBox

PINNED = "p" * 43


def file(*wanted: str, text: str = "one", name: str = "other") -> str:
    listed = "".join(f"  - {each}\n" for each in wanted)
    return f"name: {name}\n" + (f"triggers:\n{listed}" if wanted else "") + f"stages:\n  - {{name: say, stub: {{output: {text}}}}}\n"


def row_of(box: TestBox, name: str) -> Any:
    return next(iter(box.rows("SELECT * FROM triggers WHERE name = :name", name=name)), None)


def url_of(box: TestBox, name: str) -> str | None:
    with box.database.read() as connection:
        return triggers.url_of(triggers.get(connection, row_of(box, name)["id"]), box.key, box.config.base_url)


def token_of(box: TestBox, name: str) -> str:
    return str(url_of(box, name)).rpartition("/")[2]


def find(box: TestBox, token: str) -> Any:
    with box.database.read() as connection:
        return triggers.find(connection, token)


def change(box: TestBox, function: Any, *arguments: Any, **named: Any) -> Any:
    with box.database.transaction() as connection:
        return function(connection, *arguments, **named)


def test_applying_makes_a_trigger_whose_url_can_be_shown_again(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}"))

    assert url_of(box, "ci") == url_of(box, "ci")
    found = find(box, token_of(box, "ci"))
    assert (found.name, found.workflow_name, found.enabled, found.workflow_enabled) == ("ci", "other", 1, 1)


def test_the_database_reveals_no_token(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}", f"{{name: pinned, webhook: {{token: {PINNED}}}}}"))
    token = token_of(box, "ci")

    dump = box.dump()

    assert token not in dump
    assert PINNED not in dump


def test_a_token_never_changes_by_applying(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}"))
    before = url_of(box, "ci")

    box.apply(file("{name: ci, webhook: {}}", "{name: more, webhook: {}}", text="two"))

    assert url_of(box, "ci") == before


def test_leaving_the_file_disables_and_coming_back_gives_the_same_url(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}"))
    before = url_of(box, "ci")

    box.apply(file(text="two"))
    assert row_of(box, "ci")["enabled"] == 0
    box.apply(file("{name: ci, webhook: {}}", text="three"))

    assert row_of(box, "ci")["enabled"] == 1
    assert url_of(box, "ci") == before


def test_what_a_person_disabled_stays_disabled_through_applying(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}"))
    change(box, triggers.set_enabled, row_of(box, "ci")["id"], enabled=False)

    box.apply(file("{name: ci, webhook: {}}", text="two"))

    assert row_of(box, "ci")["enabled"] == 0


def test_a_pinned_token_is_found_and_never_shown(box: TestBox) -> None:
    box.apply(file(f"{{name: pinned, webhook: {{token: {PINNED}}}}}"))

    assert find(box, PINNED).name == "pinned"
    assert url_of(box, "pinned") is None
    with box.database.read() as connection:
        assert [(each["name"], each["pinned"]) for each in triggers.list_all(connection)] == [("pinned", True)]


def test_pinning_and_unpinning_change_the_token(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}}"))
    derived = token_of(box, "ci")

    box.apply(file(f"{{name: ci, webhook: {{token: {PINNED}}}}}"))
    assert (find(box, derived), find(box, PINNED).name) == (None, "ci")
    box.apply(file("{name: ci, webhook: {}}", text="three"))

    assert find(box, PINNED) is None
    assert find(box, token_of(box, "ci")).name == "ci"


def test_a_pinned_token_that_another_trigger_has_is_refused(box: TestBox) -> None:
    box.apply(file(f"{{name: ci, webhook: {{token: {PINNED}}}}}"))

    with pytest.raises(Invalid, match="belongs to another trigger"):
        box.apply(file(f"{{name: thief, webhook: {{token: {PINNED}}}}}", name="third"))

    assert find(box, PINNED).workflow_name == "other"


def test_two_triggers_can_exchange_their_pinned_tokens(box: TestBox) -> None:
    pinned = [f"{{name: {name}, webhook: {{token: {token * 43}}}}}" for name, token in (("a", "x"), ("b", "y"), ("a", "y"), ("b", "x"))]
    box.apply(file(*pinned[:2]))

    # Either it works or it is refused as a whole; half of it would send one's calls to the other.
    try:
        box.apply(file(*pinned[2:]))
    except Invalid:
        assert (find(box, "x" * 43).name, find(box, "y" * 43).name) == ("a", "b")
    else:
        assert (find(box, "x" * 43).name, find(box, "y" * 43).name) == ("b", "a")


def test_a_name_taken_by_hand_is_a_conflict(box: TestBox) -> None:
    box.hook(name="ci")

    with pytest.raises(Conflict, match="made by cli"):
        box.apply(file("{name: ci, webhook: {}}", name="hello"))


def test_applying_leaves_triggers_made_by_hand_alone(box: TestBox) -> None:
    path = box.hook(name="by-hand")

    box.apply(file("{name: ci, webhook: {}}", name="hello"))

    assert find(box, path.rpartition("/")[2]).enabled == 1


@pytest.mark.parametrize(
    "token",
    ["", "a" * 43, "a" * 42, "a" * 44, "é" * 43, "a" * 42 + "\n", "a" * 42 + "\0", "../" * 15, "%2f" * 15, "\ud800" * 43, "A" * 100_000],
    ids=["empty", "unknown", "short", "long", "not ascii", "newline", "nul", "dots", "percent", "surrogates", "huge"],
)
def test_a_token_of_any_shape_is_unknown_and_no_fault(box: TestBox, token: str) -> None:
    assert find(box, token) is None


def test_rotating_makes_the_old_url_unknown(box: TestBox) -> None:
    old = box.hook(name="ci").rpartition("/")[2]
    change(box, triggers.rotate, row_of(box, "ci")["id"], key=box.key)

    assert find(box, old) is None
    assert find(box, token_of(box, "ci")).name == "ci"


def test_a_pinned_token_is_rotated_in_its_file_only(box: TestBox) -> None:
    box.apply(file(f"{{name: ci, webhook: {{token: {PINNED}}}}}"))

    with pytest.raises(Conflict, match="pinned in the workflow's file"):
        change(box, triggers.rotate, row_of(box, "ci")["id"], key=box.key)


@pytest.mark.parametrize("name", ["", "A", "a b", "x" * 65, "a/b", "é"])
def test_a_name_that_cannot_be_used_is_refused(box: TestBox, name: str) -> None:
    with pytest.raises(Invalid):
        change(box, triggers.create, workflow_id=1, name=name, key=box.key, origin="cli", now=now())


def test_a_name_is_taken_once_per_workflow(box: TestBox) -> None:
    box.hook(name="ci")

    with pytest.raises(Conflict, match="choose another name"):
        change(box, triggers.create, workflow_id=1, name="ci", key=box.key, origin="cli", now=now())


def test_removing_a_trigger_keeps_its_runs_and_takes_its_callbacks(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}, callbacks: [{url: 'http://127.0.0.1:1/x'}]}"))
    trigger_id = row_of(box, "ci")["id"]
    run_id = box.accept("other", trigger_id=trigger_id)

    change(box, triggers.remove, trigger_id)

    assert box.run(run_id)["trigger_id"] is None
    assert box.rows("SELECT id FROM callbacks") == []
    with pytest.raises(NotFound):
        change(box, triggers.remove, trigger_id)


def test_removing_a_trigger_whose_callbacks_have_deliveries_keeps_those(box: TestBox) -> None:
    box.apply(file("{name: ci, webhook: {}, callbacks: [{url: 'http://127.0.0.1:1/x'}]}"))
    trigger_id = row_of(box, "ci")["id"]
    run_id = box.accept("other", trigger_id=trigger_id)
    runs.stop(box.box, run_id, now=now())
    assert len(box.rows("SELECT id FROM deliveries")) == 1

    change(box, triggers.remove, trigger_id)

    assert row_of(box, "ci") is None
    assert len(box.rows("SELECT id FROM deliveries")) == 1


def test_a_trigger_of_a_deleted_workflow_is_not_there(box: TestBox) -> None:
    token = box.hook().rpartition("/")[2]
    change(box, workflows.delete, "hello", now=now())

    assert find(box, token) is None
    with pytest.raises(NotFound):
        change(box, triggers.get, row_of(box, "example")["id"])
