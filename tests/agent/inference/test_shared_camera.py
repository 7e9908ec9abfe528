"""The real inference process on one real HTTP camera: one connection for two pipelines, also after one of them was changed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from simulators.color_models import make_slot
from simulators.mjpeg import SECRET, MjpegCamera, jpeg
from simulators.videos import GREEN
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.messages import Prediction
from agent.inference.process import InferenceProcess, Timings
from agent.orders import PipelineOrder, StreamSource
from protocol.clock import SystemClock


@pytest.fixture
def camera() -> Iterator[MjpegCamera]:
    with MjpegCamera(jpeg(GREEN, size=(640, 480))) as made:
        yield made


@pytest.fixture
def heard() -> list[Prediction]:
    return []


@pytest.fixture
def process(heard: list[Prediction]) -> Iterator[InferenceProcess]:
    made = InferenceProcess(
        runtime=RuntimeConfig(max_age_ms=60_000), clock=SystemClock(), on_prediction=heard.append, timings=Timings(beat_s=0.1)
    )
    made.start()
    yield made
    made.stop()


def test_two_pipelines_and_a_change_of_one_need_one_connection(
    camera: MjpegCamera, process: InferenceProcess, heard: list[Prediction], tmp_path: Path
):
    url = camera.url.replace("//", f"//{SECRET.replace('@', '%40').replace('p%40ss:', 'p%40ss%3A')}@")
    source = StreamSource(kind="stream", url=url)
    whole = PipelineOrder(name="whole", line="color", source=source)
    part = PipelineOrder(name="part", line="color", source=source, roi=(0.5, 0.0, 1.0, 1.0))
    process.configure([whole, part])
    assert process.activate("color", make_slot(tmp_path / "slot")).ok

    def frames(name: str) -> set[tuple[int, int]]:
        return {(one.session, one.frame) for one in heard if one.pipeline == name}

    wait_until(lambda: frames("whole") & frames("part"), what="a frame that both inferred")
    decoder = "cpu: mjpeg 640x480, JPEG decoded as small as the models allow"
    wait_until(lambda: {one.decoder for one in process.stats()} == {decoder}, what="the decoder in the figures")
    requests = camera.requests  # FFmpeg asks without the password first
    process.configure([whole, replace(part, max_fps=5.0)])
    before = len(frames("part"))
    wait_until(lambda: len(frames("part")) > before + 3, what="frames of the changed pipeline")
    assert camera.requests == requests
    assert {one.top[0].label for one in heard} == {"green"}
