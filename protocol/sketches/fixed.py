"""Grids that are declared here, not shipped with a model, and counts on them; pure. Merging is cell by cell integer addition.

A value x lies in cell k when e_(k-1) < x <= e_k: cell 0 is all up to the first edge, the last cell all above the last one (DRIFT 2).
A grid is never changed, only followed by one of another name: counts of both sides must mean the same for ever.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Sums are kept in whole millionths, so that adding up is exact in any order.
MICRO = 1_000_000
#: Values beyond this, either way, count in their cell but weigh no more than this in the sum.
MAX_VALUE = 1e6
_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
_Sum = Annotated[int, Field(ge=-(2**62), le=2**62)]


@dataclass(frozen=True, slots=True)
class Grid:
    """Named edges, ascending."""

    name: str
    edges: tuple[float, ...]

    def cell(self, value: float) -> int:
        """Where a finite value lies: 0 to `len(edges)`."""
        return bisect_left(self.edges, value)

    def bounds(self, cell: int) -> tuple[float, float]:
        """The edges around a cell; the outer cells are as wide as nothing: their edge twice."""
        low = self.edges[max(0, cell - 1)]
        return low, self.edges[min(cell, len(self.edges) - 1)]


def _decades(first: int, last: int, per_decade: int) -> tuple[float, ...]:
    steps = (last - first) * per_decade
    return tuple(10.0 ** (first + step / per_decade) for step in range(steps + 1))


#: Milliseconds from 0.01 to 100,000, twenty cells a decade: a percentile is right within 6 %.
LATENCY_MS = Grid("latency-ms.1", _decades(-2, 5, 20))
#: Shares of 1, fifty cells.
SHARE = Grid("share.1", tuple(step / 50 for step in range(51)))
#: Sizes of differences, 0 up to a millionth in the first cell, five cells a decade up to a million.
DIFFERENCE = Grid("difference.1", _decades(-6, 6, 5))
GRIDS: Mapping[str, Grid] = MappingProxyType({grid.name: grid for grid in (LATENCY_MS, SHARE, DIFFERENCE)})


class Cells(BaseModel):
    """Counts on a declared grid, as they travel; immutable."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    grid: Annotated[str, Field(max_length=63)]
    #: Cell -> values in it; cells without any are left out.
    counts: dict[int, _Count] = Field(default_factory=dict, max_length=512)
    #: Sum of the values in millionths.
    total: _Sum = 0
    #: Values that were no finite number.
    nan: _Count = 0

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        grid = GRIDS.get(self.grid)
        if grid is None:
            raise ValueError(f"no grid {self.grid!r} is declared; wanted one of {', '.join(GRIDS)}")
        if any(not 0 <= cell <= len(grid.edges) for cell in self.counts):
            raise ValueError(f"a cell outside 0 to {len(grid.edges)} of grid {self.grid}")
        return self

    @property
    def count(self) -> int:
        """Finite values counted."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        """The mean of the finite values, exact to a millionth; None without any."""
        count = self.count
        return self.total / MICRO / count if count else None

    def quantile(self, share: float) -> float | None:
        """The value that `share` (0..1) of the finite values did not exceed, by straight lines inside cells; None without any."""
        count = self.count
        if not count:
            return None
        wanted, seen, grid = share * count, 0, GRIDS[self.grid]
        for cell, number in sorted(self.counts.items()):
            if seen + number >= wanted:
                low, high = grid.bounds(cell)
                return low + (high - low) * max(0.0, wanted - seen) / number
            seen += number
        return grid.edges[-1]


@dataclass(slots=True)
class Counter:
    """Counts that grow, value by value."""

    grid: Grid
    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    nan: int = 0

    def add(self, value: float) -> None:
        """Count one value."""
        if not math.isfinite(value):
            self.nan += 1
            return
        cell = self.grid.cell(value)
        self.counts[cell] = self.counts.get(cell, 0) + 1
        self.total += round(min(max(value, -MAX_VALUE), MAX_VALUE) * MICRO)

    def cells(self) -> Cells:
        """What was counted so far."""
        return Cells(grid=self.grid.name, counts=dict(self.counts), total=self.total, nan=self.nan)


def added(parts: Iterable[Cells], grid: Grid) -> Cells:
    """All of them as one. Raises: ValueError when one is on another grid."""
    counts: dict[int, int] = {}
    total = nan = 0
    for part in parts:
        if part.grid != grid.name:
            raise ValueError(f"counts on grid {part.grid} among those on {grid.name}")
        for cell, number in part.counts.items():
            counts[cell] = counts.get(cell, 0) + number
        total, nan = total + part.total, nan + part.nan
    return Cells(grid=grid.name, counts=counts, total=total, nan=nan)
