"""Several looks with one budget: valid under dependence, and sooner than one look at small shifts that stay."""

import numpy as np
import pytest

from benchmarks.drift.scales import LOOKS, Look, fit_modes, fit_scales, is_alarm, judged, leading, pooled
from protocol.errors import InvalidError
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature

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
def references():
    return fit_scales(days(28, 1), GRID)


def test_alarms_without_a_change_stay_within_the_budget_though_windows_depend_on_each_other(references):
    values = judged(references, days(150, 2))
    for rate in (300, 1000):  # a year: enough to be counted in 150 days
        crossings = np.sum([is_alarm(value, rate) for value in values])
        assert crossings / len(values) <= 1.5 * rate / (365 * DAY)


def test_a_small_shift_that_stays_is_seen_by_a_longer_look_alone(references):
    stream = days(40, 3)
    stream[30 * DAY :, 5] += 0.15
    values = judged(references, stream)
    first = next(index for index in range(30 * DAY, len(values)) if is_alarm(values[index], 1))
    assert 1 < first - 30 * DAY <= 36
    assert leading(references, stream[: first + 1]).look.subwindows > 1


def test_a_large_shift_is_seen_in_its_first_window(references):
    stream = days(31, 4)
    stream[30 * DAY :, 5] += 1.5
    assert is_alarm(judged(references, stream)[30 * DAY], 0.2)


def test_a_class_that_becomes_frequent_is_seen_by_the_look_at_classes(references):
    stream = days(31, 5)
    stream[30 * DAY :, 6] += 0.15
    stream[30 * DAY :, 7] -= 0.12
    only = [one for one in references if one.look.is_classes]
    assert (judged(only, stream)[30 * DAY + 2 :] <= 1 / (365 * DAY)).any()


def test_a_stretch_is_the_mean_of_what_is_testable_in_it():
    rows = np.arange(12.0)[:, None] * np.ones((1, 2))
    rows[4] = np.nan
    found = pooled(rows, 6)
    assert np.isnan(found[:4]).all()
    assert np.allclose(found[5], (0 + 1 + 2 + 3 + 5) / 5)
    assert np.allclose(found[11], 8.5)
    rows[5] = np.nan
    assert np.isnan(pooled(rows, 6)[5:10]).all()


def test_a_window_that_is_not_testable_is_not_judged_by_itself(references):
    stream = days(2, 6)
    stream[200] = np.nan
    values = judged(references, stream)
    assert np.isfinite(values[200])  # the hour still is
    stream[180:220] = np.nan
    assert np.isnan(judged(references, stream)[219])


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


def test_looks_may_not_spend_more_than_the_budget():
    with pytest.raises(ValueError, match="budget"):
        fit_scales(days(2, 1), GRID, (*LOOKS, Look("one more", 1, is_classes=False, modes=1, share=0.1)))
    with pytest.raises(ValueError, match="more than 0"):
        is_alarm(0.1, 0)


def test_too_few_windows_are_refused():
    with pytest.raises(InvalidError) as refused:
        fit_scales(np.full((28 * DAY, 8), np.nan), GRID)
    assert refused.value.code == "too-few"
