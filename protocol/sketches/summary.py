"""A window as a short vector: for each feature where its values lie and how far they spread, and the share of each class (DRIFT 5.1); pure.

Coordinates in order: place of each feature, spread of each feature, share of each class; d = 2F + L. Place and spread are means over the
bins of u and u^2 - 1, u the normal score of the middle of a bin's reference mass, so they are linear in the shares of the cells.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from protocol.sketches.counts import Counts
from protocol.sketches.grid import FeatureGrid, FeatureGroup, Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray, normal_quantile

#: Middles of reference masses are kept this far from 0 and 1: an empty outer bin has no middle.
_EDGE = 1e-6


class Summarizer:
    """What one grid makes of counts; see `summarizer`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.features = len(grid.features)
        self.dimensions = 2 * self.features + len(grid.classes)
        self._nan = list(grid.offsets[:-1])
        #: What each cell tells of its feature's place and of its spread, float64[grid.cells]; NaN cells tell nothing.
        self._place: DoubleArray = np.zeros(grid.cells)
        self._spread: DoubleArray = np.zeros(grid.cells)
        for index, feature in enumerate(grid.features):
            part = slice(grid.offsets[index] + 1, grid.offsets[index + 1])
            self._place[part] = scores = cell_scores(feature)
            self._spread[part] = scores**2 - 1

    def summarize(self, cells: IntArray, classes: IntArray) -> DoubleArray:
        """float64[n, d] of cells int64[n, grid.cells] and classes int64[n, L].

        NaN where a feature has no finite value, and for all shares where no class was counted.
        """
        rows = cells[:, : self.grid.offsets[1]].sum(axis=1)[:, None]
        values = np.tile(rows - cells[:, self._nan], (1, 2))
        objects = classes.sum(axis=1, keepdims=True)
        sums = np.concatenate([np.add.reduceat(cells * told, self._nan, axis=1) for told in (self._place, self._spread)], axis=1)
        means = np.divide(sums, values, out=np.full_like(sums, np.nan), where=values > 0)
        shares = np.divide(classes, objects, out=np.full(classes.shape, np.nan), where=objects > 0)
        return np.concatenate([means, shares], axis=1)

    def coordinates(self, groups: Iterable[FeatureGroup]) -> IntArray:
        """Places in the vector of these groups, ascending; class shares are output."""
        wanted = set(groups)
        chosen = [index for index, feature in enumerate(self.grid.features) if feature.group in wanted]
        classes = range(2 * self.features, self.dimensions) if FeatureGroup.OUTPUT in wanted else range(0)
        return np.array([*chosen, *(self.features + index for index in chosen), *classes], dtype=np.int64)

    def of_feature(self, index: int) -> tuple[int, int]:
        """Where place and spread of a feature stand."""
        return index, self.features + index

    @property
    def classes(self) -> slice:
        """Where the shares of classes stand."""
        return slice(2 * self.features, self.dimensions)


@lru_cache(maxsize=64)
def summarizer(grid: Grid) -> Summarizer:
    """The one of this grid, made once."""
    return Summarizer(grid)


def summary(counts: Counts, grid: Grid) -> DoubleArray:
    """float64[d]; see `Summarizer.summarize`."""
    vectors = summarizer(grid).summarize(counts.cells[None], counts.classes[None])
    return vectors.reshape(-1)


def cell_scores(feature: FeatureGrid) -> DoubleArray:
    """Normal scores u of the cells under, bins 1..K, over: float64[K + 2]; under counts as bin 1, over as bin K."""
    masses = np.array(feature.masses)
    above = np.cumsum(masses) / masses.sum()
    middles = np.clip(above - masses / masses.sum() / 2, _EDGE, 1 - _EDGE)
    scores = normal_quantile(middles)
    return np.concatenate([scores[:1], scores, scores[-1:]])
