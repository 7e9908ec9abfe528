"""Tracking ids: an object keeps its id through crossings, gaps and doubts, and no id is ever given twice."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.messages import Box
from agent.inference.tracking import EXACT_SIZE, MAX_AGE_S, MAX_MISSED, MAX_TRACKS, Pair, Tracker, _Track, assign

FRAME_S = 1 / 10


def box(x: float, y: float, *, width: float = 0.1, height: float = 0.2, label: str = "car", score: float = 0.9) -> Box:
    return Box(label, sum(label.encode()), score, x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def run(tracker: Tracker, frames, *, session: int = 1, start_s: float = 0.0, frame_s: float = FRAME_S) -> list[list[int | None]]:
    """Ids of the boxes of each frame."""
    return [
        [one.track for one in tracker.update(boxes, session=session, at_s=start_s + index * frame_s)] for index, boxes in enumerate(frames)
    ]


def test_two_objects_that_cross_keep_their_ids():
    rng = random.Random(4)  # noqa: S311 - a shaky detector
    steps = 60
    for _ in range(5):
        frames = []
        for n in range(steps):
            share = n / steps
            first = box(0.1 + 0.8 * share + rng.uniform(-0.004, 0.004), 0.45)
            second = box(0.9 - 0.8 * share + rng.uniform(-0.004, 0.004), 0.55)
            frames.append([first, second] if rng.random() < 0.5 else [second, first])
        ids = run(Tracker(), frames)
        by_height = [
            {round((one.y0 + one.y1) / 2, 2): number for one, number in zip(boxes, found, strict=True)}
            for boxes, found in zip(frames, ids, strict=True)
        ]
        assert {tuple(sorted(one.items())) for one in by_height} == {tuple(sorted(by_height[0].items()))}


def test_an_object_hidden_for_less_than_the_buffer_keeps_its_id():
    moving = [[box(0.1 + 0.01 * n, 0.5)] for n in range(20)]
    hidden = MAX_MISSED - 1
    after = [[box(0.1 + 0.01 * (20 + hidden), 0.5)]]
    ids = run(Tracker(), [*moving, *[[] for _ in range(hidden)], *after])
    assert (ids[0], ids[-1]) == ([1], [1])


def test_an_object_hidden_for_longer_is_another_one_and_needs_to_be_seen_twice():
    for gap, frame_s in ((MAX_MISSED + 1, FRAME_S), (2, MAX_AGE_S)):
        ids = run(Tracker(), [[box(0.5, 0.5)], *[[] for _ in range(gap)], [box(0.5, 0.5)], [box(0.5, 0.5)]], frame_s=frame_s)
        assert (ids[0], ids[-2:]) == ([1], [[None], [2]])


def test_what_flashes_once_gets_no_id():
    assert run(Tracker(), [[box(0.2, 0.2)], [box(0.2, 0.2), box(0.8, 0.8)], [box(0.2, 0.2)]]) == [[1], [1, None], [1]]


def test_what_flashes_again_begins_again():
    still, both = [box(0.2, 0.2)], [box(0.2, 0.2), box(0.8, 0.8)]
    assert run(Tracker(), [still, both, still, both, both]) == [[1], [1, None], [1], [1, None], [1, 3]]


@given(
    st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.floats(0, 5)), min_size=1)
)
def test_four_small_filters_give_the_numbers_of_the_large_one(seen):
    """Against the filter of DeepSORT as it is published: eight states, whole matrices."""
    x, y, width, height, _ = seen[0]
    track = _Track(1, box(x, y, width=width, height=height), 0.0, believed=True)
    mean = np.array([x, y, width / height, height, 0, 0, 0, 0])
    first = [2 * height / 20, 2 * height / 20, 1e-2, 2 * height / 20, 10 * height / 160, 10 * height / 160, 1e-5, 10 * height / 160]
    covariance = np.diag(np.square(first))
    for x, y, width, height, steps in seen[1:]:
        size = abs(mean[3])
        noise = np.diag(np.square([size / 20, size / 20, 1e-2, size / 20, size / 160, size / 160, 1e-5, size / 160])) * steps
        motion = np.eye(8) + np.diag([steps] * 4, k=4)
        mean, covariance = motion @ mean, motion @ covariance @ motion.T + noise
        size = abs(mean[3])
        spread = covariance[:4, :4] + np.diag(np.square([size / 20, size / 20, 1e-1, size / 20]))
        gain = np.linalg.solve(spread, covariance[:4]).T
        mean = mean + gain @ (np.array([x, y, width / height, height]) - mean[:4])
        covariance = covariance - gain @ spread @ gain.T
        track.predict(steps)
        track.correct(box(x, y, width=width, height=height), 0.0)
    filters = (track.x, track.y, track.aspect, track.height)
    assert np.allclose([one.value for one in filters] + [one.speed for one in filters], mean, rtol=1e-6, atol=1e-9)
    assert np.allclose([one.vv for one in filters], np.diag(covariance)[4:], rtol=1e-6, atol=1e-12)


def test_a_low_score_keeps_a_track_and_begins_none():
    low = [box(0.5, 0.5, score=0.2)]
    assert run(Tracker(), [[box(0.5, 0.5)], low, low, [box(0.5, 0.5)]]) == [[1], [1], [1], [1]]
    assert run(Tracker(), [low, low, low]) == [[None], [None], [None]]
    assert run(Tracker(high_score=0.1), [low, low]) == [[1], [1]]


def test_an_object_of_another_label_is_another_object():
    assert run(Tracker(), [[box(0.5, 0.5)], [box(0.5, 0.5, label="bus")], [box(0.5, 0.5, label="bus"), box(0.5, 0.5)]]) == [
        [1],
        [None],
        [2, 1],
    ]


def test_another_session_begins_anew_without_giving_an_id_again():
    tracker = Tracker()
    assert run(tracker, [[box(0.5, 0.5)]]) == [[1]]
    assert run(tracker, [[box(0.5, 0.5)]], session=2, start_s=1.0) == [[2]]


def test_the_pace_of_inference_does_not_matter():
    for frame_s in (1 / 30, 1 / 5, 1.0):
        frames = [[box(0.1 + 0.05 * n * frame_s, 0.5)] for n in range(12)]
        assert run(Tracker(), frames, frame_s=frame_s) == [[1]] * 12


def test_a_fast_object_is_where_it_was_going():
    frames = [[box(0.05 + 0.045 * n, 0.5)] for n in range(8)]
    jump = [box(0.05 + 0.045 * 11, 0.5)]  # three frames later: no overlap with where it was
    assert run(Tracker(), [*frames, [], [], [], jump])[-1] == [1]


boxes = st.builds(
    box,
    st.floats(0, 1),
    st.floats(0, 1),
    width=st.floats(0, 0.4),
    height=st.floats(0, 0.4),
    label=st.sampled_from(["car", "bus"]),
    score=st.floats(0, 1),
)


@given(st.lists(st.tuples(st.lists(boxes, max_size=6), st.integers(1, 2), st.floats(0, 20)), max_size=15))
def test_whatever_comes_ids_are_given_once_and_the_boxes_stay_as_they_are(frames):
    first, second, at_s = Tracker(), Tracker(), 0.0
    labels: dict[int, str] = {}
    sessions: dict[int, int] = {}
    for number, (seen, session_step, pause_s) in enumerate(frames):
        at_s += pause_s - 5  # the clock may even go back
        session = number // 4 * 10 + session_step
        found = first.update(seen, session=session, at_s=at_s)
        assert found == second.update(seen, session=session, at_s=at_s)
        assert [replace(one, track=None) for one in found] == seen
        ids = [one.track for one in found if one.track is not None]
        assert len(set(ids)) == len(ids)
        for one in found:
            if one.track is not None:
                assert labels.setdefault(one.track, one.label) == one.label
                assert sessions.setdefault(one.track, session) == session
    assert max(labels, default=0) <= sum(len(seen) for seen, _, _ in frames)


def test_tracks_are_bounded():
    tracker = Tracker()
    for number in range(4):
        crowd = [box(0.01 + 0.03 * (n % 32), 0.02 + 0.04 * (n // 32) + 0.2 * number, width=0.01, height=0.01) for n in range(200)]
        tracker.update(crowd, session=1, at_s=number * FRAME_S)
    assert len(tracker._tracks) <= MAX_TRACKS


@given(
    st.lists(
        st.builds(Pair, st.integers(0, 3), st.integers(0, 3), st.integers(0, 100).map(lambda n: n / 100)),
        unique_by=lambda p: (p.track, p.box),
    )
)
def test_the_assignment_is_the_largest_and_the_cheapest_of_those(pairs):
    known = {(pair.track, pair.box): pair.cost for pair in pairs}
    best = (0, 0.0)
    for order in itertools.permutations([*range(4), None, None, None, None], 4):
        chosen = [known.get((row, column), math.nan) for row, column in enumerate(order) if column is not None]
        costs = [cost for cost in chosen if not math.isnan(cost)]
        best = min(best, (-len(costs), sum(costs)))
    found = assign(pairs)
    assert len({row for row, _ in found}) == len({column for _, column in found}) == len(found)
    assert (-len(found), round(sum(known[pair] for pair in found), 6)) == (best[0], round(best[1], 6))


def test_a_large_heap_is_matched_too():
    size = 3 * EXACT_SIZE
    pairs = [Pair(row, column, abs(row - column) / size) for row in range(size) for column in range(size)]
    assert sorted(assign(pairs)) == [(number, number) for number in range(size)]
