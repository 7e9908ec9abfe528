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
    #: The picture is held for this frame; else the capture thread holds it as long as the frame is in use.
    is_holding: bool = False
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
        #: By state; a frame that is being filled is its filler's alone.
        self._free = [Frame(data=np.empty(0, np.uint8)) for _ in range(BUFFERS)]
        self._ready: Frame | None = None
        self._in_use = 0
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
            tally = self._open.get(session) or self._begun(session)
            tally.grabbed += 1
            tally.dropped[reason] += 1

    def fill(self, session: int, seq: int, *, captured_s: float, at_ms: int) -> Frame | None:
        """Count a grabbed frame; returns the buffer to decode it into, where it is in flight until it is finished.

        None when it was dropped: inference asked for none and the frame that waits is not old (`not_wanted`), or no buffer is free.
        """
        with self._lock:
            tally, ready = self._open.get(session) or self._begun(session), self._ready
            tally.grabbed += 1
            if not (self._wanted if ready is None else self._now() - ready.captured_s > self._max_age_s / 2):
                tally.dropped[DropReason.NOT_WANTED] += 1
                return None
            if not self._free:
                tally.dropped[DropReason.NO_BUFFER] += 1
                return None
            tally.in_flight += 1
            frame = self._free.pop()
            frame.state, frame.session, frame.seq = _FILLING, session, seq
            frame.captured_s, frame.at_ms = captured_s, at_ms
            return frame

    def publish(self, frame: Frame) -> None:
        """Make the filled frame the ready one; one that waited is counted as `superseded`."""
        with self._lock:
            if self._ready is not None:
                self._settle(self._ready, DropReason.SUPERSEDED)
            if self._is_closed:
                self._settle(frame, DropReason.SHUTDOWN)
                return
            frame.state, self._ready = _READY, frame
            self._wanted = False
            self._condition.notify_all()

    def claim(self, frame: Frame) -> bool:
        """Use the filled frame at once; returns whether that was possible: nothing waits or is in use, it is not old, nothing is closed."""
        with self._lock:
            if self._is_closed or self._ready is not None or self._in_use or self._now() - frame.captured_s > self._max_age_s:
                return False
            frame.state, self._in_use = _IN_USE, 1
            return True

    # --- inference ---

    def pick(self, timeout_s: float) -> Frame | None:
        """The ready frame, now in use; None when none came in time or the buffers were closed. One that is too old is dropped."""
        with self._condition:
            if self._condition.wait_for(lambda: self._is_closed or self._ready is not None, timeout_s) is False:
                return None
            frame = self._ready
            if frame is None or self._is_closed:
                return None
            self._wanted = True
            if self._now() - frame.captured_s > self._max_age_s:
                self._settle(frame, DropReason.STALE)
                return None
            frame.state, self._ready = _IN_USE, None
            self._in_use += 1
            return frame

    def finish(self, frame: Frame, reason: DropReason | None = None) -> None:
        """Give back a frame that was being filled, picked or claimed: inferred, or dropped for the reason."""
        with self._lock:
            self._settle(frame, reason)

    # --- both ---

    def close(self) -> None:
        """Take no more frames; the one that waits is counted as `shutdown`, `pick` returns at once."""
        with self._lock:
            self._is_closed = True
            if self._ready is not None:
                self._settle(self._ready, DropReason.SHUTDOWN)
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

    def _begun(self, session: int) -> Tally:
        """The counts of a session that begins; those of sessions without a frame in flight are added up."""
        for number in [number for number, tally in self._open.items() if tally.in_flight == 0]:
            self._total.add(self._open.pop(number))
        tally = self._open[session] = Tally()
        return tally

    def _settle(self, frame: Frame, reason: DropReason | None) -> None:
        """Count what became of a frame, whatever its state, and free its buffer."""
        tally = self._open[frame.session]
        tally.in_flight -= 1
        if reason is None:
            tally.inferred += 1
        else:
            tally.dropped[reason] += 1
        if frame.state is _IN_USE:
            self._in_use -= 1
        elif frame is self._ready:
            self._ready = None
        frame.state = _FREE
        self._free.append(frame)
        picture, frame.picture, frame.inputs = frame.picture, None, None
        if frame.is_holding and picture is not None:
            frame.is_holding = False
            picture.release()
