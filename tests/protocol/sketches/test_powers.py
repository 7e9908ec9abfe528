"""Shares of classes by what the rest lets expect: few things, much light and little, classes mistaken for others, things that stay."""

from dataclasses import replace

import numpy as np
import pytest
from class_streams import NOTHING, RARE, place
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches.powers import POWER, ClassPowers, fit_class_powers
from protocol.sketches.stretches import pooled

CLEAN = place(500, 20)


def surprises(made: ClassPowers, rows: np.ndarray, subwindows: int = 1) -> np.ndarray:
    """Of the stretches of so many rows that end with each, float64[n, L]; NaN where too little is testable."""
    return made.surprises(pooled(made.followed(rows), subwindows))


@pytest.fixture(scope="module")
def made() -> ClassPowers:
    return fit_class_powers(place(4032, 1), 5)


@pytest.fixture(scope="module")
def hourly() -> ClassPowers:
    """Of stretches of six rows."""
    return fit_class_powers(place(4032, 1), 5, 6)


def test_a_rare_class_that_becomes_frequent_stands_out_of_every_clean_stretch_where_little_passes_too(made: ClassPowers):
    clean = surprises(made, place(4032, 2)).max()
    for busy in (0.15, 0.7):
        seen = surprises(made, place(200, 4, rare=20.0, busy=busy))
        assert np.median(seen[:, RARE]) > clean
        assert (seen[:, RARE] >= seen[:, :RARE].max(axis=1)).mean() > 0.9


def test_how_much_passes_is_no_surprise_of_a_class(made: ClassPowers):
    for busy in (0.1, 0.5, 0.9):
        stretches = place(400, 5, busy=busy)
        assert (surprises(made, stretches)[:, :NOTHING] > 11).mean() < 0.01  # 0.1 % of a square of a normal number


def test_what_is_mistaken_by_little_light_is_expected_then(made: ClassPowers):
    rows = place(1440, 6)
    dark = rows[:, 0] < -0.8
    rest = 1 - rows[:, 2 + NOTHING]
    expected = made.expected(made.followed(rows))[:, RARE] / rest
    assert expected[dark].mean() > 1.3 * expected[~dark].mean()
    assert expected[dark].mean() == pytest.approx((rows[dark, 2 + RARE] ** POWER / rest[dark]).mean(), rel=0.25)


def test_no_less_is_expected_than_a_part_of_the_average_whatever_the_components_say(made: ClassPowers):
    row = place(1, 7)
    rest = 1 - row[0, 2 + NOTHING]
    expected = made.expected(replace(made, weights=np.full_like(made.weights, -1.0)).followed(row))[0]
    assert expected[:NOTHING] == pytest.approx(0.3 * made.average[:NOTHING] * rest)


def test_a_class_that_the_reference_never_saw_is_no_surprise_in_a_few_rows():
    stretches = place(2000, 8, rare=0.0)
    stretches[:, 2] += stretches[:, 2 + RARE]
    stretches[:, 2 + RARE] = 0.0
    made = fit_class_powers(stretches, 5)
    stretches[:, 2 + RARE] = 1 / 600
    assert surprises(made, stretches)[:, RARE].max() < 11


def test_the_rest_alone_is_followed_where_two_classes_are_all():
    rng = np.random.default_rng(9)
    share = np.clip(0.05 + 0.01 * rng.normal(size=3000), 0.01, 1)
    made = fit_class_powers(np.column_stack([1 - share, share]), 2)
    broken = np.array([[0.8, 0.2]])
    assert made.base == 0
    assert surprises(made, broken).max() > surprises(made, np.column_stack([1 - share, share])).max()


def test_parts_of_a_score_are_at_classes_alone_and_the_largest_is_the_score(made: ClassPowers):
    stretch = made.followed(place(1, 10, rare=20.0))
    parts = made.contributions(stretch[0])
    assert parts.shape == (made.dimensions,)
    assert parts[:2].tolist() == [0.0, 0.0]
    assert parts.max() == made.scores(stretch)[0]
    assert int(parts.argmax()) == 2 + RARE


