"""What is wrong with the picture is no drift: each case is named, and only those that say nothing of the world keep a row out."""

import pytest

from agent.conditions import KINDS
from agent.drift.conditions import EXCLUDING, STUCK_ROWS, TEXTS, Memory, Seen, is_testable, judge
from protocol.sketches.codec import CONDITION_CODES

GOOD = {"size": (64, 64), "mean": 120.0, "deviation": 40.0, "hash": "1", "not_finite": 0, "out_of_range": 0}


def seen(**changes) -> Seen:
    return Seen(**(GOOD | changes))


def codes_of(*rows: Seen) -> tuple[str, ...]:
    """What the last of the rows is judged to be."""
    memory, verdict = Memory(), None
    for row in rows:
        memory, verdict = judge(memory, row)
    return verdict.codes


def different(count: int, **changes) -> list[Seen]:
    return [seen(hash=str(number), **changes) for number in range(count)]


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        (seen(), ()),
        (seen(deviation=0.5, mean=10.0), ("frame_black",)),
        (seen(deviation=0.5, mean=240.0), ("frame_white",)),
        (seen(deviation=0.5, mean=128.0), ("frame_covered",)),
        (seen(deviation=3.0, mean=10.0), ()),  # a live sensor at night still shows noise
        (seen(not_finite=3), ("nonfinite",)),
        (seen(out_of_range=1, size=None), ("value_out_of_range",)),
        (seen(size=None, deviation=0.0, mean=0.0), ()),  # readings may be calm
        (seen(fault="shape_mismatch"), ("shape_mismatch",)),
        (seen(fault="extractor_failed"), ("extractor_failed",)),
    ],
)
def test_one_row_is_judged_by_itself(row, codes):
    assert codes_of(row) == codes


def test_a_picture_is_frozen_from_the_thirtieth_time_on_and_not_before():
    assert codes_of(*[seen()] * (STUCK_ROWS - 1)) == ()
    assert codes_of(*[seen()] * STUCK_ROWS) == ("frame_frozen",)
    assert codes_of(*[seen()] * STUCK_ROWS, seen(hash="other")) == ()


def test_a_blurred_picture_has_to_last_and_is_counted_all_the_same():
    assert codes_of(*different(STUCK_ROWS - 1, is_blurred=True)) == ()
    assert codes_of(*different(STUCK_ROWS, is_blurred=True)) == ("frame_out_of_focus",)
    assert "frame_out_of_focus" not in EXCLUDING


def test_the_first_size_is_the_right_one():
    assert codes_of(seen(), seen(hash="2", size=(32, 32))) == ("shape_mismatch",)
    assert codes_of(seen(), seen(hash="2", size=(32, 32)), seen(hash="3")) == ()


def test_a_value_of_a_sensor_that_stands_still_is_stuck_while_another_one_moves():
    still = [seen(size=None, hash=str(number), channels=(1.0, float(number))) for number in range(STUCK_ROWS)]
    assert codes_of(*still) == ("value_stuck",)
    assert codes_of(*still, seen(size=None, hash="x", channels=(1.5, 0.0))) == ()


def test_a_fault_leaves_what_the_rows_before_said():
    memory, _ = judge(Memory(), seen())
    after, verdict = judge(memory, seen(fault="shape_mismatch", size=(1, 1)))
    assert (after, verdict.is_excluded) == (memory, True)


@pytest.mark.parametrize(
    ("rows", "excluded", "usual", "has_gap", "expected"),
    [
        (600, 0, None, False, True),
        (0, 0, None, False, False),
        (300, 301, None, False, False),
        (300, 300, None, False, True),
        (299, 0, 600.0, False, False),
        (300, 0, 600.0, False, True),
        (600, 0, 600.0, True, False),
    ],
)
def test_a_sub_window_is_testable_when_most_of_it_counted(rows, excluded, usual, has_gap, expected):
    assert is_testable(rows=rows, excluded=excluded, usual_rows=usual, has_gap=has_gap) is expected


def test_every_condition_of_a_window_has_words_and_a_place_on_the_devices_list():
    assert set(TEXTS) == set(CONDITION_CODES)
    assert set(TEXTS) <= set(KINDS)
    assert set(TEXTS) >= EXCLUDING
