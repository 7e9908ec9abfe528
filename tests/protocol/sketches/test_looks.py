"""Several looks with one budget: valid under dependence, and sooner than one look at small shifts that stay."""

from dataclasses import replace

import numpy as np
import pytest
from grids import plain_reference
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature
from protocol.sketches.looks import (
    COMES_TO,
    HOURLY_LOOKS,
    LOOKS,
    ONE_CLOUD,
    PRIOR_WINDOWS,
    Judges,
    Look,
    LookReference,
    Modes,
    calibrated,
    fit_looks,
    fit_modes,
    is_alarm,
    judged,
    leading,
    looks_for,
    statistic_of,
    threshold_of,
)
from protocol.sketches.scatter import Scatter
from protocol.sketches.stretches import pooled

DAY = 144
GRID = Grid(
    tuple(fit_feature(f"f{index}", FeatureGroup.INPUT, np.random.default_rng(index).normal(size=500), 8) for index in range(3)),
    ("a", "b"),
    1,
    0,
)


def days(count: int, seed: int) -> np.ndarray:
    """Summaries of a place with day and night and weather that lasts for hours: float64[144 x count, 8]."""
    rng = np.random.default_rng(seed)
    n = count * DAY
    weather = np.zeros(n)
    noise = rng.normal(size=n)
    for index in range(1, n):
        weather[index] = 0.97 * weather[index - 1] + 0.24 * noise[index]
    light = np.tanh(4 * np.sin(2 * np.pi * np.arange(n) / DAY)) + 0.2 * weather
    share = 0.3 + 0.05 * rng.normal(size=n)
    base = np.stack([light, 0.3 * light**2, weather, 0.5 * light, 0.3 * weather, 0.2 * light], axis=1)
    return np.column_stack([base + 0.1 * rng.normal(size=(n, 6)), share, 1 - share])


@pytest.fixture(scope="module")
def looks() -> tuple[LookReference, ...]:
    return fit_looks(days(28, 1), GRID)


# --- the promise ---


def test_p_of_each_look_is_valid_on_windows_that_are_exchangeable():
    """Over references: what one of them lacks by chance, others have too much of."""
    shares = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        stream = generator.normal(size=(38 * DAY, 8)) @ np.random.default_rng(99).normal(size=(8, 8))
        made = fit_looks(stream[: 28 * DAY], GRID)
        assert len(made) == len(LOOKS)
        shares.append([[(one.p_values(stream[28 * DAY :]) <= level).mean() for level in (0.005, 0.05, 0.25, 0.75)] for one in made])
    seen, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
    assert (seen <= np.array([0.005, 0.05, 0.25, 0.75]) + 4 * error + 0.002).all(), seen
    assert (seen >= np.array([0.005, 0.05, 0.25, 0.75]) - 4 * error - 0.02).all(), seen


def test_p_of_looks_at_classes_is_valid_where_things_come_and_stay_by_chance():
    """Counts by Poisson's law, stays of any length: what shares of classes are made of."""
    generator = np.random.default_rng(7)
    grid = replace(GRID, classes=("a", "b", "c", "d"))

    def stream(count: int) -> np.ndarray:
        stays = generator.gamma(generator.poisson([12, 3, 1, 0.3], size=(count, 4)) + 1e-9)
        stays[:, 0] += generator.gamma(20, size=count)
        return np.column_stack([generator.normal(size=(count, 6)), stays / stays.sum(axis=1, keepdims=True)])

    made = [one for one in looks_for(fit_looks(stream(28 * DAY), grid)) if one.look.is_classes]
    fresh = stream(200 * DAY)
    assert [one.look.name for one in made] == ["classes-2h", "classes-3h"]
    for one in made:
        p = one.p_values(fresh)
        assert (p <= 0.05).mean() == pytest.approx(0.05, rel=0.4)
        assert (p <= 0.001).mean() <= 0.002


def test_alarms_without_a_change_stay_within_the_budget_where_windows_are_independent():
    generator = np.random.default_rng(30)
    made = fit_looks(generator.normal(size=(28 * DAY, 8)), GRID)
    values = judged(made, generator.normal(size=(150 * DAY, 8)))
    for rate in (300, 1000):  # a year: enough to be counted in 150 days
        assert np.sum([is_alarm(value, rate) for value in values]) <= 1.2 * rate * 150 / 365


