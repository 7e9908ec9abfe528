"""An estimate is believed where the release was right: also at a place that is its own reference, and while an alarm is open."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from simulators.sketches import counts, profile

from fleet.monitoring import accuracy
from fleet.monitoring.drift_model import Alarm, AlarmState, AlarmSubject, Attribution, Cause, Grade, SubjectKind, Trust
from fleet.monitoring.tried import MIN_PLACES, likeness, middle, tried_of
from protocol.ids import DEFAULT_TENANT
from protocol.sketches.counts import Counts
from protocol.sketches.profile import ModelProfile, TrialReference
from protocol.sketches.summary import summary

PLACES = [f"place {index}" for index in range(8)]
ROWS = 2000


def rows(seed: int, *, shift: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> Counts:
    return counts(np.random.default_rng(seed), ROWS, shift=shift)


def trial(place: str, its: Counts, *, wrong_by: float = 0.0, family: str = "", severity: int = 0) -> TrialReference:
    """What the release says of these rows; the truth lies so far below the estimates."""
    found = accuracy.estimate(profile(), its)
    three = (found["doc"], found["atc"], found["cbpe"])
    where = tuple(np.nan_to_num(summary(its, profile().grid)).astype(np.float32).tolist())
    truth = max(0.0, (min(three) + max(three)) / 2 - wrong_by)
    return TrialReference(place, family, severity, ROWS, truth, three, where)


def tried(*more: TrialReference) -> ModelProfile:
    """The release was right at eight places that differ in brightness, and under a mild darkness."""
    trials = [trial(name, rows(index, shift=(0.1 * index - 0.4, 0.0, 0.0, 0.0))) for index, name in enumerate(PLACES)]
    trials += [
        trial(name, rows(20 + index, shift=(0.1 * index - 0.9, 0.0, 0.0, 0.0)), family="dark", severity=1)
        for index, name in enumerate(PLACES)
    ]
    made = profile()
    return replace(made, accuracy=replace(made.accuracy, trials=(*trials, *more)))


def expected(its: Counts, of: ModelProfile | None = None):
    """Accuracy and half width by the places, and the middle of the estimates."""
    made = of or tried()
    found = accuracy.estimate(made, its)
    three = [found["doc"], found["atc"], found["cbpe"]]
    like = likeness(tried_of(made), made, its, three)
    return like.accuracy, like.half_width, middle(three)


def all_cats(its: Counts) -> Counts:
    return replace(its, classes=np.array([its.classes.sum(), 0, 0]))


def looked_at(its: Counts, of: ModelProfile | None = None, alarms=()) -> tuple[Trust, str]:
    found = accuracy.range_of(of or tried(), its, alarms=alarms, match=None)
    return found.trust, found.reason


@pytest.fixture
def darkness():
    now = datetime(2026, 3, 8, 12, tzinfo=UTC)
    moved = Attribution("image.brightness", "input", "darker", 1e-6, 0.5, -3.0, 0.1, 1.0, 0.5, 0.1)
    return Alarm(
        tenant=DEFAULT_TENANT,
        alarm="al-1",
        subject=AlarmSubject(SubjectKind.DEVICE, "cam-1", "front", "m"),
        state=AlarmState.RAISED,
        cause=Cause.INPUT,
        grade=Grade.CALIBRATED,
        grid_id="g",
        reference_id="r",
        onset=now,
        raised_at=now,
        statistic=60_000.0,
        threshold=52_560.0,
        rate=1.0,
        features=(moved,),
    )


def test_a_window_like_those_of_the_release_is_trusted():
    assert looked_at(rows(50))[0] is Trust.TRUSTED
    assert looked_at(rows(51, shift=(-0.5, 0.0, 0.0, 0.0)))[0] is Trust.TRUSTED


def test_an_alarm_on_what_was_tried_and_estimated_right_does_not_forbid_the_estimate(darkness):
    trust, reason = looked_at(rows(52, shift=(-0.8, 0.0, 0.0, 0.0)), alarms=[darkness])
    assert trust is Trust.MATCHED
    assert reason.startswith("The input moved within what was tried at release, where estimates were right; nearest is place")
    assert reason.endswith("under dark.")


def test_a_place_where_the_model_is_less_sure_is_not_trusted_although_no_alarm_is_open():
    trust, reason = looked_at(rows(53, shift=(0.0, 0.0, 0.0, -1.5)))
    assert trust is Trust.NOT_TRUSTED
    assert "less sure" in reason


def test_a_place_where_other_answers_are_given_is_not_trusted_although_the_model_is_sure():
    trust, reason = looked_at(all_cats(rows(54, shift=(0.0, 0.0, 0.0, 0.3))))
    assert trust is Trust.NOT_TRUSTED
    assert "other answers" in reason


def test_what_looks_like_nothing_that_was_tried_is_not_trusted():
    trust, reason = looked_at(rows(55, shift=(6.0, -6.0, 0.0, 0.0)))
    assert trust is Trust.NOT_TRUSTED
    assert "like nothing that was tried" in reason


def test_trials_with_wrong_estimates_do_not_widen_the_span():
    unsure = rows(56, shift=(0.0, 0.0, 0.0, -1.2))
    dirt = [trial("place 3", unsure, wrong_by=wrong_by, family="dirt", severity=1) for wrong_by in (0.3, 0.2)]
    assert looked_at(unsure, tried(*dirt))[0] is Trust.NOT_TRUSTED
    right = [trial(name, unsure, family="dirt", severity=1) for name in PLACES]
    assert looked_at(unsure, tried(*right))[0] is Trust.TRUSTED


def test_answers_beyond_their_shares_are_wrong_where_the_model_is_less_sure_too():
    unsure = rows(57, shift=(0.0, 0.0, 0.0, -1.0))
    usual, _, said = expected(unsure)
    assert usual == pytest.approx(said, abs=0.03)
    collapsed, width, same = expected(all_cats(unsure))
    assert same == said
    assert collapsed == pytest.approx(said / 2, abs=0.03)  # half of the answers are cats where others were; of the rest as many are right
    assert width > 0.1


def test_another_mix_of_things_is_no_error_where_the_model_is_as_sure_as_ever():
    its = all_cats(rows(58, shift=(0.0, 0.0, 0.0, 0.3)))
    found, _, said = expected(its)
    assert found == pytest.approx(said, abs=0.02)


def test_the_range_reaches_to_what_holds_if_only_the_mix_of_things_is_another():
    its = all_cats(rows(57, shift=(0.0, 0.0, 0.0, -1.0)))
    found = accuracy.range_of(tried(), its, alarms=(), match=None)
    assert found.low < found.estimates["places"] < found.high
    assert found.high >= middle([found.estimates[name] for name in ("doc", "atc", "cbpe")])


def test_what_was_wrong_at_every_place_is_taken_off():
    made = profile()
    off = tuple(trial(name, rows(index), wrong_by=0.06) for index, name in enumerate(PLACES))
    found, width, said = expected(rows(59), replace(made, accuracy=replace(made.accuracy, trials=off)))
    assert found == pytest.approx(said - 0.06, abs=0.01)
    assert width < 0.05


def test_an_estimate_is_not_believed_where_places_are_unlike_each_other():
    made = profile()
    uneven = tuple(trial(name, rows(index), wrong_by=0.08 * (-1) ** index) for index, name in enumerate(PLACES))
    trust, reason = looked_at(rows(59), replace(made, accuracy=replace(made.accuracy, trials=uneven)))
    assert trust is Trust.NOT_TRUSTED
    assert "may be off by" in reason


def test_what_few_rows_differ_by_chance_is_not_taken_for_unlike_places():
    made = profile()
    uneven = tuple(trial(name, rows(index), wrong_by=0.035 * (-1) ** index) for index, name in enumerate(PLACES))
    assert looked_at(rows(59), replace(made, accuracy=replace(made.accuracy, trials=uneven)))[0] is Trust.NOT_TRUSTED
    few = tuple(replace(one, rows=60) for one in uneven)
    assert looked_at(rows(59), replace(made, accuracy=replace(made.accuracy, trials=few)))[0] is Trust.TRUSTED


def test_many_trials_of_few_rows_say_together_what_a_place_is():
    made, kinds = profile(), [("", 0), *((f"damage {index}", 1) for index in range(8))]
    trials = []
    for index, name in enumerate(PLACES):
        for at, (family, severity) in enumerate(kinds):
            rng = np.random.default_rng([index, at])
            one = trial(name, counts(rng, 50), family=family, severity=severity)
            trials.append(replace(one, rows=50, accuracy=rng.binomial(50, made.accuracy.acc0) / 50))
    found, width, _ = expected(rows(59), replace(made, accuracy=replace(made.accuracy, trials=tuple(trials))))
    of_one_trial = 1.96 * np.sqrt(made.accuracy.acc0 * (1 - made.accuracy.acc0) / 50)
    assert found == pytest.approx(made.accuracy.acc0, abs=0.02)
    assert width < 0.75 * of_one_trial


def test_the_same_frames_damaged_again_are_no_more_rows_of_a_place():
    made = profile()
    few = [replace(trial(name, rows(index), wrong_by=0.035 * (-1) ** index), rows=60) for index, name in enumerate(PLACES)]
    again = [replace(one, family=f"damage {index}", severity=1) for one in few for index in range(8)]
    assert looked_at(rows(59), replace(made, accuracy=replace(made.accuracy, trials=(*few, *again))))[0] is Trust.TRUSTED


def test_strong_damage_at_some_places_says_nothing_of_places_as_they_should_be():
    piled = [
        trial(name, all_cats(rows(80 + index, shift=(0.0, 0.0, 0.0, -1.0))), wrong_by=0.5, family="dirt", severity=3)
        for index, name in enumerate(PLACES[:4])
    ]
    unsure = [
        trial(name, rows(90 + index, shift=(0.0, 0.0, 0.0, -0.8)), wrong_by=0.3, family="blur", severity=3)
        for index, name in enumerate(PLACES)
    ]
    its = rows(59)
    found, width, said = expected(its, tried(*piled, *unsure))
    assert found == pytest.approx(said, abs=0.01)
    assert width < 0.05


def test_answers_that_pile_up_are_seen_as_well_in_few_rows_as_in_many():
    its = all_cats(rows(57, shift=(0.0, 0.0, 0.0, -1.0)))
    few, _, _ = expected(replace(its, effective=64))
    many, _, _ = expected(its)
    assert few == pytest.approx(many, abs=0.02)


def test_right_trials_do_not_tell_that_other_answers_are_no_other_mix():
    made = profile()
    usual = tried().accuracy.trials
    collapsed = all_cats(rows(57, shift=(0.0, 0.0, 0.0, -1.0)))
    right, _, said = expected(collapsed)
    off = tuple(trial(name, collapsed, wrong_by=said - right, family="dirt", severity=1) for name in PLACES)
    _, width, _ = expected(collapsed, replace(made, accuracy=replace(made.accuracy, trials=(*usual, *off))))
    assert width > 0.4  # of half of the answers nobody knows whether they are wrong


def test_places_of_one_site_do_not_vouch_for_each_other():
    usual = tried().accuracy.trials
    unsure = [rows(70 + index, shift=(0.0, 0.0, 0.0, -0.7)) for index in range(6)]

    def half_width(names):
        more = [trial(name, its, wrong_by=0.1) for name, its in zip(names, unsure, strict=True)]
        return expected(rows(80, shift=(0.0, 0.0, 0.0, -0.7)), replace(made, accuracy=replace(made.accuracy, trials=(*usual, *more))))[1]

    made = profile()
    assert half_width([f"yard/{index}" for index in range(6)]) > 1.5 * half_width([f"yard {index}" for index in range(6)])


def test_rows_that_follow_each_other_are_counted_as_few():
    its = rows(60)
    assert looked_at(its)[0] is Trust.TRUSTED
    trust, reason = looked_at(replace(its, effective=60))
    assert trust is Trust.NOT_TRUSTED
    assert reason.startswith("So few rows that are independent say little.")


def test_few_places_tell_nothing():
    made = tried()
    few = tuple(one for one in made.accuracy.trials if one.place in PLACES[: MIN_PLACES - 1])
    assert tried_of(replace(made, accuracy=replace(made.accuracy, trials=few))) is None
    assert tried_of(profile()) is None
    assert tried_of(replace(made, accuracy=None)) is None


def test_places_that_are_all_of_one_site_still_tell_what_they_were():
    made = tried()
    one_site = tuple(replace(one, place=f"yard/{one.place}") for one in made.accuracy.trials)
    found, width, said = expected(rows(61), replace(made, accuracy=replace(made.accuracy, trials=one_site)))
    assert found == pytest.approx(said, abs=0.02)
    assert np.isfinite(width)


def test_chance_in_few_answers_is_not_taken_for_another_place():
    made = tried()
    span = tried_of(made)
    estimates = made.accuracy.trials[0].estimates
    outside = [likeness(span, made, counts(np.random.default_rng(60 + seed), 40), estimates).outside for seed in range(40)]
    assert sum("other answers" in one for one in outside) <= 4


def test_what_trials_teach_is_learned_once_for_each_profile_and_forgotten_when_there_are_many():
    made = tried()
    first = tried_of(made)
    assert tried_of(made) is first
    assert tried_of(tried()) is not first  # equal, but another one
    for _ in range(64):
        tried_of(replace(profile(), accuracy=None))
    again = tried_of(made)
    assert again is not first
    assert np.array_equal(again.squares, first.squares)
