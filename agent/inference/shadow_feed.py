"""How frames get from the inference process to the shadow process: one buffer that changes its owner by message, no lock.

The inference process copies a frame only while the buffer is its own, and the shadow gives it back only when it has CPU left for the
next one: without tokens a frame costs the champion one comparison.
"""

import contextlib
import mmap
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from agent.inference.messages import Prediction
from agent.inference.shadow_messages import MAX_FRAME_BYTES, MAX_NOTE_BYTES, Layout, Offered
from agent.inference.writing import write_offered
from agent.sources.base import Array

FREE = b"\0"


@dataclass(slots=True)
class _Missed:
    skipped: int = 0
    too_large: int = 0


class Feed:
    """The inference process's end of one shadow process. Pipelines call it from their threads; it never waits for the shadow."""

    def __init__(self, sock: socket.socket, memory: int, plans: Mapping[str, str], *, on_end: "Callable[[Feed], None]") -> None:
        """`memory`: the file that both map. `plans`: per pipeline what `plan_key` says of its candidate; others do not feed."""
        self._socket, self._plans, self._on_end = sock, dict(plans), on_end
        self._map = mmap.mmap(memory, MAX_FRAME_BYTES)
        self._buffer = np.frombuffer(self._map, np.uint8)
        self._lock = threading.Lock()
        #: Set by the reader when the shadow gives the buffer back; whoever takes it clears it under the lock.
        self._is_free = False
        self._missed: dict[str, _Missed] = {}
        self._reader = threading.Thread(target=self._read, name="shadow-feed", daemon=True)
        self._reader.start()

    def plan_of(self, pipeline: str) -> str | None:
        """The plan by which the pipeline's candidate makes its input; None when it has none here."""
        return self._plans.get(pipeline)

    def claim(self, pipeline: str) -> bool:
        """Take the buffer for a frame of the pipeline; False when the shadow has it, then the frame is counted as skipped."""
        with self._lock:
            if self._is_free:
                self._is_free = False
                return True
            self._missed_of(pipeline).skipped += 1
            return False

    def fill(self, pipeline: str, data: Array) -> bool:
        """Copy the frame into the claimed buffer; False, giving it back, when the frame is longer than the buffer."""
        size = data.nbytes
        if size > MAX_FRAME_BYTES:
            with self._lock:
                self._is_free = True
                self._missed_of(pipeline).too_large += 1
            return False
        np.copyto(self._buffer[:size].view(data.dtype).reshape(data.shape), data)
        return True

    def hand_over(self, answer: Prediction, layout: Layout) -> None:
        """Give the filled buffer to the shadow."""
        with self._lock:
            missed = self._missed.pop(answer.pipeline, _Missed())
        note = write_offered(Offered(answer, layout, missed.skipped, missed.too_large))
        try:
            if len(note) <= MAX_NOTE_BYTES:
                self._socket.send(note, socket.MSG_DONTWAIT)
                return
        except OSError:
            pass  # the shadow is gone, which `_read` sees, or the kernel has no room for the note now
        with self._lock:
            self._is_free = True
            missed.too_large += 1
            self._missed[answer.pipeline] = missed

    def give_back(self) -> None:
        """The claimed buffer is not needed after all."""
        with self._lock:
            self._is_free = True

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _missed_of(self, pipeline: str) -> _Missed:
        return self._missed.setdefault(pipeline, _Missed())

    def _read(self) -> None:
        """Hear the shadow give the buffer back, until it is gone."""
        with contextlib.suppress(OSError):
            while self._socket.recv(1):
                with self._lock:
                    self._is_free = True
        self._is_free = False
        self._on_end(self)
        self._socket.close()


class Offer:
    """One frame on its way to the shadow; its owner calls `finish` or `cancel`, once."""

    def __init__(self, feed: Feed, pipeline: str, plan: str, size: tuple[int, int] | None) -> None:
        self._feed, self._pipeline, self._plan, self._size = feed, pipeline, plan, size
        self._layout: Layout | None = None
        self._is_spent = False

    def take_input(self, plan: str, data: Array, prepared_ms: float) -> None:
        """Copy the model's input, while the model is held, if the candidate makes its own by the same plan."""
        if plan == self._plan:
            self._take(data, is_input=True, prepared_ms=prepared_ms)

    def finish(self, answer: Prediction, data: Array) -> None:
        """Hand the frame over with the champion's answer to it; `data` is the frame as captured."""
        if self._layout is None and not self._is_spent:
            self._take(data, is_input=False, prepared_ms=0.0)
        if self._layout is not None:
            self._feed.hand_over(answer, self._layout)

    def cancel(self) -> None:
        """There is no answer to compare with."""
        if not self._is_spent or self._layout is not None:
            self._feed.give_back()

    def _take(self, data: Array, *, is_input: bool, prepared_ms: float) -> None:
        self._is_spent = True
        if self._feed.fill(self._pipeline, data):
            self._layout = Layout(tuple(data.shape), data.dtype.name, is_input, prepared_ms, self._size)


class ShadowPort:
    """Where the pipelines of the inference process offer frames; whether a shadow runs or not."""

    def __init__(self) -> None:
        #: The shadow that runs; read by pipelines without a lock, replaced as a whole.
        self.feed: Feed | None = None

    def begin(self, pipeline: str, data: Array) -> Offer | None:
        """An offer for the pipeline's next frame, as captured, or window of readings; None when no shadow wants it now."""
        feed = self.feed
        if feed is None or (plan := feed.plan_of(pipeline)) is None or not feed.claim(pipeline):
            return None
        return Offer(feed, pipeline, plan, (data.shape[0], data.shape[1]) if data.dtype == np.uint8 else None)

    def open(self, sock: socket.socket, memory: int, plans: Mapping[str, str]) -> None:
        """Feed this shadow from now on; one fed before is hung up on."""
        before, self.feed = self.feed, Feed(sock, memory, plans, on_end=self._ended)
        if before is not None:
            before.close()

    def _ended(self, feed: Feed) -> None:
        if self.feed is feed:
            self.feed = None
