"""Suppression: what stays is what a plain loop over pairs leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.nms import intersection_over_union, suppress


def plain(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, overlap: float, limit: int) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda one: (-scores[one], one)):
        rivals = [one for one in kept if classes is None or classes[one] == classes[index]]
        if len(kept) < limit and all(intersection_over_union(boxes[index], boxes[one])[0, 0] <= overlap for one in rivals):
            kept.append(index)
    return kept


#: Whole numbers, so that shares are the same in single and double precision but at the very bound, which 0.45 is not.
CORNERS = arrays.arrays(np.float32, st.tuples(st.integers(0, 25), st.just(4)), elements=st.integers(0, 12).map(float))


@given(CORNERS, st.data(), st.sampled_from(["one class", "three classes"]), st.integers(1, 8))
def test_what_stays_is_what_a_plain_loop_leaves(corners: np.ndarray, data: st.DataObject, rivals: str, limit: int):
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], axis=1)
    scores = data.draw(arrays.arrays(np.float32, len(boxes), elements=st.integers(0, 5).map(lambda one: one / 8)))
    classes = None if rivals == "one class" else data.draw(arrays.arrays(np.int64, len(boxes), elements=st.integers(0, 2)))
    assert suppress(boxes, scores, classes, overlap=0.4501, limit=limit).tolist() == plain(boxes, scores, classes, 0.4501, limit)


def test_the_shared_area_is_counted_once():
    assert intersection_over_union(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]])).tolist() == [
        [pytest.approx(1 / 3), 0.0, 0.0]
    ]
