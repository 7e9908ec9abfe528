"""The pure parts of drift: every arrow of an alarm, hold times, evidence, order of devices, words, accuracy, sums."""

import itertools
import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulators.sketches import MODEL, W0, WatchedDevice, counts, profile, reference

from fleet.monitoring import accuracy, alarms, attribution, detectors, drift_sums
from fleet.monitoring.accuracy import Match
from fleet.monitoring.attribution import Base
from fleet.monitoring.confidence import confidence_sequence
from fleet.monitoring.detectors import Scored
from fleet.monitoring.drift_model import (
    TRANSITIONS,
    Alarm,
    AlarmEvent,
    AlarmState,
    AlarmSubject,
    Attribution,
    Cause,
    Grade,
    Measured,
    SubjectKind,
    Trust,
    next_alarm_state,
)
from fleet.monitoring.drift_tables import WindowRow
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.sketches.codec import encode
from protocol.sketches.counts import added, empty, summed
from protocol.sketches.evidence import default_plan, encode_evidence, rebuilt

NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
SUBJECT = AlarmSubject(SubjectKind.DEVICE, "cam-1", "front", MODEL.hex())
RAISED = Alarm(
    tenant=DEFAULT_TENANT,
    alarm="al-1",
    subject=SUBJECT,
    state=AlarmState.RAISED,
    cause=Cause.INPUT,
    grade=Grade.CALIBRATED,
    grid_id="g",
    reference_id="r",
    onset=NOW - timedelta(hours=3),
    raised_at=NOW,
    statistic=400.0,
    threshold=365.0,
    rate=1.0,
    devices=(DeviceId("cam-1"),),
)


def moved(feature: str, group: str, word: str = "darker") -> Attribution:
    return Attribution(feature, group, word, 1e-6, 0.5, -3.0, 0.1, 1.0, 0.5, 0.1)


# --- the life of an alarm ---

#: DRIFT 5.9, written out a second time: from, event, to.
ARROWS = {
    (None, "crossing"): "raised",
    ("raised", "taken"): "acknowledged",
    **{("raised", event): "cleared" for event in ("recovered", "released", "rereferenced", "condition", "false_alarm")},
    **{("acknowledged", event): "cleared" for event in ("recovered", "released", "rereferenced", "condition", "false_alarm")},
    ("cleared", "crossing"): "raised",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product([None, *AlarmState], AlarmEvent)))
def test_an_alarm_goes_along_the_arrows_of_the_design_and_no_other(state, event):
    wanted = ARROWS.get((state.value if state else None, event.value))
    if wanted is None:
        with pytest.raises(ConflictError, match="cannot become"):
            next_alarm_state(state, event)
    else:
        assert next_alarm_state(state, event).value == wanted


def test_there_are_as_many_arrows_as_the_design_has():
    assert len(TRANSITIONS) == len(ARROWS) == 13


@pytest.mark.parametrize(
    ("days_since", "is_again"), [(0, True), (7, True), (7.01, False)], ids=["at once", "at the end of the week", "after the week"]
)
def test_a_crossing_within_seven_days_opens_the_same_alarm_again(days_since, is_again):
    over = alarms.cleared(RAISED, AlarmEvent.RECOVERED, now=NOW)
    assert alarms.reopens(over, NOW + timedelta(days=days_since)) is is_again
    assert not alarms.reopens(RAISED, NOW)
    assert not alarms.reopens(None, NOW)


def test_an_alarm_that_is_opened_again_keeps_its_name_its_note_and_who_is_not_told():
    until = NOW + timedelta(days=1)
    over = replace(alarms.cleared(RAISED, AlarmEvent.FALSE_ALARM, now=NOW), note="lamp", muted_until=until, notified_at=NOW)
    again = alarms.opened_again(over, replace(RAISED, alarm="al-2", statistic=900.0))
    assert (again.alarm, again.reopened, again.note, again.muted_until, again.statistic) == ("al-1", 1, "lamp", until, 900.0)
    assert (again.state, again.outcome, again.cleared_at) == (AlarmState.RAISED, None, None)
    with pytest.raises(ConflictError):
        alarms.opened_again(RAISED, RAISED)


@pytest.mark.parametrize(
    ("block", "took_h", "hold_h"), [(36, 1, 24), (144, 1, 48), (36, 20, 40), (1008, 20, 336)], ids=["a day", "two blocks", "twice", "weeks"]
)
def test_the_hold_time_is_the_longest_of_three(block, took_h, hold_h):
    assert alarms.hold_time(replace(RAISED, onset=NOW - timedelta(hours=took_h)), block) == timedelta(hours=hold_h)


