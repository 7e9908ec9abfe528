"""Who tells the time. Everything that waits or stamps takes a `Clock`; nothing else reads MOORING_CLOCK.

MOORING_CLOCK=<start>,<speed>[,<origin>] runs all processes of a demo faster: at the system time `origin` the clock shows `start`
(which lies in the past), then runs `speed` times as fast until it has caught up with the system clock, which it never overtakes.
Without an origin the first process to read the variable is the origin and writes it back for its children. Certificates, TLS,
MQTT keep-alive and watchdogs use system time, never this clock.
"""

import os
import threading
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

from protocol.errors import ConfigError

ENVIRONMENT_NAME = "MOORING_CLOCK"
MAX_SPEED = 10_000.0


class Clock(Protocol):
    """Tells the time and waits by it."""

    @property
    def speed(self) -> float:
        """How many seconds of this clock pass in one second of the system clock; 1.0 for the real one."""
        ...

    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of this clock since some fixed moment; never falls."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set or `timeout_s` seconds of this clock have passed; returns whether it is set."""
        ...


class SystemClock:
    """The system's own clock."""

    speed = 1.0

    #: The system's own function, without a call around it: it is asked several times per frame.
    monotonic = staticmethod(time.monotonic)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(max(0.0, timeout_s))


class AcceleratedClock:
    """A clock that started in the past and runs fast until it meets the system clock; see the module's text."""

    def __init__(self, *, start: datetime, speed: float, origin: datetime) -> None:
        self._start = start
        self._speed = speed
        self._lag_s = (origin - start).total_seconds()
        self._mono_offset_s = (datetime.now(UTC) - origin).total_seconds() - time.monotonic()

    @property
    def speed(self) -> float:
        return self._speed if self._is_behind(self._real_elapsed_s()) else 1.0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        elapsed = self._real_elapsed_s()
        return elapsed * self._speed if self._is_behind(elapsed) else elapsed + self._lag_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        end = self.monotonic() + timeout_s
        while (left := end - self.monotonic()) > 0:
            if event.wait(left / self.speed):
                return True
        return event.is_set()

    def _real_elapsed_s(self) -> float:
        return time.monotonic() + self._mono_offset_s

    def _is_behind(self, elapsed_s: float) -> bool:
        return elapsed_s * (self._speed - 1.0) < self._lag_s


def from_environment(environment: MutableMapping[str, str] | None = None) -> Clock:
    """The clock that MOORING_CLOCK asks for, else the system's. Writes the origin back into the environment.

    Raises: ConfigError naming the value when it is malformed, starts in the future or runs slower than time.
    """
    env = os.environ if environment is None else environment
    text = env.get(ENVIRONMENT_NAME, "").strip()
    if not text:
        return SystemClock()
    parts = [part.strip() for part in text.split(",")]
    try:
        start, speed = _instant(parts[0]), float(parts[1])
        origin = _instant(parts[2]) if len(parts) == 3 else datetime.now(UTC)
        well_formed = len(parts) in (2, 3) and 1.0 <= speed <= MAX_SPEED and start <= origin
    except (IndexError, ValueError):
        well_formed = False
    if not well_formed:
        raise ConfigError(
            f"{ENVIRONMENT_NAME}={text!r} is not <start>,<speed>[,<origin>].",
            hint=f"Wanted: an ISO 8601 instant in the past, a factor from 1 to {MAX_SPEED:g}, e.g. 2026-03-01T00:00:00Z,60.",
        )
    env[ENVIRONMENT_NAME] = f"{start.isoformat()},{speed:g},{origin.isoformat()}"
    return AcceleratedClock(start=start, speed=speed, origin=origin)


def _instant(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(text)
    return value.astimezone(UTC)


def to_unix_ms(moment: datetime) -> int:
    """Unix milliseconds of an aware moment."""
    return round(moment.timestamp() * 1000)


def unix_ms_of(clock: Clock) -> Callable[[], int]:
    """Tells the clock's Unix milliseconds; of the system's clock without the way over a `datetime`, which costs five times as much."""
    if isinstance(clock, SystemClock):
        return _system_unix_ms
    return lambda: to_unix_ms(clock.now())


def _system_unix_ms() -> int:
    return round(time.time() * 1000)


def from_unix_ms(value: int) -> datetime:
    """The aware UTC moment of Unix milliseconds. Raises: ValueError, OverflowError when out of the calendar's range."""
    return datetime.fromtimestamp(value / 1000, UTC)
