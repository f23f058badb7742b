"""People, sessions, one-time links, passwords."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import pytest
from sqlalchemy import insert

from orqo import clock, people, tokens
from orqo.errors import Conflict, Gone, Invalid, NotFound, TooManyRequests, Unauthorized
from orqo.models import SignInFailure
from orqo.people import Credentials
from support import TestBox

NOW = datetime.fromisoformat("2026-03-04T05:06:07+00:00")
ANNA = Credentials("Anna", "correct horse battery")


def link(box: TestBox, *, now: datetime = NOW) -> str:
    with box.database.transaction() as connection:
        return people.make_link(connection, now=now)


def by_link(box: TestBox, wanted: Credentials | None = None, *, now: datetime = NOW) -> str:
    return people.sign_in_by_link(box.database, link(box, now=now), wanted, agent="test", now=now)


def by_password(box: TestBox, given: Credentials, *, now: datetime = NOW) -> str:
    return people.sign_in_by_password(box.database, given, agent="test", now=now)


def session(box: TestBox, token: str, *, now: datetime = NOW) -> people.SignedIn | None:
    with box.database.read() as connection:
        return people.find_session(connection, token, now=now)


def fail(box: TestBox, name: str, times: int) -> None:
    """Leave what failed sign-ins leave, without the time that each takes."""
    row = {"name_hash": tokens.digest(name), "failed_at": clock.to_text(NOW)}
    with box.database.transaction() as connection:
        connection.execute(insert(SignInFailure), [row] * times)


def test_a_link_signs_in_once(box: TestBox) -> None:
    token = link(box)
    people.sign_in_by_link(box.database, token, None, agent="test", now=NOW)

    with pytest.raises(Gone):
        people.sign_in_by_link(box.database, token, None, agent="test", now=NOW)


def test_one_of_two_that_use_a_link_at_once_wins(box: TestBox) -> None:
    token, results = link(box), []

    def attempt() -> None:
        try:
            results.append(people.sign_in_by_link(box.database, token, None, agent="test", now=NOW))
        except Gone:
            results.append(None)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(result is not None for result in results) == 1


@pytest.mark.parametrize(("after", "opens"), [(timedelta(minutes=14, seconds=59), True), (timedelta(minutes=15), False)])
def test_a_link_lasts_15_minutes(box: TestBox, after: timedelta, opens: bool) -> None:
    token = link(box)

    with box.database.read() as connection:
        assert people.link_is_open(connection, token, now=NOW + after) is opens


def test_a_name_that_will_not_do_leaves_the_link_good(box: TestBox) -> None:
    token = link(box)

    with pytest.raises(Invalid):
        people.sign_in_by_link(box.database, token, Credentials("Anna", "short"), agent="test", now=NOW)

    assert people.sign_in_by_link(box.database, token, ANNA, agent="test", now=NOW)


def test_a_link_never_takes_over_a_person(box: TestBox) -> None:
    by_link(box, ANNA)

    with pytest.raises(Conflict):
        by_link(box, Credentials("Anna", "another password"))

    assert by_password(box, ANNA)


def test_name_and_password_sign_in_again(box: TestBox) -> None:
    by_link(box, ANNA)

    found = session(box, by_password(box, ANNA))

    assert found is not None and found.name == "Anna"


@pytest.mark.parametrize("given", [Credentials("Anna", "wrong password"), Credentials("Nobody", ANNA.password), Credentials("", "")])
def test_what_is_wrong_is_refused_in_the_same_words(box: TestBox, given: Credentials) -> None:
    by_link(box, ANNA)

    with pytest.raises(Unauthorized, match="The name or the password is wrong"):
        by_password(box, given)


def test_ten_failures_close_a_name_for_15_minutes(box: TestBox) -> None:
    by_link(box, ANNA)
    fail(box, "Anna", people.GUESSES_PER_NAME - 1)
    with pytest.raises(Unauthorized):
        by_password(box, Credentials("Anna", "a wrong password"))

    with pytest.raises(TooManyRequests):
        by_password(box, ANNA)

    assert by_password(box, ANNA, now=NOW + people.GUESS_WINDOW)


def test_a_success_forgets_the_failures(box: TestBox) -> None:
    by_link(box, ANNA)
    fail(box, "Anna", people.GUESSES_PER_NAME - 1)
    by_password(box, ANNA)

    assert box.rows("SELECT 1 FROM sign_in_failures") == []


def test_guessing_names_is_limited_too(box: TestBox) -> None:
    for number in range(people.GUESSES_IN_ALL):
        fail(box, f"name {number}", 1)

    with pytest.raises(TooManyRequests):
        by_password(box, Credentials("somebody", "some password"))


def test_a_session_lasts_12_hours(box: TestBox) -> None:
    token = by_link(box)

    assert session(box, token, now=NOW + timedelta(hours=11, minutes=59)) is not None
    assert session(box, token, now=NOW + timedelta(hours=12)) is None


def test_tokens_are_kept_as_digests_only(box: TestBox) -> None:
    token, unused = by_link(box, ANNA), link(box)

    kept = str(box.rows("SELECT * FROM sessions") + box.rows("SELECT * FROM login_links") + box.rows("SELECT * FROM people"))

    assert token not in kept and unused not in kept and ANNA.password not in kept
    assert "scrypt:" in kept


def test_an_ended_session_is_unknown(box: TestBox) -> None:
    token = by_link(box)
    found = session(box, token)
    assert found is not None
    with box.database.transaction() as connection:
        people.end_session(connection, found.id)

    assert session(box, token) is None
    with box.database.transaction() as connection, pytest.raises(NotFound):
        people.end_session(connection, found.id)


def test_removing_a_person_ends_their_sessions(box: TestBox) -> None:
    token = by_link(box, ANNA)
    found = session(box, token)
    assert found is not None and found.person_id is not None
    with box.database.transaction() as connection:
        people.remove(connection, found.person_id)

    assert session(box, token) is None
    with pytest.raises(Unauthorized):
        by_password(box, ANNA)


def test_who_came_by_link_may_set_a_name_later(box: TestBox) -> None:
    token = by_link(box)
    found = session(box, token)
    assert found is not None

    people.set_credentials(box.database, found, ANNA, now=NOW)

    assert session(box, token).name == "Anna"  # type: ignore[union-attr]
    assert by_password(box, ANNA)


def test_changing_a_password_ends_the_other_sessions(box: TestBox) -> None:
    mine, other = by_link(box, ANNA), by_password(box, ANNA)
    found = session(box, mine)
    assert found is not None

    people.set_credentials(box.database, found, Credentials("Anna B.", "another password"), now=NOW)

    assert session(box, mine) is not None
    assert session(box, other) is None
    with pytest.raises(Unauthorized):
        by_password(box, ANNA)


@pytest.mark.parametrize("name", ["", " ", "a\nb", " a", "a ", "x" * 65, "\x00"], ids=repr)
def test_unusable_names_are_refused(box: TestBox, name: str) -> None:
    with pytest.raises(Invalid):
        by_link(box, Credentials(name, ANNA.password))


@pytest.mark.parametrize("name", ["a", "Анна", "<b>x</b>", "x" * 64, "a b"], ids=repr)
def test_any_other_name_will_do(box: TestBox, name: str) -> None:
    assert by_link(box, Credentials(name, ANNA.password))


def test_what_is_over_is_forgotten_at_the_next_sign_in(box: TestBox) -> None:
    by_link(box)
    link(box)

    by_link(box, now=NOW + timedelta(days=1))

    assert len(box.rows("SELECT 1 FROM sessions")) == 1
    assert box.rows("SELECT 1 FROM login_links") == []
