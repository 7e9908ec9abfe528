"""The motion gate: does anything move in what a pipeline looks at? Frames in which nothing does need no inference.

A picture of about 160 pixels' width in gray is compared with the running average of those before it. The gate stays open for a while
after the last motion, and opens by itself every `idle_s`, so that a scene in which nothing moves is still looked at.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.sources.base import Array
from agent.sources.opencv import small_gray
from protocol.look import Motion

#: Width in pixels of the picture that is compared.
WIDTH = 160
#: Seconds after which the average has taken up 63 % of a lasting change: a parked car becomes background, a cloud moves no gate for long.
ADAPT_S = 8.0

Gray = NDArray[np.float32]


class MotionGate:
    """Sees the frames of one pipeline in order; used by one thread."""

    def __init__(self, rules: Motion) -> None:
        self._rules = rules
        self._average: Gray | None = None
        self._work: Gray = np.empty(0, np.float32)
        self._seen_s = -math.inf
        self._moved_s = -math.inf
        self._passed_s = -math.inf

    def is_open(self, pixels: Array, now_s: float) -> bool:
        """Take the frame in; returns whether it is to be inferred. `now_s`: moment of capture, seconds of a monotonic clock."""
        gray = small_gray(pixels, WIDTH)
        if self._changed_share(gray, now_s) >= self._rules.min_area:
            self._moved_s = now_s
        is_open = now_s - self._moved_s <= self._rules.hold_s or now_s - self._passed_s >= self._rules.idle_s
        if is_open:
            self._passed_s = now_s
        return is_open

    def _changed_share(self, gray: NDArray[Any], now_s: float) -> float:
        average = self._average
        if average is None or average.shape != gray.shape:  # the first frame, or another resolution: all of it is new
            self._average, self._work = gray.astype(np.float32), np.empty(gray.shape, np.float32)
            self._seen_s = now_s
            return 1.0
        work = self._work
        np.subtract(gray, average, out=work)
        share = float(np.count_nonzero(np.abs(work) > self._rules.threshold)) / work.size
        work *= 1.0 - math.exp(-max(0.0, now_s - self._seen_s) / ADAPT_S)
        average += work
        self._seen_s = now_s
        return share
