"""Published models on real video and photographs, through the agent's own pipeline and its real process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulators.clock import Lockstep
from simulators.color_models import write_manifest
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.captures import Captures
from agent.inference.engine import Line
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Prediction
from agent.inference.pipeline import Pipeline
from agent.inference.process import InferenceProcess, Timings
from agent.orders import PipelineOrder
from agent.sources.states import SourceState
from fleet.registry.drafts import parse_draft
from protocol.clock import SystemClock
from protocol.decoding import decode
from runtime.probe import inspect_model

pytestmark = pytest.mark.needs_data
#: Frames per second of the videos.
FPS = {"one-by-one-person-detection": 10.0, "car-detection": 12.5}


@pytest.fixture
def slot(tmp_path: Path, data_dir: Path) -> Callable[..., Path]:
    def make(model: str, labels: list[str], line: str) -> Path:
        folder = tmp_path / line
        folder.mkdir()
        (folder / "model.tflite").write_bytes((data_dir / "models" / model).read_bytes())
        draft = parse_draft({"task": "classification", "labels": labels, "preprocess": {"color": "RGB"}, "device_types": ["test"]})
        write_manifest(folder, draft, tensors=inspect_model(folder / "model.tflite"), line=line)
        return folder

    return make


@pytest.fixture
def marks() -> Iterator[Marks]:
    made = Marks(new_memory())
    yield made
    made.close()


@pytest.mark.parametrize(("video", "percent"), [("one-by-one-person-detection", 37), ("car-detection", 0)])
def test_every_tenth_frame_shows_persons_where_persons_are(slot, marks: Marks, data_dir: Path, video: str, percent: int):
    line = Line("vww", marks=marks, now=SystemClock().monotonic)
    assert line.activate(slot("vww_96_int8.tflite", ["no person", "person"], "vww"), RuntimeConfig()).ok
    config = decode(
        PipelineOrder,
        {
            "name": "door",
            "line": "vww",
            "source": {"kind": "video", "path": str(data_dir / "video" / f"{video}.mp4")},
            "max_fps": FPS[video] / 10,
        },
    )
    seen: list[Prediction] = []
    pace = Lockstep()
    pipeline = Pipeline(
        config,
        line,
        captures=Captures(clock=SystemClock(), next_session=lambda: 1, pace=pace),
        runtime=RuntimeConfig(max_age_ms=10_000),
        on_prediction=lambda prediction: (seen.append(prediction), True)[1],
        pace=pace,
    )
    pace.in_flight = lambda: pipeline.count().in_flight
    pipeline.start()
    count = wait_until(lambda: (made := pipeline.count()).source_state is SourceState.ENDED and not made.in_flight and made)
    pipeline.stop()
    line.deactivate()
    assert count.grabbed == count.inferred + sum(count.dropped.values())
    assert set(count.dropped) == {"rate_limited"}
    assert [prediction.frame for prediction in seen] == list(range(9, count.grabbed, 10))
    persons = sum(prediction.top[0].label == "person" for prediction in seen)
    assert abs(100 * persons / len(seen) - percent) <= (2 if percent else 0)


def test_the_real_process_sees_persons_and_names_photographs_side_by_side(slot, data_dir: Path):
    seen: list[Prediction] = []
    process = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=seen.append, timings=Timings(beat_s=0.1))
    process.start()
    video, photographs = data_dir / "video" / "one-by-one-person-detection.mp4", data_dir / "images"
    process.configure(
        [
            decode(PipelineOrder, {"name": "door", "line": "vww", "source": {"kind": "video", "path": str(video)}}),
            decode(
                PipelineOrder,
                {"name": "desk", "line": "names", "source": {"kind": "folder", "path": str(photographs), "loop": True, "fps": 20}},
            ),
        ]
    )
    labels = (data_dir / "labels" / "imagenet_labels.txt").read_text().splitlines()
    try:
        assert process.activate("vww", slot("vww_96_int8.tflite", ["no person", "person"], "vww")).provider == "litert:cpu"
        assert process.activate("names", slot("mobilenet_v2_1.0_224_quant.tflite", labels, "names")).ok
        names = [path.stem for path in sorted(photographs.glob("*.bmp"))]
        wanted = {"cat": "Egyptian cat", "grace_hopper": "military uniform", "sunflower": "daisy"}

        def answers(name: str) -> list[str]:
            return [p.top[0].label for p in list(seen) if p.pipeline == "desk" and names[p.frame] == name]

        for name, label in wanted.items():
            (*_, last) = wait_until(lambda: answers(name), what=name)  # noqa: B023 - used at once
            assert last.startswith(label)
        assert {p.top[0].label for p in seen if p.pipeline == "door"} <= {"no person", "person"}
    finally:
        process.stop()
