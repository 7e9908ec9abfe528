"""What the server counted: per line since its start, as sums that can be subtracted; percentiles come from a histogram. Pure.

Buckets grow by a quarter power of two, so that a percentile is right within 19 %.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Upper bounds of the buckets in milliseconds: 0.05 ms to 55 min; the last bucket has none.
BOUNDS_MS = tuple(0.05 * 2 ** (index / 4) for index in range(104))


@dataclass(slots=True)
class Counter:
    """Counted by the threads of the server, under its lock."""

    answered: int = 0
    #: Requests that the client or the model got wrong: 4xx and 500.
    failed: int = 0
    #: Requests that found the queue full or the line without a model: 503.
    refused: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))

    def add(self, milliseconds: float) -> None:
        """Count an answer with the time from its request's last byte until it could be sent."""
        self.answered += 1
        self.buckets[bisect.bisect_left(BOUNDS_MS, milliseconds)] += 1


@dataclass(frozen=True, slots=True)
class Totals:
    """One line's figures since the server started."""

    line: str
    #: The release that answers; empty: none does.
    release: str = ""
    #: Why none does.
    text: str = ""
    provider: str = ""
    answered: int = 0
    failed: int = 0
    refused: int = 0
    buckets: tuple[int, ...] = ()

    def since(self, before: "Totals | None") -> "Totals":
        """What was counted after `before`; all of it when the server was started again in between."""
        if before is None or before.answered > self.answered or before.failed > self.failed or before.refused > self.refused:
            return self
        return Totals(
            self.line,
            self.release,
            self.text,
            self.provider,
            self.answered - before.answered,
            self.failed - before.failed,
            self.refused - before.refused,
            tuple(new - old for new, old in zip(self.buckets, before.buckets, strict=True)),
        )

    def counts(self) -> dict[str, int]:
        """Requests by how they ended."""
        return {"answered": self.answered, "failed": self.failed, "refused": self.refused}

    def percentile_ms(self, share: float) -> float | None:
        """The latency that this share of the answers did not exceed; None without answers."""
        return percentile_ms(self.buckets, share)


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """The upper bound of the bucket in which the share lies; None when all are empty."""
    left = share * sum(buckets)
    if not left:
        return None
    for index, count in enumerate(buckets):
        left -= count
        if left <= 0:
            return round(BOUNDS_MS[min(index, len(BOUNDS_MS) - 1)], 3)
    return round(BOUNDS_MS[-1], 3)
