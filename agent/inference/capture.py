"""The capture thread of one source: opens it, grabs every frame, decodes once those that any pipeline will infer, opens again when lost.

It infers what it captured itself while that costs less than handing frames over, and makes inputs for a thread that has more to do than
itself (`agent.inference.handover`).
"""

import math
import threading
import time
from collections.abc import Callable

from agent.inference.feeds import Feed, Feeds
from agent.inference.frames import Frame
from agent.inference.handover import Handover
from agent.inference.pictures import PicturePool
from agent.sources.backoff import full_jitter_s
from agent.sources.base import DecodeError, Source, SourceEndedError, SourceLostError
from agent.sources.states import SourceState
from protocol.clock import Clock

#: Seconds before a lost source is opened again: first and longest pause; full jitter below it.
REOPEN_FIRST_S = 0.5
REOPEN_MAX_S = 30.0
#: Seconds between two looks at what the models need: they change with releases.
LOOK_S = 1.0


class Capture:
    """Runs one source until told to stop. `run` is the thread's body; the rest may be read from any thread."""

    def __init__(
        self,
        source: Source,
        feeds: Feeds,
        *,
        clock: Clock,
        now_ms: Callable[[], int],
        next_session: Callable[[], int],
        is_live: bool = True,
    ) -> None:
        """`is_live`: the source gives frames whether or not they are taken."""
        self.source = source
        self.handover = Handover(is_live=is_live)
        self._feeds = feeds
        self._pictures = PicturePool()
        self._clock = clock
        self._now_ms = now_ms
        self._next_session = next_session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="capture", daemon=True)
        self.state = SourceState.OPENING
        self.session = 0
        #: Seconds of the monotonic clock at the last sign of life of the source or of this thread; infinite while it infers.
        self.alive_s = clock.monotonic()
        self._text = ""
        #: Stable code of the error that the text tells of.
        self.code = ""
        #: The last frame of this session that could not be decoded, in words.
        self._broken = ""
        self._frames = 0

    @property
    def text(self) -> str:
        """Why the source is lost or ended, or what it says about itself."""
        return self._text or self.source.text or self._broken

    @property
    def pictures_made(self) -> int:
        """How many pictures hold memory: it does not grow with the frames."""
        return self._pictures.made

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; returns whether it ended. One that is stuck in a driver closes its source when it comes back."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        """Open, capture, open again; returns when stopped or when a source that does not repeat has ended."""
        failures = 0
        while not self._stop.is_set():
            try:
                self._play()
            except SourceEndedError as ended:
                if not self.source.repeats:
                    self.state, self._text, self.code = SourceState.ENDED, str(ended), ended.code
                    break
            except SourceLostError as lost:
                failures = 0 if self._frames else failures + 1
                self.state, self._text, self.code = SourceState.LOST, str(lost), lost.code
                self.source.close()
                pause_s = full_jitter_s(failures, first_s=REOPEN_FIRST_S, max_s=REOPEN_MAX_S)
                self.alive_s = self._clock.monotonic() + pause_s
                self._clock.wait(self._stop, pause_s)
        self.source.close()
        if self.state is not SourceState.ENDED:
            self.state = SourceState.STOPPED

    def _play(self) -> None:
        """One session, until stopped or until the source is better opened again for what the models need.

        Raises: SourceEndedError, SourceLostError.
        """
        self._frames = 0
        self.alive_s = self._clock.monotonic()
        self.source.suits(self._feeds.need())
        self.source.open()
        self.session, self._broken = self._next_session(), ""
        looked_s, running = self._clock.monotonic(), SourceState.RUNNING
        while not self._stop.is_set():
            grabbed = self.source.grab(self._stop)
            self.alive_s = now_s = self._clock.monotonic()
            if grabbed is not None:
                if self.state is not running:
                    self.state, self._text, self.code = running, "", ""
                self._serve(grabbed.media_s, captured_s=now_s)
                self._frames += 1
            if now_s >= self.handover.due_s:
                self._look(now_s)
            if now_s - looked_s >= LOOK_S:
                looked_s = now_s
                if not self.source.suits(self._feeds.need()):
                    return

    def _serve(self, media_s: float, *, captured_s: float) -> None:
        """Offer the frame grabbed last to every pipeline; decode it when any of them takes it."""
        at_ms, taken = self._now_ms(), []
        feeds = self._feeds.begin()
        try:
            for feed in feeds:  # no comprehension: that is a call, once per frame
                frame = feed.offer(self.session, self._frames, media_s, captured_s=captured_s, at_ms=at_ms)
                if frame is not None:
                    taken.append((feed, frame))
            if taken:
                self._decode(taken, is_alone=len(feeds) == 1)
        finally:
            self._feeds.end()

    def _decode(self, taken: list[tuple[Feed, Frame]], *, is_alone: bool) -> None:
        """`is_alone`: no other pipeline looks at this source."""
        is_in_place, is_preparing = is_alone and self.handover.is_in_place, is_alone and self.handover.is_preparing
        picture = self._pictures.take()
        try:
            picture.data = self.source.retrieve(picture.data)
        except DecodeError as error:
            self._broken = str(error)
            for feed, frame in taken:
                feed.fail(frame)
        else:
            for feed, frame in taken:
                if feed.give(frame, picture, is_shared=len(taken) > 1, in_place=is_in_place, is_preparing=is_preparing):
                    self._infer(feed, frame)
        picture.release()

    def _infer(self, feed: Feed, frame: Frame) -> None:
        """Infer in this thread; who looks for its signs of life is told that it is no driver that keeps it."""
        self.alive_s = math.inf
        before_s, cpu_s = feed.infer_s, time.thread_time() if self.handover.is_sample else None
        feed.infer(frame)
        self.handover.inferred_in_place(feed.infer_s - before_s, None if cpu_s is None else time.thread_time() - cpu_s)
        self.alive_s = self._clock.monotonic()

    def _look(self, now_s: float) -> None:
        """Decide who infers from now on."""
        feeds = [feed for feed in self._feeds if feed.may_infer]
        self.handover.look(
            now_s,
            thread_cpu_s=time.thread_time(),
            infer_s=sum(feed.infer_s for feed in feeds),
            inferred=sum(feed.inferred for feed in feeds),
            prepare_s=sum(feed.prepare_s for feed in feeds),
        )
        if self.handover.is_in_place and len(self._feeds) == 1:
            self._pictures.trim()
