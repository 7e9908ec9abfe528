"""One pipeline with its two threads: a driver that never returns, a sensor's windows, lost predictions."""

import gc
import itertools
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from simulators.color_models import Trait, make_slot
from simulators.scenes import SceneCamera, plain
from simulators.square_models import make_square_slot, picture
from simulators.videos import BLUE, RED, write_video
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.captures import MAX_STUCK, Captures
from agent.inference.engine import Line
from agent.inference.handover import Handover
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Prediction
from agent.inference.pipeline import Pipeline
from agent.orders import PipelineOrder
from agent.sources.base import Array, Grabbed, Need
from agent.sources.states import Channel, SourceState
from protocol.clock import AcceleratedClock, Clock, SystemClock
from protocol.decoding import decode


@pytest.fixture
def line() -> Iterator[Line]:
    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    made = Line("color", marks=marks, now=SystemClock().monotonic)
    yield made
    made.deactivate()
    marks.close()


class Run:
    """Starts pipelines, each named by its place in the list, on the sources of one process."""

    def __init__(self, line: Line, **of_captures: Any) -> None:
        self.line = line
        self.pipelines: list[Pipeline] = []
        self.pace: Clock | None = of_captures.get("pace")
        sessions = itertools.count(1)
        self.captures = Captures(clock=SystemClock(), next_session=lambda: next(sessions), **of_captures)

    def __call__(
        self, source: dict[str, object], *, on_prediction: Callable[[Prediction], bool] = lambda _: True, **settings: Any
    ) -> Pipeline:
        name = f"pipeline-{len(self.pipelines)}"
        config = decode(PipelineOrder, {"name": name, "line": "color", "source": source, **settings})
        patient = RuntimeConfig(max_age_ms=60_000)  # on a busy machine a frame may be old when its turn comes
        pipeline = Pipeline(config, self.line, captures=self.captures, runtime=patient, on_prediction=on_prediction, pace=self.pace)
        pipeline.start()
        self.pipelines.append(pipeline)
        return pipeline


@pytest.fixture
def make_run(line: Line) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(**of_captures: Any) -> Run:
        made.append(Run(line, **of_captures))
        return made[-1]

    yield make
    for pipeline in [pipeline for run in made for pipeline in run.pipelines]:
        pipeline.stop()
        count = wait_until(
            lambda pipeline=pipeline: not (made := pipeline.count()).in_flight and made, what="the frame that was being decoded"
        )
        assert count.grabbed == count.inferred + sum(count.dropped.values())


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


class StuckDriver:
    """A source whose first `grab` does not come back until the test lets it."""

    repeats = False
    text = decoder = refused = ""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.grabs = 0

    def suits(self, need: Need | None) -> bool:
        return True

    def open(self) -> None:
        pass

    def grab(self, stop: threading.Event) -> Grabbed | None:
        self.grabs += 1
        self.released.wait(30)
        return None if stop.wait(0.01) else Grabbed(0.0)

    def retrieve(self, into: Array) -> Array:
        return into

    def close(self) -> None:
        pass

    def take_channels(self) -> Mapping[str, Channel]:
        return {}


def test_a_driver_that_never_returns_is_left_behind_and_the_source_is_opened_again(make_run):
    now = datetime.now(UTC)
    pace = AcceleratedClock(start=now - timedelta(days=30), speed=1000.0, origin=now)
    drivers: list[StuckDriver] = []

    def open_source(_config: PipelineOrder, _clock: Clock) -> StuckDriver:
        drivers.append(StuckDriver())
        return drivers[-1]

    run = make_run(pace=pace, open_source=open_source)
    pipeline = run({"kind": "video", "path": "/none"})
    wait_until(lambda: (run.captures.tend(), len(drivers) == 3)[1], what="the third attempt")
    found = wait_until(lambda: [one for one in pipeline.findings() if one.code == "source_lost"])
    assert "never came back" in found[0].text
    wait_until(lambda: (run.captures.tend(), len(drivers) == MAX_STUCK + 1)[1], what="the last attempt")
    for driver in drivers:
        driver.released.set()
    wait_until(lambda: (run.captures.tend(), pipeline.findings() == [])[1], what="the threads left behind to end")
    wait_until(lambda: pipeline.count().grabbed > 5)
    assert len(drivers) <= MAX_STUCK + 2