def test_what_travels_judges_the_same():
    made = fit_class_powers(place(1000, 11), 5)
    kept = made.rounded()
    fresh = kept.followed(place(200, 12))
    assert np.allclose(kept.scores(fresh), made.scores(fresh), rtol=1e-3, atol=1e-3)
    assert kept.rounded().scores(fresh).tolist() == kept.scores(fresh).tolist()


def test_there_may_be_no_coordinates_besides_the_shares():
    made = fit_class_powers(place(1000, 13)[:, 2:], 5)
    assert made.low.size == 0
    assert made.scores(made.followed(place(50, 14)[:, 2:])).shape == (50,)


def test_a_class_that_comes_less_than_expected_is_no_surprise_and_the_rest_is_both_ways(made: ClassPowers):
    stretches = np.tile(made.followed(place(1, 17, busy=0.5)), (3, 1))
    stretches[0, 1] = 0.0
    stretches[1, NOTHING], stretches[2, NOTHING] = 0.01, 0.99
    found = made.surprises(stretches)
    assert found[0, 1] == 0.0
    assert (found[1:, NOTHING] > 0).all()


def test_many_that_pass_say_more_than_one_that_stays(hourly: ClassPowers):
    """The same share of an hour, in one row or in all: what fills much of ten minutes may be one thing."""
    quiet = place(6, 18, busy=0.5)
    quiet[:, 2 + NOTHING] += quiet[:, 2 + RARE] - 0.005
    quiet[:, 2 + RARE] = 0.005
    staying, passing = quiet.copy(), quiet.copy()
    staying[2, 2 + RARE] += 0.12
    staying[2, 2 + NOTHING] -= 0.12
    passing[:, 2 + RARE] += 0.02
    passing[:, 2 + NOTHING] -= 0.02
    assert surprises(hourly, passing, 6)[-1, RARE] > 2 * surprises(hourly, staying, 6)[-1, RARE]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-0.05, 1))
def test_what_counts_of_a_share_grows_with_it_and_less_and_less(part: float, share: float, other: float):
    made = fit_class_powers(CLEAN, 5)
    rows = np.zeros((4, 7))
    rows[:, 2 + RARE] = share, share * part, share * (1 - part), other
    whole, one, rest, noise = made.followed(rows)[:, RARE]
    assert one <= whole <= one + rest + 1e-12
    assert noise >= 0


def test_rows_that_are_not_testable_are_left_out_of_the_fit_and_of_stretches(hourly: ClassPowers):
    rows = place(4032, 1)
    gaps = rows.copy()
    gaps[100:300] = np.nan
    made = fit_class_powers(gaps, 5, 6)
    assert made.dispersion == pytest.approx(hourly.dispersion, rel=0.2)
    found = surprises(made, gaps, 6)
    assert np.isnan(found[105:300]).all()
    assert not np.isnan(found[310:]).any()


def test_expectations_follow_the_rows_of_a_stretch_that_goes_from_day_to_night():
    """Half an hour of light and half an hour of dark are not an hour of dusk."""
    made = fit_class_powers(CLEAN, 5, 6)
    rows = place(144, 19)
    found = pooled(made.followed(rows), 6)
    each = made.followed(rows)
    assert found[60] == pytest.approx(each[55:61].mean(axis=0))


@pytest.mark.parametrize(("stretches", "classes"), [(place(79, 15), 5), (place(500, 16)[:, :3], 1), (np.ones((500, 4)) / 4, 4)])
def test_too_few_windows_or_shares_that_never_vary_are_refused(stretches: np.ndarray, classes: int):
    with pytest.raises(InvalidError) as refused:
        fit_class_powers(stretches, classes)
    assert refused.value.code == "too-few"
