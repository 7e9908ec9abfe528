"""Which sequence numbers of one stream are settled: a sorted set of disjoint inclusive ranges. Pure.

A number is settled when its row is stored, or when the device's `floor` says that it no longer waits in the outbox.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.errors import InvalidError
from protocol.messages import AckStream

#: A stream with more holes than this is no stream of ours (many ingest workers out of order make a few dozen).
MAX_RANGES = 5000
#: An `ack` carries at most so many ranges beyond `upto`; the rest comes with a later one.
MAX_ACK_RANGES = 1000


@dataclass(frozen=True, slots=True)
class IntervalSet:
    """Settled numbers, as sorted, disjoint, never adjacent (first, last) pairs."""

    ranges: tuple[tuple[int, int], ...] = ()

    def add(self, numbers: Iterable[int]) -> "IntervalSet":
        """This set with the numbers in it."""
        merged = _merge([*self.ranges, *((number, number) for number in numbers)])
        if len(merged) > MAX_RANGES:
            raise InvalidError(f"More than {MAX_RANGES} gaps in one stream; wanted numbers that grow by one.")
        return IntervalSet(merged)

    def fill_below(self, floor: int) -> "IntervalSet":
        """This set with all of 0 … floor - 1 in it: the device no longer has those."""
        return self if floor <= 0 else IntervalSet(_merge([(0, floor - 1), *self.ranges]))

    def count_missing_below(self, floor: int) -> int:
        """How many of 0 … floor - 1 are not in this set."""
        held = sum(min(last, floor - 1) - first + 1 for first, last in self.ranges if first < floor)
        return max(0, floor) - held

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self.ranges, (number, 1 << 62)) - 1
        return index >= 0 and self.ranges[index][0] <= number <= self.ranges[index][1]

    def to_ack(self) -> AckStream:
        """What a device may delete: everything up to `upto` (-1: nothing yet), and the ranges beyond."""
        is_anchored = bool(self.ranges) and self.ranges[0][0] == 0
        beyond = self.ranges[1:] if is_anchored else self.ranges
        return AckStream(upto=self.ranges[0][1] if is_anchored else -1, ranges=list(beyond[:MAX_ACK_RANGES]))

    def to_text(self) -> str:
        """The set as it is stored."""
        return json.dumps(self.ranges, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "IntervalSet":
        """The set that `to_text` wrote."""
        return cls(tuple((first, last) for first, last in json.loads(text)))


def _merge(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