def test_alarms_without_a_change_stay_within_the_budget_though_windows_depend_on_each_other(looks):
    values = judged(looks, days(150, 2))
    for rate in (300, 1000):
        assert np.sum([is_alarm(value, rate) for value in values]) <= 1.5 * rate * 150 / 365


def test_an_alarm_is_a_statistic_that_reached_its_threshold():
    assert [threshold_of(1.0), threshold_of(0.2), threshold_of(1.0, per_year=8760)] == [52_560, 262_800, 8760]
    for rate, per_year in ((1.0, 52_560.0), (0.3, 52_560.0), (7.0, 8760.0)):
        edge = rate / per_year
        for value in (edge / 2, edge, edge * (1 + 1e-9), 1.0):
            assert is_alarm(value, rate, per_year=per_year) == (statistic_of(value) >= threshold_of(rate, per_year=per_year))
        assert is_alarm(edge * 0.999, rate, per_year=per_year)
        assert not is_alarm(edge * 1.001, rate, per_year=per_year)
    assert not is_alarm(float("nan"), 1.0)


@given(st.lists(st.floats(-12, 1), min_size=20, max_size=40))
def test_what_looks_come_to_together_is_never_more_than_their_sum_and_keeps_its_order(exponents):
    values = 10 ** np.array(sorted(exponents))
    found = calibrated(values)
    assert (found <= values * (1 + 1e-9)).all()
    assert (np.diff(found) >= -1e-9 * found[1:]).all()


def test_what_looks_come_to_together_is_what_the_study_found_and_rare_values_stay():
    by_sum, at_most = np.array(COMES_TO).T / SUBWINDOWS_PER_YEAR
    assert calibrated(by_sum) == pytest.approx(at_most)
    rare = np.array([1e-12, 1e-9, 0.05 / SUBWINDOWS_PER_YEAR])
    assert calibrated(rare) == pytest.approx(rare), "where the study left no room the sum is spent as it is"
    frequent = np.array([0.01, 0.3, 1.0])
    assert calibrated(frequent) == pytest.approx(frequent * at_most[-1] / by_sum[-1])
    assert np.isnan(calibrated(np.array([np.nan]))).all()


#: By the sum of the looks: false alarms a year on 300 device-years of the study (`benchmarks.drift.sums`, ADR 0055).
STUDY = (
    (0.1, 0.027),
    (0.2, 0.043),
    (0.3, 0.067),
    (0.5, 0.13),
    (1, 0.303),
    (2, 0.567),
    (3, 0.867),
    (5, 1.31),
    (10, 2.44),
    (16, 3.763),
    (20, 4.717),
)


@pytest.mark.parametrize(("asked", "least", "most"), [(0.1, 0, 0.3), (0.2, 0.25, 0.4), (0.5, 0.4, 0.8), (1, 0.75, 0.85), (5, 0.75, 0.85)])
def test_most_of_what_is_asked_comes_on_the_study_and_never_all_of_it(asked: float, least: float, most: float):
    by_sum, came = np.array(STUDY).T
    values = np.geomspace(by_sum[0], by_sum[-1], 5000)
    spent = values[calibrated(values / SUBWINDOWS_PER_YEAR) <= asked / SUBWINDOWS_PER_YEAR * (1 + 1e-9)].max()
    assert least <= np.interp(spent, by_sum, came) / asked <= most


def test_modes_of_longer_means_are_drawn_further_towards_all_for_four_weeks_hold_fewer_of_them(looks):
    for one in looks:
        if isinstance(one.modes, Modes):
            windows = 28 * DAY - np.floor(0.2 * one.look.subwindows)  # of the first stretch a fifth may be missing
            prior = PRIOR_WINDOWS * np.sqrt(one.look.subwindows)
            wanted = prior / (one.modes.shares * windows + prior)
            assert [cloud.shrinkage for cloud in one.modes.clouds] == pytest.approx(wanted, rel=0.01)


# --- what is seen ---


