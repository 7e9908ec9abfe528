"""Every task through the agent's own line and model: answers, what is counted, and what a pipeline's frames leave in a stateful model."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from example_models import INSTALLED
from simulators.color_models import Trait, make_slot
from simulators.task_models import counter_slot, detection_draft, halving_slot, ssd_slot, yolo_slot

from agent.config import RuntimeConfig
from agent.inference.engine import Line
from agent.inference.marks import Marks, new_memory
from agent.inference.memory import Memory
from protocol.clock import SystemClock
from protocol.errors import InvalidError
from runtime.base import BackendOptions, InferFailed, create
from runtime.onemodel import ONE_OPERATION

RUNTIME = RuntimeConfig()
WHITE, GRAY, BLACK = (np.full((48, 64, 3), value, np.uint8) for value in (255, 200, 0))
FORMATS = {"onnx": "onnx", "litert": "tflite", "tflite": "tflite"}


@pytest.fixture
def line() -> Iterator[Line]:
    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    made = Line("task", marks=marks, now=SystemClock().monotonic)
    yield made
    made.deactivate()
    marks.close()


class TestDetection:
    @pytest.mark.parametrize("make", [ssd_slot, yolo_slot])
    def test_a_detector_gives_boxes_in_shares_of_the_frame(self, line: Line, tmp_path: Path, make):
        assert line.activate(make(tmp_path / "a"), RUNTIME).ok
        got = line.infer(WHITE)
        assert got is not None
        assert (got.task, got.top, got.value) == ("detection", (), None)
        boxes = [(one.label, pytest.approx(one.score), (one.x0, one.y0, one.x1, one.y1)) for one in got.boxes]
        assert boxes[:2] == [
            ("car", 0.9, pytest.approx((0.125, 0.25, 0.375, 0.75))),
            ("person", 0.7, pytest.approx((0.5, 0.5, 0.75, 1.0))),
        ]
        assert len(boxes) == (3 if make is ssd_slot else 2)  # a raw head is suppressed here, the other one in its file

    def test_frames_without_objects_are_answers_and_no_sign_of_a_dead_model(self, line: Line, tmp_path: Path):
        line.activate(ssd_slot(tmp_path / "a"), RUNTIME)
        for level in range(0, 100, 10):
            got = line.infer(np.full((48, 64, 3), level, np.uint8))
            assert got is not None
            assert got.boxes == ()
        count = line.count()
        assert count is not None
        assert (count.inferences, count.errors) == (10, 0)
        assert count.top_share is not None
        assert count.top_share < 0.5

    def test_a_detector_that_always_says_the_same_is_seen(self, line: Line, tmp_path: Path):
        line.activate(ssd_slot(tmp_path / "a"), RUNTIME)
        for _ in range(10):
            line.infer(GRAY)
        count = line.count()
        assert count is not None
        assert count.top_share == 1.0

    def test_boxes_of_a_cropped_frame_lie_in_the_frame(self, line: Line, tmp_path: Path):
        draft = {**detection_draft("ssd"), "preprocess": {"color": "BGR", "fit": "crop"}}
        line.activate(ssd_slot(tmp_path / "a", draft=draft), RUNTIME)
        got = line.infer(WHITE)
        assert got is not None
        assert got.boxes[0].x0 == pytest.approx((0.125 * 48 + 8) / 64)


class TestState:
    def values(self, line: Line, *frames: tuple[Memory, int]) -> list[float]:
        return [
            got.value for memory, session in frames if (got := line.infer(BLACK, memory=memory, session=session)) and got.value is not None
        ]

    def test_what_a_pipeline_has_seen_is_remembered_for_it_alone(self, line: Line, tmp_path: Path):
        line.activate(counter_slot(tmp_path / "a"), RUNTIME)
        front, back = Memory(), Memory()
        assert self.values(line, (front, 1), (front, 1), (back, 1), (front, 1), (back, 1)) == [0, 1, 0, 2, 1]

    def test_another_session_of_the_source_begins_anew(self, line: Line, tmp_path: Path):
        line.activate(counter_slot(tmp_path / "a"), RUNTIME)
        front = Memory()
        assert self.values(line, (front, 1), (front, 1), (front, 2), (front, 2)) == [0, 1, 0, 1]

    def test_another_model_begins_anew_and_so_does_the_one_before(self, line: Line, tmp_path: Path):
        front = Memory()
        line.activate(counter_slot(tmp_path / "a"), RUNTIME)
        assert self.values(line, (front, 1), (front, 1)) == [0, 1]
        line.activate(counter_slot(tmp_path / "b", release="1.1"), RUNTIME)
        assert self.values(line, (front, 1), (front, 1)) == [0, 1]
        line.rollback()
        assert self.values(line, (front, 1)) == [0]

    def test_without_a_memory_every_frame_is_a_first(self, line: Line, tmp_path: Path):
        line.activate(counter_slot(tmp_path / "a"), RUNTIME)
        assert [got.value for _ in range(3) if (got := line.infer(BLACK))] == [0, 0, 0]

    @pytest.mark.parametrize("name", INSTALLED)
    def test_a_back_end_writes_into_what_took_the_place_of_an_output(self, name: str, tmp_path: Path):
        """What `Memory.keep` stands on: else two pipelines would share a state on the back ends that keep their arrays."""
        model = tmp_path / f"model.{FORMATS[name]}"
        model.write_bytes(ONE_OPERATION[FORMATS[name]])
        backend = create(name)
        tensors = backend.load(model, None, BackendOptions())
        given, output = tensors.inputs[0].name, tensors.outputs[0].name
        ours = np.zeros((1, 4), np.float32)
        outputs = backend.infer({given: np.ones((1, 4), np.float32)})
        assert isinstance(outputs, dict)
        kept, outputs[output] = outputs[output], ours
        second = backend.infer({given: kept})
        assert (kept.tolist(), second[output].tolist()) == ([[2.0] * 4], [[4.0] * 4])
        backend.close()


class TestWindows:
    QUIET = np.array([[0.5, 0.1]] * 4, np.float32)

    def test_a_reconstruction_error_above_the_threshold_is_an_anomaly(self, line: Line, tmp_path: Path):
        line.activate(halving_slot(tmp_path / "a"), RUNTIME)
        calm, loud = line.infer(self.QUIET), line.infer(self.QUIET * 10)
        assert calm is not None
        assert loud is not None
        assert (calm.task, calm.value, calm.unit, calm.is_anomaly) == ("anomaly", pytest.approx(0.25 * 0.13), "g²", False)
        assert (loud.value, loud.is_anomaly) == (pytest.approx(0.25 * 13), True)

    def test_a_window_that_lacks_a_number_is_counted_as_invalid_and_blames_no_back_end(self, line: Line, tmp_path: Path):
        line.activate(halving_slot(tmp_path / "a"), RUNTIME)
        broken = self.QUIET.copy()
        broken[2, 1] = np.nan
        for _ in range(5):
            with pytest.raises(InvalidError, match="missing or not finite"):
                line.infer(broken)
        count = line.count()
        assert count is not None
        assert (count.inferences, count.errors, count.invalid) == (5, 5, 5)
        assert not line.replace_failing(RUNTIME)

    def test_frames_are_no_windows(self, line: Line, tmp_path: Path):
        line.activate(halving_slot(tmp_path / "a"), RUNTIME)
        with pytest.raises(InvalidError, match="uint8"):
            line.infer(WHITE)


class TestBadFrames:
    """A clear error or an answer; the next frame is inferred as if nothing had been."""

    @pytest.mark.parametrize(
        "frame",
        [
            np.full((4320, 7680, 3), 255, np.uint8),
            np.full((1, 1, 3), 255, np.uint8),
            np.full((1, 4000), 255, np.uint8),
            np.full((48, 64), 255, np.uint8),
            np.full((48, 64, 1), 255, np.uint8),
            np.full((48, 64, 4), 255, np.uint8),
        ],
        ids=["8K", "one pixel", "one row", "gray", "gray with a dimension", "alpha"],
    )
    @pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
    def test_pictures_of_any_size_and_with_any_channels_are_answered(self, line: Line, tmp_path: Path, frame: np.ndarray, fit: str):
        line.activate(
            ssd_slot(tmp_path / "a", draft={**detection_draft("ssd", threshold=0.01), "preprocess": {"color": "BGR", "fit": fit}}), RUNTIME
        )
        got = line.infer(frame)
        assert got is not None
        assert all(0 <= one.x0 < one.x1 <= 1 and 0 <= one.y0 < one.y1 <= 1 for one in got.boxes)

    @pytest.mark.parametrize("frame", [np.zeros((0, 64, 3), np.uint8), np.zeros((4, 4, 3), np.float64), np.zeros((4, 4, 2), np.uint8)])
    def test_what_is_no_picture_is_an_error_and_the_next_frame_is_answered(self, line: Line, tmp_path: Path, frame: np.ndarray):
        line.activate(ssd_slot(tmp_path / "a"), RUNTIME)
        with pytest.raises(InvalidError, match="The frame is"):
            line.infer(frame)
        got = line.infer(WHITE)
        assert got is not None
        assert got.boxes

    def test_an_answer_that_is_not_finite_is_invalid_and_the_state_begins_anew(self, line: Line, tmp_path: Path):
        line.activate(make_slot(tmp_path / "a", trait=Trait.NAN), RUNTIME)
        with pytest.raises(InferFailed, match="not finite"):
            line.infer(WHITE)
        count = line.count()
        assert count is not None
        assert (count.errors, count.invalid) == (1, 1)
