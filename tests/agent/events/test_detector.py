"""Events of one pipeline: what is told, how often, and with what."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from simulators.answers import answer, box_at, saw_boxes, saw_class, saw_value

from agent.config import PipelineConfig
from agent.database.outbox import Draft
from agent.events.bodies import prediction_body
from agent.events.detector import CLASS_CHANGED, EVENT_BURST, SCORE_OVER, EventDetector
from agent.inference.messages import ScoredLabel
from protocol.messages import Event, Inference

ENVELOPE = {"v": 1, "ts": 1, "clk": "ok", "boot": "b", "epoch": "e"}
DRIVE = {"name": "drive", "points": [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]}


def detector(**changes: Any) -> EventDetector:
    config = {"name": "front", "line": "digits", "source": {"kind": "video", "path": "x"}, **changes}
    return EventDetector(PipelineConfig.model_validate(config), "/mooring/t0/cam-1")


def kinds(drafts: list[Draft]) -> list[str]:
    return [draft.body["type"] for draft in drafts]


def test_a_changed_class_is_an_event_and_the_same_class_is_not():
    watch = detector()
    assert watch.observe(saw_class("1")) == []
    assert watch.observe(saw_class("1")) == []
    (draft,) = watch.observe(saw_class("2"))
    event = Event.model_validate({**ENVELOPE, "id": "e-1", **draft.body})
    assert (event.type, event.subject, event.source) == (CLASS_CHANGED, "front", "/mooring/t0/cam-1")
    assert (event.data["from"], event.data["to"]) == ("1", "2")
    assert event.ts == 1_000


def test_a_score_over_its_threshold_is_an_event_once_per_crossing():
    watch = detector(min_score=0.8)
    seen = [kinds(watch.observe(saw_class("1", score))) for score in (0.5, 0.8, 0.9, 0.7, 0.81)]
    assert seen == [[], [SCORE_OVER], [], [], [SCORE_OVER]]


def test_an_answer_without_a_class_is_no_event_and_does_not_hide_the_next_change():
    watch = detector()
    watch.observe(saw_class("1"))
    watch.observe(answer())
    assert kinds(watch.observe(saw_class("1"))) in ([], [CLASS_CHANGED])


def test_a_flickering_answer_makes_no_flood_and_says_how_many_were_left_out():
    watch = detector()
    events = [draft for n in range(600) for draft in watch.observe(saw_class(str(n % 2), at_ms=n * 33))]
    assert 20 <= len(events) <= 10 + 20 + 1  # the burst, then one a second over 20 s
    left_out = sum(draft.body["data"].get("suppressed_before", 0) for draft in events)
    assert left_out + len(events) >= 600 - 1 - 60


def test_an_event_carries_the_whole_answer_only_when_the_pipeline_keeps_events():
    two = answer(top=(ScoredLabel("2", 2, 0.6), ScoredLabel("3", 3, 0.3)))
    for keep, count in (("ring", 1), ("events", 2), ("all", 2)):
        watch = detector(keep=keep)
        watch.observe(saw_class("1"))
        (draft,) = watch.observe(two)
        assert len(draft.body["data"]["top"]) == count


def test_a_prediction_is_told_as_the_contract_says():
    body = Inference.model_validate({**ENVELOPE, **prediction_body(saw_class("3", 0.12345678))})
    assert (body.frame, body.top[0].label, body.top[0].score) == (7, "3", 0.123457)
    record = detector(keep="all").record(saw_class("3"))
    assert Event.model_validate({**ENVELOPE, "id": "e-1", **record.body}).type == "mooring.prediction.v1"


def test_boxes_and_values_are_told_as_the_contract_says():
    seen = Inference.model_validate({**ENVELOPE, **prediction_body(saw_boxes(box_at(0.5, 0.75, track=4)))})
    assert (seen.task, seen.top, seen.boxes[0].box, seen.boxes[0].track) == ("detection", [], [0.45, 0.65, 0.55, 0.75], 4)
    measured = Inference.model_validate({**ENVELOPE, **prediction_body(saw_value(1.5, is_anomaly=True))})
    assert (measured.task, measured.value, measured.unit, measured.is_anomaly) == ("anomaly", 1.5, "mm", True)


# --- what rules may tell ---


def present(**more: Any) -> dict[str, Any]:
    return {"name": "seen", "kind": "present", "lost_s": 0, "update_s": 0, **more}


def flicker(watch: EventDetector, count: int, *, step_ms: int = 33) -> list[Draft]:
    """Events of an object that is there in every other frame."""
    boxes = [(box_at(0.5, 0.8),), ()]
    return [draft for n in range(count) for draft in watch.observe(saw_boxes(*boxes[n % 2], at_ms=n * step_ms))]


def test_whose_start_is_told_its_end_is_told_and_the_rest_is_counted():
    drafts = flicker(detector(rules=[present()]), 600)
    starts = [draft.body["data"]["occurrence"] for draft in drafts if draft.body["type"] == "mooring.present.started.v1"]
    ends = [draft.body["data"]["occurrence"] for draft in drafts if draft.body["type"] == "mooring.present.ended.v1"]
    assert starts == ends
    assert 20 <= len(starts) <= EVENT_BURST + 20 + 1
    left_out = sum(draft.body["data"].get("suppressed_before", 0) for draft in drafts)
    assert len(starts) + left_out <= 300
    assert len(starts) + left_out >= 300 - 31


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3_000)), max_size=60), st.integers(0, 5), st.integers(1, 3))
def test_starts_and_ends_come_in_pairs_and_within_the_limit(seen, cool_down_s, min_frames):
    watch, at_ms, drafts = detector(rules=[present(cool_down_s=cool_down_s, min_frames=min_frames)]), 0, list[Draft]()
    for is_there, step_ms in seen:
        at_ms += step_ms
        drafts += watch.observe(saw_boxes(*[box_at(0.5, 0.8)] * is_there, at_ms=at_ms))
    drafts += watch.close(at_ms, "stopped")
    phases = [(draft.body["data"]["phase"], draft.body["data"]["occurrence"]) for draft in drafts]
    assert [phase for phase, _ in phases] == ["started", "ended"] * (len(phases) // 2)
    assert all(start[1] == end[1] for start, end in zip(phases[::2], phases[1::2], strict=True))
    begun = [draft.body["ts"] for draft in drafts if draft.body["data"]["phase"] == "started"]
    assert all(later - earlier >= cool_down_s * 1000 for earlier, later in itertools.pairwise(begun))
    assert len(begun) <= EVENT_BURST + at_ms / 1000


def test_a_rule_makes_events_within_its_schedule_only_and_what_lasts_ends_with_it():
    hour = 3_600_000
    rules = [present(lost_s=3600, schedule=[{"from": "10:00", "to": "11:00"}], time_zone="Europe/Berlin")]
    watch = detector(rules=rules)  # 1 January 1970: an hour ahead of UTC
    found = [
        (draft.body["data"]["phase"], draft.body["data"].get("reason"), hours)
        for hours in (8, 9, 9.5, 10, 10.5, 33)
        for draft in watch.observe(saw_boxes(box_at(0.5, 0.8), at_ms=int(hours * hour)))
    ]
    assert found == [("started", None, 9), ("ended", "schedule", 10), ("started", None, 33)]


def test_an_event_of_a_rule_carries_the_answer_when_the_pipeline_keeps_events():
    for keep, has_boxes in (("ring", False), ("events", True)):
        (draft,) = detector(rules=[present()], keep=keep).observe(saw_boxes(box_at(0.5, 0.8)))
        assert ("boxes" in draft.body["data"]) == has_boxes
        event = Event.model_validate({**ENVELOPE, "id": "e-1", **draft.body})
        assert (event.subject, event.source, event.data["rule"]) == ("front", "/mooring/t0/cam-1", "seen")
