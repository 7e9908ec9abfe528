"""When windows of a site's wall clock are open; pure. What the clock on the wall shows decides, so a change to summer time needs no rule.

A window names the days on which it begins; one that passes midnight ends on the next day.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

#: As `date.weekday` counts.
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: A weekly window that falls into the hour that a summer skips opens a week later.
HORIZON_DAYS = 15
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` on each of `days` until just before `end`; an end at or before the start lies on the next day."""

    days: frozenset[str]
    start: time
    end: time


def is_open(windows: Sequence[Window], zone: tzinfo, now: datetime) -> bool:
    """Whether the wall clock of the zone is inside a window; without windows it always is."""
    local = now.astimezone(zone).replace(tzinfo=None)
    return not windows or any(_holds(window, local) for window in windows)


def next_opening(windows: Sequence[Window], zone: tzinfo, now: datetime) -> datetime | None:
    """The first moment from now on at which a window is open; None when none opens within `HORIZON_DAYS`."""
    if is_open(windows, zone, now):
        return now
    today = now.astimezone(zone).date()
    for offset in range(-1, HORIZON_DAYS + 1):
        moments = [moment for moment in _changes(windows, today + offset * _DAY, zone) if moment >= now]
        found = min((moment for moment in moments if is_open(windows, zone, moment)), default=None)
        if found is not None:
            return found
    return None


def zone_named(name: str) -> tzinfo:
    """The time zone; UTC needs no database. Raises: ZoneInfoNotFoundError, ValueError."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _holds(window: Window, local: datetime) -> bool:
    today, yesterday, now = DAYS[local.weekday()], DAYS[(local - _DAY).weekday()], local.time()
    if window.start < window.end:
        return today in window.days and window.start <= now < window.end
    return (today in window.days and now >= window.start) or (yesterday in window.days and now < window.end)


def _changes(windows: Sequence[Window], day: date, zone: tzinfo) -> Iterator[datetime]:
    """Moments of that day at which a window may open: the starts, twice when an hour repeats, and where the clock is changed."""
    for window in windows:
        for fold in (0, 1):
            yield datetime.combine(day, window.start, zone).replace(fold=fold).astimezone(UTC)
    begin, end = (datetime.combine(one, time(), zone).astimezone(UTC) for one in (day, day + _DAY))
    if begin.astimezone(zone).utcoffset() != end.astimezone(zone).utcoffset():
        yield _jump(zone, begin, end)


def _jump(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The whole second between the two at which the zone's clock is changed."""
    old, seconds = before.astimezone(zone).utcoffset(), int((after - before).total_seconds())
    first = bisect.bisect_left(
        range(seconds), True, key=lambda number: (before + timedelta(seconds=number)).astimezone(zone).utcoffset() != old
    )
    return before + timedelta(seconds=first)
