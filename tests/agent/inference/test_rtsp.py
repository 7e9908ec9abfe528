"""H.264 from a real RTSP server: cut, hung and resumed, while the device's other pipelines go on."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.color_models import make_slot
from simulators.rtsp import RtspServer, write_h264
from simulators.scenes import SceneCamera, plain
from simulators.videos import BLUE
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.captures import Captures
from agent.inference.engine import Line
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Prediction
from agent.inference.pipeline import Pipeline
from agent.orders import CameraSource, PipelineOrder, StreamSource
from agent.sources.base import Source
from agent.sources.states import SourceState
from agent.sources.stream import Stream
from protocol.clock import Clock, SystemClock

#: Patient when it opens, because this machine may be busy; a hang is noticed soon.
OPEN_TIMEOUT_MS, READ_TIMEOUT_MS = 6000, 3000


@pytest.fixture(scope="module")
def video(rtsp_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_h264(tmp_path_factory.mktemp("rtsp") / "red.mp4")


@pytest.fixture
def server(video: Path, free_port: int) -> Iterator[RtspServer]:
    with RtspServer(video, free_port) as made:
        yield made


class Device:
    """Two pipelines, one on the RTSP camera and one on a camera of another kind, and what they said."""

    def __init__(self, line: Line, url: str) -> None:
        self.seen: dict[str, list[Prediction]] = {"street": [], "yard": []}
        sessions = itertools.count(1)
        captures = Captures(clock=SystemClock(), next_session=lambda: next(sessions), open_source=self._open)
        sources = {"street": StreamSource(kind="stream", url=url), "yard": CameraSource(kind="camera")}
        self.pipelines = {
            name: Pipeline(
                PipelineOrder(name=name, line="color", source=source),
                line,
                captures=captures,
                runtime=RuntimeConfig(max_age_ms=60_000),
                on_prediction=lambda prediction, name=name: (self.seen[name].append(prediction), True)[1],
            )
            for name, source in sources.items()
        }

    @staticmethod
    def _open(config: PipelineOrder, clock: Clock) -> Source:
        if isinstance(config.source, StreamSource):
            return Stream(config.source, clock=clock, open_timeout_ms=OPEN_TIMEOUT_MS, read_timeout_ms=READ_TIMEOUT_MS)
        return SceneCamera(plain(BLUE), fps=20)

    def sessions(self) -> set[int]:
        return {prediction.session for prediction in self.seen["street"]}

    def is_lost(self) -> bool:
        return [finding.code for finding in self.pipelines["street"].findings()] == ["source_lost"]

    def wait_until_the_yard_goes_on(self) -> None:
        before = len(self.seen["yard"])
        wait_until(lambda: len(self.seen["yard"]) > before + 5, what="the other pipeline to go on")


@pytest.fixture
def device(server: RtspServer, tmp_path: Path) -> Iterator[Device]:
    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    line = Line("color", marks=marks, now=SystemClock().monotonic)
    assert line.activate(make_slot(tmp_path / "slot"), RuntimeConfig()).ok
    made = Device(line, server.url)
    for pipeline in made.pipelines.values():
        pipeline.start()
    yield made
    for pipeline in made.pipelines.values():
        pipeline.stop()
        count = wait_until(lambda pipeline=pipeline: not (made := pipeline.count()).in_flight and made, what="the last frame")
        assert count.grabbed == count.inferred + sum(count.dropped.values())
    line.deactivate()
    marks.close()


def test_a_server_whose_power_is_cut_is_lost_and_what_it_sends_after_is_a_new_session(device: Device, server: RtspServer):
    wait_until(lambda: device.seen["street"], what="the first frame over RTSP")
    assert device.seen["street"][0].top[0].label == "red"
    assert device.pipelines["street"].count().decoder == "cpu: h264 320x240"
    before = device.sessions()
    server.kill()
    wait_until(device.is_lost, what="the loss")
    device.wait_until_the_yard_goes_on()
    server.start()
    wait_until(lambda: device.sessions() - before, what="frames after the cut")
    assert min(device.sessions() - before) > max(before)
    wait_until(lambda: device.pipelines["street"].count().source_state is SourceState.RUNNING)
    assert device.pipelines["street"].findings() == []


def test_a_server_that_hangs_is_given_up_after_the_timeout_and_opened_again(device: Device, server: RtspServer):
    wait_until(lambda: device.seen["street"], what="the first frame over RTSP")
    before = device.sessions()
    server.freeze()
    wait_until(device.is_lost, what="the loss")
    assert "127.0.0.1" in device.pipelines["street"].findings()[0].text
    device.wait_until_the_yard_goes_on()
    text = "cannot be opened"
    wait_until(lambda: text in device.pipelines["street"].count().source_text, what="an attempt that the server takes and never answers")
    device.wait_until_the_yard_goes_on()
    server.thaw()
    wait_until(lambda: device.sessions() - before, what="frames after the hang")
