"""Shares of classes by what the rest of a stretch lets expect: few things, much light and little, classes that are mistaken for others."""

from dataclasses import replace

import numpy as np
import pytest
from class_streams import NOTHING, RARE, place

from protocol.errors import InvalidError
from protocol.sketches.expectations import deviances
from protocol.sketches.shares import ClassShares, fit_class_shares


@pytest.fixture(scope="module")
def made() -> ClassShares:
    return fit_class_shares(place(4032, 1), 5)


def test_a_rare_class_that_becomes_frequent_stands_out_of_every_clean_stretch_where_little_passes_too(made: ClassShares):
    clean = made.scores(place(4032, 2)).max()
    for busy in (0.15, 0.7):
        seen = made.surprises(place(200, 4, rare=20.0, busy=busy))
        assert np.median(seen[:, RARE]) > clean
        assert (seen[:, RARE] >= seen[:, :RARE].max(axis=1)).mean() > 0.9


def test_how_much_passes_is_no_surprise_of_a_class(made: ClassShares):
    for busy in (0.1, 0.5, 0.9):
        stretches = place(400, 5, busy=busy)
        assert (made.surprises(stretches)[:, :NOTHING] > 11).mean() < 0.01  # 0.1 % of a square of a normal number


def test_what_is_mistaken_by_little_light_is_expected_then(made: ClassShares):
    stretches = place(1440, 6)
    dark = stretches[:, 0] < -0.8
    rest = 1 - stretches[:, 2 + NOTHING]
    expected = made.expected(stretches)[:, RARE] / rest
    assert expected[dark].mean() > 1.5 * expected[~dark].mean()
    assert expected[dark].mean() == pytest.approx((stretches[dark, 2 + RARE] / rest[dark]).mean(), rel=0.25)


def test_no_less_is_expected_than_a_part_of_the_average_whatever_the_components_say(made: ClassShares):
    stretch = place(1, 7)
    rest = 1 - stretch[0, 2 + NOTHING]
    expected = replace(made, weights=np.full_like(made.weights, -1.0)).expected(stretch)[0]
    assert expected[:NOTHING] == pytest.approx(0.3 * made.average[:NOTHING] * rest)


def test_a_class_that_the_reference_never_saw_is_no_surprise_in_a_few_rows():
    stretches = place(2000, 8, rare=0.0)
    stretches[:, 2] += stretches[:, 2 + RARE]
    stretches[:, 2 + RARE] = 0.0
    made = fit_class_shares(stretches, 5)
    stretches[:, 2 + RARE] = 1 / 600
    assert made.surprises(stretches)[:, RARE].max() < 11


def test_the_rest_alone_is_followed_where_two_classes_are_all():
    rng = np.random.default_rng(9)
    share = np.clip(0.05 + 0.01 * rng.normal(size=3000), 0.01, 1)
    made = fit_class_shares(np.column_stack([1 - share, share]), 2)
    broken = np.array([[0.8, 0.2]])
    assert made.base == 0
    assert made.scores(broken)[0] > made.scores(np.column_stack([1 - share, share])).max()


def test_parts_of_a_score_are_at_classes_alone_and_the_largest_is_the_score(made: ClassShares):
    stretch = place(1, 10, rare=20.0)
    parts = made.contributions(stretch[0])
    assert parts.shape == (made.dimensions,)
    assert parts[:2].tolist() == [0.0, 0.0]
    assert parts.max() == made.scores(stretch)[0]
    assert int(parts.argmax()) == 2 + RARE


def test_what_travels_judges_the_same():
    made = fit_class_shares(place(1000, 11), 5)
    kept = made.rounded()
    fresh = place(200, 12)
    assert np.allclose(kept.scores(fresh), made.scores(fresh), rtol=1e-3, atol=1e-3)
    assert kept.rounded().scores(fresh).tolist() == kept.scores(fresh).tolist()


def test_there_may_be_no_coordinates_besides_the_shares():
    made = fit_class_shares(place(1000, 13)[:, 2:], 5)
    assert made.low.size == 0
    assert made.scores(place(50, 14)[:, 2:]).shape == (50,)


def test_a_deviance_is_nothing_where_what_is_seen_was_expected_and_grows_both_ways():
    expected = np.full(5, 0.1)
    seen = np.array([-1e-9, 0.05, 0.1, 0.2, 0.4])
    found = deviances(seen, expected)
    assert found[2] == pytest.approx(0.0)
    assert (np.diff(found[:3]) < 0).all()
    assert (np.diff(found[2:]) > 0).all()
    assert found[0] == pytest.approx(0.2)


@pytest.mark.parametrize(("stretches", "classes"), [(place(79, 15), 5), (place(500, 16)[:, :3], 1), (np.ones((500, 4)) / 4, 4)])
def test_too_few_windows_or_shares_that_never_vary_are_refused(stretches: np.ndarray, classes: int):
    with pytest.raises(InvalidError) as refused:
        fit_class_shares(stretches, classes)
    assert refused.value.code == "too-few"


@pytest.mark.parametrize(
    "other",
    [
        {"base": 5},
        {"base": -1},
        {"center": np.zeros(3)},
        {"components": np.zeros((9, 2))},
        {"low": np.full(2, 1e9)},
        {"weights": np.zeros((1, 5))},
        {"average": np.full(5, np.nan)},
        {"average": np.zeros(4)},
        {"dispersion": np.zeros(5)},
    ],
)
def test_contradicting_numbers_are_refused(made: ClassShares, other: dict[str, object]):
    with pytest.raises(InvalidError) as refused:
        replace(made, **other)  # type: ignore[arg-type]
    assert refused.value.code == "bad-reference"
