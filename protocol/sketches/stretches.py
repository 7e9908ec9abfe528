"""Means over the last so many rows, of which some may not be testable: what looks judge; pure."""

import numpy as np
import numpy.typing as npt

from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray

#: Part of a stretch that must be testable.
_TESTABLE = 0.8


def pooled(rows: DoubleArray, subwindows: int) -> DoubleArray:
    """Mean of the testable ones among the last so many rows, ending with each: float64[n, d]; NaN where less than 80 % are testable."""
    known = is_testable(rows)
    if subwindows == 1:
        return np.where(known[:, None], rows, np.nan)
    sums: DoubleArray = np.cumsum(np.where(known[:, None], rows, 0.0), axis=0)
    counts: IntArray = np.cumsum(known, dtype=np.int64)
    sums[subwindows:] -= sums[:-subwindows].copy()
    counts[subwindows:] -= counts[:-subwindows].copy()
    is_enough = counts >= np.ceil(_TESTABLE * subwindows)
    return np.where(is_enough[:, None], sums / np.maximum(counts, 1)[:, None], np.nan)


def is_testable(rows: DoubleArray) -> npt.NDArray[np.bool_]:
    """Which rows are wholly known: bool[n] of float64[n, d]."""
    return np.asarray(~np.isnan(rows).any(axis=1), dtype=np.bool_)