def test_a_failing_model_is_a_finding_until_it_works_again(run: Run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a", trait=Trait.FAILS), RuntimeConfig()).ok
    dark = (0, 90, 0)
    path = write_video(tmp_path / "v.avi", [RED] * 60 + [dark] * 60, fps=100)
    pipeline = run({"kind": "video", "path": str(path), "loop": True})
    wait_until(lambda: any(one.code == "inference_error" for one in pipeline.findings()))
    wait_until(lambda: not any(one.code == "inference_error" for one in pipeline.findings()))
    pipeline.stop()
    count = pipeline.count()
    assert count.errors == count.dropped["inference_error"] > 0
    assert count.inferred > 0


def test_predictions_that_nobody_takes_are_counted_and_the_frames_count_as_inferred(run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    path = write_video(tmp_path / "v.avi", [RED] * 10, fps=100)
    pipeline = run({"kind": "video", "path": str(path)}, on_prediction=lambda _: False)
    count = wait_until(lambda: (made := pipeline.count()).source_state is SourceState.ENDED and not made.in_flight and made)
    assert count.unsent == count.inferred > 0
    assert [one.code for one in pipeline.findings()] == ["source_ended", "predictions_lost"]


def test_whoever_infers_the_frames_come_in_their_order_and_each_is_counted(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    heard: list[tuple[int, bool]] = []
    handovers: list[Handover] = []
    run = make_run(open_source=lambda *_: SceneCamera(plain(RED), fps=500.0))

    def hear(prediction: Prediction) -> bool:
        is_in_place = threading.current_thread().name == "capture"
        heard.append((prediction.frame, is_in_place))
        for handover in handovers:
            handover.is_in_place = len(heard) // 5 % 2 == 0
        return True

    pipeline = run({"kind": "camera"}, on_prediction=hear)
    handovers.append(pipeline._source.capture.handover)
    handovers[0].due_s = float("inf")
    wait_until(lambda: len(heard) > 100 and {is_in_place for _, is_in_place in heard} == {True, False}, what="frames inferred by both")
    pipeline.stop()
    count = wait_until(lambda: not (made := pipeline.count()).in_flight and made, what="the last frame")
    frames = [frame for frame, _ in heard]
    assert frames == sorted(set(frames))
    assert count.inferred == len(heard)
    assert count.grabbed == count.inferred + sum(count.dropped.values())


def test_a_source_whose_frames_are_inferred_in_place_holds_one_picture(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    run = make_run(open_source=lambda *_: SceneCamera(plain(RED), fps=20.0))
    may_go_on = threading.Event()
    pipeline = run({"kind": "camera"}, on_prediction=lambda _: may_go_on.wait(60))
    capture = pipeline._source.capture
    wait_until(lambda: capture.pictures_made == 2, what="a second picture beside the one that is inferred")
    may_go_on.set()
    wait_until(lambda: capture.handover.is_in_place and capture.pictures_made == 1, what="one picture")


def test_stopping_counts_what_was_waiting(run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    pipeline = run({"kind": "video", "path": str(write_video(tmp_path / "v.avi", [RED] * 30, fps=100)), "loop": True})
    wait_until(lambda: pipeline.count().inferred > 5)
    pipeline.stop()
    count = wait_until(lambda: (made := pipeline.count()).source_state is SourceState.STOPPED and made)
    assert count.in_flight == 0


def test_what_is_outside_the_region_is_not_seen(run: Run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32], frame[:, 32:] = BLUE, RED
    for index in range(5):
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), frame)
    folder = {"kind": "folder", "path": str(tmp_path), "fps": 50, "loop": True}
    seen: dict[str, set[str]] = {"left": set(), "right": set()}

    def hear(side: str) -> Callable[[Prediction], bool]:
        return lambda prediction: (seen[side].add(prediction.top[0].label), True)[1]

    run(folder, roi=[0, 0, 0.5, 1], on_prediction=hear("left"))
    run(folder, roi=[0.5, 0, 1, 1], on_prediction=hear("right"))
    wait_until(lambda: all(seen.values()))
    assert seen == {"left": {"blue"}, "right": {"red"}}


def test_frames_in_which_nothing_moves_are_dropped_for_that_reason(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    camera = SceneCamera(plain(RED))
    run = make_run(open_source=lambda *_: camera)
    pipeline = run({"kind": "camera"}, motion={"min_area": 0.01, "hold_s": 0, "idle_s": 3600})
    wait_until(lambda: pipeline.count().dropped.get("no_motion", 0) > 10)
    still = pipeline.count().inferred
    assert still >= 1
    camera.picture = plain(BLUE)
    wait_until(lambda: pipeline.count().inferred > still, what="a frame after the change")


def test_two_thousand_frames_need_no_more_memory_than_the_first_ones(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    run = make_run(open_source=lambda *_: SceneCamera(plain(RED, size=(320, 240)), fps=2000))
    pipelines = [run({"kind": "camera"}), run({"kind": "camera"}, roi=[0, 0, 0.5, 0.5], motion={"min_area": 0.01, "hold_s": 3600})]

    def wait_for(frames: int) -> None:
        counts = dict.fromkeys(pipelines, 0)

        def passed() -> bool:
            for one in pipelines:
                counts[one] = one.count().inferred  # as each beat does: what is gathered between two is taken
            return min(counts.values()) >= frames

        wait_until(passed, what=f"{frames} frames")

    tracemalloc.start()
    try:
        wait_for(300)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        wait_for(2300)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 << 20, "two thousand frames have 460 MB; a few may be under way at either moment"
    assert len(run.captures) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (7680, 4320)])
def test_frames_of_any_size_are_inferred(make_run, line: Line, tmp_path: Path, size: tuple[int, int]):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    run = make_run(open_source=lambda *_: SceneCamera(plain(BLUE, size=size), fps=20))
    seen: list[Prediction] = []
    run({"kind": "camera"}, on_prediction=lambda prediction: (seen.append(prediction), True)[1], roi=[0.4, 0.4, 0.6, 0.6])
    wait_until(lambda: len(seen) > 2)
    assert seen[-1].top[0].label == "blue"


def test_gray_alpha_deep_and_broken_pictures_are_seen_or_counted(run: Run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = {
        "0-gray.png": np.full((48, 64), 200, np.uint8),
        "1-alpha.png": np.full((48, 64, 4), (0, 0, 255, 128), np.uint8),
        "2-deep.png": np.full((48, 64, 3), (0, 0, 65_535), np.uint16),
        "3-pixel.png": np.full((1, 1, 3), (0, 0, 255), np.uint8),
        "4-large.jpg": np.full((4320, 7680, 3), (0, 0, 255), np.uint8),
    }
    for name, pixels in pictures.items():
        assert cv2.imwrite(str(folder / name), pixels)
    (folder / "5-cut.png").write_bytes((folder / "1-alpha.png").read_bytes()[:60])
    (folder / "6-empty.jpg").write_bytes(b"")
    seen: set[int] = set()
    looped = {"kind": "folder", "path": str(folder), "fps": 5, "loop": True}
    pipeline = run(looped, on_prediction=lambda prediction: (seen.add(prediction.frame), True)[1])
    wait_until(lambda: seen == {0, 1, 2, 3, 4} and pipeline.count().dropped.get("decode_error", 0) >= 2)
    assert pipeline.count().errors == 0


def test_pipelines_that_share_a_camera_and_a_plan_answer_as_they_would_alone(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_slot(tmp_path / "a"), RuntimeConfig()).ok
    camera = SceneCamera(plain(RED), fps=100)
    run = make_run(open_source=lambda *_: camera)
    answers: dict[str, dict[tuple[int, int], str]] = {"one": {}, "other": {}, "left": {}}

    def hear(name: str) -> Callable[[Prediction], bool]:
        def keep(prediction: Prediction) -> bool:
            answers[name][prediction.session, prediction.frame] = prediction.top[0].label
            return True

        return keep

    run({"kind": "camera"}, on_prediction=hear("one"))
    run({"kind": "camera"}, on_prediction=hear("other"))
    run({"kind": "camera"}, roi=[0, 0, 0.5, 1], on_prediction=hear("left"))
    half = plain(RED)
    half[:, :32] = BLUE
    for shown, label in ((plain(BLUE), "blue"), (plain(RED), "red"), (half, "blue"), (half[:, ::-1].copy(), "red")):
        camera.picture = shown
        for heard in answers.values():
            heard.clear()
        wait_until(lambda: len(answers["one"].keys() & answers["other"].keys()) > 20)
        wait_until(lambda label=label: answers["left"] and answers["left"][max(answers["left"])] == label)
        both = answers["one"].keys() & answers["other"].keys()
        assert all(answers["one"][key] == answers["other"][key] for key in both)


def test_an_object_found_in_a_region_lies_where_it_lies_in_the_frame(make_run, line: Line, tmp_path: Path):
    assert line.activate(make_square_slot(tmp_path / "a"), RuntimeConfig()).ok
    run = make_run(open_source=lambda *_: SceneCamera(picture((0.75, 0.25), size=(320, 320)), fps=50))
    found: dict[str, list[Prediction]] = {"whole": [], "part": []}
    for name, roi in (("whole", [0, 0, 1, 1]), ("part", [0.5, 0, 1, 0.5])):
        run({"kind": "camera"}, roi=roi, track=True, on_prediction=lambda one, name=name: (found[name].append(one), True)[1])
    wait_until(lambda: all(found.values()))
    boxes = {name: predictions[0].boxes[0] for name, predictions in found.items()}
    for box in boxes.values():
        assert np.allclose((box.x0, box.y0, box.x1, box.y1), (0.65, 0.15, 0.85, 0.35), atol=0.02)
        assert box.track is not None
