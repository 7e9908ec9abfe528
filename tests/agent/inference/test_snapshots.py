"""Pictures on demand: only where a pipeline allows them, not too often, with what the model said, and inference goes on."""

import base64
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from simulators.scenes import SceneCamera, plain
from simulators.videos import RED
from waiting import wait_until

from agent.config import PipelineConfig, RuntimeConfig
from agent.inference.captures import Captures
from agent.inference.engine import Line
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Answer, Box, Prediction, ScoredLabel, Snapshot, ZoneShape
from agent.inference.pipeline import Pipeline
from agent.inference.preview import draw
from agent.inference.snapshots import PAUSE_S, Snapshots
from agent.sources.base import Pixels
from protocol.clock import SystemClock
from protocol.errors import ConflictError, DeviceError, NotFoundError
from protocol.look import MAX_JPEG_BYTES
from protocol.snapshots import SnapshotAnswer

ZONE = {"name": "door", "kind": "polygon", "points": [[0, 0], [1, 0], [1, 1]]}
SAID = Prediction("front", "l", "1", 1, 1, 0, (), 1.0, 1.0)


def decoded(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def config(**settings: Any) -> PipelineConfig:
    return PipelineConfig.model_validate({"name": "front", "line": "l", "source": {"kind": "camera"}, **settings})


class Patient:
    """A clock that stands where the test puts it."""

    speed = 1.0

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Patient:
    return Patient()


def snapshots(clock: Patient, *pipelines: PipelineConfig, answer: Callable[[Snapshot], Answer]) -> Snapshots:
    return Snapshots(lambda make, _timeout_s: answer(make(7)), pipelines=lambda: pipelines, clock=clock)  # type: ignore[arg-type]  # monotonic suffices


def good(request: Snapshot) -> Answer:
    return Answer(request.request, ok=True, data=base64.b64encode(b"jpeg").decode(), size=(64, 48), at_ms=5)


def test_a_pipeline_that_allows_it_is_asked_with_its_zones(clock):
    asked: list[Snapshot] = []
    one = snapshots(clock, config(preview=True, zones=[ZONE]), answer=lambda request: (asked.append(request), good(request))[1])
    assert one.take("front", with_zones=True) == SnapshotAnswer.of(b"jpeg", width=64, height=48, at=5)
    clock.now_s += PAUSE_S
    assert one.take("front", with_zones=False)
    assert asked == [Snapshot(7, "front", (ZoneShape("door", ((0, 0), (1, 0), (1, 1)), is_closed=True),)), Snapshot(7, "front", ())]


def test_without_permission_nobody_looks(clock):
    asked: list[Snapshot] = []
    one = snapshots(clock, config(), answer=lambda request: (asked.append(request), good(request))[1])
    with pytest.raises(ConflictError, match="does not allow previews"):
        one.take("front", with_zones=True)
    with pytest.raises(NotFoundError, match="There are: front"):
        one.take("back", with_zones=True)
    assert asked == []


def test_looking_is_not_watching(clock):
    one = snapshots(clock, config(preview=True), config(name="back", preview=True), answer=good)
    one.take("front", with_zones=True)
    one.take("back", with_zones=True)
    clock.now_s += PAUSE_S / 2
    with pytest.raises(ConflictError, match="less than 2 s ago"):
        one.take("front", with_zones=True)
    clock.now_s += PAUSE_S
    one.take("front", with_zones=True)


@pytest.mark.parametrize(("code", "text"), [("timeout", "no frame came in time"), ("snapshot_failed", "too large")])
def test_no_picture_is_an_error_that_says_why(clock, code, text):
    one = snapshots(clock, config(preview=True), answer=lambda request: Answer(request.request, ok=False, code=code, text="too large"))
    with pytest.raises(DeviceError, match=text):
        one.take("front", with_zones=True)


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        SAID,
        Prediction(**{**{name: getattr(SAID, name) for name in SAID.__slots__}, "top": (ScoredLabel("person", 1, 0.9),)}),
        Prediction(**{**{name: getattr(SAID, name) for name in SAID.__slots__}, "value": 0.123, "unit": "mm", "is_anomaly": True}),
        Prediction(**{**{name: getattr(SAID, name) for name in SAID.__slots__}, "boxes": (Box("car", 0, 0.8, 0.1, 0.1, 0.9, 0.9, 4),)}),
    ],
)
def test_every_kind_of_answer_is_drawn(prediction):
    data = draw(np.zeros((90, 160, 3), np.uint8), prediction, Snapshot(1, "front", (ZoneShape("a", ((0, 0), (1, 1)), is_closed=False),)))
    assert len(data.data) <= MAX_JPEG_BYTES
    assert decoded(data.data).max() > 150


@pytest.fixture
def front():
    """Pipelines on one camera without a model."""
    import os

    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    made: list[Pipeline] = []

    def make(camera: SceneCamera, answers: list[Answer], **settings: Any) -> Pipeline:
        captures = Captures(clock=SystemClock(), next_session=lambda: 1, open_source=lambda *_: camera)
        made.append(
            Pipeline(
                config(**settings).for_inference(),
                Line("l", marks=marks, now=SystemClock().monotonic),
                captures=captures,
                runtime=RuntimeConfig(max_age_ms=60_000),
                on_prediction=lambda _: True,
                on_snapshot=answers.append,
            )
        )
        made[-1].start()
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.stop()
        count = wait_until(lambda pipeline=pipeline: not (made := pipeline.count()).in_flight and made, what="the last frame")
        assert count.grabbed == count.inferred + sum(count.dropped.values())
    marks.close()


def test_the_whole_frame_is_shown_also_without_a_model_and_beyond_pace_region_and_gate(front):
    camera, answers = SceneCamera(plain(RED, size=(200, 100))), list[Answer]()
    pipeline = front(camera, answers, max_fps=0.001, roi=[0, 0, 0.5, 0.5], motion={"min_area": 1})
    wait_until(lambda: pipeline.count().grabbed > 10)
    assert camera.retrieved == 0
    pipeline.show(Snapshot(11, "front"))
    (answer,) = wait_until(lambda: answers, what="the picture")
    assert (answer.request, answer.ok) == (11, True)
    picture = decoded(base64.b64decode(answer.data))
    assert picture.shape == (100, 200, 3)
    assert answer.size == (200, 100)
    assert picture[90, 190].argmax() == 2
    retrieved = camera.retrieved
    grabbed = pipeline.count().grabbed
    wait_until(lambda: pipeline.count().grabbed > grabbed + 10)
    assert camera.retrieved == retrieved, "one look decodes one frame"


def test_askers_that_gave_up_are_forgotten(front):
    camera, answers = SceneCamera(None), list[Answer]()
    pipeline = front(camera, answers)
    for number in range(20):
        pipeline.show(Snapshot(number, "front"))
    wait_until(lambda: pipeline.count().dropped.get("decode_error"))
    camera.picture = plain(RED)
    wait_until(lambda: len(answers) == 4)
    assert sorted(answer.request for answer in answers) == [16, 17, 18, 19]
