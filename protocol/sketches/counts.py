"""Counts on a grid: how rows become them and how they add up, cell by cell in whole numbers, in any order to the same (DRIFT 2).

One thread owns a `Sketcher`. Adding a row copies it into a ring of float32; cells are found for a whole ring at once, by sorting
it: that takes a third of what `searchsorted` of unordered values does. A few features at a time, and what is one number for each
feature in Python: what a flush takes for a moment stays with the process, and each kind of work that numpy is asked for brings 64 KB of
its library into memory (ADR 0052).
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from protocol.sketches.grid import FeatureGrid, FloatArray, Grid
from protocol.sketches.leb128 import IntArray

#: Moments are whole numbers of 1/256 deviation, cut at sixteen deviations.
MOMENT_UNIT, MOMENT_LIMIT = 256, 4096
#: Rows between two flushes.
RING_ROWS = 1000
#: Features whose rows are counted at once.
_AT_ONCE = 16
#: Share of a feature in one outer bin from which the grid no longer fits it.
_OUTER_SHARE = 0.05
#: A feature varies when its variance is more than this part of its mean square.
_LEAST_SPREAD = 1e-9
_NONE: Mapping[int, int] = MappingProxyType({})
_DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """What some rows were, on one grid; equal when all numbers are. Arrays are read-only by custom: nobody changes them after creation."""

    #: Rows counted.
    rows: int
    #: How many independent rows they are worth, 0 to `rows`.
    effective: int
    #: Rows left out by a condition, or lost.
    excluded: int
    #: int64[grid.cells]: for each feature NaN, under, bins 1..K, over.
    cells: IntArray
    #: int64[features, 4]: sum and sum of squares of v, least and greatest v; v = 256 x (x - center) / scale, cut at 4096 either way.
    moments: IntArray
    #: int64[classes].
    classes: IntArray
    #: Condition code -> seconds.
    conditions: Mapping[int, int] = field(default_factory=lambda: _NONE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Counts):
            return NotImplemented
        return (self.rows, self.effective, self.excluded, dict(self.conditions)) == (
            other.rows,
            other.effective,
            other.excluded,
            dict(other.conditions),
        ) and all(
            np.array_equal(one, two)
            for one, two in ((self.cells, other.cells), (self.moments, other.moments), (self.classes, other.classes))
        )

    __hash__ = None  # type: ignore[assignment]


def empty(grid: Grid) -> Counts:
    """No rows: the neutral element of `added`."""
    return Counts(0, 0, 0, np.zeros(grid.cells, np.int64), empty_moments(len(grid.features)), np.zeros(len(grid.classes), np.int64))


def empty_moments(features: int) -> IntArray:
    """Moments of no value: int64[features, 4]."""
    return np.tile(np.array([0, 0, MOMENT_LIMIT, -MOMENT_LIMIT], dtype=np.int64), (features, 1))


def added(a: Counts, b: Counts) -> Counts:
    """Both as one. Raises: ValueError when they cannot be of one grid."""
    if a.cells.shape != b.cells.shape or a.moments.shape != b.moments.shape or a.classes.shape != b.classes.shape:
        raise ValueError(f"counts of {len(a.cells)} and of {len(b.cells)} cells cannot be of one grid")
    moments = a.moments + b.moments
    moments[:, 2] = np.minimum(a.moments[:, 2], b.moments[:, 2])
    moments[:, 3] = np.maximum(a.moments[:, 3], b.moments[:, 3])
    conditions = dict(a.conditions)
    for code, seconds in b.conditions.items():
        conditions[code] = conditions.get(code, 0) + seconds
    return Counts(
        a.rows + b.rows,
        a.effective + b.effective,
        a.excluded + b.excluded,
        a.cells + b.cells,
        moments,
        a.classes + b.classes,
        conditions,
    )


def summed(parts: Iterable[Counts], grid: Grid) -> Counts:
    """All of them as one. Raises: ValueError when one cannot be of this grid."""
    total = empty(grid)
    for part in parts:
        total = added(total, part)
    return total


def split(counts: Counts, grid: Grid) -> list[IntArray]:
    """The cells of each feature: views of int64[K + 3]."""
    return [counts.cells[start:stop] for start, stop in zip(grid.offsets, grid.offsets[1:], strict=False)]


def finite(counts: Counts, grid: Grid) -> IntArray:
    """int64[features]: values that were a finite number."""
    return counts.rows - counts.cells[list(grid.offsets[:-1])]


def features_that_want_a_grid(counts: Counts, grid: Grid) -> tuple[str, ...]:
    """Names of features of which more than 5 %, and twice the reference, lie in one outer cell: under and bin 1, or bin K and over."""
    wanting = []
    for feature, cells in zip(grid.features, split(counts, grid), strict=True):
        values = int(cells[1:].sum())
        outer = ((int(cells[1] + cells[2]), feature.masses[0]), (int(cells[-2] + cells[-1]), feature.masses[-1]))
        if any(count > max(_OUTER_SHARE, 2 * mass) * values for count, mass in outer):
            wanting.append(feature.name)
    return tuple(wanting)


class Sketcher:
    """Counts that grow row by row; not for several threads."""

    def __init__(self, grid: Grid, *, ring_rows: int = RING_ROWS) -> None:
        self.grid = grid
        self._ring: FloatArray = np.zeros((ring_rows, len(grid.features)), dtype=np.float32)
        self._size = ring_rows
        self._at = 0
        self._classes = [0] * len(grid.classes)
        self._flushed = empty(grid)
        self._excluded = 0
        self._bounds = [_bounds(feature) for feature in grid.features]
        # one number more than cells for each feature: NaN below zero, 0, up to each bound, all
        starts = tuple(accumulate((feature.cells + 1 for feature in grid.features), initial=0))
        self._spans = tuple(pairwise(starts))
        between = {start - 1 for start in starts}
        self._kept: IntArray = np.array([at for at in range(starts[-1]) if at not in between], dtype=np.int64)
        self._centers: _DoubleArray = np.array([[feature.center] for feature in grid.features])
        self._factors: _DoubleArray = np.array([[MOMENT_UNIT / feature.scale] for feature in grid.features])

    @property
    def rows(self) -> int:
        """Rows added since the last `take`."""
        return self._flushed.rows + self._at

    def add(self, values: FloatArray | Sequence[float], class_index: int | None = None) -> None:
        """Count one row, float32[features] in grid order, and the class it was predicted as (a place in `grid.classes`).

        Raises: ValueError, IndexError when there are more or fewer values than features, or no such class.
        """
        at = self._at
        self._ring[at] = values
        if class_index is not None:
            if class_index < 0:
                raise IndexError(f"class {class_index}; wanted 0 or more")
            self._classes[class_index] += 1
        self._at = at + 1
        if at + 1 == self._size:
            self.flush()

    def count_class(self, class_index: int, times: int = 1) -> None:
        """Count objects of a class besides a row's own. Raises: IndexError when the grid has no such class."""
        if class_index < 0:
            raise IndexError(f"class {class_index}; wanted 0 or more")
        self._classes[class_index] += times

    def exclude(self, rows: int = 1) -> None:
        """Count rows that a condition leaves out."""
        self._excluded += rows

    def flush(self) -> None:
        """Find the cells of the rows in the ring; nothing is lost when the ring starts anew."""
        if self._at:
            counted = self._counted(self._ring[: self._at])
            self._flushed = added(self._flushed, counted) if self._flushed.rows else counted
            self._at = 0

    def peek(self) -> Counts:
        """All since the last `take`; the sketcher goes on with it."""
        self.flush()
        return Counts(
            self._flushed.rows,
            self._flushed.effective,
            self._excluded,
            self._flushed.cells,
            self._flushed.moments,
            np.array(self._classes, dtype=np.int64),
        )

    def take(self) -> Counts:
        """All since the last `take`; the sketcher begins anew."""
        taken = self.peek()
        self._flushed, self._excluded, self._classes = empty(self.grid), 0, [0] * len(self.grid.classes)
        return taken

    def _counted(self, rows: FloatArray) -> Counts:
        """The counts of rows float32[n, features], n above 0."""
        n, features = rows.shape
        up_to: IntArray = np.zeros(self._spans[-1][1], dtype=np.int64)
        moments, followed = list[list[int]](), list[float]()
        for start in range(0, features, _AT_ONCE):
            places = range(start, min(start + _AT_ONCE, features))
            its_moments, its_followed = self._count(rows[:, start : places.stop], places, up_to)
            moments += its_moments
            followed += its_followed
        cells: IntArray = (up_to[1:] - up_to[:-1])[self._kept]
        classes = np.zeros(len(self._classes), dtype=np.int64)
        return Counts(n, _effective(n, followed), 0, cells, np.array(moments, dtype=np.int64), classes)

    def _count(self, rows: FloatArray, places: range, up_to: IntArray) -> tuple[list[list[int]], list[float]]:
        """Of the features at these places, rows float32[n, some]: moments of each, and the autocorrelations of those that vary.

        Puts into `up_to`, int64[grid.cells + features], how many values lie up to each bound.
        """
        n, columns = len(rows), rows.T.copy(order="C")
        ordered, values = _ordered(columns)
        v: _DoubleArray = columns - self._centers[places.start : places.stop]
        v *= self._factors[places.start : places.stop]
        is_whole = min(values) == n
        if not is_whole:
            _fill(v, columns, values)
        ends = []
        for at, known, numbers in zip(places, values, ordered, strict=True):
            begin, end = self._spans[at]
            up_to[begin], up_to[end - 1] = known - n, known
            up_to[begin + 2 : end - 1] = numbers.searchsorted(self._bounds[at], "right")
            feature = self.grid.features[at]
            ends.append((_cut(numbers[0], feature), _cut(numbers[known - 1], feature)) if known else (MOMENT_LIMIT, -MOMENT_LIMIT))
        followed = _followed(v)
        np.rint(v, out=v)
        if any(abs(end) == MOMENT_LIMIT for both in ends for end in both):
            v.clip(-MOMENT_LIMIT, MOMENT_LIMIT, out=v)
        if not is_whole:
            v[np.isnan(columns)] = 0
        sums = zip(v.sum(axis=1).tolist(), np.einsum("fn,fn->f", v, v).tolist(), ends, strict=True)
        return [[int(total), int(squares), *both] for total, squares, both in sums], followed  # exact: sums stay below 2^53


