"""Predictions on their way from the inference process: counted, compared, made events of, and offered to whoever listens now."""

from collections import deque
from collections.abc import Callable, Sequence

from agent.config import Keep, PipelineConfig
from agent.database.outbox import Draft
from agent.events.detector import EventDetector
from agent.inference.messages import Prediction
from agent.update.site_time import SiteTime
from protocol.clock import Clock, to_unix_ms

#: Predictions that wait for the control loop; more are lost, counted.
MAX_PREDICTIONS = 4096


class Predictions:
    """`take` is called on a thread of the inference process's handle and never waits; all else by the control loop."""

    def __init__(self, *, clock: Clock, source: str, site_time: SiteTime) -> None:
        """`source`: of events about this device."""
        self._clock, self._source, self._site_time = clock, source, site_time
        self._waiting, self._lost = deque[Prediction](), 0
        self._detectors: dict[str, EventDetector] = {}
        #: Per pipeline since the start: how many came, and when the last one did, in seconds of the agent's clock.
        self.counts: dict[str, int] = {}
        self.last_s: dict[str, float] = {}

    def take(self, prediction: Prediction) -> None:
        """Let the control loop see it, unless too many wait."""
        if len(self._waiting) >= MAX_PREDICTIONS:
            self._lost += 1
        else:
            self._waiting.append(prediction)

    def take_lost(self) -> int:
        """How many found no room since this was asked before."""
        lost, self._lost = self._lost, 0
        return lost

    def watch(self, wanted: Sequence[PipelineConfig], time_zone: str) -> list[Draft]:
        """Watch these pipelines from now on. Those that stay as they are go on; what lasts on the others ends, in the rows returned."""
        old = self._detectors
        kept = {name: one for name, one in old.items() if one.config in wanted and one.time_zone == time_zone}
        self._detectors = {
            one.name: kept.get(one.name) or EventDetector(one, self._source, time_zone=time_zone, site_time=self._site_time)
            for one in wanted
        }
        return _closed([one for name, one in old.items() if name not in kept], self._now_ms(), "configuration")

    def tick(self, *, compare: Callable[[Prediction], None], offer: Callable[[Prediction], None]) -> list[Draft]:
        """The rows that came of what waits: events, and predictions where the pipeline keeps them.

        `compare` gets every prediction, `offer` those of the pipelines that are watched.
        """
        drafts: list[Draft] = []
        for _ in range(len(self._waiting)):
            prediction = self._waiting.popleft()
            self.counts[prediction.pipeline] = self.counts.get(prediction.pipeline, 0) + 1
            self.last_s[prediction.pipeline] = self._clock.monotonic()
            compare(prediction)
            detector = self._detectors.get(prediction.pipeline)
            if detector is None:
                continue
            drafts += detector.observe(prediction)
            if detector.config.keep is Keep.ALL:
                drafts.append(detector.record(prediction))
            offer(prediction)
        now_ms = self._now_ms()
        for detector in self._detectors.values():
            drafts += detector.rest(now_ms)
        return drafts

    def close(self) -> list[Draft]:
        """The rows of what lasts now and is seen no longer, since the agent ends."""
        return _closed([*self._detectors.values()], self._now_ms(), "stopped")

    def _now_ms(self) -> int:
        return to_unix_ms(self._clock.now())


def _closed(detectors: Sequence[EventDetector], now_ms: int, reason: str) -> list[Draft]:
    return [draft for one in detectors for draft in one.close(now_ms, reason)]
