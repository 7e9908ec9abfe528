"""When a rule fires and recovers: values in, states out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.monitoring.rules import (
    METRICS,
    Comparison,
    Level,
    Metric,
    Rule,
    RuleState,
    Sample,
    Scope,
    checked,
    is_bad,
    is_recovered,
    minutes_since,
    replay,
    sample_of,
    step,
    value_of,
    words_of,
)
from protocol.errors import InvalidError

START = datetime(2026, 3, 1, tzinfo=UTC)
SLOW = Rule("slow", Metric.LATENCY_P99, Comparison.ABOVE, threshold=50.0, recovers_at=40.0, window_s=60.0, for_s=120.0)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def run(rule: Rule, values, *, every_s: float = 60.0) -> list[Level]:
    state, levels = RuleState(), []
    for number, value in enumerate(values):
        state = step(rule, state, value, at(number * every_s))
        levels.append(state.level)
    return levels


def marks(levels: list[Level]) -> str:
    return "".join("F" if level is Level.FIRING else "." for level in levels)


def test_a_rule_fires_once_its_value_was_bad_for_the_whole_time():
    assert marks(run(SLOW, [60, 60, 60, 60])) == "..FF"
    assert marks(run(replace(SLOW, for_s=0), [60, 30])) == "F."


def test_one_good_value_starts_the_wait_anew():
    assert marks(run(SLOW, [60, 60, 50, 60, 60, 60])) == ".....F"


def test_a_value_that_trembles_between_the_two_levels_alarms_once():
    assert marks(run(SLOW, [60, 60, 60, 45, 60, 45, 45, 45, 45])) == "..FFFFFFF"


def test_a_rule_recovers_once_its_value_was_good_for_the_whole_time():
    assert marks(run(SLOW, [60, 60, 60, 40, 40, 40, 40])) == "..FFF.."


def test_silence_neither_fires_nor_recovers_and_starts_the_wait_anew():
    assert marks(run(SLOW, [60, 60, None, 60, 60, 60])) == ".....F"
    assert marks(run(SLOW, [60, 60, 60, 30, None, 30, 30, 30])) == "..FFFFF."


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=60))
def test_no_rule_fires_without_a_bad_value_nor_recovers_without_a_good_one(values):
    state = RuleState()
    for number, value in enumerate(values):
        after = step(SLOW, state, value, at(60 * number))
        if after.level is not state.level:
            assert value is not None
            assert is_bad(SLOW, value) if after.level is Level.FIRING else is_recovered(SLOW, value)
            assert after.since == at(60 * number)
        state = after


@given(st.lists(st.floats(0, 100), min_size=1, max_size=80))
def test_a_test_on_history_says_what_the_looks_would_have(values):
    samples = [Sample(at(60 * number), 60.0, {"lat_ms_p99": value}) for number, value in enumerate(values)]
    looks = [value_of(SLOW, samples, now=at(60 * number)) for number in range(len(values))]
    assert looks == values
    fired = replay(SLOW, samples, start=START, end=samples[-1].ts)
    levels = run(SLOW, values)
    edges = [(index, level) for index, (level, before) in enumerate(zip(levels, [Level.OK, *levels], strict=False)) if level is not before]
    assert [at(60 * index) for index, level in edges if level is Level.FIRING] == [one.since for one in fired]
    assert [at(60 * index) for index, level in edges if level is Level.OK] == [one.until for one in fired if one.until]
    assert all(is_bad(SLOW, one.worst) for one in fired)


@pytest.mark.parametrize(
    ("metric", "bodies", "wanted"),
    [
        (Metric.LATENCY_P99, [{"lat_ms_p99": 10.0}, {"lat_ms_p99": 30.0}, {"lat_ms_p99": None}], 20.0),
        (Metric.FRAMES_PER_S, [{"frames": 100}, {"frames": 300}], 20.0),
        (Metric.DROPPED, [{"frames": 90, "dropped": {"queue": 6, "stale": 4}}], 10.0),
        (Metric.DROPPED, [{"frames": 0, "dropped": {}}], None),
        (Metric.ERRORS, [{"errors": 2}, {"errors": 3}], 5.0),
        (Metric.CPU, [{"cpu_percent": 10}, {"cpu_percent": 30}], 20.0),
        (Metric.MEMORY, [{"rss_mb": 100.0}], 100.0),
        (Metric.TEMPERATURE, [{"temperature_c": None}], None),
        (Metric.DISK_FREE, [{"disk_free_mb": 900.0}, {"disk_free_mb": 800.0}], 800.0),
        (Metric.ERRORS, [], None),
    ],
)
def test_a_window_of_each_metric_becomes_one_number(metric, bodies, wanted):
    samples = [sample_of(at(10 * number), {"window_s": 10.0, **body}) for number, body in enumerate(bodies)]
    assert METRICS[metric].value(samples) == wanted


def test_only_the_window_counts():
    samples = [Sample(at(second), 10.0, {"lat_ms_p99": float(second)}) for second in range(0, 600, 10)]
    assert value_of(replace(SLOW, window_s=60.0), samples, now=at(300)) == sum(range(250, 301, 10)) / 6


def test_minutes_not_heard_are_counted_from_the_last_sample():
    rule = Rule("gone", Metric.OFFLINE, Comparison.ABOVE, threshold=10, recovers_at=10, for_s=0)
    samples = [Sample(at(0), 10.0, {}), Sample(at(1800), 10.0, {})]
    assert [(one.since, one.until, one.worst) for one in replay(rule, samples, start=START, end=at(1900))] == [(at(660), at(1800), 29.0)]
    assert minutes_since(None, START) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"window_s": 5.0}, "window"),
        ({"for_s": -1.0}, "hold"),
        ({"recovers_at": 60.0}, "recover"),
        ({"scope": Scope.GROUP}, "scope"),
        ({"subject": "cam-1"}, "scope"),
        ({"metric": Metric.CPU, "pipeline": "front"}, "pipeline"),
        ({"threshold": float("nan")}, "number"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_what_is_wanted(change, text):
    with pytest.raises(InvalidError, match=text) as caught:
        checked(replace(SLOW, **change))
    assert caught.value.hint


def test_a_rule_is_told_in_words():
    assert words_of(SLOW) == "latency p99 above 50 ms for 2 min, on all devices"
    scoped = replace(SLOW, scope=Scope.GROUP, subject="north", pipeline="front", for_s=0)
    assert words_of(scoped) == "latency p99 above 50 ms, on group north, pipeline front"
