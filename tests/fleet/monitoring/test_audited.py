"""Labels of a place tell by how much estimates are off there: more of them more, elsewhere less, and what they refute is not held on to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.monitoring.audited import Audit, Expected, correction

PLACE = 0.02**2
CHANCE = 0.005**2
shares = st.floats(0.0, 1.0)


def window(*, surer: float = 0.0, beyond: float = 0.0, accuracy: float = 0.9, by_place: float = PLACE) -> Expected:
    return Expected(np.array([surer, beyond]), accuracy, by_place, CHANCE)


def audit(right: int, labels: int, of: Expected | None = None) -> Audit:
    return Audit(window() if of is None else of, np.zeros(4), right, labels)


audits = st.lists(
    st.builds(
        lambda surer, beyond, accuracy, share, labels: audit(
            round(share * labels), labels, window(surer=surer - 0.5, beyond=beyond, accuracy=accuracy)
        ),
        shares,
        shares,
        shares,
        shares,
        st.integers(1, 500),
    ),
    min_size=1,
    max_size=6,
)


def test_without_labels_nothing_changes():
    for none in ([], [audit(0, 0)]):
        found = correction(none, window())
        assert (found.by, found.by_place, found.told) == (0.0, PLACE, 0.0)


def test_labels_that_say_what_was_expected_change_nothing_but_the_doubt():
    found = correction([audit(180, 200)], window())
    assert found.by == pytest.approx(0.0)
    assert found.by_place < PLACE


def test_labels_move_the_expectation_towards_what_they_say_and_no_farther():
    found = correction([audit(172, 200)], window())  # 4 points below
    assert -0.04 < found.by < -0.01


def test_more_labels_are_believed_more():
    few, many, most = (correction([audit(n * 88 // 100, n)], window()) for n in (50, 200, 5000))
    assert 0 > few.by > many.by > most.by > -0.02
    assert few.told < many.told < most.told < 1


def test_a_window_that_looks_otherwise_is_told_less_and_one_far_away_nothing():
    labelled = [audit(172, 200)]
    near, off, far = (correction(labelled, window(surer=-apart)) for apart in (0.0, 0.15, 1.0))
    assert near.by < off.by < far.by
    assert far.by == pytest.approx(0.0, abs=1e-6)
    assert far.told == pytest.approx(0.0, abs=1e-6)


def test_what_labels_refute_is_given_up_instead_of_met_half_way():
    found = correction([audit(100, 200)], window())  # 50 % where 90 were expected of places that differ by two points
    assert found.by == pytest.approx(-0.4, abs=0.1)
    assert found.by_place > PLACE


def test_a_few_wrong_answers_refute_nothing():
    for right, labels in ((0, 1), (2, 4), (7, 10)):
        found = correction([audit(right, labels)], window())
        assert found.by > -0.01
        assert found.by_place <= PLACE


def test_a_surprise_widens_the_doubt_of_windows_that_look_otherwise_too():
    found = correction([audit(100, 200)], window(surer=-1.0))
    assert found.by_place > 10 * PLACE


@given(audits, shares)
def test_the_order_of_spans_does_not_matter(listed, surer):
    at = window(surer=surer - 0.5)
    forth, back = correction(listed, at), correction(listed[::-1], at)
    assert forth.by == pytest.approx(back.by, abs=1e-9)
    assert forth.by_place == pytest.approx(back.by_place, rel=1e-6, abs=1e-12)


@given(audits, shares)
def test_labels_take_a_part_of_the_doubt_away_and_no_more_than_all(listed, surer):
    found = correction(listed, window(surer=surer - 0.5))
    assert 0.0 <= found.told <= 1.0
    assert found.by_place >= 0.0
    assert np.isfinite(found.by)


@given(audits, st.integers(1, 400))
def test_labels_of_one_more_span_leave_no_more_doubt_while_they_are_no_surprise(listed, labels):
    calm = [replace(one, right=round(one.expected.accuracy * one.labels)) for one in listed]
    before = correction(calm, window())
    after = correction([*calm, audit(round(0.9 * labels), labels)], window())
    assert after.told >= before.told - 1e-9
