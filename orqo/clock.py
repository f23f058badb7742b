"""The only reader of the wall clock.

Owns the conversion between aware UTC datetimes and their stored text. Never knows a time zone but UTC.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


def now() -> datetime:
    """Give the present as an aware UTC datetime, cut to whole milliseconds as it is stored."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def to_text(moment: datetime) -> str:
    """Give `2026-01-02T03:04:05.678Z`: fixed width, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def from_text(text: str) -> datetime:
    """Read what `to_text` wrote; ValueError on anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def any_moment(text: str) -> datetime:
    """Read a time as people and programs write it (ISO 8601; UTC where no zone is said); ValueError on what is none.

    The first and the last hours of the calendar, which UTC does not have in every zone, become its first or last moment.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return (datetime.min if moment.year == 1 else datetime.max).replace(tzinfo=UTC)


def boot_seconds() -> float:
    """Give the seconds since this machine booted, sleep included: never set back, unlike the wall clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def boot_id() -> str:
    """Name this boot of this machine: two readings of `boot_seconds` compare only within one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # Not Linux: the time of booting, to the minute, is as good a name as can be had.
        return f"boot-{round((time.time() - boot_seconds()) / 60)}"
