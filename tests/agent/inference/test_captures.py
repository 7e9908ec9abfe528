"""One camera, several pipelines: one connection and one decoder, and each pipeline counts every frame for itself."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from simulators.scenes import SceneCamera, plain
from simulators.videos import RED
from waiting import wait_until

from agent.inference.captures import Captures, SharedSource
from agent.inference.feeds import Feed
from agent.inference.frames import FrameBuffers
from agent.orders import PipelineOrder
from agent.sources.base import Need
from agent.sources.states import DropReason, SourceState
from protocol.clock import Clock, SystemClock
from protocol.decoding import decode

CAMERA = {"kind": "camera", "device": "/dev/video7"}


class Viewer:
    """A pipeline without a model: picks what is ready and keeps the ids of what it saw."""

    def __init__(self, captures: Captures, source: dict[str, Any], *, max_fps: float = 0.0, has_model: Callable[[], bool]) -> None:
        self.config = decode(PipelineOrder, {"name": "any", "line": "any", "source": source, "max_fps": max_fps})
        self.buffers = FrameBuffers(max_age_s=60.0, now=SystemClock().monotonic)
        self.feed = Feed(self.buffers, max_fps=max_fps, has_model=has_model)
        self.taken: list[tuple[int, int]] = []
        self.addresses: dict[tuple[int, int], int] = {}
        self._captures = captures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self.source: SharedSource = captures.look(self.config, self.feed)

    def _look(self) -> None:
        while not self._stop.is_set():
            frame = self.buffers.pick(0.05)
            if frame is not None:
                self.addresses[frame.session, frame.seq] = frame.data.__array_interface__["data"][0]
                self.taken.append((frame.session, frame.seq))
                self.buffers.finish(frame)

    def close(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._captures.leave(self.source, self.feed)
            self.buffers.close()
            self._thread.join()
            total = wait_until(lambda: not (made := self.buffers.total()).in_flight and made, what="the frame that was being decoded")
            assert total.is_balanced
            assert total.inferred == len(self.taken)


class Site:
    """Cameras by the name of their device, and whoever looks at them."""

    def __init__(self) -> None:
        self.cameras: list[SceneCamera] = []
        self.viewers: list[Viewer] = []
        sessions = itertools.count(1)
        self.captures = Captures(clock=SystemClock(), next_session=lambda: next(sessions), open_source=self._open)

    def _open(self, _config: PipelineOrder, _clock: Clock) -> SceneCamera:
        self.cameras.append(SceneCamera(plain(RED)))
        return self.cameras[-1]

    def look(self, source: dict[str, Any] = CAMERA, *, max_fps: float = 0.0, has_model: Callable[[], bool] = lambda: True) -> Viewer:
        self.viewers.append(Viewer(self.captures, source, max_fps=max_fps, has_model=has_model))
        return self.viewers[-1]


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for viewer in made.viewers:
        viewer.close()


def test_pipelines_on_one_camera_share_its_connection_and_see_the_same_frames(site: Site):
    one, other = site.look(), site.look()
    wait_until(lambda: len(set(one.taken) & set(other.taken)) > 20, what="frames that both saw")
    assert len(site.cameras) == 1
    assert site.cameras[0].opened == 1
    both = set(one.taken) & set(other.taken)
    assert all(one.addresses[key] == other.addresses[key] for key in both), "each frame is decoded once, into one memory"
    seen = set(one.taken) | set(other.taken)
    one.close()
    other.close()
    assert len(seen) <= site.cameras[0].retrieved <= site.cameras[0].grabbed


def test_each_pipeline_keeps_its_own_pace_and_counts_for_itself(site: Site):
    fast, slow, empty = site.look(), site.look(max_fps=20.0), site.look(has_model=lambda: False)
    wait_until(lambda: len(slow.taken) > 5)
    for viewer in (fast, slow, empty):
        viewer.close()
    assert fast.buffers.total().dropped[DropReason.RATE_LIMITED] == 0
    dropped = slow.buffers.total().dropped
    assert dropped[DropReason.RATE_LIMITED] >= 9 * (len(slow.taken) - 1)
    total = empty.buffers.total()
    assert total.dropped[DropReason.MODEL_UNAVAILABLE] == total.grabbed > 0


def test_frames_that_nobody_takes_are_not_decoded(site: Site):
    one = site.look(has_model=lambda: False)
    wait_until(lambda: one.buffers.total().grabbed > 20)
    assert site.cameras[0].retrieved == 0


def test_who_leaves_takes_nothing_from_who_stays_and_the_last_one_closes_the_camera(site: Site):
    one, other = site.look(), site.look()
    wait_until(lambda: one.taken and other.taken)
    one.close()
    seen = len(other.taken)
    wait_until(lambda: len(other.taken) > seen + 5)
    assert site.cameras[0].is_open
    other.close()
    assert not site.cameras[0].is_open
    assert other.source.capture.state is SourceState.STOPPED


def test_a_camera_whose_pipeline_is_replaced_is_not_opened_again(site: Site):
    before = site.look()
    wait_until(lambda: before.taken)
    with site.captures.kept_open():
        before.close()
        after = site.look(max_fps=50.0)
    wait_until(lambda: after.taken)
    assert [camera.opened for camera in site.cameras] == [1]


def test_other_cameras_and_recordings_are_opened_for_each(site: Site):
    site.look({"kind": "camera", "device": "/dev/video1"})
    site.look({"kind": "camera", "device": "/dev/video2"})
    site.look({"kind": "video", "path": "/same.mp4"})
    site.look({"kind": "video", "path": "/same.mp4"})
    assert len(site.cameras) == 4


def test_a_camera_that_is_unplugged_is_lost_to_all_and_comes_back_to_all_as_a_new_session(site: Site):
    one, other = site.look(), site.look()
    wait_until(lambda: one.taken and other.taken)
    camera = site.cameras[0]
    camera.is_unplugged.set()
    wait_until(lambda: one.source.capture.state is SourceState.LOST)
    assert "no more pictures" in one.source.capture.text or "no camera" in one.source.capture.text
    camera.is_unplugged.clear()
    wait_until(lambda: all(any(session == 2 for session, _ in viewer.taken) for viewer in (one, other)), what="the second session")
    assert one.source.capture.state is SourceState.RUNNING


def test_a_source_that_suits_the_models_no_more_is_opened_again_as_a_new_session_and_was_never_lost(site: Site):
    one = site.look()
    wait_until(lambda: one.taken)
    camera = site.cameras[0]
    camera.is_unsuited.set()
    wait_until(lambda: any(session == 2 for session, _ in one.taken), what="the second session")
    assert camera.opened == 2
    assert one.source.capture.text == ""


def test_the_source_hears_what_the_most_demanding_model_needs(site: Site):
    one = site.look()
    one.feed.need = lambda: Need(224, 96)
    other = site.look()
    other.feed.need = lambda: Need(96, 300, is_either=True)
    wait_until(lambda: site.cameras[0].needs[-1] == Need(224, 300))
    other.close()
    wait_until(lambda: site.cameras[0].needs[-1] == Need(224, 96))


def test_frames_that_cannot_be_decoded_or_change_their_size_are_counted_or_seen_and_it_goes_on(site: Site):
    one, other = site.look(), site.look()
    wait_until(lambda: one.taken)
    camera = site.cameras[0]
    camera.picture = None
    wait_until(lambda: all(viewer.buffers.total().dropped[DropReason.DECODE_ERROR] for viewer in (one, other)))
    for size in ((1, 1), (320, 240), (64, 48)):
        camera.picture = plain(RED, size=size)
        seen = len(one.taken), len(other.taken)
        wait_until(lambda seen=seen: len(one.taken) > seen[0] + 2 and len(other.taken) > seen[1] + 2, what=f"frames of {size}")


def test_there_are_never_more_pictures_than_buffers_hold(site: Site):
    viewers = [site.look() for _ in range(3)]
    wait_until(lambda: all(len(viewer.taken) > 50 for viewer in viewers))
    assert viewers[0].source.capture.pictures_made <= 2 * len(viewers) + 1
