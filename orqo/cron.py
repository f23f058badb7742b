"""Cron expressions in a time zone: whether one can be read, and when it comes next.

Owns the five fields and the zones (IANA). Never reads the clock; whoever asks says from when.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

EXPRESSION_MAX = 200
DEFAULT_ZONE = "UTC"


def is_expression(text: str) -> bool:
    """Tell whether a text is five fields of cron that come some time."""
    if len(text) > EXPRESSION_MAX or len(text.split()) != 5:
        return False
    try:
        return next_time(text, DEFAULT_ZONE, after=datetime(2000, 1, 1, tzinfo=UTC)) is not None
    except CronSimError:
        return False


def is_zone(name: str) -> bool:
    """Tell whether a text names a time zone of the IANA database."""
    return name in _zones()


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def local_text(moment: datetime, zone: str) -> str:
    """Give a moment as a clock in a zone shows it: `2026-03-29 03:15 +02:00`."""
    shown = moment.astimezone(ZoneInfo(zone)).isoformat(sep=" ", timespec="minutes")
    return f"{shown[:16]} {shown[16:]}"


def next_time(expression: str, zone: str, *, after: datetime) -> datetime | None:
    """Give the first time after a moment, in UTC; None where there is none within fifty years."""
    return next(iter(next_times(expression, zone, after=after, count=1)), None)


def next_times(expression: str, zone: str, *, after: datetime, count: int = 5) -> list[datetime]:
    """Give the next times after a moment, in UTC.

    Where the clocks change it is as Debian's cron does: an hour that is left out comes at once after the gap, an hour
    that comes twice counts once; what comes each hour or more often simply goes on. Source: cron(8), Debian.
    """
    return list(islice(_times(expression, zone, after), count))


def _times(expression: str, zone: str, after: datetime) -> Iterator[datetime]:
    last = after
    for local in CronSim(expression, after.astimezone(ZoneInfo(zone))):
        moment = local.astimezone(UTC)
        # What the change of clocks moves onto one moment is one time.
        if moment > last:
            yield moment
            last = moment
