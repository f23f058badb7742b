"""Every setting: its name, type, default and meaning, read once into one frozen Config.

Owns the reading of environment variables. All faults are reported at once. Never knows what a setting is used for.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROJECT_DIR = Path(__file__).resolve().parent.parent
DEFAULT_CALLBACK_RETRIES = "5s,5m,30m,2h,5h,10h,14h,20h,24h"
DURATION = re.compile(r"([0-9]+)(ms|s|m|h|d)")
DURATION_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# Each costs 23 MB; on two processors the second gives a quarter more accepts, and answers while the first is down.
WEB_PROCESSES_MAX = 2
SECRET_PREFIX = "ORQO_SECRET_"


class ConfigError(Exception):
    """The settings cannot be used; `faults` holds one sentence for each fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Setting:
    """One environment variable: how its text is read, what it is when absent, and what it means."""

    name: str
    read: Callable[[str], Any]
    default: str
    meaning: str
    secret: bool = False


def duration_s(text: str) -> float:
    """Give the seconds of `250ms`, `10s`, `15m`, `2h`, `1d`; ValueError on anything else."""
    found = DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError("write a number and a unit, such as 500ms, 10s, 15m, 2h or 1d")
    return int(found[1]) * DURATION_S[found[2]]


def size_bytes(text: str) -> int:
    """Give the bytes of `65536`, `256KiB`, `1MiB` or `1GiB`; ValueError on anything else."""
    found = re.fullmatch(r"([0-9]+)(B|KiB|MiB|GiB)?", text.strip())
    if not found:
        raise ValueError("write a number of bytes, or a number with KiB, MiB or GiB")
    return int(found[1]) * {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]]


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return int(text)

    return read


def _integer_or_none(low: int, high: int) -> Callable[[str], int | None]:
    return lambda text: _integer(low, high)(text) if text else None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("write 0 or 1")
    return text == "1"


def _text(text: str) -> str:
    return text


def _choice(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"write one of {', '.join(allowed)}")
        return text

    return read


