"""Three buffers between capture and inference (free -> filling -> ready -> in_use -> free) and the count of every frame.

A frame that is inferred in place goes from filling to in_use at once. At most one frame is ready and a newer one replaces it: latest
wins. What is not inferred is counted by reason, so that at any moment and for each session grabbed = inferred + sum of dropped + in_flight.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from agent.inference.pictures import Inputs, Picture
from agent.sources.base import Array
from agent.sources.states import DropReason

BUFFERS = 3


class BufferState(StrEnum):
    """Who owns a buffer."""

    FREE = "free"
    #: Capture decodes into it.
    FILLING = "filling"
    #: Waits for inference.
    READY = "ready"
    #: Inference reads it.
    IN_USE = "in_use"


#: The members by names of the module: a class would be asked for them a dozen times per frame.
_FREE, _FILLING, _READY, _IN_USE = BufferState.FREE, BufferState.FILLING, BufferState.READY, BufferState.IN_USE


@dataclass(slots=True, eq=False)
class Frame:
    """One buffer with the frame it holds; only its owner by `state` touches `data`."""

    #: What is inferred: the picture, or the part of it that the pipeline looks at.
    data: Array
    state: BufferState = BufferState.FREE
    session: int = 0
    seq: int = 0
    #: Seconds of the monotonic clock at the grab.
    captured_s: float = 0.0
    #: Unix milliseconds at the grab.
    at_ms: int = 0
    #: Whose memory `data` is; other pipelines may look at it too.
    picture: Picture | None = None
    #: Where models share what they make of it; None when one pipeline alone sees it.
    inputs: Inputs | None = None


@dataclass(slots=True)
class Tally:
    """What became of the frames of one session, or of several."""

    grabbed: int = 0
    inferred: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    #: Grabbed and not yet decided, decoded, waiting or being inferred.
    in_flight: int = 0

    def add(self, other: "Tally") -> None:
        """Take the other's counts in."""
        self.grabbed += other.grabbed
        self.inferred += other.inferred
        self.dropped.update(other.dropped)
        self.in_flight += other.in_flight

    @property
    def is_balanced(self) -> bool:
        """Whether every grabbed frame is accounted for."""
        return self.grabbed == self.inferred + self.dropped.total() + self.in_flight


class FrameBuffers:
    """The buffers of one pipeline. Capture calls `drop`, `fill`, `publish`, `claim`; inference `pick`; both `finish`."""

    def __init__(self, *, max_age_s: float, now: Callable[[], float]) -> None:
        self._max_age_s = max_age_s
        self._now = now
        self._frames = [Frame(data=np.empty(0, np.uint8)) for _ in range(BUFFERS)]
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._wanted = True
        self._is_closed = False
        self._total = Tally()
        self._open: dict[int, Tally] = {}

    # --- capture ---

    def drop(self, session: int, reason: DropReason) -> None:
        """Count a grabbed frame that is dropped before a buffer was filled."""
        with self._lock:
            tally = self._tally(session)
            tally.grabbed += 1
            tally.dropped[reason] += 1

    def fill(self, session: int, seq: int, *, captured_s: float, at_ms: int) -> Frame | None:
        """Count a grabbed frame; returns the buffer to decode it into, where it is in flight until it is finished.

        None when it was dropped: inference asked for none and the frame that waits is not old (`not_wanted`), or no buffer is free.
        """
        with self._lock:
            tally, free, ready = self._tally(session), None, None
            for frame in self._frames:
                if frame.state is _FREE:
                    free = frame
                elif frame.state is _READY:
                    ready = frame
            tally.grabbed += 1
            if not self._is_wanted(ready):
                tally.dropped[DropReason.NOT_WANTED] += 1
                return None
            if free is None:
                tally.dropped[DropReason.NO_BUFFER] += 1
                return None
            tally.in_flight += 1
            free.state, free.session, free.seq = _FILLING, session, seq
            free.captured_s, free.at_ms = captured_s, at_ms
            return free

    def publish(self, frame: Frame) -> None:
        """Make the filled frame the ready one; one that waited is counted as `superseded`."""
        with self._lock:
            older = self._find(_READY)
            if older is not None:
                self._free(older, DropReason.SUPERSEDED)
            if self._is_closed:
                self._free(frame, DropReason.SHUTDOWN)
                return
            frame.state = _READY
            self._wanted = False
            self._condition.notify_all()

    def claim(self, frame: Frame) -> bool:
        """Use the filled frame at once; returns whether that was possible: nothing waits or is in use, it is not old, nothing is closed."""
        with self._lock:
            if self._is_closed or self._now() - frame.captured_s > self._max_age_s:
                return False
            for other in self._frames:
                if other.state is _READY or other.state is _IN_USE:
                    return False
            frame.state = _IN_USE
            return True

    # --- inference ---

    def pick(self, timeout_s: float) -> Frame | None:
        """The ready frame, now in use; None when none came in time or the buffers were closed. One that is too old is dropped."""
        with self._condition:
            if self._condition.wait_for(lambda: self._is_closed or self._find(_READY) is not None, timeout_s) is False:
                return None
            frame = self._find(_READY)
            if frame is None or self._is_closed:
                return None
            self._wanted = True
            if self._now() - frame.captured_s > self._max_age_s:
                self._free(frame, DropReason.STALE)
                return None
            frame.state = _IN_USE
            return frame

    def finish(self, frame: Frame, reason: DropReason | None = None) -> None:
        """Give back a frame that was being filled, picked or claimed: inferred, or dropped for the reason."""
        with self._lock:
            self._free(frame, reason)

    # --- both ---

    def close(self) -> None:
        """Take no more frames; the one that waits is counted as `shutdown`, `pick` returns at once."""
        with self._lock:
            self._is_closed = True
            ready = self._find(_READY)
            if ready is not None:
                self._free(ready, DropReason.SHUTDOWN)
            self._condition.notify_all()

    def total(self) -> Tally:
        """The counts over all sessions, a copy."""
        with self._lock:
            total = Tally()
            for tally in (self._total, *self._open.values()):
                total.add(tally)
            return total

    def sessions(self) -> dict[int, Tally]:
        """The counts of the newest session and of those before it that still have a frame in flight, copies."""
        with self._lock:
            copies = {}
            for session, tally in self._open.items():
                copies[session] = Tally()
                copies[session].add(tally)
            return copies

    def _find(self, state: BufferState) -> Frame | None:
        for frame in self._frames:  # no generator: this runs several times per frame
            if frame.state is state:
                return frame
        return None

    def _is_wanted(self, ready: Frame | None) -> bool:
        """Whether one more frame is, while this one waits."""
        return self._wanted if ready is None else self._now() - ready.captured_s > self._max_age_s / 2

    def _tally(self, session: int) -> Tally:
        """The counts of the session that is captured now."""
        tally = self._open.get(session)
        if tally is None:
            self._fold_settled()
            tally = self._open[session] = Tally()
        return tally

    def _free(self, frame: Frame, reason: DropReason | None) -> None:
        self._settle(frame.session, reason)
        frame.state = _FREE
        if frame.picture is not None:
            frame.picture.release()
            frame.picture = frame.inputs = None

    def _settle(self, session: int, reason: DropReason | None) -> None:
        tally = self._open[session]
        tally.in_flight -= 1
        if reason is None:
            tally.inferred += 1
        else:
            tally.dropped[reason] += 1

    def _fold_settled(self) -> None:
        for session in [number for number, tally in self._open.items() if tally.in_flight == 0]:
            self._total.add(self._open.pop(session))