def _bounds(feature: FeatureGrid) -> FloatArray:
    """The largest value of each cell but the last, from under on: float32[K + 1]."""
    return np.array([_below(feature.low), *feature.edges, feature.high], dtype=np.float32)


def _below(number: float) -> float:
    """The greatest float32 below this one: bits of floats count up from zero, either way."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    before = bits - 1 if number > 0 else bits + 1 if number < 0 else -(1 << 31) + 1
    (below,) = struct.unpack("<f", struct.pack("<i", before))
    return float(below)


def _cut(value: np.float32, feature: FeatureGrid) -> int:
    """The v of one value that is a number."""
    v = (float(value) - feature.center) * (MOMENT_UNIT / feature.scale)
    return max(-MOMENT_LIMIT, min(MOMENT_LIMIT, round(v)))


def _ordered(columns: FloatArray) -> tuple[FloatArray, list[int]]:
    """float32[features, n] with each feature's values ascending, NaN last, and how many are numbers; infinities of `columns` become NaN."""
    ordered = columns.copy()
    ordered.sort(axis=1)
    if all(map(math.isfinite, (*ordered[:, 0].tolist(), *ordered[:, -1].tolist()))):
        return ordered, [columns.shape[1]] * len(columns)
    is_finite = np.isfinite(columns)
    columns[~is_finite] = np.nan
    return np.sort(columns, axis=1), is_finite.sum(axis=1).tolist()


