"""Capture with real sources: every frame of every session is accounted for, sources that go away come back."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from simulators.clock import FakeClock, Lockstep
from simulators.mjpeg import SECRET, MjpegCamera, jpeg
from simulators.videos import BLUE, GREEN, RED, write_picture, write_video
from waiting import wait_until

from agent.inference.capture import Capture
from agent.inference.captures import STUCK_S, SharedSource
from agent.inference.feeds import Feed, Feeds
from agent.inference.frames import Frame, FrameBuffers
from agent.orders import FolderSource, StreamSource, VideoSource
from agent.sources.base import Array, DecodeError, Grabbed, Need, Source, SourceEndedError, SourceLostError
from agent.sources.folder import PictureFolder
from agent.sources.opencv import VideoFile
from agent.sources.states import Channel, DropReason, SourceState
from agent.sources.stream import Stream
from protocol.clock import Clock, SystemClock


@dataclass
class Bench:
    """A capture and a stand-in for inference that takes what is ready."""

    capture: Capture
    buffers: FrameBuffers
    taken: list[tuple[int, int]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    #: Cleared: inference is busy.
    is_free: threading.Event = field(default_factory=threading.Event)

    def start(self, *, is_busy: bool) -> None:
        if not is_busy:
            self.is_free.set()
        self.thread = threading.Thread(target=self._infer)
        self.thread.start()
        self.capture.start()

    def _infer(self) -> None:
        while not self.stop.is_set():
            frame = self.buffers.pick(0.05)
            if frame is not None:
                self.taken.append((frame.session, frame.seq))
                self.is_free.wait()
                self.buffers.finish(frame)

    def close(self) -> None:
        self.stop.set()
        self.is_free.set()
        self.capture.stop()
        self.buffers.close()
        self.thread.join()
        assert self.capture.join(60)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(
        source: Source,
        *,
        max_fps: float = 0.0,
        has_model: Callable[[], bool] = lambda: True,
        max_age_s: float = 10.0,
        is_busy: bool = False,
        pace: Lockstep | None = None,
    ) -> Bench:
        """`pace`: the source's clock, which is to wait for inference."""
        clock, sessions = SystemClock(), itertools.count(1)
        buffers = FrameBuffers(max_age_s=max_age_s, now=clock.monotonic)
        if pace is not None:
            pace.in_flight = lambda: buffers.total().in_flight
        feeds = Feeds()
        feeds.attach(Feed(buffers, max_fps=max_fps, has_model=has_model))
        capture = Capture(source, feeds, clock=clock, now_ms=lambda: 0, next_session=lambda: next(sessions))
        made.append(Bench(capture, buffers))
        made[-1].start(is_busy=is_busy)
        return made[-1]

    yield make
    for one in made:
        one.close()
        total = one.buffers.total()
        assert total.is_balanced
        assert total.in_flight == 0
        assert total.inferred == len(one.taken)


def video(path: Path, *, loop: bool = False, clock: Clock | None = None) -> VideoFile:
    return VideoFile(VideoSource(kind="video", path=str(path), loop=loop), clock=clock or SystemClock())


def test_every_frame_of_a_video_is_accounted_for_and_the_end_is_an_end(bench, tmp_path: Path):
    one = bench(video(write_video(tmp_path / "v.avi", [BLUE, GREEN, RED] * 10, fps=100)))
    wait_until(lambda: one.capture.state is SourceState.ENDED, what="the end of the video")
    total = one.buffers.total()
    assert total.grabbed == 30
    assert total.is_balanced
    assert "ended after 30 frames" in one.capture.text


def test_each_loop_of_a_video_is_a_session_of_its_own_that_starts_at_frame_0(bench, tmp_path: Path):
    pace = Lockstep()
    one = bench(video(write_video(tmp_path / "v.avi", [RED] * 5, fps=50), loop=True, clock=pace), pace=pace)
    wait_until(lambda: one.capture.session >= 4, what="the fourth loop")
    wait_until(lambda: any(session == 4 for session, _ in list(one.taken)))
    assert {session for session, _ in one.taken} >= {1, 2, 3}
    assert max(seq for _, seq in one.taken) <= 4
    assert one.capture.state is SourceState.RUNNING


def test_a_limit_of_a_tenth_takes_every_tenth_frame(bench, tmp_path: Path):
    pace = Lockstep()
    one = bench(video(write_video(tmp_path / "v.avi", [RED] * 60, fps=100), clock=pace), max_fps=10.0, pace=pace)
    wait_until(lambda: one.capture.state is SourceState.ENDED)
    wait_until(lambda: one.buffers.total().in_flight == 0)
    assert one.taken == [(1, seq) for seq in range(9, 60, 10)]
    assert one.buffers.total().dropped == {DropReason.RATE_LIMITED: 54}


