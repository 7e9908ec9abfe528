"""What each pipeline takes from a capture: buffers, pace, region and counts of its own, though frames are grabbed and decoded once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.inference.frames import Frame, FrameBuffers
from agent.inference.motion import MotionGate
from agent.inference.pacing import RateLimit
from agent.inference.pictures import Picture
from agent.inference.regions import Region
from agent.sources.base import Array, Need
from agent.sources.states import DropReason


class Feed:
    """One pipeline's share of a capture. The capture thread calls it, but for `want_one`."""

    def __init__(
        self,
        buffers: FrameBuffers,
        *,
        max_fps: float = 0.0,
        has_model: Callable[[], bool],
        need: Callable[[], Need | None] = lambda: None,
        region: Region | None = None,
        gate: MotionGate | None = None,
    ) -> None:
        self.buffers = buffers
        self.need = need
        self._limit = RateLimit(max_fps)
        self._has_model = has_model
        self._region = region
        self._gate = gate
        self._forced = threading.Event()

    def ease(self, stride: int) -> None:
        """Let one of so many due frames through; any thread."""
        self._limit.stride = stride

    def want_one(self) -> None:
        """Let the next frame through whatever its pace and the motion gate say; any thread."""
        self._forced.set()

    def offer(self, session: int, seq: int, media_s: float, *, captured_s: float, at_ms: int) -> Frame | None:
        """Count a grabbed frame; returns the buffer that waits for its pixels, None when it was dropped, for a reason that is counted."""
        self.buffers.grabbed(session)
        reason = self._why_not(media_s)
        if reason is not None:
            self.buffers.drop(session, reason)
            return None
        self._limit.take(media_s)
        return self.buffers.fill(session, seq, captured_s=captured_s, at_ms=at_ms)

    def give(self, frame: Frame, picture: Picture, *, is_shared: bool) -> None:
        """Put the decoded picture, or the pipeline's part of it, into the buffer and hand it to inference.

        `is_shared`: other pipelines see the same one.
        """
        data = _part(picture.data, self._region)
        is_forced = self._forced.is_set()
        if self._gate is not None and not self._gate.is_open(data, frame.captured_s) and not is_forced:
            self.buffers.finish(frame, DropReason.NO_MOTION)
            return
        if is_forced:
            self._forced.clear()
        picture.hold()
        frame.picture, frame.data = picture, data
        frame.inputs = picture.inputs_of(self._region) if is_shared else None
        self.buffers.publish(frame)

    def fail(self, frame: Frame) -> None:
        """Give a buffer back whose frame could not be decoded."""
        self.buffers.finish(frame, DropReason.DECODE_ERROR)

    def _why_not(self, media_s: float) -> DropReason | None:
        if not self._limit.is_due(media_s) and not self._forced.is_set():
            return DropReason.RATE_LIMITED
        if not self._has_model() and not self._forced.is_set():
            return DropReason.MODEL_UNAVAILABLE
        return None if self.buffers.is_wanted else DropReason.NOT_WANTED


class Feeds:
    """All feeds of one source; a thread that is stuck in the source's driver keeps those that it was about to serve."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._feeds: tuple[Feed, ...] = ()
        self._serving = 0

    def __len__(self) -> int:
        return len(self._feeds)

    def attach(self, feed: Feed) -> None:
        """Serve it from the next frame on."""
        with self._condition:
            self._feeds = (*self._feeds, feed)

    def detach(self, feed: Feed, *, timeout_s: float) -> None:
        """Serve it no more; returns when the frame that is being served is done, or after the time."""
        with self._condition:
            self._feeds = tuple(one for one in self._feeds if one is not feed)
            self._condition.wait_for(lambda: self._serving == 0, timeout_s)

    @contextmanager
    def serving(self) -> Iterator[tuple[Feed, ...]]:
        """The feeds that the frame grabbed last is for."""
        with self._condition:
            feeds = self._feeds
            self._serving += 1
        try:
            yield feeds
        finally:
            with self._condition:
                self._serving -= 1
                self._condition.notify_all()

    def need(self) -> Need | None:
        """What the most demanding of the models that are there needs; None without any."""
        needs = [need for feed in self._feeds if (need := feed.need()) is not None]
        if len(needs) < 2:
            return needs[0] if needs else None
        return Need(max(need.width for need in needs), max(need.height for need in needs), all(need.is_either for need in needs))


def _part(data: Array, region: Region | None) -> Array:
    return data if region is None else region.of(data)
