"""Schedules go by the clock on the wall, also in the nights in which it is changed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from agent.events.schedule import Schedule
from protocol.clock import to_unix_ms
from protocol.windows import Window

BERLIN = ZoneInfo("Europe/Berlin")
#: Midnight before the clock goes forward, and before it goes back.
SPRING, AUTUMN = datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)


def schedule(*stretches: dict, site_time=lambda now: now) -> Schedule:
    return Schedule([Window.model_validate(one) for one in stretches], BERLIN, site_time=site_time)


def open_minutes(plan: Schedule, start: datetime) -> int:
    moments = (start + timedelta(minutes=minute) for minute in range(24 * 60))
    return sum(plan.is_open(to_unix_ms(moment)) for moment in moments)


def test_a_night_is_an_hour_shorter_in_spring_and_longer_in_autumn():
    night = {"from": "22:00", "to": "06:00"}
    assert [open_minutes(schedule(night), start) / 60 for start in (SPRING, AUTUMN, datetime(2026, 6, 1, 12, tzinfo=UTC))] == [7, 9, 8]


def test_an_hour_that_the_wall_skips_opens_nothing_and_one_that_it_shows_twice_opens_twice():
    skipped = {"from": "02:00", "to": "03:00"}
    assert [open_minutes(schedule(skipped), start) for start in (SPRING, AUTUMN)] == [0, 120]


@given(st.integers(0, 24 * 3600), st.sampled_from([SPRING, AUTUMN]), st.lists(st.integers(-90, 90), max_size=8))
def test_what_was_answered_before_changes_no_answer(second, start, steps):
    at_ms = to_unix_ms(start + timedelta(seconds=second))
    plan, stretch = schedule({"from": "22:00", "to": "02:30"}), {"from": "22:00", "to": "02:30"}
    for step in (*steps, 0):
        moment = at_ms + step * 1000
        assert plan.is_open(moment) == schedule(stretch).is_open(moment)


def test_the_days_are_those_on_which_it_begins():
    plan = schedule({"days": ["sat"], "from": "22:00", "to": "04:00"})
    saturday = datetime(2026, 6, 6, 21, tzinfo=UTC)  # 23:00 in Berlin
    assert [plan.is_open(to_unix_ms(saturday + timedelta(hours=hours))) for hours in (0, 4, 6, 24, -24)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_without_windows_or_without_the_time_rules_make_events():
    assert schedule().is_open(0)
    closed = {"days": ["sat"], "from": "10:00", "to": "11:00"}
    monday = to_unix_ms(datetime(2026, 6, 1, 10, tzinfo=UTC))
    assert not schedule(closed).is_open(monday)
    assert schedule(closed, site_time=lambda _: None).is_open(monday)


def test_the_best_known_time_decides_not_the_clock_of_the_device():
    plan = schedule({"days": ["sat"], "from": "00:00", "to": "00:00"}, site_time=lambda _: datetime(2026, 6, 6, 10, tzinfo=UTC))
    assert plan.is_open(0)