def test_without_a_model_frames_are_grabbed_and_counted(bench, tmp_path: Path):
    one = bench(video(write_video(tmp_path / "v.avi", [RED] * 10, fps=100)), has_model=lambda: False)
    wait_until(lambda: one.capture.state is SourceState.ENDED)
    assert one.buffers.total().dropped == {DropReason.MODEL_UNAVAILABLE: 10}


def test_while_inference_is_busy_frames_are_not_decoded_and_the_freshest_one_waits(bench, tmp_path: Path):
    one = bench(video(write_video(tmp_path / "v.avi", [RED] * 60, fps=200)), max_age_s=60.0, is_busy=True)
    wait_until(lambda: one.capture.state is SourceState.ENDED)
    dropped = one.buffers.total().dropped
    assert dropped[DropReason.NOT_WANTED] > 30
    assert dropped[DropReason.SUPERSEDED] == 0


def test_a_frame_that_waits_for_long_is_replaced_by_a_newer_one(bench, tmp_path: Path):
    one = bench(video(write_video(tmp_path / "v.avi", [RED] * 60, fps=100)), max_age_s=0.1, is_busy=True)
    wait_until(lambda: one.capture.state is SourceState.ENDED)
    assert one.buffers.total().dropped[DropReason.SUPERSEDED] > 1


def test_a_broken_picture_in_a_folder_is_counted_and_named(bench, tmp_path: Path):
    for index in range(4):
        write_picture(tmp_path / f"{index}.png", RED, size=(64 + 16 * index, 48))
    (tmp_path / "2.png").write_bytes(b"broken")
    one = bench(PictureFolder(FolderSource(kind="folder", path=str(tmp_path), loop=True, fps=50), clock=SystemClock()))
    wait_until(lambda: {0, 1, 3} <= {seq for _, seq in one.taken} and one.buffers.total().dropped[DropReason.DECODE_ERROR] >= 2)
    assert {seq for _, seq in one.taken} == {0, 1, 3}
    assert wait_until(lambda: "2.png" in one.capture.text and one.capture.text)
    assert one.capture.state is SourceState.RUNNING


def test_a_missing_video_is_lost_and_found_when_it_comes(bench, tmp_path: Path):
    path = tmp_path / "v.avi"
    one = bench(video(path))
    wait_until(lambda: one.capture.state is SourceState.LOST)
    assert "no video file" in one.capture.text
    write_video(tmp_path / "new.avi", [RED] * 5, fps=50).rename(path)
    wait_until(lambda: one.capture.state is SourceState.ENDED)
    assert one.buffers.total().grabbed == 5


def test_a_stream_that_is_cut_is_opened_again_as_a_new_session(bench):
    with MjpegCamera(jpeg(GREEN)) as camera:
        url = camera.url.replace("//", f"//{SECRET.replace('@', '%40').replace(':', '%3A', 0).replace('p%40ss:', 'p%40ss%3A')}@")
        one = bench(Stream(StreamSource(kind="stream", url=url), clock=SystemClock(), read_timeout_ms=5000))
        wait_until(lambda: len(one.taken) > 3)
        camera.is_cut.set()
        wait_until(lambda: one.capture.state is SourceState.LOST)
        assert "p%40ss" not in one.capture.text
        camera.is_cut.clear()
        wait_until(lambda: any(session == 2 for session, _ in one.taken), what="frames of the second session")
        assert one.capture.state is SourceState.RUNNING


class Scripted:
    """A source that does what the script says: a frame, an undecodable one, an end, a loss."""

    repeats = True
    text = decoder = refused = ""

    def __init__(self, script: list[str]) -> None:
        self._script = script
        self.is_finished = threading.Event()
        self.opened = self.closed = 0

    def suits(self, need: Need | None) -> bool:
        return True

    def open(self) -> None:
        self.opened += 1

    def grab(self, stop: threading.Event) -> Grabbed | None:
        if not self._script:
            self.is_finished.set()
            stop.wait(0.05)
            return None
        self._step = self._script.pop(0)
        stop.wait(0.001)
        if self._step == "end":
            raise SourceEndedError("the end")
        if self._step == "lost":
            raise SourceLostError("lost")
        return Grabbed(0.0)

    def retrieve(self, into: Array) -> Array:
        if self._step == "broken":
            raise DecodeError("broken")
        return into

    def close(self) -> None:
        self.closed += 1

    def take_channels(self) -> Mapping[str, Channel]:
        return {}


