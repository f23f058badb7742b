"""`${secrets.*}`: where secrets are read from, and how they are masked in what is written.

Owns the instance key and the named secrets. Secrets come from the environment or a 0600 file, never from the database.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from orqo.config import Config, ConfigError

KEY_BYTES = 32
MASK = "***"
# Shorter values stand in too much innocent text: masking "on" would ruin an output and hide nothing.
MASKED_MIN_LENGTH = 4
# Fewer characters of base64 hold less than four of the secret's.
BASE64_MIN_LENGTH = 6


class SecretStore(Mapping[str, str]):
    """The named secrets, as a look-up root; absent names are absent keys."""

    def __init__(self, values: Mapping[str, str], *, hidden: Iterable[str] = ()) -> None:
        """`hidden` are values without a name: no look-up finds them, and they are masked all the same."""
        self._values = dict(values)
        spellings = {spelling for value in (*self._values.values(), *hidden) for spelling in _spellings(value)}
        # Longest first: a secret that contains another must not be left half shown.
        self._masked = sorted(spellings, key=len, reverse=True)
        self._masked_bytes = [spelling.encode() for spelling in self._masked]

    @classmethod
    def from_config(cls, config: Config) -> SecretStore:
        """Read ORQO_SECRET_<NAME> and the secrets file; ConfigError where the file is unsafe or unreadable."""
        return cls(_read_file(config.secrets_file) | dict(config.secrets), hidden=[config.llm_api_key])

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"SecretStore({sorted(self._values)})"

    def mask(self, text: str) -> str:
        """Replace every secret in a text, in its plain, URL, JSON and base64 spellings, by `***`."""
        for spelling in self._masked:
            text = text.replace(spelling, MASK)
        return text

    def mask_bytes(self, data: bytes) -> bytes:
        """Do the same for bytes."""
        for spelling in self._masked_bytes:
            data = data.replace(spelling, MASK.encode())
        return data

    def mask_last(self, data: bytes) -> bytes:
        """Replace the beginning of a secret that a cut left at the end of bytes."""
        left = (spelling[:length] for spelling in self._masked_bytes for length in range(len(spelling) - 1, MASKED_MIN_LENGTH - 1, -1))
        found = next((part for part in left if data.endswith(part)), None)
        return data[: -len(found)] + MASK.encode() if found else data

    def mask_first(self, data: bytes) -> bytes:
        """Replace the end of a secret that a cut left at the beginning of bytes."""
        left = (spelling[start:] for spelling in self._masked_bytes for start in range(1, len(spelling) - MASKED_MIN_LENGTH + 1))
        found = next((part for part in left if data.startswith(part)), None)
        return MASK.encode() + data[len(found) :] if found else data


def _spellings(value: str) -> Iterator[str]:
    if len(value) < MASKED_MIN_LENGTH:
        return
    yield value
    yield quote(value, safe="")
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield base64.b64encode(value.encode()).decode().rstrip("=")
    yield from _base64_within(value.encode())


def _base64_within(value: bytes) -> Iterator[str]:
    """Give how a value looks within the base64 of a longer text, as after `user:`: what its neighbours do not change."""
    for before, start in ((0, 0), (1, 2), (2, 3)):
        written = base64.b64encode(b"\0" * before + value).decode().rstrip("=")
        inner = written[start : None if (before + len(value)) % 3 == 0 else -1]
        if len(inner) >= BASE64_MIN_LENGTH:
            yield inner


def _read_file(name: str) -> dict[str, str]:
    """Read `NAME=value` lines; `#` begins a comment line."""
    if not name:
        return {}
    try:
        _check_private(Path(name), "ORQO_SECRETS_FILE")
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as fault:
        raise ConfigError([f"ORQO_SECRETS_FILE: {fault.strerror}"]) from fault
    except UnicodeDecodeError as fault:
        raise ConfigError(["ORQO_SECRETS_FILE: not UTF-8"]) from fault
    pairs = [line.split("=", 1) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(["ORQO_SECRETS_FILE: write one NAME=value a line"])
    return {pair[0].strip(): pair[1] for pair in pairs}


def _check_private(path: Path, what: str) -> None:
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError([f"{what}: others may read {path.name}; run: chmod 600 {path.name}"])


def instance_key(config: Config, *, make: bool) -> bytes:
    """Give the 32 bytes that webhook tokens and callback secrets are derived from.

    Read from ORQO_KEY, else from `instance.key` in the data folder, which `make` creates with mode 0600 where it is absent.
    """
    path = config.data / "instance.key"
    if config.key:
        return _decoded(config.key, "ORQO_KEY")
    if make and not path.exists():
        write_new(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
    try:
        return _decoded(path.read_text(encoding="ascii", errors="replace").strip(), str(path))
    except FileNotFoundError as fault:
        raise ConfigError([f"{path} is absent. Start the service once, or restore the file: without it no webhook URL works"]) from fault


def _decoded(text: str, what: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise ConfigError([f"{what}: not base64"]) from fault
    if len(key) != KEY_BYTES:
        raise ConfigError([f"{what}: wants {KEY_BYTES} bytes in base64; make one with: head -c 32 /dev/urandom | base64"])
    return key


def write_new(path: Path, content: bytes) -> None:
    """Write a 0600 file that appears whole or not at all; where two start at once, the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def key_check(key: bytes) -> str:
    """Give the value that the database keeps to know the key again; it reveals nothing of it."""
    return hmac.new(key, b"orqo key check", hashlib.sha256).hexdigest()