def test_a_small_shift_that_stays_is_seen_by_a_longer_look_alone(looks):
    stream = days(40, 3)
    stream[30 * DAY :, 5] += 0.2
    values = judged(looks, stream)
    first = next(index for index in range(30 * DAY, len(values)) if is_alarm(values[index], 1))
    assert 1 < first - 30 * DAY <= 36
    found = leading(looks, stream[: first + 1])
    assert found.look.subwindows > 1
    parts = found.contributions(stream[: first + 1])
    assert int(np.argmax(parts)) == 5, "the coordinate that moved has the largest part"


def test_a_large_shift_is_seen_in_its_first_window(looks):
    stream = days(31, 4)
    stream[30 * DAY :, 5] += 1.5
    assert is_alarm(judged(looks, stream)[30 * DAY], 0.2)


def test_a_class_that_becomes_frequent_is_seen_by_the_look_at_classes(looks):
    stream = days(31, 5)
    stream[30 * DAY :, 6] += 0.15
    stream[30 * DAY :, 7] -= 0.12
    only = [one for one in looks if one.look.is_classes]
    assert (judged(only, stream)[30 * DAY + 2 :] <= 1 / (365 * DAY)).any()
    parts = only[0].contributions(stream)
    assert parts[:6].tolist() == [0.0] * 6
    assert (parts[6:] > 0).any()


def test_the_last_rows_are_judged_by_themselves_as_in_the_whole_stream(looks):
    """What a device keeps of eighteen sub-windows is enough, and a server that has the same ones agrees."""
    stream = days(3, 10)
    stream[100:103] = np.nan
    whole = judged(looks, stream)
    for end in (18, 101, 104, 110, 300):
        assert judged(looks, stream[end - 18 : end])[-1] == pytest.approx(whole[end - 1], rel=1e-9)


# --- stretches ---


def test_a_stretch_is_the_mean_of_what_is_testable_in_it():
    rows = np.arange(12.0)[:, None] * np.ones((1, 2))
    rows[4] = np.nan
    found = pooled(rows, 6)
    assert np.isnan(found[:4]).all()
    assert np.allclose(found[5], (0 + 1 + 2 + 3 + 5) / 5)
    assert np.allclose(found[11], 8.5)
    rows[5] = np.nan
    assert np.isnan(pooled(rows, 6)[5:10]).all()


def test_a_window_that_is_not_testable_is_not_judged_by_itself(looks):
    stream = days(2, 6)
    stream[200] = np.nan
    assert np.isnan(looks[0].scores(stream)[200])
    assert np.isfinite(judged(looks, stream)[200])  # the hour still is
    stream[180:220] = np.nan
    assert np.isnan(judged(looks, stream)[219])
    assert looks[0].contributions(stream[:220]).tolist() == [0.0] * 8


# --- modes ---


def test_modes_follow_what_one_cloud_cannot():
    rng = np.random.default_rng(7)
    turn = rng.uniform(0, np.pi, 4000)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) + 0.02 * rng.normal(size=(4000, 2))
    inside, four, one = np.array([[0.0, 0.6]]), fit_modes(ring, 4), fit_modes(ring, 1)
    assert four.scores(inside)[0] > np.quantile(four.scores(ring), 0.999)
    assert one.scores(inside)[0] < np.quantile(one.scores(ring), 0.5)
    assert len(set(four.nearest(ring))) == 4


def test_scores_do_not_depend_on_units():
    stream = days(8, 8)
    scaled = stream * np.array([1e3, 1, 1, 1e-1, 1, 1, 1, 1])
    assert np.allclose(fit_modes(stream, 3).scores(stream), fit_modes(scaled, 3).scores(scaled), rtol=1e-6)


def test_all_modes_together_have_the_mean_and_the_covariance_of_what_they_were_fitted_on():
    stream = days(28, 11)
    made = fit_modes(stream, 4).mixture()
    assert made.mean == pytest.approx(stream.mean(axis=0), abs=1e-9)
    unit = np.diag(made.deviation) @ made.factor
    assert np.allclose(unit @ unit.T, np.cov(stream.T), rtol=0.3, atol=0.01)


def test_a_class_that_one_mode_never_saw_varies_there_by_the_least_that_is_believed():
    stream = days(14, 12)
    stream[:, 7] = np.where(stream[:, 0] > 0, 0.02 + 0.0005 * np.random.default_rng(1).normal(size=len(stream)), 0.0)
    made = fit_modes(stream, 2)
    for cloud in made.clouds:
        assert cloud.deviation[7] * np.sqrt((cloud.factor @ cloud.factor.T)[7, 7]) >= 1e-3 * (1 - 1e-9)


