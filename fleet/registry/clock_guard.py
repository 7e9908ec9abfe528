"""The director does not sign while the clock is more than a day ahead of the last time it was seen right: UPDATES 1.2, R5.

A moment that is once signed raises the time floor of every device that sees it, for good: one jump of the clock into the future would
make a fleet refuse everything for years. So a jump needs a person's word. The time last seen is kept in a file beside the director's
roots, moved on by every round of the controller.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path

from protocol.clock import from_unix_ms, to_unix_ms
from protocol.errors import InvalidError, UnavailableError
from protocol.files import read_bounded, write_atomically

#: A clock that moved on by more than this since it was last seen has jumped (UPDATES 1.2).
MAX_JUMP = timedelta(days=1)
#: The time seen is written down at most this often, in seconds of system time.
KEEP_S = 60.0
MAX_FILE_BYTES = 200
#: What devices are asked to wait meanwhile, in seconds.
RETRY_AFTER_S = 600.0


class ClockGuard:
    """One for all processes that share the folder. `speed` is how much faster than the system's the clock runs, for demos."""

    def __init__(self, path: Path, *, speed: float = 1.0) -> None:
        self._path = path
        #: What an accelerated clock moves on between two looks is no jump.
        self._max_jump = max(MAX_JUMP, timedelta(seconds=2 * KEEP_S * speed))
        self._keep = timedelta(seconds=KEEP_S * speed)

    def see(self, now: datetime) -> None:
        """Take note of the time. Raises: UnavailableError (code "clock-jumped") when it is too far ahead of the time last seen."""
        seen = self.last_seen()
        if not self._fits(seen, now):
            raise UnavailableError(f"The director does not sign. {self.advice(now)}", retry_after_s=RETRY_AFTER_S, code="clock-jumped")
        if seen is None or now - seen > self._keep:
            self.confirm(now)

    def is_believed(self, now: datetime) -> bool:
        """Whether the time fits what was last seen; takes note of it when it does."""
        if not self._fits(self.last_seen(), now):
            return False
        self.see(now)
        return True

    def has_jumped(self, now: datetime) -> bool:
        """Whether the time is too far ahead of what was last seen; only looks."""
        return not self._fits(self.last_seen(), now)

    def advice(self, now: datetime) -> str:
        """What a person must know while the time is not believed."""
        seen = self.last_seen() or now
        return (
            f"The clock says {now:%Y-%m-%d %H:%M} UTC and was last seen right at {seen:%Y-%m-%d %H:%M} UTC. Set it; or when it is right "
            "(the server was off) say so: mooring keys clock --yes --reason TEXT, or mooring serve --trust-clock."
        )

    def _fits(self, seen: datetime | None, now: datetime) -> bool:
        return seen is None or now - seen <= self._max_jump

    def confirm(self, now: datetime) -> None:
        """The time is right, whatever was seen before."""
        write_atomically(self._path, json.dumps({"seen": to_unix_ms(now)}).encode(), mode=0o600)

    def last_seen(self) -> datetime | None:
        """The time last seen right; None before the first look. A file that is damaged makes no clock believed: long ago."""
        try:
            return from_unix_ms(int(json.loads(read_bounded(self._path, MAX_FILE_BYTES))["seen"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError, InvalidError):
            return from_unix_ms(0)
