"""How fast this device may download: one token bucket that all its downloads share, so that others keep their part of the link."""

import threading
from collections.abc import Callable

from protocol.clock import Clock

#: Seconds of the rate that may come at once after a pause, and the least bytes: a packet must fit.
BURST_S, LEAST_BURST_BYTES = 1.0, 16 << 10
#: Longest wait, in seconds, before somebody is asked again whether the download shall stop.
LONGEST_WAIT_S = 0.5


class TokenBucket:
    """Over any stretch of t seconds no more than `rate · t + burst` bytes are let through. May be used from any thread."""

    def __init__(self, bytes_per_s: float, *, clock: Clock) -> None:
        """Start full. `bytes_per_s`: 0 = no limit."""
        self._clock = clock
        self._lock = threading.Lock()
        self._never = threading.Event()
        self._rate = bytes_per_s
        self._tokens = float(self.burst_bytes)
        self._at = clock.monotonic()

    @property
    def burst_bytes(self) -> int:
        """Bytes that may come at once."""
        return max(LEAST_BURST_BYTES, int(self._rate * BURST_S))

    def limit_to(self, bytes_per_s: float) -> None:
        """Another rate from now on; 0 = no limit."""
        with self._lock:
            self._refill()
            self._rate = bytes_per_s
            self._tokens = min(self._tokens, self.burst_bytes)

    def spend(self, count: int, *, should_stop: Callable[[], bool]) -> float:
        """Wait until `count` bytes may pass, or somebody says stop; returns the seconds waited."""
        begin = self._clock.monotonic()
        while count > 0:
            with self._lock:
                self._refill()
                taken = count if not self._rate else min(count, int(self._tokens))
                self._tokens -= taken if self._rate else 0
                missing = min(count - taken, self.burst_bytes) - self._tokens
            count -= taken
            if count <= 0 or should_stop():
                break
            self._clock.wait(self._never, min(LONGEST_WAIT_S * self._clock.speed, max(0.001, missing / self._rate)))
        return self._clock.monotonic() - begin

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._tokens = min(float(self.burst_bytes), self._tokens + (now - self._at) * self._rate)
        self._at = now