def test_numbers_are_rounded_to_what_travels(looks):
    for cloud in looks[0].modes.clouds:
        for numbers in (cloud.mean, cloud.deviation, cloud.factor):
            assert (numbers == numbers.astype(np.float32)).all()


# --- what is refused ---


def test_looks_may_not_spend_more_than_the_budget():
    with pytest.raises(ValueError, match="budget"):
        fit_looks(days(2, 1), GRID, looks=(*LOOKS, Look("one more", 1, is_classes=False, modes=1, share=0.1)))
    for judges in (Judges.ROWS, Judges.MEANS):
        with pytest.raises(ValueError, match="budget"):
            fit_looks(days(2, 1), GRID, looks=(*LOOKS, Look("one more", 1, is_classes=True, modes=0, share=0.1, judges=judges)))
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="more than 0"):
            is_alarm(0.1, rate)


@pytest.mark.parametrize("chosen", [LOOKS, HOURLY_LOOKS, ONE_CLOUD])
def test_the_looks_of_the_house_spend_one_budget(chosen: tuple[Look, ...]):
    for other in (Judges.ROWS, Judges.MEANS):
        assert sum(one.share for one in chosen if one.judges is not other) == pytest.approx(1)
    assert (chosen[0].subwindows, chosen[0].is_classes) == (1, False)
    assert len({one.name for one in chosen}) == len(chosen)


def test_too_few_windows_are_refused():
    with pytest.raises(InvalidError) as refused:
        fit_looks(np.full((28 * DAY, 8), np.nan), GRID)
    assert refused.value.code == "too-few"


def test_a_look_that_cannot_be_fitted_is_left_out_and_its_share_is_not_spent():
    stream = days(14, 13)
    stream[:, 6:] = (1.0, 0.0)  # one class, always
    assert [one.look.name for one in fit_looks(stream, GRID)] == ["all-10min", "all-1h", "all-3h"]
    without = fit_looks(stream[:, :6], GRID, coordinates=np.arange(6))
    assert [one.look.name for one in without] == ["all-10min", "all-1h", "all-3h"]
    assert sum(one.look.share for one in without) == pytest.approx(0.45)


@pytest.mark.parametrize(
    "change",
    [
        {"look": Look("x" * 33, 1, is_classes=False, modes=2, share=0.5)},
        {"look": Look("", 1, is_classes=False, modes=2, share=0.5)},
        {"look": Look("x", 0, is_classes=False, modes=2, share=0.5)},
        {"look": Look("x", 1, is_classes=False, modes=1, share=0.5)},
        {"look": Look("x", 1, is_classes=False, modes=2, share=1.5)},
        {"look": Look("x", 1, is_classes=False, modes=2, share=0.5, judges=Judges.ROWS)},
        {"look": Look("x", 1, is_classes=False, modes=2, share=0.5, judges=Judges.MEANS)},
        {"coordinates": np.arange(4)},
    ],
)
def test_a_look_that_contradicts_itself_is_refused(change: dict[str, object]):
    with pytest.raises(InvalidError) as refused:
        replace(plain_reference().looks[0], **change)
    assert refused.value.code == "bad-reference"


@pytest.mark.parametrize(("place", "judges"), [(2, Judges.ALL), (2, Judges.MEANS), (3, Judges.ROWS)])
def test_powers_judge_rows_alone_and_shares_never_rows_alone(place: int, judges: Judges):
    one = plain_reference().looks[place]
    with pytest.raises(InvalidError) as refused:
        replace(one, look=replace(one.look, judges=judges))
    assert refused.value.code == "bad-reference"


def test_modes_of_different_units_or_without_a_share_are_refused():
    clouds = tuple(Scatter(np.zeros(2), np.full(2, unit), np.eye(2), 0.0) for unit in (1.0, 2.0))
    for chosen, shares in ((clouds, [0.5, 0.5]), (clouds[:1] * 2, [1.0, 0.0]), (clouds[:1], [0.5, 0.5]), ((), [])):
        with pytest.raises(InvalidError) as refused:
            Modes(chosen, np.array(shares))
        assert refused.value.code == "bad-reference"