def _fill(v: _DoubleArray, columns: FloatArray, values: Sequence[int]) -> None:
    """Where rows are said to follow each other, what is not known counts as the average of its feature: v, columns [features, n]."""
    means = np.nansum(v, axis=1) / np.maximum(values, 1)
    np.copyto(v, means[:, None], where=np.isnan(columns))


def _followed(v: _DoubleArray) -> list[float]:
    """The lag-1 autocorrelation of each feature of v [features, n] that varies; the others tell nothing.

    From sums of what is not centered: no copy is made, and nine digits are enough.
    """
    n: int = v.shape[1]
    sums = (v.sum(axis=1), np.einsum("fn,fn->f", v, v), np.einsum("fn,fn->f", v[:, :-1], v[:, 1:]), v[:, 0], v[:, -1])
    found = []
    for total, square, product, first, last in zip(*(one.tolist() for one in sums), strict=True):
        mean = total / n
        spread = square - total * mean
        if spread > _LEAST_SPREAD * square:
            found.append((product - mean * (2 * total - first - last - (n - 1) * mean)) / spread)
    return found


def _effective(n: int, followed: Sequence[float]) -> int:
    """How many independent rows n rows are worth, 1 to n: the median over features of n (1 - r) / (1 + r), r of `_followed`."""
    if not followed:
        return min(1, n)
    worth = sorted(n * (1 - r) / max(1 + r, 1e-9) for r in followed)
    return max(1, min(n, round((worth[(len(worth) - 1) // 2] + worth[len(worth) // 2]) / 2)))
