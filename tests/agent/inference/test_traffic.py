"""A published detector with LSTM state, by its example draft: self-test, the real pipeline on real pictures, boxes where vehicles are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.color_models import write_manifest
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.captures import Captures
from agent.inference.engine import Line
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Prediction
from agent.inference.pipeline import Pipeline
from agent.orders import PipelineOrder
from agent.sources.states import SourceState
from benchmarks.detection.labels import read_labels
from benchmarks.detection.matching import Found, Tally, match
from fleet.registry.drafts import load_draft
from fleet.registry.importing import inspect_upload
from protocol.clock import SystemClock
from protocol.decoding import decode
from runtime.probe import inspect_model, self_test

pytestmark = pytest.mark.needs_data
DRAFT = Path(__file__).resolve().parents[3] / "examples" / "traffic" / "traffic.toml"
PICTURES = [labeled for labeled in read_labels() if labeled.source.endswith(".bmp")]
SIDE = 256


@pytest.fixture
def slot(tmp_path: Path, data_dir: Path) -> Path:
    folder = tmp_path / "slot"
    folder.mkdir()
    (folder / "model.tflite").write_bytes((data_dir / "models" / "traffic_model.tflite").read_bytes())
    write_manifest(folder, load_draft(DRAFT), tensors=inspect_model(folder / "model.tflite"), line="traffic")
    return folder


@pytest.fixture
def line() -> Iterator[Line]:
    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    made = Line("traffic", marks=marks, now=SystemClock().monotonic)
    yield made
    made.deactivate()
    marks.close()


def test_the_pipeline_sees_the_vehicles_of_three_pictures(slot: Path, line: Line, tmp_path: Path, data_dir: Path):
    swap = line.activate(slot, RuntimeConfig())
    assert swap.ok, swap.text
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for labeled in PICTURES:
        (pictures / labeled.source).write_bytes((data_dir / "images" / labeled.source).read_bytes())
    seen: list[Prediction] = []
    config = decode(
        PipelineOrder, {"name": "road", "line": "traffic", "source": {"kind": "folder", "path": str(pictures), "fps": 2, "loop": True}}
    )
    pipeline = Pipeline(
        config,
        line,
        captures=Captures(clock=SystemClock(), next_session=lambda: 1),
        runtime=RuntimeConfig(max_age_ms=60_000),
        on_prediction=lambda prediction: (seen.append(prediction), True)[1],
    )
    pipeline.start()
    try:
        answers = wait_until(
            lambda: len(found := {one.frame % 3: one for one in list(seen)}) == 3 and found, what="an answer to each picture"
        )
        assert pipeline.count().source_state is SourceState.RUNNING
    finally:
        pipeline.stop()
    total = Tally()
    for place, labeled in enumerate(PICTURES):
        answer = answers[place]
        assert (answer.task, answer.top) == ("detection", ())
        assert {one.label for one in answer.boxes} == {"vehicle"}
        boxes = [Found(one.score, (one.x0 * SIDE, one.y0 * SIDE, one.x1 * SIDE, one.y1 * SIDE)) for one in answer.boxes]
        total += match(boxes, labeled.boxes)
    assert total.right + total.missed == 9
    assert (total.recall, total.precision) >= (0.8, 0.8)
    assert total.precision >= 0.8


def test_its_golden_vectors_hold_on_this_machine(slot: Path):
    """Real golden vectors of a stateful detector, as an import makes them."""
    made = inspect_upload(slot / "model.tflite", load_draft(DRAFT))
    (slot / "golden.cbor").write_bytes(made.golden)
    verdict = self_test(slot)
    assert verdict.ok, verdict.text
