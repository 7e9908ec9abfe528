"""The accelerated clock starts in the past, runs fast, and never overtakes the system clock."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from protocol.clock import AcceleratedClock, SystemClock, from_environment, from_unix_ms, to_unix_ms, unix_ms_of
from protocol.errors import ConfigError

#: What the system's clock may be set by while a test runs.
SLACK = timedelta(seconds=1)


def _now() -> datetime:
    return datetime.now(UTC)


def test_without_the_variable_the_system_clock_is_used():
    assert isinstance(from_environment({}), SystemClock)


def test_an_accelerated_clock_runs_fast_while_behind_and_at_one_after():
    origin = _now() - timedelta(seconds=10)
    start = origin - timedelta(seconds=1_000_000)
    clock = AcceleratedClock(start=start, speed=60, origin=origin)
    assert clock.speed == 60
    before, shown, after = _now(), clock.now(), _now()
    assert 60 * (before - origin - SLACK) <= shown - start <= 60 * (after - origin + SLACK)
    caught_up = AcceleratedClock(start=origin - timedelta(seconds=100), speed=60, origin=origin)
    assert caught_up.speed == 1.0
    before, shown, after = _now(), caught_up.now(), _now()
    assert before - SLACK <= shown <= after + SLACK


def test_no_accelerated_clock_overtakes_the_system_clock():
    for lag_s in (0, 1, 59, 3600):
        for age_s in (0, 1, 60, 100_000):
            origin = _now() - timedelta(seconds=age_s)
            clock = AcceleratedClock(start=origin - timedelta(seconds=lag_s), speed=1000, origin=origin)
            assert clock.now() <= _now()


def test_processes_that_share_the_variable_share_the_time():
    environment = {"MOORING_CLOCK": "2026-01-01T00:00:00Z,60"}
    first = from_environment(environment)
    assert environment["MOORING_CLOCK"].count(",") == 2
    second = from_environment(dict(environment))
    assert abs(first.now() - second.now()) < timedelta(seconds=5)


def test_waiting_is_shortened_by_the_speed():
    origin = _now()
    clock = AcceleratedClock(start=origin - timedelta(days=365), speed=10_000, origin=origin)
    before = clock.monotonic()
    assert clock.wait(threading.Event(), 600) is False
    assert clock.monotonic() - before >= 600


def test_a_set_event_ends_the_wait():
    event = threading.Event()
    event.set()
    assert SystemClock().wait(event, 1000) is True


@pytest.mark.parametrize(
    "text", ["soon,2", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00,2", "2026-01-01T00:00:00Z,0.5", "2999-01-01T00:00:00Z,2", "a,b,c,d"]
)
def test_a_malformed_clock_is_refused_with_what_was_wanted(text: str):
    with pytest.raises(ConfigError, match="ISO 8601"):
        from_environment({"MOORING_CLOCK": text})


def test_unix_milliseconds_round_trip():
    moment = datetime(2026, 11, 25, 1, 2, 3, 456000, tzinfo=UTC)
    assert from_unix_ms(to_unix_ms(moment)) == moment


def test_unix_milliseconds_are_those_of_the_clock_that_is_asked():
    origin = _now()
    past = AcceleratedClock(start=origin - timedelta(days=300), speed=1.0, origin=origin)
    for clock in (SystemClock(), past):
        before, told, after = to_unix_ms(clock.now() - SLACK), unix_ms_of(clock)(), to_unix_ms(clock.now() + SLACK)
        assert before <= told <= after
