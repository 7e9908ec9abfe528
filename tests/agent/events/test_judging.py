"""Rules about the answer as a whole: presence, counts, classes, scores, anomalies and values."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from simulators.answers import answer, box_at, saw_boxes, saw_class, saw_value

from agent.config import PipelineConfig
from agent.database.outbox import Draft
from agent.events.detector import SILENT_MS, EventDetector
from protocol.events import RuleEvent

DRIVE = {"name": "drive", "points": [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]}


def watch(kind: str, **more: Any) -> EventDetector:
    config = {
        "name": "front",
        "line": "cars",
        "source": {"kind": "camera"},
        "zones": [DRIVE],
        "rules": [{"name": "r", "kind": kind, **more}],
    }
    return EventDetector(PipelineConfig.model_validate(config), "/mooring/t0/cam-1")


def told(drafts: list[Draft]) -> list[RuleEvent]:
    return [RuleEvent.model_validate(draft.body["data"]) for draft in drafts if "rule" in draft.body["data"]]


def run(detector: EventDetector, answers) -> list[tuple[str, int]]:
    return [(str(one.phase), index) for index, item in enumerate(answers) for one in told(detector.observe(item))]


def test_presence_begins_with_the_first_object_and_ends_when_none_was_seen_for_a_while():
    seen = [False, True, True, False, True, *[False] * 6]
    answers = [saw_boxes(*[box_at(0.5, 0.8)] * is_there, at_ms=index * 1000) for index, is_there in enumerate(seen)]
    assert run(watch("present", zone="drive"), answers) == [("started", 1), ("ended", 8)]


def test_presence_in_a_zone_is_not_presence_elsewhere_and_needs_no_tracking():
    answers = [saw_boxes(box_at(0.5, 0.2, track=None)), saw_boxes(box_at(0.5, 0.9, track=None), at_ms=2_000)]
    assert run(watch("present", zone="drive"), answers) == [("started", 1)]
    assert run(watch("present"), answers) == [("started", 0)]


def test_the_presence_of_a_class_is_that_of_the_best_one():
    answers = [saw_class("person", 0.9, at_ms=0), saw_class("cat", 0.9, at_ms=1_000), saw_class("cat", 0.9, at_ms=9_000)]
    assert run(watch("present", labels=["person"]), answers) == [("started", 0), ("ended", 2)]


def test_a_count_over_its_limit_is_told_with_the_most_there_were():
    counts = [2, 3, 5, 4, 0, 0]
    detector = watch("count", zone="drive", above=2, lost_s=0, update_s=1)
    drafts = [
        draft
        for index, count in enumerate(counts)
        for draft in detector.observe(saw_boxes(*[box_at(0.5, 0.9, track=number) for number in range(count)], at_ms=index * 1_000))
    ]
    assert [(one.phase, one.count, one.peak) for one in told(drafts)] == [
        ("started", 3, 3),
        ("updated", 5, 5),
        ("updated", 4, 5),
        ("ended", 4, 5),
    ]


def test_a_class_that_holds_is_a_change_and_a_flicker_is_none():
    labels = ["cat", "dog", "cat", "dog", "dog", "dog", "cat"]
    detector = watch("class", min_frames=3)
    found = [
        (one.before, one.label, index)
        for index, label in enumerate(labels)
        for one in told(detector.observe(saw_class(label, at_ms=index * 100)))
    ]
    assert found == [("cat", "dog", 5)]


def test_two_classes_in_turns_are_no_change_to_either():
    detector = watch("class", min_frames=2)
    assert run(detector, [saw_class(label, at_ms=n) for n, label in enumerate(["cat", "dog", "cow", "dog", "cow"])]) == []


def test_a_score_over_its_threshold_lasts_until_it_falls():
    scores = [0.5, 0.8, 0.9, 0.7]
    assert run(watch("score", above=0.8), [saw_class("cat", score, at_ms=n) for n, score in enumerate(scores)]) == [
        ("started", 1),
        ("ended", 3),
    ]
    assert run(watch("score", above=0.8), [saw_boxes(), saw_boxes(box_at(0.1, 0.2, score=0.85), at_ms=5)]) == [("started", 1)]


def test_an_anomaly_is_what_the_model_says_or_the_rule():
    values = [(0.1, False), (0.5, True), (0.95, True), (0.2, False)]
    answers = [saw_value(value, n, is_anomaly=flag) for n, (value, flag) in enumerate(values)]
    assert run(watch("anomaly"), answers) == [("started", 1), ("ended", 3)]
    assert run(watch("anomaly", above=0.9), answers) == [("started", 2), ("ended", 3)]


@given(st.lists(st.floats(-100, 100), max_size=20), st.floats(-50, 0), st.floats(0, 50))
def test_a_value_outside_its_range_lasts_until_it_is_inside(values, low, high):
    found = run(watch("value", low=low, high=high, update_s=0), [saw_value(value, n * 10_000) for n, value in enumerate(values)])
    was_out, wanted = False, []
    for index, value in enumerate(values):
        is_out = not low <= value <= high
        if is_out != was_out:
            wanted.append(("started" if is_out else "ended", index))
        was_out = is_out
    assert found == wanted


def test_answers_of_another_task_say_nothing():
    for kind, more in (("count", {"above": 0}), ("anomaly", {}), ("value", {"low": 1.0})):
        assert run(watch(kind, **more), [saw_class("cat"), saw_class("cat", at_ms=10_000)]) == []
    assert run(watch("score", above=0.1), [saw_value(1.0)]) == []


def test_an_event_with_a_value_carries_its_unit():
    (one,) = told(watch("value", high=4.0).observe(saw_value(4.5)))
    assert (one.value, one.unit, one.kind) == (4.5, "mm", "value")


def test_what_lasts_is_over_when_nobody_looks_any_more():
    detector = watch("value", high=4.0)
    detector.observe(saw_value(4.5, 1_000))
    assert detector.rest(1_000 + SILENT_MS - 1) == []
    assert [one.reason for one in told(detector.rest(1_000 + SILENT_MS))] == ["silent"]
    assert detector.rest(10_000 + SILENT_MS) == []


def test_a_clock_that_is_set_back_does_not_turn_the_time_of_events():
    detector = watch("value", high=4.0, min_s=1, update_s=0)
    found = run(detector, [saw_value(5.0, at) for at in (100_000, 50_000, 100_900, 101_000)])
    assert found == [("started", 3)]
    at_once = watch("value", high=4.0)
    (start, end) = told(at_once.observe(saw_value(5.0, 100_000)) + at_once.observe(saw_value(1.0, 50_000)))
    assert (start.start_ms, end.end_ms) == (100_000, 100_000)


def test_an_answer_without_anything_is_no_event():
    assert watch("class").observe(answer()) == []
