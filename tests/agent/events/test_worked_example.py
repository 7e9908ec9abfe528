"""The car park of docs/events.md does what the page says."""

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulators.answers import box_at, saw_boxes

from agent.config import AgentConfig
from agent.events.detector import EventDetector
from protocol.clock import to_unix_ms
from protocol.configuration import checked
from protocol.events import RuleEvent
from protocol.messages import Event

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "events.md").read_text()
TEN = to_unix_ms(datetime(2026, 1, 1, 10, tzinfo=UTC))
PARKED, ENTRY_OUT, ENTRY_IN = (0.15, 0.74), (0.97, 0.7), (0.83, 0.7)


def block(kind: str) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture
def detector() -> EventDetector:
    (pipeline,) = AgentConfig.model_validate(tomllib.loads(block("toml"))).pipelines
    return EventDetector(pipeline, "/mooring/t0/cam-42")


def test_the_settings_are_right_for_files_and_for_signed_configuration():
    (document,) = tomllib.loads(block("toml"))["pipelines"]
    settings = {key: document[key] for key in ("zones", "rules", "max_fps")}
    assert checked({"pipelines": {"car-park": settings}}, what="group")["pipelines"]["car-park"].keys() == settings.keys()


def test_a_car_in_front_of_the_gate_is_told_after_ten_minutes(detector):
    found = []
    for second in range(0, 1_000, 5):
        place = PARKED if second < 960 else (0.6, 0.5)
        drafts = detector.observe(saw_boxes(box_at(*place, track=17, score=0.94), at_ms=TEN + second * 1000))
        found += [(second, draft.body["type"], RuleEvent.model_validate(draft.body["data"])) for draft in drafts]
    assert [(second, kind) for second, kind, _ in found] == [
        (600, "mooring.dwell.started.v1"),
        (900, "mooring.dwell.updated.v1"),
        (960, "mooring.dwell.ended.v1"),
    ]
    shown = Event.model_validate({"v": 1, "ts": 1, "boot": "b", "epoch": "e", **json.loads(block("json"))})
    told = RuleEvent.model_validate(shown.data)
    same = {"rule", "kind", "phase", "occurrence", "start_ms", "end_ms", "zone", "label", "track", "score"}
    assert shown.type == found[0][1]
    assert told.model_dump(include=same) == {**found[0][2].model_dump(include=same)}


def test_cars_in_and_out_are_counted_apart(detector):
    rules = []
    for step, place in enumerate([ENTRY_OUT, ENTRY_OUT, ENTRY_IN, ENTRY_IN, ENTRY_OUT, ENTRY_OUT]):
        drafts = detector.observe(saw_boxes(box_at(*place, size=0.05), at_ms=TEN + step * 200))
        rules += [draft.body["data"]["rule"] for draft in drafts]
    assert rules == ["cars-in", "cars-out"]


def test_a_person_is_told_at_night_only(detector):
    def visits(hour: int) -> list[str]:
        start = to_unix_ms(datetime(2026, 1, 2, hour, tzinfo=UTC))  # Berlin is an hour ahead
        answers = (saw_boxes(box_at(0.6, 0.7, label="person"), at_ms=start + step * 200) for step in range(5))
        return [draft.body["type"] for one in answers for draft in detector.observe(one)]

    assert visits(12) == []
    assert visits(21) == ["mooring.present.started.v1"]
