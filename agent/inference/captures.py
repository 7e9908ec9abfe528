"""Sources that pipelines share: whoever looks at one camera or stream gets the frames of one connection and one decoder.

A source is opened for its first pipeline and closed after its last. A capture thread that is stuck in a driver is left behind there and
another one opens the source.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.inference.capture import Capture
from agent.inference.feeds import Feed, Feeds
from agent.orders import CameraSource, FolderSource, PipelineOrder, SensorSource, StreamSource, VideoSource
from agent.sources.base import Source
from agent.sources.states import SourceState
from protocol.clock import Clock, SystemClock, unix_ms_of

#: Seconds without a sign of life of the capture thread after which it is left behind in its driver and another one opens the source.
#: Longer than every timeout of the sources themselves.
STUCK_S = 30.0
#: Capture threads that may be left behind at once.
MAX_STUCK = 4
JOIN_S = 3.0
#: Seconds that a pipeline which leaves waits for the frame that is being decoded for it.
LEAVE_S = 1.0


def make_source(config: PipelineOrder, clock: Clock) -> Source:
    """The source that the pipeline names; nothing is opened yet."""
    match config.source:
        case VideoSource():
            from agent.sources.opencv import VideoFile

            return VideoFile(config.source, clock=clock)
        case CameraSource():
            from agent.sources.opencv import Camera

            return Camera(config.source, clock=clock)
        case StreamSource():
            from agent.sources.stream import Stream

            return Stream(config.source, clock=clock)
        case FolderSource():
            from agent.sources.folder import PictureFolder

            return PictureFolder(config.source, clock=clock)
        case SensorSource():
            from agent.sources.sensor import GapPolicy, SensorStream

            return SensorStream(config.source, clock=clock, gaps=GapPolicy(config.source.gaps))


def may_share(config: PipelineOrder) -> bool:
    """Whether another pipeline with the same source may join in the middle: live pictures; a recording each plays from its start."""
    return isinstance(config.source, CameraSource | StreamSource)


class SharedSource:
    """One source and the pipelines that look at it; any thread."""

    def __init__(self, make_capture: Callable[[Feeds], Capture], *, now: Callable[[], float]) -> None:
        self._make_capture = make_capture
        self._now = now
        self._feeds = Feeds()
        self._capture = make_capture(self._feeds)
        self._stuck: list[Capture] = []
        self._is_started = False

    def __len__(self) -> int:
        """How many pipelines look at it."""
        return len(self._feeds)

    @property
    def capture(self) -> Capture:
        """The capture that reads the source now."""
        return self._capture

    @property
    def stuck(self) -> int:
        """Capture threads that never came back from the driver."""
        return len(self._stuck)

    def attach(self, feed: Feed) -> None:
        """Let a pipeline look at it; the first one opens it."""
        self._feeds.attach(feed)
        if not self._is_started:
            self._is_started = True
            self._capture.start()

    def detach(self, feed: Feed) -> None:
        """Let the pipeline look at it no more."""
        self._feeds.detach(feed, timeout_s=LEAVE_S)

    def tend(self) -> None:
        """Leave a capture thread behind that is stuck in its driver, and open the source in a new one."""
        self._stuck = [capture for capture in self._stuck if not capture.join(0)]
        is_over = self._capture.state in (SourceState.ENDED, SourceState.STOPPED)
        if is_over or self._now() - self._capture.alive_s <= STUCK_S or len(self._stuck) >= MAX_STUCK:
            return
        self._capture.stop()
        self._stuck.append(self._capture)
        self._capture = self._make_capture(self._feeds)
        self._capture.start()

    def stop(self) -> None:
        """Close it."""
        self._capture.stop()
        if self._is_started:
            self._capture.join(JOIN_S)


class Captures:
    """All sources of this process."""

    def __init__(
        self,
        *,
        clock: Clock,
        next_session: Callable[[], int],
        pace: Clock | None = None,
        open_source: Callable[[PipelineOrder, Clock], Source] = make_source,
    ) -> None:
        """`clock` stamps frames; they come at the pace of the world, so capture runs by the system's clock unless `pace` says otherwise."""
        self._clock = clock
        self._pace = SystemClock() if pace is None else pace
        self._next_session = next_session
        self._open_source = open_source
        self._lock = threading.Lock()
        self._sources: list[tuple[PipelineOrder, SharedSource]] = []
        self._keeping = 0

    def __len__(self) -> int:
        """How many sources are open or being opened."""
        return len(self._sources)

    def look(self, config: PipelineOrder, feed: Feed) -> SharedSource:
        """The pipeline's source, opened by this if no other pipeline looks at it."""
        with self._lock:
            shared = self._find(config)
            if shared is None:
                shared = SharedSource(lambda feeds: self._new_capture(config, feeds), now=self._pace.monotonic)
                self._sources.append((config, shared))
        shared.attach(feed)
        return shared

    def leave(self, shared: SharedSource, feed: Feed) -> None:
        """The pipeline looks no more; the last one closes the source."""
        shared.detach(feed)
        if not self._keeping:
            self._close_unused()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Close no source in between, so that a pipeline may be replaced without opening its camera again."""
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1
            if not self._keeping:
                self._close_unused()

    def tend(self) -> None:
        """See to threads that are stuck."""
        with self._lock:
            sources = [shared for _, shared in self._sources]
        for shared in sources:
            shared.tend()

    def _find(self, config: PipelineOrder) -> SharedSource | None:
        if not may_share(config):
            return None
        return next((shared for known, shared in self._sources if known.source == config.source), None)

    def _close_unused(self) -> None:
        with self._lock:
            unused = [shared for _, shared in self._sources if not len(shared)]
            self._sources = [(config, shared) for config, shared in self._sources if len(shared)]
        for shared in unused:
            shared.stop()

    def _new_capture(self, config: PipelineOrder, feeds: Feeds) -> Capture:
        return Capture(
            self._open_source(config, self._pace),
            feeds,
            clock=self._pace,
            now_ms=unix_ms_of(self._clock),
            next_session=self._next_session,
            is_live=not isinstance(config.source, VideoSource | FolderSource),
        )