def test_an_alarm_recovers_when_its_hours_were_low_for_the_whole_hold_time():
    hold = timedelta(hours=24)
    seen = alarms.settled(RAISED, NOW, now=NOW + timedelta(hours=23), hold=hold)
    assert (seen.state, seen.low_since) == (AlarmState.RAISED, NOW)
    assert alarms.settled(seen, None, now=NOW + timedelta(hours=30), hold=hold).low_since is None
    over = alarms.settled(seen, NOW, now=NOW + hold, hold=hold)
    assert (over.state, over.outcome, over.cleared_at) == (AlarmState.CLEARED, AlarmEvent.RECOVERED, NOW + hold)
    assert alarms.settled(over, None, now=NOW, hold=hold) == over


def test_people_are_told_once_within_the_hold_time_and_never_while_it_is_muted():
    hold = timedelta(hours=48)
    assert alarms.is_told(RAISED, NOW, hold=hold)
    assert not alarms.is_told(replace(RAISED, notified_at=NOW), NOW + timedelta(hours=47), hold=hold)
    assert alarms.is_told(replace(RAISED, notified_at=NOW), NOW + hold, hold=hold)
    assert not alarms.is_told(replace(RAISED, muted_until=NOW + timedelta(hours=1)), NOW, hold=hold)


@pytest.mark.parametrize("outcome", sorted(set(AlarmEvent) - {AlarmEvent.CONDITION, AlarmEvent.FALSE_ALARM}))
def test_a_person_clears_as_condition_or_false_alarm_only(outcome):
    with pytest.raises(InvalidError, match="condition, false_alarm"):
        alarms.check_outcome(outcome)


def test_an_input_that_moved_is_the_cause_also_when_answers_moved_with_it():
    assert alarms.cause_of([moved("output.confidence", "output"), moved("image.brightness", "input")]) is Cause.INPUT
    assert alarms.cause_of([moved("classes", "classes")]) is Cause.PRIOR
    assert alarms.cause_of([]) is Cause.UNKNOWN


def test_rates_share_out_what_the_fleet_may_spend():
    assert (alarms.rate_of(1.0, 0.0, 500), alarms.rate_of(1.0, 10.0, 500)) == (1.0, 0.02)
    assert [alarms.needs_new_threshold(100, devices) for devices in (100, 110, 111, 89)] == [False, False, True, True]


def test_the_bound_of_a_rate_is_the_chi_square_one():
    # chi-square(0.95; 2k + 2) / 2
    for count, wanted in ((0, 2.9957), (1, 4.7439), (5, 10.5130), (100, 118.0813)):
        assert alarms.poisson_bound(count, 1.0) == pytest.approx(wanted, rel=1e-4)
    assert alarms.poisson_bound(3, 0.0) is None


# --- evidence ---


def scored(start: int, p: np.ndarray) -> Scored:
    return Scored(np.arange(start, start + len(p)), np.ones(len(p)), p)


def test_judging_in_parts_gives_the_same_evidence_as_at_once():
    plan, p = default_plan(36), np.random.default_rng(5).uniform(0.02, 1, 400)
    at_once = detectors.judge(None, plan, scored(W0, p), start=W0)
    evidence = None
    for start in range(0, 400, 50):
        first = start // 36 * 36
        evidence = detectors.judge(evidence, plan, scored(W0 + first, p[first : start + 50]), start=W0 + start)
    assert encode_evidence(evidence) == encode_evidence(at_once)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 350))
def test_a_late_window_gives_the_evidence_that_it_would_have_given_in_time(seed, late):
    plan, p = default_plan(36), np.random.default_rng(seed).uniform(0.05, 1, 400)
    without = p.copy()
    without[late : late + 6] = np.nan
    first = late // 36 * 36
    before = detectors.judge(None, plan, scored(W0, without), start=W0)
    after = detectors.judge(before, plan, scored(W0 + first, p[first:]), start=W0 + late)
    (one,), (other,) = after.states, rebuilt(plan, np.arange(W0, W0 + 400), detectors.e_values(p)).states
    assert one.r == pytest.approx(other.r)
    assert one.past == pytest.approx(other.past)


def test_devices_are_listed_while_their_evidence_pays_for_them():
    evidence = {1: 100.0, 2: 60.0, 3: 26.0, 4: 10.0, 5: 1.0, 6: 0.5, 7: 0.2, 8: 0.1}
    # N / (k alpha) = 80, 40, 26.7, 20: three of eight
    assert detectors.list_by_e_values(evidence, alpha=0.1) == {1, 2}
    assert detectors.list_by_e_values({**evidence, 3: 27.0}, alpha=0.1) == {1, 2, 3}
    assert detectors.list_by_e_values({}, alpha=0.1) == frozenset()


def test_what_a_member_differs_from_the_others_by_leaves_itself_out():
    z = np.array([[1.0], [1.0], [4.0]])
    assert detectors.peer_residuals(z).ravel().tolist() == [-1.5, -1.5, 3.0]
    assert [detectors.group_is_testable(*pair) for pair in ((2, 2), (3, 6), (3, 7))] == [False, True, False]