def test_any_mix_of_frames_ends_and_losses_stays_balanced(bench):
    script = (["frame"] * 7 + ["broken", "frame", "end"]) * 20 + ["lost", "frame"]
    source = Scripted(list(script))
    one = bench(source)
    assert source.is_finished.wait(60)
    total = one.buffers.total()
    assert total.grabbed == sum(step in ("frame", "broken") for step in script)
    assert total.is_balanced
    assert one.capture.session == 22
    assert np.unique([session for session, _ in one.taken]).size > 1


class Counted:
    """Gives so many black frames, then none."""

    repeats = False
    text = decoder = refused = ""

    def __init__(self, frames: int) -> None:
        self._left = frames

    def suits(self, need: Need | None) -> bool:
        return True

    def open(self) -> None:
        pass

    def grab(self, stop: threading.Event) -> Grabbed | None:
        if not self._left:
            stop.wait(0.01)
            return None
        self._left -= 1
        return Grabbed(0.0)

    def retrieve(self, into: Array) -> Array:
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        pass

    def take_channels(self) -> Mapping[str, Channel]:
        return {}


def test_a_thread_that_infers_what_it_captured_is_not_taken_for_one_that_is_stuck_in_its_driver():
    clock = FakeClock()
    buffers = FrameBuffers(max_age_s=10.0, now=clock.monotonic)
    seen: list[tuple[int, bool]] = []

    def infer(frame: Frame) -> None:
        clock.advance(10 * STUCK_S)
        shared.tend()
        seen.append((frame.seq, threading.current_thread() is not tester and feed.is_inferring))
        buffers.finish(frame)

    def make_capture(feeds: Feeds) -> Capture:
        capture = Capture(Counted(20), feeds, clock=clock, now_ms=lambda: 0, next_session=lambda: 1, is_live=False)
        capture.handover.is_in_place = True
        return capture

    tester, feed = threading.current_thread(), Feed(buffers, has_model=lambda: True, infer=infer, now=clock.monotonic)
    shared = SharedSource(make_capture, now=clock.monotonic)
    shared.attach(feed)
    wait_until(lambda: buffers.total().grabbed == 20 and not buffers.total().in_flight, what="all frames")
    shared.detach(feed)
    shared.stop()
    assert seen == [(number, True) for number in range(20)]  # nobody else picks frames: all were inferred in place
    assert buffers.total().inferred == 20
    assert shared.stuck == 0
    assert feed.infer_s >= 20 * 10 * STUCK_S
    assert not feed.is_inferring


def test_frames_of_a_source_that_several_look_at_are_handed_over():
    clock = SystemClock()
    feeds, all_buffers = Feeds(), [FrameBuffers(max_age_s=60.0, now=clock.monotonic) for _ in range(2)]

    def never(_: Frame) -> None:
        raise AssertionError("inferred in place")

    for buffers in all_buffers:
        feeds.attach(Feed(buffers, has_model=lambda: True, infer=never))
    capture = Capture(Counted(1), feeds, clock=clock, now_ms=lambda: 0, next_session=lambda: 1)
    capture.handover.is_in_place = True
    capture.start()
    picked = [(buffers, wait_until(lambda buffers=buffers: buffers.pick(0.1), what="a frame")) for buffers in all_buffers]
    for buffers, frame in picked:
        buffers.finish(frame)
    capture.stop()
    assert capture.join(60)


@pytest.mark.parametrize("looking", [1, 2])
def test_inputs_of_frames_that_are_handed_over_are_made_by_the_capture_thread_when_one_pipeline_looks(looking: int):
    clock = FakeClock()
    feeds, all_buffers = Feeds(), [FrameBuffers(max_age_s=60.0, now=clock.monotonic) for _ in range(looking)]
    made: list[tuple[int, bool, str]] = []

    def prepare(frame: Frame) -> None:
        clock.advance(0.25)
        made.append((frame.seq, frame.inputs is not None, threading.current_thread().name))

    all_feeds = [Feed(one, has_model=lambda: True, prepare=prepare, now=clock.monotonic) for one in all_buffers]
    for feed in all_feeds:
        feeds.attach(feed)
    capture = Capture(Counted(1), feeds, clock=clock, now_ms=lambda: 0, next_session=lambda: 1, is_live=False)
    capture.handover.is_preparing = True
    capture.start()
    frames = [(one, wait_until(lambda one=one: one.pick(0.1), what="a frame")) for one in all_buffers]
    assert made == ([(0, True, "capture")] if looking == 1 else [])
    assert all_feeds[0].prepare_s == (0.25 if looking == 1 else 0.0)
    for buffers, frame in frames:
        buffers.finish(frame)
    capture.stop()
    assert capture.join(60)
