"""What precision and recall are made of: labels that make sense, and matching one by one."""

import json
from pathlib import Path

import pytest

from benchmarks.detection.labels import read_labels
from benchmarks.detection.matching import Found, Tally, match

BOX, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("found", "boxes", "ignored", "wanted"),
    [
        ([], [], [], Tally(0, 0, 0)),
        ([], [BOX, FAR], [], Tally(0, 0, 2)),
        ([Found(0.9, BOX)], [BOX], [], Tally(1, 0, 0)),
        ([Found(0.9, BOX), Found(0.8, BOX)], [BOX], [], Tally(1, 1, 0)),
        ([Found(0.9, BOX), Found(0.8, BOX)], [BOX, (0, 0, 10, 9)], [], Tally(2, 0, 0)),
        ([Found(0.9, (0, 0, 10, 5))], [BOX], [], Tally(1, 0, 0)),
        ([Found(0.9, (0, 0, 10, 4.9))], [BOX], [], Tally(0, 1, 1)),
        ([Found(0.9, FAR)], [BOX], [FAR], Tally(0, 0, 1)),
        ([Found(0.9, FAR)], [BOX], [BOX], Tally(0, 1, 1)),
    ],
)
def test_each_label_is_found_once_and_what_is_ignored_counts_for_nothing(found, boxes, ignored, wanted: Tally):
    assert match(found, boxes, ignored) == wanted


def test_the_better_score_takes_the_label_it_overlaps_most():
    lower = (0.0, 2.0, 10.0, 12.0)
    assert match([Found(0.5, BOX), Found(0.9, lower)], [BOX, lower]) == Tally(2, 0, 0)


def test_shares_of_nothing_are_whole():
    assert (Tally().precision, Tally().recall) == (1.0, 1.0)
    assert (Tally(8, 2, 4).precision, Tally(8, 2, 4).recall) == (0.8, pytest.approx(2 / 3))


def test_enough_frames_are_labeled():
    labels = read_labels()
    assert len(labels) >= 40
    assert len({(one.source, one.frame) for one in labels}) == len(labels)
    assert sum(bool(one.boxes) for one in labels) >= 40


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ({"frames": {"3": [[5, 5, 5, 9]]}}, r"a\.mp4 frame 3 has the box \[5, 5, 5, 9\]; wanted"),
        ({"frames": {"3": [[5, 5, 20, 9]]}}, "outside 10 x 10"),
        ({"frames": {"3": []}, "ignore": {"4": []}}, "not labeled: 4"),
    ],
)
def test_labels_that_make_no_sense_are_refused_with_their_frame(tmp_path: Path, video: dict, words: str):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"schema": "detection-labels.1", "videos": {"a.mp4": {"width": 10, "height": 10, **video}}}))
    with pytest.raises(ValueError, match=words):
        read_labels(path)
