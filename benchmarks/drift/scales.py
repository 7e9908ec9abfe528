"""Several looks at the same windows, one budget of false alarms: ten minutes, an hour, three hours; all coordinates, classes alone; pure.

What a day of a camera looks like is no single cloud: noon, dusk and lamp light are modes of it. A look keeps up to four modes, learned from
the summaries alone, never from the clock, and scores a stretch of windows by its nearest one: min over modes of T² + ln det - 2 ln share.
A small shift that stays is small in ten minutes and plain in the mean of three hours, where the chance of what passed has averaged out.

The promise. For each look p <= a happens in at most a part `a` of the sub-windows: the marginal validity of p is all it takes. Alarm when
some look has p <= rate x its share / sub-windows per year. Expected values add up under ANY dependence, of windows on each other and of
looks on each other, so the expected number of such sub-windows, and hence of alarms, is at most `rate` a year. Nothing is said about
independence, blocks or clusters; they only make alarms rarer. What may break it is a reference that does not hold the whole of normal life.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidError
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.grid import Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray
from protocol.sketches.scatter import DEVIATION_FLOOR, Scatter, fit_scatter
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import Tail, fit_tail

SUBWINDOWS_PER_DAY = 144
#: Days that are left out together when scores of the reference are made.
FOLDS = 4
#: Windows that the covariance of all modes together counts as, when one mode has few.
PRIOR_WINDOWS = 60
#: Times that windows are given to their nearest mode; it settles earlier.
_MAX_ROUNDS = 8
#: Part of the windows that may still change modes when it has settled.
_SETTLED = 0.005
#: Ridge of the covariance of all modes, as a part of its mean variance.
_RIDGE = 1e-3
#: Least shape of a tail. Scores of 28 days follow each other and tell little of what comes once in years; with the shape of largest
#: likelihood alone, 0.2 alarms asked for became 0.7 on the study's seeds.
MIN_SHAPE = 0.12
#: Part of a stretch that must be testable.
_TESTABLE = 0.8


@dataclass(frozen=True, slots=True)
class Look:
    """One way to look at the stream. Several share the budget: their shares add up to 1 at most."""

    name: str
    #: Sub-windows whose mean is judged, up to the present one.
    subwindows: int
    #: Only the shares of classes, or all coordinates.
    is_classes: bool
    modes: int
    share: float


#: Chosen on the seeds of the study alone (ADR 0034).
LOOKS = (
    Look("all-10min", 1, is_classes=False, modes=4, share=0.2),
    Look("all-1h", 6, is_classes=False, modes=4, share=0.2),
    Look("all-3h", 18, is_classes=False, modes=4, share=0.2),
    Look("classes-1h", 6, is_classes=True, modes=1, share=0.2),
    Look("classes-3h", 18, is_classes=True, modes=1, share=0.2),
)


@dataclass(frozen=True, eq=False)
class Modes:
    """Clouds of whole summaries in common units; each a `Scatter` of one deviation with what is added to its T²."""

    clouds: tuple[Scatter, ...]
    #: float64[modes], >= 0: ln det - 2 ln share, the least of them 0.
    offsets: DoubleArray

    def scores(self, summaries: DoubleArray) -> DoubleArray:
        """float64[n] >= 0 of vectors float64[n, d]."""
        return np.asarray(self._all(summaries).min(axis=1), dtype=np.float64)

    def nearest(self, summaries: DoubleArray) -> IntArray:
        """Which mode each vector belongs to: int64[n]."""
        return np.asarray(self._all(summaries).argmin(axis=1), dtype=np.int64)

    @cached_property
    def _map(self) -> tuple[DoubleArray, DoubleArray]:
        """All L^-1 / deviation under each other, float64[modes * d, d], and where they take the means."""
        down = [cloud.inverse / cloud.deviation for cloud in self.clouds]
        return np.concatenate(down), np.concatenate([part @ cloud.mean for part, cloud in zip(down, self.clouds, strict=True)])

    def _all(self, summaries: DoubleArray) -> DoubleArray:
        down, means = self._map
        n, d = summaries.shape
        y = summaries @ down.T
        y -= means
        squares = np.einsum("nmd,nmd->nm", y.reshape(n, -1, d), y.reshape(n, -1, d))
        return np.asarray(squares + self.offsets, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class LookReference:
    """What one look compares with."""

    look: Look
    coordinates: slice
    modes: Modes
    tail: Tail

    def p_values(self, summaries: DoubleArray) -> DoubleArray:
        """P of the stretch that ends with each sub-window, float64[n]; `summaries` as in `judged`."""
        stretch = pooled(summaries[:, self.coordinates], self.look.subwindows)
        scores = self.modes.scores(np.nan_to_num(stretch))
        return self.tail.p_values(np.where(_is_testable(stretch), scores, np.nan))


def pooled(summaries: DoubleArray, subwindows: int) -> DoubleArray:
    """Mean of the testable ones among the last so many rows, ending with each: float64[n, d]; NaN where less than 80 % are testable."""
    known = _is_testable(summaries)
    if subwindows == 1:
        return np.where(known[:, None], summaries, np.nan)
    sums: DoubleArray = np.cumsum(np.where(known[:, None], summaries, 0.0), axis=0)
    counts: IntArray = np.cumsum(known, dtype=np.int64)
    sums[subwindows:] -= sums[:-subwindows].copy()
    counts[subwindows:] -= counts[:-subwindows].copy()
    is_enough = counts >= np.ceil(_TESTABLE * subwindows)
    return np.where(is_enough[:, None], sums / np.maximum(counts, 1)[:, None], np.nan)


def _is_testable(summaries: DoubleArray) -> npt.NDArray[np.bool_]:
    return np.asarray(~np.isnan(summaries).any(axis=1), dtype=np.bool_)


def fit_scales(summaries: DoubleArray, grid: Grid, looks: Sequence[Look] = LOOKS) -> tuple[LookReference, ...]:
    """The references of these looks by consecutive clean sub-windows, float64[n, d], NaN rows where one is not testable: 28 days of them.

    Modes come from all of it. Scores for the tail are of a fourth of the days, by modes of the other three fourths, in turn.
    Raises: InvalidError (too-few) when too few stretches are testable; ValueError for looks that spend more than the budget.
    """
    if sum(look.share for look in looks) > 1 + 1e-9 or any(look.share <= 0 for look in looks):
        raise ValueError("looks that spend more than the budget; wanted shares above 0 that add up to 1 at most")
    return tuple(_fit_look(summaries, grid, look) for look in looks)


def judged(references: Sequence[LookReference], summaries: DoubleArray) -> DoubleArray:
    """The least of p / share over the looks, for each of consecutive sub-windows float64[n, d] (NaN rows: not testable): float64[n].

    The mark of no knowledge is NaN. An alarm is what `is_alarm` says of it.
    """
    shares = np.stack([one.p_values(summaries) / one.look.share for one in references])
    nothing = np.isnan(shares).all(axis=0)
    return np.where(nothing, np.nan, np.where(np.isnan(shares), np.inf, shares).min(axis=0))


def leading(references: Sequence[LookReference], summaries: DoubleArray) -> LookReference:
    """The look that says most about the last of these sub-windows. Raises: ValueError when none can say anything."""
    values = [one.p_values(summaries[-one.look.subwindows :])[-1] / one.look.share for one in references]
    return references[int(np.nanargmin(values))]


def is_alarm(value: float, rate: float) -> bool:
    """Whether a value of `judged` is one that comes less often than `rate` times a year without a change. Raises: ValueError."""
    if not rate > 0:
        raise ValueError(f"a rate of {rate} false alarms per year; wanted more than 0")
    return value <= rate / SUBWINDOWS_PER_YEAR


def fit_modes(summaries: DoubleArray, modes: int) -> Modes:
    """Hard clusters of vectors float64[n, d], by likelihood, from slices along the longest axis on. Raises: InvalidError (too-few).

    The covariance of each is drawn towards that of all (`PRIOR_WINDOWS`), so few windows make no cloud of their own.
    """
    n = len(summaries)
    if n < 2 * modes:
        raise InvalidError(f"{modes} modes of {n} windows; wanted at least {2 * modes}.", code="too-few")
    if modes == 1:
        return Modes((fit_scatter(summaries),), np.zeros(1))
    deviation = np.maximum(summaries.std(axis=0), DEVIATION_FLOOR)
    x = (summaries - summaries.mean(axis=0)) / deviation
    axis = x @ np.linalg.eigh(x.T @ x)[1][:, -1]
    label = np.searchsorted(np.quantile(axis, np.arange(1, modes) / modes), axis)
    for _ in range(_MAX_ROUNDS):
        found = _clouds(summaries, label, deviation)
        now = found.nearest(summaries)
        if float((now != label).mean()) <= _SETTLED:
            break
        label = now
    return found


def _clouds(summaries: DoubleArray, label: IntArray, deviation: DoubleArray) -> Modes:
    n, d = summaries.shape
    parts = [summaries[label == mode] / deviation for mode in np.unique(label)]
    parts = [part for part in parts if len(part) >= 2]
    means = [part.mean(axis=0) for part in parts]
    squares = [(part - mean).T @ (part - mean) for part, mean in zip(parts, means, strict=True)]
    common = sum(squares, start=np.zeros((d, d))) / n
    common += _RIDGE * max(float(np.trace(common)) / d, DEVIATION_FLOOR) * np.eye(d)
    clouds, offsets = [], []
    for part, mean, square in zip(parts, means, squares, strict=True):
        factor = np.asarray(np.linalg.cholesky((square + PRIOR_WINDOWS * common) / (len(part) + PRIOR_WINDOWS)), dtype=np.float64)
        clouds.append(Scatter(mean * deviation, deviation, factor, PRIOR_WINDOWS / (len(part) + PRIOR_WINDOWS)))
        offsets.append(2 * float(np.log(np.diag(factor)).sum()) - 2 * np.log(len(part) / n))
    return Modes(tuple(clouds), np.array(offsets) - min(offsets))


def _fit_look(summaries: DoubleArray, grid: Grid, look: Look) -> LookReference:
    coordinates = summarizer(grid).classes if look.is_classes else slice(None)
    chosen = summaries[:, coordinates]
    stretch = pooled(chosen, look.subwindows)
    known = _is_testable(stretch)
    days = -(-len(chosen) // SUBWINDOWS_PER_DAY)
    fold = (np.arange(len(chosen)) // SUBWINDOWS_PER_DAY) * FOLDS // max(days, 1)
    scores = []
    for number in range(FOLDS):
        # stretches that reach into the fold from before or after it are in neither part
        is_in = (fold == number) & known
        start, stop = np.flatnonzero(fold == number)[[0, -1]] if (fold == number).any() else (0, -1)
        at = np.arange(len(chosen))
        is_out = known & ((at < start) | (at - look.subwindows + 1 > stop))
        is_in &= at - look.subwindows + 1 >= start
        if is_in.any():
            scores.append(fit_modes(stretch[is_out], look.modes).scores(stretch[is_in]))
    if not scores:
        raise InvalidError(f"No testable stretch of {look.subwindows} sub-windows in {days} days.", code="too-few")
    return LookReference(look, coordinates, fit_modes(stretch[known], look.modes), _tail(np.concatenate(scores)))


def _tail(scores: DoubleArray) -> Tail:
    """The tail of these scores, of shape `MIN_SHAPE` at least, its scale by the mean of the excesses."""
    found = fit_tail(scores)
    if found.xi >= MIN_SHAPE:
        return found
    excesses = found.scores[found.scores > found.q].astype(np.float64) - found.q
    return Tail(found.scores, found.q, MIN_SHAPE, float(excesses.mean()) * (1 - MIN_SHAPE))
