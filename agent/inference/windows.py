"""Beats of the inference process summed up into one telemetry window per pipeline, over restarts of that process too."""

import math
from collections import Counter, deque
from collections.abc import Sequence

from agent.inference.messages import PipelineCount
from agent.sources.states import Channel

#: Latencies that the percentiles of one window are computed from: the latest ones.
MAX_LATENCIES = 4096


class Window:
    """What one pipeline did since the last `begin`."""

    def __init__(self) -> None:
        self._last: PipelineCount | None = None
        self.begin()

    def begin(self) -> None:
        """Start a new window; counts go on from where they are."""
        self.grabbed = self.inferred = self.errors = self.unsent = 0
        self.dropped: Counter[str] = Counter()
        self.latencies_ms: deque[float] = deque(maxlen=MAX_LATENCIES)
        self.channels: dict[str, Channel] = {}

    def restarted(self) -> None:
        """The process died: its totals begin at 0 again."""
        self._last = None

    def add(self, count: PipelineCount) -> None:
        """Take one beat in."""
        last = self._last if self._last is not None and self._last.instance == count.instance else None
        self._last = count
        self.grabbed += count.grabbed - (last.grabbed if last else 0)
        self.inferred += count.inferred - (last.inferred if last else 0)
        self.errors += count.errors - (last.errors if last else 0)
        self.unsent += count.unsent - (last.unsent if last else 0)
        for reason, total in count.dropped.items():
            self.dropped[reason] += total - (last.dropped.get(reason, 0) if last else 0)
        self.latencies_ms.extend(count.latencies_ms)
        for name, channel in count.channels.items():
            self.channels[name] = merged(self.channels[name], channel) if name in self.channels else channel

    def percentile_ms(self, share: float) -> float | None:
        """The latency that `share` (0..1) of the inferences did not exceed; None without any."""
        return percentile(sorted(self.latencies_ms), share)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of ascending values; None when there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def merged(one: Channel, other: Channel) -> Channel:
    """Both summaries as one."""
    filled = [channel for channel in (one, other) if channel.count]
    count = one.count + other.count
    mean = sum(channel.mean * channel.count for channel in filled) / count if count else 0.0
    return Channel(
        count,
        mean,
        min((channel.low for channel in filled), default=0.0),
        max((channel.high for channel in filled), default=0.0),
        one.gaps + other.gaps,
    )
