"""How much CPU a shadow process may take: a token bucket in CPU seconds. Pure; moments are seconds of a monotonic clock.

Refill is share x time; every inference pays the CPU that it really took, so one may overdraw, and the next waits until that is paid
back. Over any stretch of W seconds it spends at most share x (W + SAVED_S) and one inference.
"""

#: Seconds of refill that may be saved up: frames come at their own times, and a bucket that keeps nothing loses what it gets between two.
SAVED_S = 1.0


class CpuBudget:
    """Tokens of one shadow process."""

    def __init__(self, share: float, *, now_s: float) -> None:
        """`share`: of one core, above 0. Starts without savings."""
        self.share = share
        self._tokens_s = 0.0
        self._filled_s = now_s

    def is_open(self, now_s: float) -> bool:
        """Whether an inference may begin."""
        self._fill(now_s)
        return self._tokens_s >= 0.0

    def pay(self, cpu_s: float, now_s: float) -> None:
        """Take what was spent since the last payment."""
        self._fill(now_s)
        self._tokens_s -= cpu_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next inference may begin."""
        self._fill(now_s)
        return max(0.0, -self._tokens_s / self.share)

    def _fill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._filled_s) * self.share
        self._filled_s = max(now_s, self._filled_s)
        self._tokens_s = min(self._tokens_s + gained, self.share * SAVED_S)
