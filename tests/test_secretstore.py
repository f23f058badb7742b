"""Secrets: where they come from, that no spelling of them is shown, and the instance key's file."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from orqo.config import PROJECT_DIR, Config, ConfigError
from orqo.secretstore import SecretStore, instance_key, key_check

VALUE = 'p&ä"s/s\\w'


def config(tmp_path: Path, **environ: str) -> Config:
    return Config.from_environ({"ORQO_DATA": str(tmp_path / "data")} | environ)


@pytest.mark.parametrize(
    "spelling",
    [
        VALUE,
        quote(VALUE, safe=""),
        json.dumps(VALUE)[1:-1],
        json.dumps(VALUE, ensure_ascii=False)[1:-1],
        base64.b64encode(VALUE.encode()).decode(),
    ],
    ids=["plain", "url", "json", "json as we write it", "base64"],
)
def test_every_usual_spelling_is_masked(spelling: str) -> None:
    store = SecretStore({"A": VALUE})

    assert store.mask(f"before {spelling} after").replace("=", "") == "before *** after"
    assert store.mask_bytes(b"\xff" + spelling.encode() + b"\xff").replace(b"=", b"") == b"\xff***\xff"


def test_a_secret_that_contains_another_is_masked_whole() -> None:
    assert SecretStore({"A": "abcd", "B": "abcdefgh"}).mask("abcdefgh abcd") == "*** ***"


def test_what_is_too_short_to_be_a_secret_does_not_ruin_texts() -> None:
    assert SecretStore({"A": "on", "B": ""}).mask("only one") == "only one"


def test_a_store_shows_names_only() -> None:
    assert repr(SecretStore({"B": "hunter2hunter2", "A": "x"})) == "SecretStore(['A', 'B'])"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("# a comment\n\nA=from=file\n B =spaces kept \n")
    file.chmod(0o600)

    store = SecretStore.from_config(config(tmp_path, ORQO_SECRETS_FILE=str(file), ORQO_SECRET_C="c"))
    over = SecretStore.from_config(config(tmp_path, ORQO_SECRETS_FILE=str(file), ORQO_SECRET_A="from environment"))

    assert dict(store) == {"A": "from=file", "B": "spaces kept ", "C": "c"}
    assert over["A"] == "from environment"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secrets"
    file.write_text("A=1234\n")
    file.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600 secrets"):
        SecretStore.from_config(config(tmp_path, ORQO_SECRETS_FILE=str(file)))


@pytest.mark.parametrize("content", [b"no equals sign\n", b"A=\xff\xfe\n", None], ids=["no pair", "no text", "absent"])
def test_a_file_that_cannot_be_read_is_a_fault_of_its_setting(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secrets"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)

    with pytest.raises(ConfigError, match="ORQO_SECRETS_FILE"):
        SecretStore.from_config(config(tmp_path, ORQO_SECRETS_FILE=str(file)))


def test_a_missing_secret_is_an_absent_key() -> None:
    store = SecretStore({"A": "1234"})

    assert "B" not in store
    with pytest.raises(KeyError):
        store["B"]


# ── the instance key ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_made_once_and_for_us_alone(tmp_path: Path) -> None:
    first = instance_key(config(tmp_path), make=True)
    again = instance_key(config(tmp_path), make=True)

    path = tmp_path / "data" / "instance.key"
    assert first == again
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["instance.key"]


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    script = (
        "from orqo.config import Config; from orqo.secretstore import instance_key;"
        "print(instance_key(Config.from_environ(), make=True).hex())"
    )
    start = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen(start, env={"ORQO_DATA": str(tmp_path / "data")}, cwd=PROJECT_DIR, stdout=subprocess.PIPE) for _ in range(3)
    ]

    assert len({process.communicate(timeout=30)[0] for process in processes}) == 1
    assert all(process.returncode == 0 for process in processes)


def test_a_key_that_should_be_there_and_is_not_is_never_made_anew(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="restore the file"):
        instance_key(config(tmp_path), make=False)


@pytest.mark.parametrize("text", ["short", "é" * 40, base64.b64encode(b"x" * 31).decode(), base64.b64encode(b"x" * 33).decode(), "!" * 44])
def test_a_key_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="ORQO_KEY"):
        instance_key(config(tmp_path, ORQO_KEY=text), make=True)


def test_a_key_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "instance.key").write_bytes(b"\xff\xff")

    with pytest.raises(ConfigError):
        instance_key(config(tmp_path), make=True)


def test_the_check_value_tells_keys_apart() -> None:
    assert key_check(b"a" * 32) != key_check(b"b" * 32)
    assert (b"a" * 32).hex() not in key_check(b"a" * 32)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [(b"key=s3cret", b"key=***"), (b"key=s3cr", b"key=***"), (b"key=s3c", b"key=s3c"), (b"key", b"key")],
    ids=["nearly-whole", "four-characters", "too-little-to-tell", "nothing"],
)
def test_the_beginning_of_a_secret_that_a_cut_left_is_masked(cut: bytes, expected: bytes) -> None:
    assert SecretStore({"A": "s3cret!"}).mask_last(cut) == expected


@pytest.mark.parametrize(("cut", "expected"), [(b"3cret! ok", b"*** ok"), (b"et! ok", b"et! ok")], ids=["most", "too-little-to-tell"])
def test_the_end_of_a_secret_that_a_cut_left_is_masked(cut: bytes, expected: bytes) -> None:
    assert SecretStore({"A": "s3cret!"}).mask_first(cut) == expected
