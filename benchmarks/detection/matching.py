"""How many objects were found and how many findings are right: greedy matching by score at a given overlap. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.detection.labels import Box
from runtime.nms import intersection_over_union

#: Intersection over union from which a finding and a label are one object.
OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """One finding, pixels of the frame."""

    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class Tally:
    """Right findings, false ones, and objects that were missed."""

    right: int = 0
    false: int = 0
    missed: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.right + other.right, self.false + other.false, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """Share of the findings that are right; 1 without any."""
        return self.right / (self.right + self.false) if self.right + self.false else 1.0

    @property
    def recall(self) -> float:
        """Share of the objects that were found; 1 without any."""
        return self.right / (self.right + self.missed) if self.right + self.missed else 1.0


def match(found: Sequence[Found], boxes: Sequence[Box], ignored: Sequence[Box] = (), *, overlap: float = OVERLAP) -> Tally:
    """The tally of one frame.

    The finding with the best score takes the free label it overlaps most, if at least `overlap`; each label is taken once. A finding
    without a label is false, unless it overlaps an ignored box as much.
    """
    ordered = sorted(found, key=lambda one: -one.score)
    shares = _shares(ordered, boxes)
    spared = _shares(ordered, ignored)
    free = np.ones(len(boxes), np.bool_)
    right = false = 0
    for row, spare in zip(shares, spared, strict=True):
        best = int(np.where(free, row, -1.0).argmax()) if free.any() else -1
        if best >= 0 and row[best] >= overlap:
            free[best] = False
            right += 1
        elif not (spare >= overlap).any():
            false += 1
    return Tally(right, false, int(free.sum()))


def _shares(found: Sequence[Found], boxes: Sequence[Box]) -> np.ndarray:
    return intersection_over_union(np.array([one.box for one in found]).reshape(-1, 4), np.array(boxes).reshape(-1, 4))
