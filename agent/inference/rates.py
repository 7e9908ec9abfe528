"""How many inferences a line makes per second: totals of beats over the latest minute. Pure; moments are seconds of a monotonic clock."""

from collections import deque

#: Seconds that a rate is measured over, and below which it says nothing: a single frame would weigh too much.
WINDOW_S, LEAST_S = 60.0, 30.0


class Rate:
    """The latest totals of one line."""

    def __init__(self) -> None:
        self._totals: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, total: int) -> None:
        """Take one total in; totals only grow."""
        self._totals.append((now_s, total))
        while len(self._totals) > 2 and now_s - self._totals[1][0] >= WINDOW_S:
            self._totals.popleft()

    @property
    def per_s(self) -> float | None:
        """Inferences per second over the window; None while it is too short."""
        if not self._totals:
            return None
        (first_s, first), (last_s, last) = self._totals[0], self._totals[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= LEAST_S else None
