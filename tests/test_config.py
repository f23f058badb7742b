"""Settings: read once, all faults told at once, secrets never shown."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from orqo.config import PROJECT_DIR, SETTINGS, Config, ConfigError, duration_s, size_bytes


def faults(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        Config.from_environ(environ)
    return told.value.faults


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = Config.from_environ({})

    assert (config.host, config.port, config.workers, config.body_max_bytes) == ("127.0.0.1", 8000, 4, 1048576)
    assert config.data == PROJECT_DIR / "var"
    assert config.base_url == "http://127.0.0.1:8000"
    assert config.database_url == f"sqlite:///{PROJECT_DIR}/var/orqo.db"
    assert config.callback_retries_s == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    assert (config.stop_timeout_s, config.strict, config.example) == (10, False, True)


def test_a_stand_in_has_one_web_process_and_others_one_for_each_processor_but_two_at_most() -> None:
    processors = os.cpu_count() or 1

    assert Config.from_environ({}).web_processes == min(2, processors)
    assert Config.from_environ({"ORQO_WEB_PROCESSES": "5"}).web_processes == 5
    assert Config.from_environ({"ORQO_WEB_PROCESSES": "5", "ORQO_SIMULATE": "1"}).web_processes == 1


def test_an_empty_variable_is_an_absent_one() -> None:
    assert Config.from_environ({name.name: "" for name in SETTINGS.values()}) == Config.from_environ({})


def test_a_relative_data_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert Config.from_environ({"ORQO_DATA": "here"}).data == tmp_path / "here"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("box.example", "http://box.example:8000"),
    ],
)
def test_the_base_url_follows_the_host(host: str, url: str) -> None:
    assert Config.from_environ({"ORQO_HOST": host}).base_url == url


def test_a_base_url_loses_its_last_slash() -> None:
    assert Config.from_environ({"ORQO_BASE_URL": "https://orqo.example/"}).base_url == "https://orqo.example"


@pytest.mark.parametrize("url", ["redis+sentinel://a:1,b:2", "redis+sentinel:///main", "redis+sentinel://a/main/x"])
def test_a_sentinel_url_wants_hosts_and_a_name(url: str) -> None:
    assert "NAME" in faults(REDIS_URL=url)[0]


def test_all_faults_are_told_at_once_each_with_its_name() -> None:
    told = faults(ORQO_PORT="http", ORQO_WORKERS="0", ORQO_STRICT="yes", REDIS_URL="http://x", ORQO_STOP_TIMEOUT="10")

    assert [fault.split(":")[0] for fault in told] == ["ORQO_PORT", "ORQO_WORKERS", "REDIS_URL", "ORQO_STOP_TIMEOUT", "ORQO_STRICT"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ORQO_PORT", "0"),
        ("ORQO_PORT", "65536"),
        ("ORQO_PORT", "8000.0"),
        ("ORQO_PORT", "٨٠"),
        ("ORQO_PORT", "9" * 5000),
        ("ORQO_BODY_MAX_BYTES", "-1"),
        ("ORQO_BODY_MAX_BYTES", "1MB"),
        ("ORQO_BASE_URL", "ftp://x"),
        ("DATABASE_URL", "mysql://x"),
        ("ORQO_ALLOWED_NETWORKS", "10.0.0.0/33"),
        ("ORQO_CALLBACK_RETRIES", "5s,soon"),
        ("ORQO_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name: str, text: str) -> None:
    assert [fault.split(":")[0] for fault in faults(**{name: text})] == [name]


def test_lists_are_read_item_by_item() -> None:
    config = Config.from_environ({"ORQO_ALLOWED_NETWORKS": "10.0.0.0/8, ::1/128", "ORQO_CALLBACK_RETRIES": "100ms, 2s,1d"})

    assert config.allowed_networks == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))
    assert config.callback_retries_s == (0.1, 2, 86400)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("15m", 900), ("2h", 7200), ("1d", 86400), (" 3s ", 3)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "1.5s", "-1s", "1 s", "1h30m", "inf", "1S"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and a unit"):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("65536", 65536), ("12B", 12), ("256KiB", 262144), ("1MiB", 1048576), ("1GiB", 2**30)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


def test_a_setting_is_read_from_the_file_that_its_variable_names(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("orqo_" + "a" * 43 + "\n")

    assert Config.from_environ({"ORQO_API_TOKEN_FILE": str(file)}).api_token == "orqo_" + "a" * 43


def test_a_setting_and_its_file_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("1")

    assert "not both" in faults(ORQO_PORT="1", ORQO_PORT_FILE=str(tmp_path / "port"))[0]


def test_a_file_that_is_absent_or_no_text_is_a_fault_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\xfe")

    told = faults(ORQO_PORT_FILE=str(tmp_path / "absent"), ORQO_HOST_FILE=str(tmp_path / "noise"))

    assert [fault.split(":")[0] for fault in told] == ["ORQO_HOST", "ORQO_PORT"]


def test_secrets_come_from_variables_and_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("from a file\n")

    config = Config.from_environ({"ORQO_SECRET_A": "plain", "ORQO_SECRET_B_FILE": str(tmp_path / "b"), "ORQO_SECRET_": "x", "OTHER": "y"})

    assert config.secrets == {"A": "plain", "B": "from a file"}


def test_no_secret_shows_when_a_config_is_printed() -> None:
    environ = {"ORQO_KEY": "k" * 9, "ORQO_API_TOKEN": "t" * 9, "ORQO_SECRET_A": "s" * 9, "REDIS_URL": "redis://:p4ssword@h"}

    shown = repr(Config.from_environ(environ | {"DATABASE_URL": "postgresql://u:p4ssword@h/d"}))

    assert not [hidden for hidden in ("kkk", "ttt", "sss", "p4ssword") if hidden in shown]


def test_postgresql_gets_the_driver_that_is_installed() -> None:
    assert Config.from_environ({"DATABASE_URL": "postgresql://u@h/d"}).database_url == "postgresql+psycopg://u@h/d"


def test_every_setting_says_what_it_means_in_one_line() -> None:
    assert all(setting.meaning and "\n" not in setting.meaning for setting in SETTINGS.values())
