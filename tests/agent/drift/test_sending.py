"""What goes to the server and when: an hour as one message, never two windows over one moment, and merging only of what never left."""

from dataclasses import replace

import numpy as np
import pytest
from simulators.drift_rows import make_grid

from agent.drift.sending import draft_of, due_hours, evidence_draft, hour_draft, merge_unsent, minute_of, spread
from agent.drift.store import Flag, Subject
from agent.drift.windows import begin, row_of
from protocol.sketches.codec import decode
from protocol.sketches.looks import LOOKS
from protocol.sketches.reference import fit_reference
from protocol.sketches.summary import summary

GRID = make_grid()
SUBJECT = Subject("front", "a1" * 16, GRID.grid_id.hex())
#: The first sub-window of an hour, of 6 hours and of a day.
W0 = 144 * 20_800


def sub_window(w0, *, rows=5, subject=SUBJECT, score=None):
    window = begin(subject, GRID, w0)
    for values in np.random.default_rng(w0).normal(0, 1, (rows, len(GRID.features))):
        window.add(values.astype(np.float32), ("cat",))
    window.note(("frame_black",), 8.0)
    return row_of(window, flags=Flag.TESTABLE, score=score, reference_id=None if score is None else b"r" * 16)


def opened(draft, rev=0):
    return decode(draft.encode(rev), GRID)


def test_an_hour_is_one_window_with_its_scores_rows_and_conditions():
    rows = [sub_window(W0 + at, score=float(at)) for at in (0, 1, 3)]
    window = opened(hour_draft(rows, GRID), rev=4)
    assert (window.w0, window.nsub, window.mask, window.counts.rows, window.rev) == (W0, 6, 0b1011, 15, 4)
    assert np.array_equal(window.scores, np.array([0, 1, np.nan, 3, np.nan, np.nan], np.float32), equal_nan=True)
    assert window.counts.conditions == {4: 24}


def test_an_hour_does_not_begin_before_its_grid_was_made_and_never_looks_like_evidence():
    late = replace(GRID, made_at_ms=(W0 + 4) * 600_000 + 1)
    row = sub_window(W0 + 4, subject=replace(SUBJECT, grid=late.grid_id.hex()))
    window = decode(hour_draft([row], late).encode(0), late)
    assert (window.w0, window.nsub, window.mask) == (W0 + 4, 2, 0b01)
    alone = decode(hour_draft([sub_window(W0 + 5, subject=replace(SUBJECT, grid=late.grid_id.hex()))], late).encode(0), late)
    assert (alone.w0, alone.nsub, alone.mask) == (W0 + 4, 2, 0b10)


def test_an_hour_is_due_at_the_devices_minute_and_each_model_has_its_own():
    other = replace(SUBJECT, model="b2" * 16)
    rows = [sub_window(W0), sub_window(W0 + 5), sub_window(W0 + 5, subject=other), sub_window(W0 + 6)]
    end_s = (W0 + 6) * 600
    assert due_hours(rows, now_s=end_s + 17 * 60 - 1, minute=17) == []
    due = due_hours(rows, now_s=end_s + 17 * 60, minute=17)
    assert [[row.w0 - W0 for row in hour] for hour in due] == [[0, 5], [5]]


def test_devices_spread_over_the_minutes_and_each_keeps_its_own():
    minutes = [minute_of(f"cam-{number}") for number in range(2000)]
    assert set(minutes) == set(range(60))
    assert minutes == [minute_of(f"cam-{number}") for number in range(2000)]


@pytest.fixture(scope="module")
def reference():
    chance, w0s = np.random.default_rng(1), np.arange(W0 - 144 * 14, W0)
    return fit_reference(chance.normal(size=(len(w0s), 8)), w0s, grid=GRID, model=bytes.fromhex(SUBJECT.model), looks=LOOKS[:1])


@pytest.mark.parametrize("before", [None, 9.0])
def test_evidence_is_one_sub_window_with_its_score_by_the_reference_that_crossed(reference, before):
    window = opened(evidence_draft(sub_window(W0 + 2, score=before), GRID, reference))
    assert (window.w0, window.nsub, window.counts.rows, window.reference_id) == (W0 + 2, 1, 5, reference.reference_id)
    assert window.scores.tolist() == reference.scores(summary(window.counts, GRID)[None]).tolist()


def hours(*places, subject=SUBJECT):
    return [hour_draft([sub_window(W0 + 6 * place, subject=subject)], GRID).encode(0) for place in places]


def merged_places(bodies):
    found = merge_unsent(bodies, {GRID.grid_id.hex(): GRID}.get)
    return None if found is None else (found[0], opened(found[1]))


def test_hours_that_touch_become_six_hours_and_lose_nothing():
    bodies = hours(0, 1, 2, 3, 4, 5, 6)
    places, window = merged_places(bodies)
    assert (places, window.w0, window.nsub, window.counts.rows) == ((0, 1, 2, 3, 4, 5), W0, 36, 30)


def test_six_hours_become_a_day_once_no_hours_are_left():
    long = [
        draft_of(spread(opened(hour_draft([sub_window(W0 + 36 * place)], GRID)), w0=W0 + 36 * place, nsub=36)).encode(0)
        for place in range(4)
    ]
    places, window = merged_places(long)
    assert (places, window.nsub, window.counts.rows) == ((0, 1, 2, 3), 144, 20)
    assert merged_places([draft_of(window).encode(0)]) is None


@pytest.mark.parametrize("places", [(0, 2), (5, 6, 23, 24)])
def test_nothing_is_merged_over_a_gap_in_which_a_sent_window_may_lie_nor_over_midnight(places):
    found = merged_places(hours(*places))
    if places == (0, 2):
        assert found is None
    else:  # 5 and 6 touch, of two quarters of the day
        assert found[0] == (0, 1)


def test_models_grids_and_evidence_are_never_merged_with_each_other(reference):
    other = replace(SUBJECT, model="b2" * 16)
    evidence = evidence_draft(sub_window(W0 + 6, score=1.0), GRID, reference).encode(0)
    assert merged_places([*hours(0), *hours(1, subject=other), evidence]) is None
    assert merge_unsent(hours(0, 1), lambda _: None) is None
