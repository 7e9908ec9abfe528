"""What a device may send, receive and write in a day, and what it does when that runs short.

A day is one of UTC by the agent's clock. Figures survive a restart: they are kept every few minutes, not with each change, because
keeping them writes too. While the clock is known to be wrong, everything counts for the day that was remembered.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

from agent.config import BudgetConfig
from protocol.clock import Clock

#: Share of a budget from which telemetry becomes coarser.
NEAR = 0.8
#: How many times longer telemetry windows are, per level.
STRETCHES = (1.0, 6.0, 30.0)
#: Seconds between two times that the figures are kept; a power cut costs so much.
KEEP_S = 600.0
#: Name of the figures in the store.
VALUE = "budget.day"


class Level(IntEnum):
    """How much of a budget is left."""

    FREE = 0
    #: Little.
    NEAR = 1
    #: Nothing.
    SPENT = 2


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used on one day, bytes."""

    #: ISO date, UTC.
    day: str = ""
    sent: int = 0
    received: int = 0
    written: int = 0

    @property
    def exchanged(self) -> int:
        """Sent and received."""
        return self.sent + self.received


def level_of(used: float, limit: float) -> Level:
    """How much is left of a budget; 0: there is none, and never any trouble."""
    if not limit or used < limit * NEAR:
        return Level.FREE
    return Level.SPENT if used >= limit else Level.NEAR


class Budgets:
    """The day's account. Used by one thread."""

    def __init__(
        self, *, load: Callable[[str], str | None], save: Callable[[str, str], None], clock: Clock, limits: BudgetConfig | None = None
    ) -> None:
        self.limits = limits or BudgetConfig()
        self._save, self._clock = save, clock
        self._today = parse_spent(load(VALUE))
        self._seen = Spent()
        self._kept_s, self._kept = clock.monotonic(), self._today

    @property
    def today(self) -> Spent:
        """What was used today."""
        return self._today

    def observe(self, *, sent: int, received: int, written: int | None, is_time_known: bool) -> None:
        """Take in the totals since the process started; `written` None: this system does not tell. Raises: DeviceError of the store."""
        day = self._clock.now().date().isoformat()
        if not self._today.day or (is_time_known and day != self._today.day):
            self._today = Spent(day)
        # a process that ended and was not waited for yet is missing for a moment: totals never fall
        now = Spent("", sent, received, max(self._seen.written, written or 0))
        before, self._seen = self._seen, now
        self._today = replace(
            self._today,
            sent=self._today.sent + max(0, now.sent - before.sent),
            received=self._today.received + max(0, now.received - before.received),
            written=self._today.written + max(0, now.written - before.written),
        )
        if self._clock.monotonic() - self._kept_s >= KEEP_S or self._today.day != self._kept.day:
            self.keep()

    def keep(self) -> None:
        """Remember the figures for the next start. Raises: DeviceError of the store."""
        if self._today != self._kept:
            self._save(VALUE, json.dumps(asdict(self._today)))
        self._kept_s, self._kept = self._clock.monotonic(), self._today

    @property
    def traffic(self) -> Level:
        """How much may still be exchanged today."""
        return level_of(self._today.exchanged, self.limits.bytes_per_day)

    @property
    def writes(self) -> Level:
        """How much may still be written today."""
        return level_of(self._today.written, self.limits.writes_per_day_mb * 2**20)

    @property
    def stretch(self) -> float:
        """How many times longer telemetry windows are now."""
        return STRETCHES[max(min(self.traffic, Level.NEAR), self.writes)]

    @property
    def held_streams(self) -> frozenset[str]:
        """Streams that wait in the outbox until tomorrow; events, audit and states never do."""
        return frozenset(("tel",)) if self.traffic is Level.SPENT else frozenset()

    @property
    def is_frugal(self) -> bool:
        """Whether what nobody keeps (class `ring`) is not sent."""
        return self.traffic is not Level.FREE

    def findings(self) -> list[tuple[str, str, str]]:
        """What is wrong as (condition, text, subject)."""
        found = []
        if self.traffic is not Level.FREE:
            does = "telemetry waits until tomorrow (UTC)" if self.traffic is Level.SPENT else "telemetry is coarser"
            text = f"{self._today.exchanged / 1e6:.1f} of {self.limits.bytes_per_day / 1e6:.1f} MB were exchanged today: {does}."
            found.append(("budget_bytes", text, ""))
        if self.writes is not Level.FREE:
            text = f"{self._today.written / 2**20:.1f} of {self.limits.writes_per_day_mb:g} MiB were written today: telemetry is coarser."
            found.append(("budget_writes", text, ""))
        return found

    def figures(self) -> dict[str, int | str]:
        """For `status`: the day, what was used, and the limits (0: none)."""
        limits = {"bytes_per_day": self.limits.bytes_per_day, "writes_per_day": int(self.limits.writes_per_day_mb * 2**20)}
        return {**asdict(self._today), **limits}


def parse_spent(text: str | None) -> Spent:
    """The figures that were kept; nothing when there are none or they cannot be read."""
    try:
        found = Spent(**json.loads(text or ""))
    except (ValueError, TypeError):
        return Spent()
    counts = (found.sent, found.received, found.written)
    return found if isinstance(found.day, str) and all(type(count) is int and count >= 0 for count in counts) else Spent()
