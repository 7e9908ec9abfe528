"""What each pipeline takes from a capture: buffers, pace, region and counts of its own, though frames are grabbed and decoded once."""

import threading
from collections.abc import Callable, Iterator

from agent.inference.frames import Frame, FrameBuffers
from agent.inference.motion import MotionGate
from agent.inference.pacing import RateLimit
from agent.inference.pictures import Picture
from agent.inference.regions import Region
from agent.sources.base import Need
from agent.sources.states import DropReason


class Feed:
    """One pipeline's share of a capture. The capture thread calls it, but for `want_one` and `infer`."""

    def __init__(
        self,
        buffers: FrameBuffers,
        *,
        max_fps: float = 0.0,
        has_model: Callable[[], bool],
        need: Callable[[], Need | None] = lambda: None,
        region: Region | None = None,
        gate: MotionGate | None = None,
        infer: Callable[[Frame], None] | None = None,
        prepare: Callable[[Frame], None] | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`infer`: does all that is to be done with a frame that is in use, and finishes it; `now`: seconds of the clock it is timed by.

        `prepare`: makes the model's input of a frame beforehand and leaves it in the frame's `inputs`; raises nothing.
        """
        self.buffers = buffers
        #: Seconds of all inferences, and their number.
        self.infer_s = 0.0
        self.inferred = 0
        #: Seconds of all inputs that were made beforehand.
        self.prepare_s = 0.0
        #: Whether `infer` runs, in whichever thread.
        self.is_inferring = False
        self.need = need
        self._limit = RateLimit(max_fps)
        #: Not every frame is due.
        self._is_limited = max_fps > 0
        self._has_model = has_model
        self._region = region
        self._gate = gate
        self._infer = infer
        self._prepare = prepare
        self._now = now
        self._is_forced = False

    def ease(self, stride: int) -> None:
        """Let one of so many due frames through; any thread."""
        self._limit.stride = stride
        self._is_limited = self._limit.is_limiting

    def want_one(self) -> None:
        """Let the next frame through whatever its pace and the motion gate say; any thread."""
        self._is_forced = True

    def offer(self, session: int, seq: int, media_s: float, *, captured_s: float, at_ms: int) -> Frame | None:
        """Count a grabbed frame; returns the buffer that waits for its pixels, None when it was dropped, for a reason that is counted."""
        is_limited = self._is_limited
        if is_limited and not self._limit.is_due(media_s) and not self._is_forced:
            self.buffers.drop(session, DropReason.RATE_LIMITED)
            return None
        if not self._has_model() and not self._is_forced:
            self.buffers.drop(session, DropReason.MODEL_UNAVAILABLE)
            return None
        frame = self.buffers.fill(session, seq, captured_s=captured_s, at_ms=at_ms)
        if is_limited and frame is not None:
            self._limit.take(media_s)
        return frame

    @property
    def may_infer(self) -> bool:
        """Whether `infer` can be called by whoever captures."""
        return self._infer is not None

    def infer(self, frame: Frame) -> None:
        """Infer a frame that is in use: one thread at a time, which the buffers see to."""
        if self._infer is None:
            raise RuntimeError("this feed was made without anybody who infers")
        began_s = self._now()
        self.is_inferring = True
        self._infer(frame)
        self.is_inferring = False
        self.infer_s += self._now() - began_s
        self.inferred += 1

    def give(self, frame: Frame, picture: Picture, *, is_shared: bool, in_place: bool = False, is_preparing: bool = False) -> bool:
        """Put the decoded picture, or the pipeline's part of it, into the buffer; returns whether the caller is to infer it.

        That is `in_place` and while nothing is being inferred or waits; else it is handed over, with the model's input made of it when
        `is_preparing`. `is_shared`: other pipelines see the same picture.
        """
        data = picture.data if self._region is None else self._region.of(picture.data)
        is_forced = self._is_forced
        if self._gate is not None and not self._gate.is_open(data, frame.captured_s) and not is_forced:
            self.buffers.finish(frame, DropReason.NO_MOTION)
            return False
        if is_forced:
            self._is_forced = False
        frame.picture, frame.data = picture, data
        frame.inputs = picture.inputs_of(self._region) if is_shared or is_preparing else None
        if in_place and not self.is_inferring and self.buffers.claim(frame):
            return True  # the caller holds the picture meanwhile
        picture.hold()
        frame.is_holding = True
        if is_preparing and self._prepare is not None:
            began_s = self._now()
            self._prepare(frame)
            self.prepare_s += self._now() - began_s
        self.buffers.publish(frame)
        return False

    def fail(self, frame: Frame) -> None:
        """Give a buffer back whose frame could not be decoded."""
        self.buffers.finish(frame, DropReason.DECODE_ERROR)


class Feeds:
    """All feeds of one source; a thread that is stuck in the source's driver keeps those that it was about to serve."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._feeds: tuple[Feed, ...] = ()
        self._serving = 0
        #: Somebody left once, and waited: `end` tells nobody before, once per frame.
        self._is_awaited = False

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds)

    def attach(self, feed: Feed) -> None:
        """Serve it from the next frame on."""
        with self._lock:
            self._feeds = (*self._feeds, feed)

    def detach(self, feed: Feed, *, timeout_s: float) -> None:
        """Serve it no more; returns when the frame that is being served is done, or after the time."""
        with self._condition:
            self._feeds = tuple(one for one in self._feeds if one is not feed)
            self._is_awaited = True
            self._condition.wait_for(lambda: self._serving == 0, timeout_s)

    def begin(self) -> tuple[Feed, ...]:
        """The feeds that the frame grabbed last is for; `end` says that they are served."""
        with self._lock:
            self._serving += 1
            return self._feeds

    def end(self) -> None:
        """All that `begin` returned are served."""
        with self._lock:
            self._serving -= 1
            if self._is_awaited and not self._serving:
                self._condition.notify_all()

    def need(self) -> Need | None:
        """What the most demanding of the models that are there needs; None without any."""
        needs = [need for feed in self._feeds if (need := feed.need()) is not None]
        if len(needs) < 2:
            return needs[0] if needs else None
        return Need(max(need.width for need in needs), max(need.height for need in needs), all(need.is_either for need in needs))
