"""Objects that enter, leave, cross and stay: one event each, however the tracker stutters below the debounce."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.answers import box_at, saw_boxes

from agent.config import PipelineConfig
from agent.database.outbox import Draft
from agent.events.detector import EventDetector
from agent.events.following import MAX_FOLLOWED
from protocol.events import RuleEvent

DRIVE = {"name": "drive", "points": [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]}
#: Looks to the top of the picture: its right hand is the right half.
GATE = {"name": "gate", "kind": "line", "points": [[0.5, 1.0], [0.5, 0.0]]}
INSIDE, OUTSIDE = (0.5, 0.8), (0.5, 0.2)


def watch(*rules: dict[str, Any], **changes: Any) -> EventDetector:
    config = {"name": "front", "line": "cars", "source": {"kind": "camera"}, "zones": [DRIVE, GATE], "rules": rules, **changes}
    return EventDetector(PipelineConfig.model_validate(config), "/mooring/t0/cam-1")


def rule(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": kind, "kind": kind, "zone": "gate" if kind == "cross" else "drive", **more}


def told(drafts: list[Draft]) -> list[RuleEvent]:
    return [RuleEvent.model_validate(draft.body["data"]) for draft in drafts]


def walk(detector: EventDetector, *places, step_ms: int = 100, start_ms: int = 1_000, **more: Any) -> list[RuleEvent]:
    """Events of one object that is seen at these places, one per frame; None: it is not seen."""
    found: list[RuleEvent] = []
    for index, place in enumerate(places):
        boxes = [] if place is None else [box_at(*place, **more)]
        found += told(detector.observe(saw_boxes(*boxes, at_ms=start_ms + index * step_ms, frame=index)))
    return found


def test_an_object_enters_once_and_leaves_once():
    found = walk(watch(rule("enter"), rule("leave")), OUTSIDE, INSIDE, INSIDE, OUTSIDE, OUTSIDE)
    assert [(one.kind, one.frame, one.start_ms, one.reason) for one in found] == [("enter", 1, 1_100, None), ("leave", 3, 1_300, "outside")]
    assert (found[0].zone, found[0].label, found[0].track, found[0].score, found[0].phase) == ("drive", "car", 1, 0.9, "once")
    assert found[0].box == [0.45, 0.7, 0.55, 0.8]
    assert found[0].occurrence == "front.enter.1100.1"


def test_types_of_events_name_what_happened():
    detector = watch(rule("enter"), rule("leave"), rule("cross"), rule("dwell", seconds=0.1))
    seen = [box_at(0.4, 0.8), box_at(0.6, 0.8), box_at(0.6, 0.8), box_at(0.6, 0.2)]
    drafts = [draft for at, box in enumerate(seen) for draft in detector.observe(saw_boxes(box, at_ms=at * 100))]
    assert [draft.body["type"] for draft in drafts] == [
        "mooring.zone.entered.v1",
        "mooring.line.crossed.v1",
        "mooring.dwell.started.v1",
        "mooring.zone.left.v1",
        "mooring.dwell.ended.v1",
    ]
    assert {draft.body["subject"] for draft in drafts} == {"front"}


@given(st.data(), st.integers(1, 3), st.integers(0, 3), st.integers(0, 12), st.integers(0, 12))
def test_noise_below_the_debounce_makes_exactly_one_enter_and_one_leave(data, frames, more, inside_for, outside_for):
    of = frames + more
    truth = [True] * (inside_for + frames) + [False] * (outside_for + frames)
    clean = {*range(inside_for, inside_for + frames), *range(len(truth) - frames, len(truth))}
    noise: list[bool] = []
    places: list[tuple[float, float] | None] = []
    for index, value in enumerate(truth):
        noise.append(index not in clean and sum(noise[max(0, index - of + 1) :]) < frames - 1 and data.draw(st.booleans()))
        places.append(INSIDE if value != noise[-1] else OUTSIDE)
        places += [None] * data.draw(st.integers(0, 2))  # frames in which the detector missed it
    debounced = {"min_frames": frames, "of_frames": of, "lost_s": 60}
    found = walk(watch(rule("enter", **debounced), rule("leave", **debounced)), *places, step_ms=1_000)
    assert [one.kind for one in found] == ["enter", "leave"]


def test_an_object_that_vanishes_inside_has_left_and_one_that_is_missed_for_a_while_has_not():
    found = walk(watch(rule("enter"), rule("leave", lost_s=1)), INSIDE, *[None] * 10, INSIDE, *[None] * 12)
    assert [(one.kind, one.reason) for one in found] == [("enter", None), ("leave", "lost")]
    assert found[1].start_ms == 2_100  # when it was seen last


def test_what_is_too_small_too_unsure_of_another_kind_or_not_followed_is_not_there():
    strict = rule("enter", labels=["car"], min_score=0.5, min_area=0.005)
    for other in ({"label": "bus"}, {"score": 0.4}, {"size": 0.05}, {"track": None}):
        assert walk(watch(strict), INSIDE, INSIDE, **other) == []
    assert len(walk(watch(strict), INSIDE)) == 1


def test_the_anchor_says_which_point_of_a_box_counts():
    low = box_at(0.5, 0.52)  # its lower edge is inside, its middle is not
    for anchor, count in (("bottom", 1), ("center", 0)):
        assert len(watch(rule("enter", anchor=anchor)).observe(saw_boxes(low))) == count


def test_a_line_is_crossed_in_a_direction():
    left, right = (0.3, 0.5), (0.7, 0.5)
    found = walk(watch(rule("cross")), left, right, left)
    assert [one.direction for one in found] == ["right", "left"]
    assert [one.direction for one in walk(watch(rule("cross", direction="right")), left, right, left)] == ["right"]


def test_an_object_that_trembles_on_the_line_crosses_it_once():
    left, right = (0.49, 0.5), (0.51, 0.5)
    found = walk(watch(rule("cross", min_frames=3)), left, right, left, right, right, left, right, right, right, right)
    assert [one.direction for one in found] == ["right"]


def test_a_gap_over_the_line_is_a_crossing_and_the_line_ends_where_it_ends():
    assert len(walk(watch(rule("cross", lost_s=10)), (0.3, 0.5), None, None, (0.7, 0.5))) == 1
    short = {**GATE, "points": [[0.5, 1.0], [0.5, 0.8]]}
    assert walk(watch(rule("cross"), zones=[short]), (0.3, 0.5), (0.7, 0.5)) == []


def test_a_stay_begins_after_its_seconds_is_updated_and_ends():
    found = walk(watch(rule("dwell", seconds=2, update_s=1)), OUTSIDE, *[INSIDE] * 46, OUTSIDE)
    assert [(one.phase, one.frame) for one in found] == [("started", 21), ("updated", 31), ("updated", 41), ("ended", 47)]
    assert {one.occurrence for one in found} == {"front.dwell.3100.1"}
    assert {one.start_ms for one in found} == {1_100}
    assert [one.end_ms for one in found] == [None, None, None, 5_700]
    assert found[-1].reason == "outside"


def test_the_best_score_so_far_is_told():
    detector = watch(rule("dwell", seconds=0.2))
    found = [
        one
        for index, score in enumerate((0.5, 0.9, 0.6))
        for one in told(detector.observe(saw_boxes(box_at(*INSIDE, score=score), at_ms=index * 100)))
    ]
    assert [one.score for one in found] == [0.9]


def test_another_session_begins_anew_and_ends_what_lasts():
    detector = watch(rule("dwell", seconds=0.1), rule("enter"))
    walk(detector, INSIDE, INSIDE)
    found = told(detector.observe(saw_boxes(box_at(*INSIDE), at_ms=1_500, session=2)))
    assert [(one.kind, one.phase, one.reason) for one in found] == [("dwell", "ended", "session"), ("enter", "once", None)]


@pytest.mark.parametrize("reason", ["configuration", "stopped"])
def test_what_lasts_ends_with_the_watch(reason):
    detector = watch(rule("dwell", seconds=0.1), rule("leave"))
    walk(detector, INSIDE, INSIDE)
    assert [(one.phase, one.reason, one.end_ms) for one in told(detector.close(9_000, reason))] == [("ended", reason, 9_000)]
    assert detector.close(9_500, reason) == []


def test_the_objects_that_are_followed_are_bounded():
    detector = watch(rule("leave"))
    for first in range(0, 3 * MAX_FOLLOWED, 64):
        detector.observe(saw_boxes(*[box_at(*INSIDE, track=track) for track in range(first, first + 64)], at_ms=first))
    (watcher,) = detector._watchers
    assert len(watcher._objects) == MAX_FOLLOWED


def test_two_objects_are_two_stories():
    detector = watch(rule("enter"), rule("leave"))
    seen = [(OUTSIDE, INSIDE), (INSIDE, INSIDE), (INSIDE, OUTSIDE)]
    found = [
        one
        for index, (first, second) in enumerate(seen)
        for one in told(detector.observe(saw_boxes(box_at(*first, track=1), box_at(*second, track=2), at_ms=index * 100)))
    ]
    assert [(one.kind, one.track) for one in found] == [("enter", 2), ("enter", 1), ("leave", 2)]
