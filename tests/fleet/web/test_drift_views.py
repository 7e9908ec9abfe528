"""Drift in words and figures: what-if delays, the map's colors, marks, explanations. Values in, rows out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.monitoring.drift_model import (
    AccuracyRange,
    Alarm,
    AlarmState,
    AlarmSubject,
    Attribution,
    Cause,
    FalseAlarms,
    Grade,
    SubjectKind,
    TimePoint,
    Trust,
)
from fleet.monitoring.drift_tables import SeriesKey, Waiting
from fleet.web import drift_views
from fleet.web.charts import bars_of
from protocol.ids import DEFAULT_TENANT, DeviceId

START = datetime(2026, 11, 1, tzinfo=UTC)
SUB = timedelta(minutes=10)
FEATURE = Attribution("image.brightness", "input", "darker", 1e-9, 0.9, -3.2, 0.1, 0.5, 0.2, 0.1)
ALARM = Alarm(
    tenant=DEFAULT_TENANT,
    alarm="al-1",
    subject=AlarmSubject(SubjectKind.DEVICE, "cam-1", "front", "ab" * 16),
    state=AlarmState.RAISED,
    cause=Cause.INPUT,
    grade=Grade.CALIBRATED,
    grid_id="cd" * 16,
    reference_id="ef" * 16,
    onset=START + 2 * timedelta(days=1),
    raised_at=START + timedelta(days=2, hours=1),
    statistic=80_000.0,
    threshold=52_560.0,
    rate=1.0,
    features=(FEATURE,),
    words="Picture darker since 00:00 UTC on cam-1.",
    devices=(DeviceId("cam-1"),),
)


YEAR = 52_560.0


def points(statistics: list[float | None]) -> list[TimePoint]:
    return [TimePoint(START + index * SUB, None if one is None else 10.0, None, one) for index, one in enumerate(statistics)]


def test_a_clear_shift_is_seen_at_the_end_of_its_first_window():
    made = points([2.0] * 144 + [1e9] * 10)
    assert drift_views.what_if(made, onset=START + 144 * SUB, rate=1.0, per_year=YEAR).delay == SUB


def test_what_never_crosses_was_not_seen_and_what_crossed_before_the_onset_is_no_delay():
    made = points([1e9] + [2.0] * 299)
    found = drift_views.what_if(made, onset=START + 144 * SUB, rate=1.0, per_year=YEAR)
    assert (found.delay, found.words) == (None, "not within what is stored")
    assert drift_views.what_if([], onset=START, rate=1.0, per_year=YEAR).delay is None


def test_a_window_that_is_missing_or_not_testable_proves_nothing():
    made = points([2.0] * 144 + [None] * 6 + [1e9])
    assert drift_views.what_if(made, onset=START + 144 * SUB, rate=1.0, per_year=YEAR).delay == 7 * SUB


@given(st.lists(st.floats(1.0, 1e9), min_size=1, max_size=300), st.sampled_from([YEAR, YEAR / 6]))
def test_who_allows_more_false_alarms_never_waits_longer(statistics, per_year):
    made = points(statistics)
    onset = START + timedelta(minutes=10 * (len(statistics) // 2))
    found = [drift_views.what_if(made, onset=onset, rate=rate, per_year=per_year).delay for rate in (0.1, 0.5, 1.0, 5.0, 50.0)]
    waits = [timedelta.max if delay is None else delay for delay in found]
    assert waits == sorted(waits, reverse=True)


def test_a_slow_shift_costs_a_longer_wait_when_fewer_false_alarms_are_allowed():
    made = points([2.0] * 144 + [1000.0 * (1 + index) for index in range(432)])
    view = drift_views.what_if_view(made, onset=START + 144 * SUB, per_year=YEAR, asked=0.2)
    assert view is not None
    waits = [row.delay for row in view.rows]
    assert waits == [SUB * 263, SUB * 106, SUB * 53, SUB * 27, SUB * 11]
    assert view.asked == view.rows[0]
    assert view.windows == 576
    assert drift_views.what_if_view(points([None] * 5), onset=START, per_year=YEAR, asked=None) is None
    assert drift_views.what_if_view(made, onset=START, per_year=0.0, asked=None) is None


@pytest.mark.parametrize("step", range(drift_views.SLIDER_STEPS + 1))
def test_the_slider_and_the_rate_say_the_same(step):
    assert drift_views.step_of(drift_views.rate_of_step(step)) == step


def test_the_slider_reaches_from_a_tenth_to_ten():
    assert [drift_views.rate_of_step(step) for step in (0, 10, 20)] == [0.1, 1.0, 10.0]
    assert (drift_views.step_of(0.001), drift_views.step_of(1000)) == (0, 20)


@pytest.mark.parametrize(("p", "heat"), [(None, 0), (0.5, 0), (0.04, 1), (0.005, 2), (1e-4, 3), (1e-9, 4)])
def test_the_warmer_the_less_likely(p, heat):
    assert drift_views.heat_of(p) == heat


def test_the_time_line_shows_the_largest_of_each_hour_against_what_raises_an_alarm():
    made = points([2.0, 3.0, None, 9.0, 1.0, 1.0, None, None, None, None, None, None, 5.0])
    chart = drift_views.timeline_chart(made, threshold=YEAR, alarm=ALARM)
    assert chart.times == (START + 3 * SUB, START + 6 * SUB, START + 12 * SUB)
    assert [(line.label, line.values) for line in chart.lines] == [("now", (9.0, None, 5.0)), ("alarm", (YEAR,) * 3)]
    assert [(mark.kind, mark.at) for mark in chart.marks] == [("onset", ALARM.onset), ("alarm", ALARM.raised_at)]
    assert '"log": true' in chart.points_json
    assert [line.label for line in drift_views.timeline_chart(made, threshold=0.0).lines] == ["now"]


def test_an_alarm_is_explained_in_plain_words():
    text = dict(drift_views.explanation(ALARM, ALARM.words))
    assert list(text) == ["What happened", "What it means", "How sure is it", "What it costs to be wrong", "What to do"]
    assert "about 1 alarm per device and year" in text["How sure is it"]
    assert "comes once in 80,000 windows by itself" in text["How sure is it"]
    assert "1 device for nothing" in text["What it costs to be wrong"]
    young = dict(drift_views.explanation(replace(ALARM, grade=Grade.PROVISIONAL, rate=2.0), ""))
    assert "not promised yet" in young["How sure is it"]
    assert young["What happened"] == young["What it means"]


@pytest.mark.parametrize(("p", "shown"), [(0.0, "< 1e-300"), (5e-324, "< 1e-300"), (2.5e-80, "2.5e-80"), (0.02, "0.02")])
def test_the_probability_of_what_was_seen_is_never_shown_as_zero(p, shown):
    page = drift_views.alarm_page(replace(ALARM, features=(replace(FEATURE, p=p),)), words="")
    assert page.features[0].p == shown


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_its_words(cause):
    assert drift_views.explanation(replace(ALARM, cause=cause), "")[1][1].endswith(".")


def test_an_alarm_that_is_over_says_how_and_offers_nothing():
    over = drift_views.alarm_page(replace(ALARM, state=AlarmState.CLEARED), words="")
    assert (over.is_open, over.can_acknowledge) == (False, False)
    assert drift_views.alarm_page(ALARM, words="").features[0].place == "-3.2"


def test_the_sentence_that_is_read_aloud_names_the_newest_open_alarm():
    view = drift_views.alarms_view([replace(ALARM, state=AlarmState.CLEARED), ALARM], open_count=1, shown="all", promise=None)
    assert view.said == "1 open alarm. The newest: cam-1 / front."
    assert drift_views.alarms_view([], open_count=0, shown="open", promise=None).said == "0 open alarms."


def test_the_promise_is_told_with_its_bound():
    assert drift_views.promise_words(FalseAlarms(0, 0, 0.0, None, 1.0)) == ""
    assert "0.5 device-days: too little" in drift_views.promise_words(FalseAlarms(0, 0, 0.5 / 365.25, 2188.4, 1.0))
    assert "at most 30" in drift_views.promise_words(FalseAlarms(0, 3, 0.1, 29.96, 1.0))
    assert "at most 2.37" in drift_views.promise_words(FalseAlarms(1, 4, 2.0, 2.37, 1.0))


@pytest.mark.parametrize("trust", list(Trust))
def test_a_range_says_whether_it_may_be_believed(trust):
    view = drift_views.accuracy_view(AccuracyRange(0.9, 0.95, trust, "why", {"doc": 0.92}, (), 1000))
    assert (view.low, view.high, view.estimates) == ("90.0 %", "95.0 %", (("doc", "92.0 %"),))
    assert view.words


def test_bars_name_their_cells_and_the_outer_ones_hold_what_lies_beyond():
    bars = bars_of((0.0, 1.0, 2.0, 3.0), (0.2, 0.5, 0.3), (0.1, 0.1, 0.8))
    assert [bar.label for bar in bars] == ["up to 1", "1 to 2", "over 2"]
    assert max(max(bar.reference_height, bar.now_height) for bar in bars) == 120.0


def test_what_was_put_aside_is_said_in_a_line_each_ten_at_most():
    key = SeriesKey(DeviceId("cam-1"), "front", "ab" * 16, 0, "cd" * 16)
    one = Waiting(key, "unknown-grid", 3, 0, 18, START, START + timedelta(days=3))
    span = "since 2026-11-01 00:00 UTC, until 2026-11-04 00:00 UTC."
    assert drift_views.waiting_words(one) == f"3 windows of cam-1 / front wait for the release that brings grid cdcdcdcdcdcd, {span}"
    assert drift_views.waiting_words(replace(one, reason="overlap", windows=1)).startswith("1 window of cam-1 / front overlap")
    assert drift_views.heat_map([], [one] * 11).waiting[-2:] == (drift_views.waiting_words(one), "And of 1 other pipeline.")
