"""Counts on a grid: how rows become them and how they add up, cell by cell in whole numbers, in any order to the same (DRIFT 2).

One thread owns a `Sketcher`. Adding a row copies it into a ring of float32; cells are found for a whole ring at once, by sorting
it: that takes a third of what `searchsorted` of unordered values does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from protocol.sketches.grid import FeatureGrid, FloatArray, Grid
from protocol.sketches.leb128 import IntArray

#: Moments are whole numbers of 1/256 deviation, cut at sixteen deviations.
MOMENT_UNIT, MOMENT_LIMIT = 256, 4096
#: Rows between two flushes.
RING_ROWS = 1000
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
        sizes = np.array([feature.cells + 1 for feature in grid.features])
        self._firsts: IntArray = np.cumsum(sizes) - sizes
        self._places = [slice(int(at) + 2, int(at + size) - 1) for at, size in zip(self._firsts, sizes, strict=True)]
        self._kept: IntArray = np.delete(np.arange(sizes.sum() - 1), self._firsts[1:] - 1)
        self._centers: _DoubleArray = np.array([[feature.center] for feature in grid.features])
        self._factors: _DoubleArray = MOMENT_UNIT / np.array([[feature.scale] for feature in grid.features])

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
            self._flushed = added(self._flushed, self._counted(self._ring[: self._at]))
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
        n = len(rows)
        columns = rows.T.copy(order="C")
        is_finite = np.isfinite(columns)
        is_whole = bool(is_finite.all())
        values = np.full(len(columns), n) if is_whole else is_finite.sum(axis=1)
        if not is_whole:
            columns[~is_finite] = np.nan
        v: _DoubleArray = columns - self._centers
        v *= self._factors
        if not is_whole:  # what is not known counts as average in the one, not at all in the other
            means = np.nansum(v, axis=1) / np.maximum(values, 1)
            v = np.where(is_finite, v, means[:, None])
        effective = _effective(v)
        _round(v)
        if not is_whole:
            v[~is_finite] = 0
        columns.sort(axis=1)  # NaN last
        cells, moments = self._cells(columns, values), self._moments(v, columns, values)
        return Counts(n, effective, 0, cells, moments, np.zeros(len(self._classes), dtype=np.int64))

    def _cells(self, ordered: FloatArray, values: IntArray) -> IntArray:
        """The cells of float32[features, n], ascending, NaN last: differences of how many lie up to each bound."""
        n = ordered.shape[1]
        up_to = np.zeros(self.grid.cells + len(ordered), dtype=np.int64)
        up_to[self._firsts] = values - n
        up_to[self._firsts[1:] - 1] = values[:-1]
        up_to[-1] = values[-1]
        for column, bounds, place in zip(ordered, self._bounds, self._places, strict=True):
            up_to[place] = column.searchsorted(bounds, "right")
        return np.asarray((up_to[1:] - up_to[:-1])[self._kept])

    def _moments(self, v: _DoubleArray, ordered: FloatArray, values: IntArray) -> IntArray:
        """Sums of v and of its squares, least and greatest v: int64[features, 4]; `ordered` are the values it was made of."""
        moments = empty_moments(len(v))
        moments[:, 0] = v.sum(axis=1)  # exact: sums stay below 2^53
        moments[:, 1] = np.einsum("fn,fn->f", v, v)
        known = np.flatnonzero(values)
        ends = np.stack([ordered[known, 0], ordered[known, values[known] - 1]], axis=1)
        moments[known, 2:] = _round((ends - self._centers[known]) * self._factors[known])
        return moments


def _bounds(feature: FeatureGrid) -> FloatArray:
    """The largest value of each cell but the last, from under on: float32[K + 1]."""
    with np.errstate(over="ignore"):
        below = np.nextafter(np.float32(feature.low), np.float32(-np.inf))
    return np.array([below, *feature.edges, feature.high], dtype=np.float32)


def _round(v: _DoubleArray) -> _DoubleArray:
    """The same array, rounded and cut."""
    np.rint(v, out=v)
    return v.clip(-MOMENT_LIMIT, MOMENT_LIMIT, out=v)


def _effective(v: _DoubleArray) -> int:
    """The median over features of n (1 - r) / (1 + r), r the lag-1 autocorrelation of v [features, n]: 1 to n.

    Features that do not vary tell nothing. From sums of what is not centered: no copy is made, and nine digits are enough.
    """
    n: int = v.shape[1]
    sums, squares = v.sum(axis=1), np.einsum("fn,fn->f", v, v)
    means = sums / n
    products = np.einsum("fn,fn->f", v[:, :-1], v[:, 1:]) - means * (2 * sums - v[:, 0] - v[:, -1] - (n - 1) * means)
    spread = squares - sums * means
    varies = spread > _LEAST_SPREAD * squares
    if not varies.any():
        return min(1, n)
    r = products[varies] / spread[varies]
    effective = np.sort(n * (1 - r) / np.maximum(1 + r, 1e-9))
    median = (effective[(len(effective) - 1) // 2] + effective[len(effective) // 2]) / 2
    return max(1, min(n, round(float(median))))
