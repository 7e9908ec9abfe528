"""Windows go by the clock on the wall: over midnight, on chosen days, through both changes of summer time."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.windows import DAYS, HORIZON_DAYS, Window, is_open, next_opening, zone_named

BERLIN = ZoneInfo("Europe/Berlin")
#: 2026: summer time begins on Sunday, 29 March, at 01:00 UTC and ends on Sunday, 25 October, at 01:00 UTC.
NIGHT = Window(frozenset(DAYS), time(22), time(4))
WEEKEND = Window(frozenset({"sat", "sun"}), time(10), time(12))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "local", "wanted"),
    [
        (NIGHT, "2026-11-25 21:59:59", False),
        (NIGHT, "2026-11-25 22:00:00", True),
        (NIGHT, "2026-11-26 03:59:59", True),
        (NIGHT, "2026-11-26 04:00:00", False),
        (WEEKEND, "2026-11-27 11:00:00", False),
        (WEEKEND, "2026-11-28 11:00:00", True),
        (Window(frozenset({"fri"}), time(22), time(4)), "2026-11-28 03:00:00", True),
        (Window(frozenset({"fri"}), time(22), time(4)), "2026-11-27 03:00:00", False),
        (Window(frozenset({"wed"}), time(8), time(8)), "2026-11-26 07:59:00", True),
        (Window(frozenset({"wed"}), time(8), time(8)), "2026-11-26 08:00:00", False),
    ],
)
def test_a_window_is_open_from_its_start_until_just_before_its_end(window, local, wanted):
    now = datetime.fromisoformat(local).replace(tzinfo=BERLIN)
    assert is_open([window], BERLIN, now.astimezone(UTC)) is wanted


def test_without_windows_it_is_always_open():
    assert is_open([], BERLIN, utc("2026-11-25 12:00"))
    assert next_opening([], BERLIN, utc("2026-11-25 12:00")) == utc("2026-11-25 12:00")


@pytest.mark.parametrize(
    ("window", "now", "wanted"),
    [
        (NIGHT, "2026-11-25 12:00", "2026-11-25 21:00"),
        (WEEKEND, "2026-11-25 12:00", "2026-11-28 09:00"),
        (WEEKEND, "2026-11-28 11:00", "2026-11-29 09:00"),
        (NIGHT, "2026-07-01 12:00", "2026-07-01 20:00"),
        # spring: the wall jumps from 02:00 to 03:00
        (Window(frozenset({"sun"}), time(2, 30), time(5)), "2026-03-29 00:30", "2026-03-29 01:00"),
        (Window(frozenset({"sun"}), time(2, 15), time(2, 45)), "2026-03-29 00:30", "2026-04-05 00:15"),
        # autumn: the wall falls back from 03:00 to 02:00
        (Window(frozenset({"sun"}), time(2, 30), time(2, 45)), "2026-10-25 00:00", "2026-10-25 00:30"),
        (Window(frozenset({"sun"}), time(2, 30), time(2, 45)), "2026-10-25 00:50", "2026-10-25 01:30"),
        (Window(frozenset({"sat"}), time(22), time(2, 30)), "2026-10-25 00:40", "2026-10-25 01:00"),
    ],
)
def test_the_next_opening_is_what_the_wall_clock_shows(window, now, wanted):
    assert next_opening([window], BERLIN, utc(now)) == utc(wanted)


def test_the_hour_that_repeats_is_open_twice():
    window = Window(frozenset({"sun"}), time(2), time(3))
    assert [is_open([window], BERLIN, utc(f"2026-10-25 {hour}")) for hour in ("00:30", "01:30", "02:30")] == [True, True, False]


WINDOWS = st.builds(
    Window,
    st.frozensets(st.sampled_from(DAYS), min_size=1),
    st.times().map(lambda found: found.replace(second=0, microsecond=0, tzinfo=None)),
    st.times().map(lambda found: found.replace(second=0, microsecond=0, tzinfo=None)),
)
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago", "Africa/Cairo"]
)
MOMENTS = st.integers(0, 4 * 365 * 86_400 * 1000).map(lambda ms: utc("2024-01-01") + timedelta(milliseconds=ms))


@given(st.lists(WINDOWS, min_size=1, max_size=3), ZONES, MOMENTS, st.lists(st.floats(0, 1), max_size=20))
@example([Window(frozenset({"sat"}), time(22), time(2, 30))], "Europe/Berlin", utc("2026-10-25 00:40"), [0.5])
@example([Window(frozenset({"sun"}), time(2, 30), time(5))], "Europe/Berlin", utc("2026-03-29 00:30"), [0.99])
def test_the_next_opening_is_not_past_and_open_and_nothing_before_it_is(windows, name, now, shares):
    zone = zone_named(name)
    opening = next_opening(windows, zone, now)
    assert opening is not None
    assert now <= opening <= now + timedelta(days=HORIZON_DAYS + 1)
    assert is_open(windows, zone, opening)
    assert (opening == now) == is_open(windows, zone, now)
    for share in shares:
        between = now + (opening - now) * share
        if between < opening:
            assert not is_open(windows, zone, between), between
    if opening > now:
        assert not is_open(windows, zone, opening - timedelta(microseconds=1))


@given(st.lists(WINDOWS, min_size=1, max_size=3), ZONES, MOMENTS)
def test_whether_it_is_open_depends_on_day_and_time_on_the_wall_alone(windows, name, now):
    zone = zone_named(name)
    later = now + timedelta(days=7)
    if now.astimezone(zone).utcoffset() == later.astimezone(zone).utcoffset():
        assert is_open(windows, zone, now) == is_open(windows, zone, later)


def test_a_zone_that_is_not_known_is_refused():
    with pytest.raises(Exception, match="Nowhere"):
        zone_named("Europe/Nowhere")
