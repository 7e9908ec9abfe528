"""The time by which windows are judged: this device's clock when it is right, else the server's signed time carried on (UPDATES 4.6)."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from protocol.clock import Clock

#: Seconds for which a signed time is carried on by the monotonic clock before another one is asked for: quartz loses seconds in a day.
FRESH_S = 86_400.0
#: adjtimex(2): the clock was not set by anybody who knows; and room for its `struct timex` on any architecture.
_TIME_ERROR, _TIMEX_BYTES = 5, 1024


@dataclass(frozen=True, slots=True)
class _Signed:
    moment: datetime
    #: Reading of the monotonic clock when it was heard.
    at: float


class SiteTime:
    """The best known time. May be asked from any thread."""

    def __init__(self, clock: Clock, *, floor: Callable[[], datetime], is_synchronized: Callable[[], bool] | None = None) -> None:
        """`floor`: it is not earlier than this. `is_synchronized`: whether somebody keeps the clock right; None asks the kernel."""
        self._clock, self._floor = clock, floor
        self._is_synchronized = kernel_is_synchronized if is_synchronized is None else is_synchronized
        self._signed: _Signed | None = None

    def hear(self, signed: datetime) -> None:
        """The server signed this time just now."""
        self._signed = _Signed(signed, self._clock.monotonic())

    @property
    def wants_signed(self) -> bool:
        """Whether the signed time would be better than what is known."""
        is_stale = self._signed is None or self._clock.monotonic() - self._signed.at > FRESH_S
        return is_stale and not self._is_clock_right(self._clock.now())

    def __call__(self, now: datetime) -> datetime | None:
        """The best known time when the clock says `now`; None: the clock is wrong, and nobody told the time."""
        if self._is_clock_right(now):
            return now
        if self._signed is not None:
            return self._signed.moment + timedelta(seconds=self._clock.monotonic() - self._signed.at)
        # nobody keeps it right, but it is possible: without a server there is nothing better
        return now if now >= self._floor() else None

    def _is_clock_right(self, now: datetime) -> bool:
        return now >= self._floor() and (self._clock.speed != 1.0 or self._is_synchronized())


def kernel_is_synchronized() -> bool:
    """Whether the kernel's clock is kept by a time service; True when the kernel does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return True
    return bool(state != _TIME_ERROR)