# --- words ---


def attributed(**shift) -> tuple[Attribution, ...]:
    rng, grid = np.random.default_rng(2), profile().grid
    base = Base(reference(), profile().reference)
    return attribution.attribute(grid, base, summed((counts(rng, 40, **shift) for _ in range(36)), grid))


def test_features_that_moved_are_named_with_how_and_those_that_did_not_are_left_out():
    found = attributed(shift=(-1.5, -1.5, 0.0, 0.0))
    assert {(one.feature, one.word) for one in found} == {("image.brightness", "darker"), ("image.sharpness", "blurrier")}
    assert sum(one.share for one in found) == pytest.approx(1.0, abs=0.2)
    assert all(one.p < 1e-6 and one.place < -3 and one.js > 0.3 for one in found)


def test_classes_that_come_more_often_are_named():
    (one,) = attributed(priors=(0.1, 0.1, 0.8))
    assert (one.feature, one.word) == ("classes", "more often fox, more rarely cat or dog")


def test_a_sentence_says_what_since_when_and_where():
    features = [moved("image.brightness", "input", "darker"), moved("image.sharpness", "input", "blurrier")]
    onset, devices = datetime(2026, 3, 8, 14, 10, tzinfo=UTC), [DeviceId(f"cam-{index}") for index in range(12)]
    group = AlarmSubject(SubjectKind.GROUP, "site-b/camera", "", MODEL.hex())
    said = attribution.words_of(features, group, onset=onset, now=onset, devices=devices)
    assert said == "Picture darker and blurrier since 14:10 UTC on 12 devices (camera) of site site-b."
    later = attribution.words_of(features[:1], SUBJECT, onset=onset, now=onset + timedelta(days=1), devices=[])
    assert later == "Picture darker since 2026-03-08 14:10 UTC on cam-1, pipeline front."
    mixed = [*features[:1], moved("classes", "classes", "more often fox")]
    assert attribution.words_of(mixed, SUBJECT, onset=onset, now=onset, devices=[]).startswith(
        "Picture darker; answers more often fox since"
    )


@pytest.mark.parametrize(
    ("feature", "place", "spread", "word"),
    [
        ("image.brightness", -1.0, 0.5, "darker"),
        ("image.brightness", 0.1, 1.0, "more varied in brightness"),
        ("image.noise", 2.5, 30.0, "noisier"),
        ("embedding.3", 1.0, 0.0, "unlike before"),
        ("sensor.0.value", 1.0, 0.0, "of 0.value higher"),
    ],
)
def test_every_feature_has_a_word(feature, place, spread, word):
    assert attribution.word_for(feature, place, spread) == word


def test_distances_of_equal_distributions_are_nothing_and_of_others_as_the_books_say():
    half = np.array([0.5, 0.5])
    assert attribution.distances(half, half) == pytest.approx((0.0, 0.0, 0.0))
    psi, js, w1 = attribution.distances(half, np.array([0.9, 0.1]))
    assert psi == pytest.approx(0.4 * math.log(9))
    assert js == pytest.approx(0.3827, abs=1e-3)
    assert w1 == pytest.approx(0.2)


# --- accuracy ---


def test_estimates_are_right_on_data_like_the_evaluations():
    made = accuracy.range_of(profile(), counts(np.random.default_rng(3), 4000), alarms=[], match=None)
    reference_accuracy = profile().accuracy.acc0
    assert all(abs(value - reference_accuracy) < 0.02 for value in made.estimates.values())
    assert made.low <= reference_accuracy <= made.high
    assert made.trust is Trust.TRUSTED
    assert made.priors == pytest.approx((0.5, 0.3, 0.2), abs=0.05)


def test_less_confidence_is_less_accuracy_by_every_estimate():
    before = accuracy.estimate(profile(), counts(np.random.default_rng(3), 2000))
    after = accuracy.estimate(profile(), counts(np.random.default_rng(3), 2000, shift=(0, 0, 0, -1.5)))
    assert all(after[name] < before[name] - 0.05 for name in before)


def test_too_few_rows_or_a_release_that_says_nothing_give_no_estimate():
    assert accuracy.estimate(profile(), counts(np.random.default_rng(3), 29)) is None
    assert accuracy.estimate(profile(), empty(profile().grid)) is None
    assert accuracy.estimate(replace(profile(), accuracy=None), counts(np.random.default_rng(3))) is None


def test_class_priors_undo_the_confusion():
    truth = np.array([0.7, 0.1, 0.2])
    predicted = np.array(profile().accuracy.confusion) @ truth
    assert accuracy.class_priors(profile().accuracy, np.round(predicted * 100_000).astype(np.int64)) == pytest.approx(truth, abs=1e-3)
    assert accuracy.class_priors(profile().accuracy, np.zeros(3, np.int64)) == ()