def _url(*schemes: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text and urlsplit(text).scheme not in schemes:
            raise ValueError(f"write a URL that starts with {' or '.join(s + '://' for s in schemes)}")
        return text

    return read


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def _durations_s(text: str) -> tuple[float, ...]:
    return tuple(duration_s(part) for part in text.split(",") if part.strip())


def _database_url(text: str) -> str:
    return _url("sqlite", "postgresql", "postgresql+psycopg")(text)


def _redis_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if text and scheme not in ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"):
        raise ValueError("write a URL that starts with redis://, rediss://, unix:// or redis+sentinel://")
    if scheme.endswith("+sentinel") and not re.fullmatch(r"[^/?]+/[^/?]+(/[0-9]+)?(\?.*)?", rest):
        raise ValueError("write redis+sentinel://host:port,host:port/NAME, NAME as the Sentinels call the server")
    return text


SETTINGS: dict[str, Setting] = {
    "host": Setting("ORQO_HOST", _text, "127.0.0.1", "address to listen on"),
    "port": Setting("ORQO_PORT", _integer(1, 65535), "8000", "port to listen on"),
    "data": Setting("ORQO_DATA", _text, "", "folder of the database, Valkey, keys and run folders; default: var beside app.py"),
    "base_url": Setting("ORQO_BASE_URL", _url("http", "https"), "", "how others reach this box; default: http://ORQO_HOST:ORQO_PORT"),
    "workers": Setting("ORQO_WORKERS", _integer(1, 256), "4", "worker processes: how many stages run at once"),
    "web_processes": Setting(
        "ORQO_WEB_PROCESSES", _integer_or_none(1, 64), "", "processes of the web server; default: as many as processors, two at most"
    ),
    "threads": Setting("ORQO_THREADS", _integer(1, 256), "16", "threads of each process of the web server"),
    "body_max_bytes": Setting("ORQO_BODY_MAX_BYTES", size_bytes, "1048576", "largest request body; larger is answered 413"),
    "database_url": Setting("DATABASE_URL", _database_url, "", "the database; default: a SQLite file in ORQO_DATA", secret=True),
    "redis_url": Setting("REDIS_URL", _redis_url, "", "a Redis or Valkey server; default: our own", secret=True),
    "key": Setting("ORQO_KEY", _text, "", "the instance key, base64 of 32 bytes; default: made at the first start", secret=True),
    "api_token": Setting("ORQO_API_TOKEN", _text, "", "an API token that shall exist with scope admin", secret=True),
    "callback_retries_s": Setting("ORQO_CALLBACK_RETRIES", _durations_s, DEFAULT_CALLBACK_RETRIES, "pauses between attempts"),
    "allowed_networks": Setting("ORQO_ALLOWED_NETWORKS", _networks, "", "networks that a request's URL may reach besides public ones"),
    "trusted_proxies": Setting("ORQO_TRUSTED_PROXIES", _networks, "", "networks of proxies whose X-Forwarded-For is believed"),
    "ca_bundle": Setting("ORQO_CA_BUNDLE", _text, "", "a file of CA certificates for outgoing TLS; default: certifi's"),
    "stop_timeout_s": Setting("ORQO_STOP_TIMEOUT", duration_s, "10s", "how long a running command may go on after SIGTERM"),
    "stage_user": Setting("ORQO_STAGE_USER", _text, "nobody", "the user that commands run as when the service runs as root"),
    "disk_free_min_bytes": Setting("ORQO_DISK_FREE_MIN", size_bytes, "64MiB", "below this much free disk new runs are refused with 503"),
    "llm_base_url": Setting(
        "ORQO_LLM_BASE_URL", _url("http", "https"), "", "OpenAI-compatible server for prompts, such as https://api.openai.com/v1"
    ),
    "llm_api_key": Setting("ORQO_LLM_API_KEY", _text, "", "the API key of that server", secret=True),
    "workflows": Setting("ORQO_WORKFLOWS", _text, "", "a folder of workflow files that alone say what workflows there are"),
    "secrets_file": Setting("ORQO_SECRETS_FILE", _text, "", "a file of NAME=value lines, mode 0600, for ${secrets.NAME}"),
    "example": Setting("ORQO_EXAMPLE", _flag, "1", "make the workflow hello and its trigger at the first start on loopback"),
    "strict": Setting("ORQO_STRICT", _flag, "0", "serve ORQO's documented and inferred API alone"),
    "machine_lost_after_s": Setting(
        "ORQO_MACHINE_LOST_AFTER", duration_s, "1h", "how long runs with files wait for the machine that has them; then they fail"
    ),
    "keep_days": Setting("ORQO_KEEP_DAYS", _integer(1, 36500), "30", "ended runs older than this are deleted, with all that is theirs"),
    "keep_runs": Setting("ORQO_KEEP_RUNS", _integer(1, 100_000_000), "10000", "of more runs than this the oldest ended ones are deleted"),
    "log_format": Setting("ORQO_LOG", _choice("text", "json"), "text", "log lines as text or as one JSON object each"),
    "simulate": Setting("ORQO_SIMULATE", _flag, "0", "be a stand-in for tests of clients: Prefer: code=409, simulate: in workflow files"),
    "log_level": Setting("ORQO_LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info", "least severe log line that is written"),
}


@dataclass(frozen=True)
class Config:
    """The settings of one process; durations in seconds, sizes in bytes. `secrets` are those of `ORQO_SECRET_<NAME>`."""

    host: str
    port: int
    data: Path
    base_url: str
    workers: int
    web_processes: int
    threads: int
    body_max_bytes: int
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    key: str = field(repr=False)
    api_token: str = field(repr=False)
    callback_retries_s: tuple[float, ...]
    allowed_networks: tuple[Network, ...]
    trusted_proxies: tuple[Network, ...]
    ca_bundle: str
    stop_timeout_s: float
    stage_user: str
    disk_free_min_bytes: int
    llm_base_url: str
    llm_api_key: str = field(repr=False)
    workflows: Path | None
    secrets_file: str
    example: bool
    strict: bool
    simulate: bool
    machine_lost_after_s: float
    keep_days: int
    keep_runs: int
    log_format: str
    log_level: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read the environment; ConfigError lists every setting that cannot be read and how to write it."""
        source = os.environ if environ is None else environ
        faults: list[str] = []
        values = {key: _read(setting, source, faults) for key, setting in SETTINGS.items()}
        secrets = _secrets(source, faults)
        if values["simulate"] and (values["base_url"] or "").startswith("https:"):
            faults.append("ORQO_SIMULATE: ORQO_BASE_URL is https, so others depend on this box, and it is no stand-in: unset one of them")
        if faults:
            raise ConfigError(faults)
        return cls(**_filled(values), secrets=secrets)

    @property
    def socket_note(self) -> Path:
        """The file in which the embedded Valkey's supervisor writes the URL of its socket."""
        return self.data / "redis.url"

    @property
    def database_path(self) -> Path | None:
        """The SQLite file, or None on PostgreSQL."""
        return Path(self.database_url.removeprefix("sqlite:///")) if self.database_url.startswith("sqlite") else None


def _read(setting: Setting, source: Mapping[str, str], faults: list[str]) -> Any:
    try:
        text = _from_file_or_variable(setting.name, source)
        return setting.read(setting.default if text in (None, "") else text)
    except (ValueError, OSError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        faults.append(f"{setting.name}: {reason}")
        return None


def _from_file_or_variable(name: str, source: Mapping[str, str]) -> str | None:
    """Give the variable's text, or that of the file that `NAME_FILE` names, without its last newline."""
    path = source.get(f"{name}_FILE")
    if path and source.get(name):
        raise ValueError(f"set {name} or {name}_FILE, not both")
    return Path(path).read_text(encoding="utf-8").strip("\r\n") if path else source.get(name)


def _secrets(source: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable in source:
        name = variable.removeprefix(SECRET_PREFIX).removesuffix("_FILE")
        if not variable.startswith(SECRET_PREFIX) or not name:
            continue
        try:
            found[name] = _from_file_or_variable(SECRET_PREFIX + name, source) or ""
        except (ValueError, OSError) as fault:
            faults.append(f"{variable}: {fault.strerror if isinstance(fault, OSError) else fault}")
    return found


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """Complete the defaults that depend on other settings."""
    data = Path(values["data"]).absolute() if values["data"] else PROJECT_DIR / "var"
    shown_host = f"[{values['host']}]" if ":" in values["host"] else values["host"]
    shown_host = "127.0.0.1" if shown_host in ("0.0.0.0", "[::]") else shown_host
    return values | {
        "data": data,
        # A stand-in's counts of what it refused are one process's.
        "web_processes": 1 if values["simulate"] else values["web_processes"] or min(WEB_PROCESSES_MAX, os.cpu_count() or 1),
        "workflows": Path(values["workflows"]).absolute() if values["workflows"] else None,
        "base_url": (values["base_url"] or f"http://{shown_host}:{values['port']}").rstrip("/"),
        "database_url": values["database_url"].replace("postgresql://", "postgresql+psycopg://") or f"sqlite:///{data}/orqo.db",
    }
