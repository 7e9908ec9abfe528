"""Clocks of tests: one stands still until a test moves it, one moves only while nobody is at work."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 1, 12, tzinfo=UTC)


class FakeClock:
    """Tells the time that the test says."""

    speed = 1.0

    def __init__(self, start: datetime = START) -> None:
        self._start = self._now = start

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.advance(timeout_s)
        return event.is_set()

    def advance(self, seconds: float = 0.0, *, days: float = 0.0) -> None:
        """Move on."""
        self._now += timedelta(seconds=seconds, days=days)


class Lockstep:
    """Time that passes only while no frame is being inferred: a slow machine infers the same frames as a fast one, in its own time."""

    speed = 1.0

    def __init__(self) -> None:
        self._now_s = 0.0
        self.in_flight: Callable[[], int] = lambda: 0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now_s, UTC)

    def monotonic(self) -> float:
        return self._now_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        while self.in_flight() and not event.wait(0.001):
            pass
        self._now_s += max(0.0, timeout_s)
        return event.is_set()
