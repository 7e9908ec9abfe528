"""The set of settled numbers behaves like a plain set of integers, in a few ranges."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.monitoring.intervals import MAX_RANGES, IntervalSet
from protocol.errors import InvalidError

numbers = st.lists(st.integers(0, 60), max_size=40)


def as_set(intervals: IntervalSet) -> set[int]:
    return {number for first, last in intervals.ranges for number in range(first, last + 1)}


@given(numbers, numbers)
def test_adding_is_set_union_in_any_order_and_twice(first: list[int], second: list[int]):
    one = IntervalSet().add(first).add(second)
    assert as_set(one) == set(first) | set(second)
    assert one == IntervalSet().add(second).add(first).add(second)


@given(numbers, st.integers(-3, 70))
def test_filling_settles_all_below_the_floor_and_nothing_else(given_numbers: list[int], floor: int):
    held = IntervalSet().add(given_numbers)
    filled = held.fill_below(floor)
    assert as_set(filled) == set(given_numbers) | set(range(max(0, floor)))
    assert held.count_missing_below(floor) == len(as_set(filled)) - len(as_set(held))


@given(numbers)
def test_ranges_are_sorted_disjoint_and_never_adjacent(given_numbers: list[int]):
    ranges = IntervalSet().add(given_numbers).ranges
    assert all(first <= last for first, last in ranges)
    assert all(one[1] + 1 < two[0] for one, two in pairwise(ranges))


@given(numbers, st.integers(0, 70))
def test_membership_and_the_stored_text_agree_with_the_set(given_numbers: list[int], probe: int):
    held = IntervalSet().add(given_numbers)
    assert (probe in held) == (probe in set(given_numbers))
    assert IntervalSet.from_text(held.to_text()) == held


@given(numbers)
def test_an_ack_never_covers_a_number_that_is_not_settled(given_numbers: list[int]):
    ack = IntervalSet().add(given_numbers).to_ack()
    covered = set(range(ack.upto + 1)) | {number for first, last in ack.ranges for number in range(first, last + 1)}
    assert covered == set(given_numbers)


def test_a_stream_of_nothing_but_holes_is_refused():
    with pytest.raises(InvalidError, match="gaps"):
        IntervalSet().add(range(0, 2 * MAX_RANGES + 4, 2))
