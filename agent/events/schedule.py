"""When a rule makes events: stretches of the site's wall clock."""

from collections.abc import Callable, Sequence
from datetime import datetime, time, tzinfo

from agent.windows import Window, is_open
from protocol import windows
from protocol.clock import from_unix_ms

_MINUTE_MS = 60_000


class Schedule:
    """Whether a moment is inside one of the windows; without windows, or while nobody knows the time, it is."""

    __slots__ = ("_answer", "_minute", "_site_time", "_windows", "_zone")

    def __init__(self, stretches: Sequence[windows.Window], zone: tzinfo, *, site_time: Callable[[datetime], datetime | None]) -> None:
        """`site_time` gives the best known time when the agent's clock says one; None: it is not known."""
        self._windows = tuple(Window(frozenset(one.days), time.fromisoformat(one.from_), time.fromisoformat(one.to)) for one in stretches)
        self._zone, self._site_time = zone, site_time
        self._minute, self._answer = -1, True

    def is_open(self, at_ms: int) -> bool:
        """Whether the rule makes events at this moment of the agent's clock."""
        if not self._windows:
            return True
        if (minute := at_ms // _MINUTE_MS) != self._minute:  # walls show minutes
            now = self._site_time(from_unix_ms(at_ms))
            self._minute, self._answer = minute, now is None or is_open(self._windows, self._zone, now)
        return self._answer