def test_an_estimate_is_trusted_matched_or_not():
    dark = replace(RAISED, features=(moved("image.brightness", "input"),))
    prior = replace(RAISED, cause=Cause.PRIOR, features=(moved("classes", "classes"),))
    assert accuracy.trust_of([prior], None)[0] is Trust.TRUSTED
    assert accuracy.trust_of([dark], Match("dark", 1))[0] is Trust.MATCHED
    assert accuracy.trust_of([dark], Match(""))[0] is Trust.NOT_TRUSTED
    assert accuracy.trust_of([dark], None)[0] is Trust.NOT_TRUSTED
    assert accuracy.trust_of([alarms.cleared(dark, AlarmEvent.CONDITION, now=NOW)], None)[0] is Trust.TRUSTED
    assert accuracy.trust_of([replace(RAISED, cause=Cause.CONCEPT)], None)[0] is Trust.NOT_TRUSTED


@pytest.mark.parametrize(("labels", "low", "high"), [(100, 0.77, 0.97), (200, 0.81, 0.96), (400, 0.84, 0.94), (800, 0.86, 0.93)])
def test_the_confidence_sequence_is_the_one_of_the_design(labels, low, high):
    assert [round(edge, 2) for edge in confidence_sequence(labels * 9 // 10, labels)] == [low, high]


def test_the_confidence_sequence_holds_whenever_somebody_looks():
    chooser, missed = random.Random(11), 0  # noqa: S311 - simulated labels
    for _ in range(200):
        right = 0
        for labels in range(1, 151):
            right += chooser.random() < 0.8
            low, high = confidence_sequence(right, labels) if labels % 10 == 0 else (0.0, 1.0)
            if not low <= 0.8 <= high:
                missed += 1
                break
    assert missed <= 10
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    assert confidence_sequence(50, 50)[1] == 1.0
    assert confidence_sequence(0, 50)[0] == 0.0


def test_the_meaning_moved_when_labels_say_worse_than_release_and_input_explain():
    bad, fine = accuracy.measured(50, 100), accuracy.measured(88, 100)
    assert accuracy.concept_moved(0.9, bad, None)
    assert not accuracy.concept_moved(0.9, fine, None)
    assert not accuracy.concept_moved(0.9, Measured(0, 0, 0.0, 1.0), None)
    explained = accuracy.range_of(profile(), counts(np.random.default_rng(3), 2000), alarms=[], match=None)
    assert not accuracy.concept_moved(0.9, bad, replace(explained, low=0.45))
    assert accuracy.concept_moved(0.9, bad, replace(explained, low=0.45, trust=Trust.NOT_TRUSTED))


# --- sums ---


@settings(max_examples=20)
@given(st.permutations(range(8)))
def test_sums_are_the_same_in_any_order_and_by_any_tree(order):
    windows, grid = _windows(), profile().grid
    whole = drift_sums.sum_windows(windows, grid)
    shuffled = [windows[index] for index in order]
    assert drift_sums.sum_windows(shuffled, grid) == whole
    parts = [drift_sums.sum_windows(shuffled[:3], grid), drift_sums.sum_windows(shuffled[3:], grid)]
    assert added(*parts) == added(*parts[::-1]) == whole
    assert added(whole, empty(grid)) == whole


def test_sums_of_days_and_months_hold_every_window_once_and_come_back_from_their_bytes():
    windows, grid = _windows(), profile().grid
    days = drift_sums.day_sums(windows, grid, start=W0, end=W0 + 432)
    assert [day.w0 for day in days] == [W0, W0 + 144]
    assert [day.sub_windows for day in days] == [24, 24]
    month = drift_sums.month_sum(days, grid, start=W0)
    assert drift_sums.decode_counts(month.body, grid) == drift_sums.sum_of_sums(days, grid) == drift_sums.sum_windows(windows, grid)
    assert month.sub_windows == 48


def test_months_follow_the_calendar():
    start = drift_sums.sub_window_of(datetime(2026, 12, 31, 23, 55, tzinfo=UTC))
    assert drift_sums.moment_of(drift_sums.month_start(start)) == datetime(2026, 12, 1, tzinfo=UTC)
    assert drift_sums.moment_of(drift_sums.next_month(start)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert [drift_sums.moment_of(one).month for one in drift_sums.months_between(start, start + 1)] == [12]
    assert [drift_sums.moment_of(one).month for one in drift_sums.months_between(start, start + 2)] == [12, 1]


def _windows() -> list[WindowRow]:
    camera = WatchedDevice()
    hours = [*camera.hours(W0, 4), *camera.hours(W0 + 144, 4)]
    return [WindowRow(one.w0, one.nsub, 0, encode(one)) for one in hours]
