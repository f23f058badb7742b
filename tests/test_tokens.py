"""API tokens and webhook tokens: only digests are stored, and what is presented is found or not, nothing between."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from orqo import tokens
from orqo.errors import Invalid, NotFound
from support import TestBox

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def create(box: TestBox, **changes: object) -> tuple[int, str]:
    with box.database.transaction() as connection:
        return tokens.create(connection, **({"name": "ci", "now": NOW} | changes))  # type: ignore[arg-type]


def find(box: TestBox, token: str, *, now: datetime = NOW) -> tokens.Holder | None:
    with box.database.read() as connection:
        return tokens.find(connection, token, now=now)


def test_a_token_has_the_documented_form_and_is_never_the_same() -> None:
    made = {tokens.mint_api_token() for _ in range(50)}

    assert len(made) == 50
    assert all(re.fullmatch(r"orqo_[A-Za-z0-9_-]{43}", token) for token in made)


def test_a_made_token_is_found_again_with_its_default_scopes(box: TestBox) -> None:
    token_id, token = create(box)

    holder = find(box, token)

    assert holder is not None
    assert (holder.id, holder.name, holder.scopes) == (token_id, "ci", {"trigger", "read"})
    assert (holder.may("trigger"), holder.may("write"), holder.may("admin")) == (True, False, False)


def test_admin_is_every_scope(box: TestBox) -> None:
    holder = find(box, create(box, scopes=["admin"])[1])

    assert holder is not None
    assert all(holder.may(scope) for scope in tokens.SCOPES)


def test_the_database_holds_no_token(box: TestBox) -> None:
    token = create(box)[1]

    assert token.removeprefix("orqo_") not in "\n".join(map(str, box.rows("SELECT * FROM api_tokens")))


@pytest.mark.parametrize(
    "presented",
    [
        "",
        "orqo_",
        "orqo_" + "a" * 42,
        "orqo_" + "a" * 44,
        "a" * 48,
        "orqo_" + "é" * 43,
        "orqo_" + "\0" * 43,
        "orqo_" + "a" * 43 + "\n",
        "'; --",
    ],
)
def test_what_is_no_token_is_unknown(box: TestBox, presented: str) -> None:
    assert find(box, presented) is None


def test_a_revoked_token_is_unknown_and_revoking_again_changes_nothing(box: TestBox) -> None:
    token_id, token = create(box)
    with box.database.transaction() as connection:
        tokens.revoke(connection, token_id, now=NOW)
        tokens.revoke(connection, token_id, now=NOW + timedelta(days=1))

    assert find(box, token) is None
    assert box.rows("SELECT revoked_at FROM api_tokens WHERE id = :id", id=token_id)[0]["revoked_at"] == "2026-01-02T03:04:05.000Z"


def test_revoking_what_is_not_there_says_so(box: TestBox) -> None:
    with pytest.raises(NotFound, match="token list"), box.database.transaction() as connection:
        tokens.revoke(connection, 999, now=NOW)


def test_an_expired_token_is_unknown_from_that_moment(box: TestBox) -> None:
    token = create(box, expires_at=NOW + timedelta(hours=1))[1]

    assert find(box, token, now=NOW + timedelta(minutes=59)) is not None
    assert find(box, token, now=NOW + timedelta(hours=1)) is None


@pytest.mark.parametrize(("listed", "may"), [(None, True), ([7], True), ([8], False), ([], False)], ids=["all", "listed", "other", "none"])
def test_a_token_may_use_the_workflows_of_its_list(box: TestBox, listed: list[int] | None, may: bool) -> None:
    holder = find(box, create(box, workflow_ids=listed)[1])

    assert holder is not None
    assert holder.may_use(7) is may


@pytest.mark.parametrize("changes", [{"name": ""}, {"name": "a\nb"}, {"name": "x" * 101}, {"scopes": []}, {"scopes": ["root"]}])
def test_a_token_that_does_not_fit_is_refused_and_not_stored(box: TestBox, changes: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        create(box, **changes)

    assert box.rows("SELECT id FROM api_tokens") == []


def test_use_is_noted_to_the_minute(box: TestBox) -> None:
    token = create(box)[1]
    seen = []
    for seconds in (0, 30, 61):
        now = NOW + timedelta(seconds=seconds)
        holder = find(box, token, now=now)
        assert holder is not None
        with box.database.transaction() as connection:
            tokens.mark_used(connection, holder, now=now)
        seen.append(box.rows("SELECT last_used_at FROM api_tokens")[0]["last_used_at"])

    assert seen == ["2026-01-02T03:04:05.000Z", "2026-01-02T03:04:05.000Z", "2026-01-02T03:05:06.000Z"]


def test_a_webhook_token_follows_from_key_and_nonce_alone() -> None:
    made = tokens.webhook_token(b"k" * 32, "nonce")

    assert tokens.WEBHOOK_TOKEN.fullmatch(made)
    assert made == tokens.webhook_token(b"k" * 32, "nonce")
    assert made != tokens.webhook_token(b"l" * 32, "nonce")
    assert made != tokens.webhook_token(b"k" * 32, "other")
