"""A window as a vector: where values lie and how far they spread."""

import statistics

import numpy as np
import pytest
from grids import counted, normal_rows, plain_counts, plain_grid, wide_grid

from protocol.sketches.counts import added, empty
from protocol.sketches.grid import FeatureGroup
from protocol.sketches.normal import normal_quantile
from protocol.sketches.summary import cell_scores, summarizer, summary

SHARES = np.concatenate([np.logspace(-300, -1, 600), np.linspace(0.001, 0.999, 1999), 1 - np.logspace(-15, -1, 100)])


def test_normal_quantiles_are_those_of_the_standard_library():
    wanted = np.array([statistics.NormalDist().inv_cdf(share) for share in SHARES])
    assert np.allclose(normal_quantile(SHARES), wanted, rtol=1e-13, atol=1e-14)


def test_normal_quantiles_are_those_of_scipy():
    special = pytest.importorskip("scipy.special", reason="scipy is no dependency")
    assert np.allclose(normal_quantile(SHARES), special.ndtri(SHARES), rtol=1e-14, atol=1e-15)


def test_scores_of_bins_are_the_normal_scores_of_their_middles():
    scores = cell_scores(plain_grid().features[0])
    inverse = statistics.NormalDist().inv_cdf
    assert scores == pytest.approx([inverse(0.125), inverse(0.125), inverse(0.375), inverse(0.625), inverse(0.875), inverse(0.875)])


def test_bins_without_mass_have_a_score():
    grid = wide_grid(features=1)
    assert np.isfinite(cell_scores(grid.features[0])).all()


def test_place_and_spread_follow_what_happens():
    grid = wide_grid(features=3)
    generator = np.random.default_rng(5)
    rows = normal_rows(generator, 6000, 3)
    rows[:, 1] += 0.5
    rows[:, 2] *= 2
    place, spread = summary(counted(grid, rows), grid)[:6].reshape(2, 3)
    assert place[0] == pytest.approx(0, abs=0.1)
    assert place[1] == pytest.approx(0.5, abs=0.1)
    assert place[2] == pytest.approx(0, abs=0.15)
    assert spread[0] == pytest.approx(0, abs=0.1)
    assert spread[2] > 1


def test_a_summary_is_linear_in_the_shares():
    grid = wide_grid(features=4)
    generator = np.random.default_rng(6)
    parts = [counted(grid, normal_rows(generator, n, 4, shift=n / 500), generator.integers(0, 20, n)) for n in (100, 300)]
    one, two = (summary(part, grid) for part in parts)
    assert summary(added(*parts), grid) == pytest.approx(0.25 * one + 0.75 * two)


def test_many_windows_at_once_are_those_one_by_one():
    grid = plain_grid()
    parts = [plain_counts(), added(plain_counts(), plain_counts()), empty(grid)]
    many = summarizer(grid).summarize(np.array([part.cells for part in parts]), np.array([part.classes for part in parts]))
    for row, part in zip(many, parts, strict=True):
        assert np.array_equal(row, summary(part, grid), equal_nan=True)
    assert np.isnan(many[2]).all()
    assert np.allclose(many[0], many[1])


def test_a_feature_without_values_is_not_known_and_the_others_are():
    grid = plain_grid()
    vector = summary(counted(grid, np.array([[np.nan, 5, 0.5]] * 4, np.float32)), grid)
    assert np.isnan(vector).tolist() == [True, False, False, True, False, False, True, True, True]


def test_class_shares_sum_to_one():
    vector = summary(plain_counts(), plain_grid())
    assert vector[summarizer(plain_grid()).classes].tolist() == pytest.approx([1 / 3] * 3)


def test_coordinates_are_found_by_feature_and_group():
    made = summarizer(plain_grid())
    assert made.dimensions == 9
    assert made.of_feature(1) == (1, 4)
    assert made.coordinates([FeatureGroup.INPUT]).tolist() == [0, 3]
    assert made.coordinates([FeatureGroup.OUTPUT]).tolist() == [2, 5, 6, 7, 8]
    assert made.coordinates(FeatureGroup).tolist() == list(range(9))
    assert summarizer(plain_grid()) is made
