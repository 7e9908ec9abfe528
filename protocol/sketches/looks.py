"""Several looks at the same windows, one budget of false alarms: ten minutes, an hour, three hours; all coordinates, classes alone; pure.

What a day of a camera looks like is no single cloud: noon, dusk and lamp light are modes of it. A look keeps up to four modes, learned from
the summaries alone, never from the clock, and scores a stretch of windows by its nearest one: min over modes of T² + ln det - 2 ln share.
A small shift that stays is small in ten minutes and plain in the mean of three hours, where the chance of what passed has averaged out.
Looks at classes have no modes: they compare what came of each with what the rest lets expect, by powers of shares where rows are like those
that were fitted on (`powers.py`), by the shares themselves where a row is a mean of several of those (`shares.py`, `Judges`).

The promise. For each look p <= a happens in at most a part `a` of the sub-windows: the marginal validity of p is all it takes. Alarm when
some look has p <= rate x its share / sub-windows per year. Expected values add up under ANY dependence, of windows on each other and of
looks on each other, so the expected number of such sub-windows, and hence of alarms, is at most `rate` a year. Nothing is said about
independence, blocks or clusters; they only make alarms rarer. What may break it is a reference that does not hold the whole of normal life.
By how much rarer was measured, on simulated device-years of the study, and is given back where the same is looked at (`calibrated`): that
part of the promise is an experience and no proof, kept below what was seen by a margin.

A row is what one summary is made of: ten minutes on the device, an hour where the server has nothing shorter. Means, deviations and factors
are rounded to float32 once they are fitted, as they travel, so whoever reads the reference computes with the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.grid import FeatureGroup, Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray
from protocol.sketches.powers import ClassPowers, fit_class_powers
from protocol.sketches.scatter import DEVIATION_FLOOR, Scatter, factorised, fit_scatter
from protocol.sketches.shares import ClassShares, fit_class_shares
from protocol.sketches.stretches import is_testable, pooled
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import Tail, fit_tail

#: Days that are left out together when scores of the reference are made: a fourth of them.
FOLDS = 4
#: Windows that the covariance of all modes together counts as, when one mode has few; of means over n rows, which follow each other, by
#: the root of n more: four weeks hold few hours of dark noons, and a mode of those alone would be too narrow for a year (ADR 0045).
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
#: Scores that the tail of one look keeps, evenly by rank: from its beginning on they do not matter.
TAIL_SCORES = 512
#: Most of each that a reference may bring; longest stretch in rows; letters of a name.
MAX_LOOKS, MAX_MODES, MAX_STRETCH, MAX_NAME = 8, 8, 144, 32
#: Rows whose distance from all modes is computed at once: memory stays small.
_CHUNK = 256


class Judges(IntEnum):
    """Which rows a look judges: a device has ten minutes, the server mostly means of six of them. As it travels."""

    #: Rows like those it was fitted on, and means of several.
    ALL = 0
    #: Rows like those it was fitted on alone: what it looks at of a mean is not the mean of what it looks at.
    ROWS = 1
    #: Means of several such rows alone.
    MEANS = 2


@dataclass(frozen=True, slots=True)
class Look:
    """One way to look at the stream. Those that judge the same rows share the budget: their shares add up to 1 at most."""

    name: str
    #: Rows whose mean is judged, up to the present one.
    subwindows: int
    #: Only the shares of classes, or all coordinates.
    is_classes: bool
    #: 0: shares of classes by what the rest of the stretch lets expect, for looks at classes alone.
    modes: int
    share: float
    #: Shape of the tail when it is fitted; None: the likeliest one, `MIN_SHAPE` at least. Four weeks tell the scale of a tail; its shape is
    #: that of all devices of the study.
    shape: float | None = field(default=None, compare=False)
    #: At classes and `ROWS`: by powers of shares. All but looks at classes judge all rows.
    judges: Judges = Judges.ALL


#: Shapes of the tails: of one row, which short events make heavy, of means.
ROW_SHAPE, MEAN_SHAPE = 0.25, 0.18
#: Of looks at classes by powers of ten minutes, over two hours and three; by shares, over an hour, two and three.
TWO_HOURS_OF_ROWS_SHAPE, THREE_HOURS_OF_ROWS_SHAPE = 0.07, 0.10
HOUR_SHAPE, TWO_HOURS_SHAPE, THREE_HOURS_SHAPE = 0.07, 0.10, 0.14
#: Chosen on the seeds of the study alone (ADR 0034, 0045, 0051). Ten minutes are judged by the first five, hours not by those of `ROWS`.
LOOKS = (
    Look("all-10min", 1, is_classes=False, modes=4, share=0.05, shape=ROW_SHAPE),
    Look("all-1h", 6, is_classes=False, modes=4, share=0.2, shape=MEAN_SHAPE),
    Look("all-3h", 18, is_classes=False, modes=4, share=0.2, shape=MEAN_SHAPE),
    Look("classes-2h", 12, is_classes=True, modes=0, share=0.35, shape=TWO_HOURS_OF_ROWS_SHAPE, judges=Judges.ROWS),
    Look("classes-3h", 18, is_classes=True, modes=0, share=0.2, shape=THREE_HOURS_OF_ROWS_SHAPE, judges=Judges.ROWS),
    Look("classes-2h-of-means", 12, is_classes=True, modes=0, share=0.35, shape=TWO_HOURS_SHAPE, judges=Judges.MEANS),
    Look("classes-3h-of-means", 18, is_classes=True, modes=0, share=0.2, shape=THREE_HOURS_SHAPE, judges=Judges.MEANS),
)
#: One ellipsoid of all: what the residuals of a device against its group are compared with.
ONE_CLOUD = (Look("all", 1, is_classes=False, modes=1, share=1.0),)
#: Much the same where a row is an hour.
HOURLY_LOOKS = (
    Look("all-1h", 1, is_classes=False, modes=4, share=0.25, shape=ROW_SHAPE),
    Look("all-3h", 3, is_classes=False, modes=4, share=0.25, shape=MEAN_SHAPE),
    Look("classes-1h", 1, is_classes=True, modes=0, share=0.25, shape=HOUR_SHAPE),
    Look("classes-3h", 3, is_classes=True, modes=0, share=0.25, shape=THREE_HOURS_SHAPE),
)
#: What so many false alarms a year by the sum of the looks come to: (by the sum, at most). On 300 simulated device-years of the study three
#: quarters of 1 and of 5 came of these, a third of 0.2; the first is left as it is (ADR 0055).
COMES_TO = ((0.1, 0.1), (2.8, 1.0), (16.0, 5.0))


@dataclass(frozen=True, eq=False)
class Modes:
    """Clouds of whole summaries in common units; the score adds to T² what tells them apart. Raises on creation: InvalidError."""

    #: All with the same deviation.
    clouds: tuple[Scatter, ...]
    #: Part of the windows in each: float64[modes], above 0.
    shares: DoubleArray

    def __post_init__(self) -> None:
        clouds, shares = self.clouds, self.shares
        is_so = 1 <= len(clouds) <= MAX_MODES and shares.shape == (len(clouds),) and bool((shares > 0).all() and (shares <= 1).all())
        is_so = is_so and all(np.array_equal(one.deviation, clouds[0].deviation) and np.isfinite(one.mean).all() for one in clouds)
        if not is_so:
            raise InvalidError(
                f"{len(clouds)} modes with the shares {str(shares)[:80]}; wanted 1 to {MAX_MODES} of one unit, each with a share above 0.",
                code="bad-reference",
            )

    @property
    def dimensions(self) -> int:
        """Coordinates of a vector."""
        return len(self.clouds[0].mean)

    @property
    def is_degenerate(self) -> bool:
        """Whether some covariance could not be factorised."""
        return any(cloud.is_degenerate for cloud in self.clouds)

    @cached_property
    def offsets(self) -> DoubleArray:
        """What is added to T² of each: float64[modes], ln det - 2 ln share, the least of them 0."""
        found = [2 * float(np.log(np.diag(cloud.factor)).sum()) for cloud in self.clouds] - 2 * np.log(self.shares)
        return np.asarray(found - found.min(), dtype=np.float64)

    def followed(self, rows: DoubleArray) -> DoubleArray:
        """What stretches are means of: rows float64[n, d] as they are."""
        return rows

    def scores(self, summaries: DoubleArray) -> DoubleArray:
        """float64[n] >= 0 of vectors float64[n, d]."""
        return np.asarray(self._all(summaries).min(axis=1), dtype=np.float64)

    def nearest(self, summaries: DoubleArray) -> IntArray:
        """Which mode each vector belongs to: int64[n]."""
        return np.asarray(self._all(summaries).argmin(axis=1), dtype=np.int64)

    def contributions(self, summary: DoubleArray) -> DoubleArray:
        """What T² of one vector from its nearest mode is made of: float64[d]."""
        return self.clouds[int(self.nearest(summary[None])[0])].contributions(summary)

    def rounded(self) -> "Modes":
        """The same with means, deviations and factors as float32 has them: what travels."""
        clouds = [
            Scatter(_float32(one.mean), _float32(one.deviation), _float32(one.factor), one.shrinkage, one.is_degenerate)
            for one in self.clouds
        ]
        return Modes(tuple(clouds), self.shares)

    def mixture(self) -> Scatter:
        """Mean and covariance of all modes together: one ellipsoid, for whoever explains and compares."""
        deviation = self.clouds[0].deviation
        means = np.stack([one.mean for one in self.clouds]) / deviation
        weights = self.shares / self.shares.sum()
        mean = weights @ means
        covariance = sum(
            (
                weight * (one.factor @ one.factor.T + np.outer(place - mean, place - mean))
                for weight, one, place in zip(weights, self.clouds, means, strict=True)
            ),
            start=np.zeros((len(mean), len(mean))),
        )
        unit = np.sqrt(np.diag(covariance))
        factor, is_degenerate = factorised(covariance / np.outer(unit, unit))
        shrinkage = float(weights @ [one.shrinkage for one in self.clouds])
        return Scatter(mean * deviation, deviation * unit, factor, min(1.0, shrinkage), is_degenerate or self.is_degenerate)

    @cached_property
    def _map(self) -> tuple[DoubleArray, DoubleArray]:
        """All L^-1 / deviation under each other, float64[modes * d, d], and where they take the means."""
        down = [cloud.inverse / cloud.deviation for cloud in self.clouds]
        return np.concatenate(down), np.concatenate([part @ cloud.mean for part, cloud in zip(down, self.clouds, strict=True)])

    def _all(self, summaries: DoubleArray) -> DoubleArray:
        """float64[n, modes]."""
        found = np.empty((len(summaries), len(self.clouds)))
        down, means = self._map
        for at in range(0, len(summaries), _CHUNK):
            with np.errstate(over="ignore"):
                y = summaries[at : at + _CHUNK] @ down.T
                y -= means
                y = y.reshape(len(y), -1, self.dimensions)
                found[at : at + _CHUNK] = np.einsum("nmd,nmd->nm", y, y) + self.offsets
        return found


@dataclass(frozen=True, eq=False)
class LookReference:
    """What one look compares with. Raises on creation: InvalidError (bad-reference)."""

    look: Look
    #: Places in a summary that it judges: int64[d], ascending.
    coordinates: IntArray
    #: What it compares with; when the look has no modes, `ClassPowers` where it judges rows alone, else `ClassShares`.
    modes: Modes | ClassShares | ClassPowers
    tail: Tail

    def __post_init__(self) -> None:
        look = self.look
        is_so = 1 <= look.subwindows <= MAX_STRETCH and 0 < look.share <= 1 and 1 <= len(look.name) <= MAX_NAME
        modes = _modes_of(self.modes)
        is_so = is_so and look.modes == modes and len(self.coordinates) == self.modes.dimensions
        is_so = is_so and (look.judges is Judges.ALL if modes else look.is_classes)
        is_so = is_so and isinstance(self.modes, ClassPowers) == (look.judges is Judges.ROWS)
        if not is_so:
            raise InvalidError(
                f"Look {look.name[:40]!r} at {look.subwindows} {look.judges.name} with share {look.share}, {modes} modes of"
                f" {self.modes.dimensions} coordinates for {len(self.coordinates)}; wanted 1 to {MAX_STRETCH}, up to 1, as many.",
                code="bad-reference",
            )

    def stretches(self, summaries: DoubleArray) -> DoubleArray:
        """What is judged at each of consecutive rows float64[n, k]: float64[n, d], NaN where too little is testable.

        By powers: what came and what was expected of each class (`ClassPowers.followed`), else the coordinates.
        """
        return pooled(self.modes.followed(summaries[:, self.coordinates]), self.look.subwindows)

    def scores(self, summaries: DoubleArray) -> DoubleArray:
        """Of the stretch that ends with each row, float64[n]; NaN where too little is testable."""
        stretches = self.stretches(summaries)
        known = is_testable(stretches)
        found = np.full(len(stretches), np.nan)
        found[known] = self.modes.scores(stretches[known])
        return found

    def p_values(self, summaries: DoubleArray) -> DoubleArray:
        """P of the stretch that ends with each row, float64[n]; `summaries` as in `judged`."""
        return self.tail.p_values(self.scores(summaries))

    def contributions(self, summaries: DoubleArray) -> DoubleArray:
        """What T² of the last stretch is made of, by its nearest mode: float64[k], 0 outside its coordinates and when not testable."""
        parts = np.zeros(summaries.shape[1])
        stretch = self.stretches(summaries[-self.look.subwindows :])[-1:]
        if is_testable(stretch).all():
            parts[self.coordinates] = self.modes.contributions(stretch[0])
        return parts


def looks_for(looks: Sequence[LookReference], *, are_means: bool = False) -> tuple[LookReference, ...]:
    """Those of the looks of a reference that judge rows like those it was fitted on, or rows that are means of several: one budget each."""
    left_out = Judges.ROWS if are_means else Judges.MEANS
    return tuple(one for one in looks if one.look.judges is not left_out)


def is_within_budget(looks: Sequence[Look]) -> bool:
    """Whether the shares of those that judge the same rows add up to 1 at most, and all are above 0."""
    spent = [sum(one.share for one in looks if one.judges is not left_out) for left_out in (Judges.ROWS, Judges.MEANS)]
    return max(spent) <= 1 + 1e-9 and all(one.share > 0 for one in looks)


def judged(looks: Sequence[LookReference], summaries: DoubleArray) -> DoubleArray:
    """The least of p / share over the looks that judge rows, for consecutive ones float64[n, k] (NaN rows: not testable): float64[n].

    The mark of no knowledge is NaN. An alarm is what `is_alarm` says of it.
    """
    shares = np.stack([one.p_values(summaries) / one.look.share for one in looks_for(looks)])
    nothing = np.isnan(shares).all(axis=0)
    return np.where(nothing, np.nan, np.where(np.isnan(shares), np.inf, shares).min(axis=0))


def calibrated(values: DoubleArray, *, per_year: float = SUBWINDOWS_PER_YEAR) -> DoubleArray:
    """How seldom values of `judged` [n] come where 28 days were learned and `LOOKS` look: float64[n], never more; NaN stays NaN.

    The sum of the looks counts what several of them see at once, and hours that follow each other, more than once. Between the points of
    `COMES_TO` it is straight in logarithms; what is rarer stays as it is, what is more frequent keeps the proportion of the last point.
    """
    by_sum, at_most = (np.log(column) for column in zip(*COMES_TO, strict=True))
    with np.errstate(divide="ignore"):
        rates = np.log(np.asarray(values, dtype=np.float64) * per_year)
    inside = np.interp(rates, by_sum, at_most)
    found = np.where(rates < by_sum[0], rates, np.where(rates > by_sum[-1], rates + at_most[-1] - by_sum[-1], inside))
    return np.asarray(np.exp(found) / per_year, dtype=np.float64)


def leading(looks: Sequence[LookReference], summaries: DoubleArray) -> LookReference:
    """The look that says most about the last of these rows. Raises: ValueError when none can say anything."""
    asked = looks_for(looks)
    values = [one.p_values(summaries[-one.look.subwindows :])[-1] / one.look.share for one in asked]
    return asked[int(np.nanargmin(values))]


def statistic_of(value: float) -> float:
    """How much a value of `judged` says: the larger the more, NaN: nothing is known."""
    return 1 / value


def threshold_of(rate: float, *, per_year: float = SUBWINDOWS_PER_YEAR) -> float:
    """What `statistic_of` must reach for at most `rate` false alarms a year of so many rows. Raises: ValueError."""
    if not rate > 0:
        raise ValueError(f"a rate of {rate} false alarms per year; wanted more than 0")
    return per_year / rate


def is_alarm(value: float, rate: float, *, per_year: float = SUBWINDOWS_PER_YEAR) -> bool:
    """Whether a value of `judged` comes less often than `rate` times a year without a change; NaN is no alarm. Raises: ValueError."""
    return statistic_of(value) >= threshold_of(rate, per_year=per_year)


def fit_looks(
    summaries: DoubleArray,
    grid: Grid,
    *,
    looks: Sequence[Look] = LOOKS,
    coordinates: IntArray | None = None,
    per_day: int = 144,
    floor: float = DEVIATION_FLOOR,
) -> tuple[LookReference, ...]:
    """The references of these looks by consecutive clean rows, float64[n, k], NaN rows where one is not testable: 28 days of them.

    `coordinates`: which of the grid's summary the columns are, int64[k]; None: all. Modes come from all of it. Scores for the tail are of a
    fourth of the days, by modes of the other three fourths, in turn. A look that cannot be fitted, as that at classes where the shares
    never vary or none are judged, is left out, and its share of the budget is not spent. The first must be possible.
    Raises: InvalidError (too-few) when it is not; ValueError for looks that spend more than the budget.
    """
    if not is_within_budget(looks):
        raise ValueError("looks that spend more than the budget; wanted shares above 0 that add up to 1 at most")
    places = np.arange(summaries.shape[1]) if coordinates is None else coordinates
    fold = _fold_of(summaries, per_day)
    found: list[LookReference] = []
    for number, look in enumerate(looks):
        try:
            inside = judged_by(look, places, grid)
            found.append(_fit_look(summaries, fold, look, inside, classes_of(places[inside], grid), floor=floor))
        except InvalidError as error:
            if number == 0 or error.code != "too-few":
                raise
    return tuple(found)


def judged_by(look: Look, coordinates: IntArray, grid: Grid) -> IntArray:
    """Which of the judged coordinates the look uses: places among them, int64[d], ascending.

    Without modes: those of the input, by which shares of classes are expected, and the shares; none when no share is judged.
    """
    if not look.is_classes:
        return np.arange(len(coordinates))
    is_share = coordinates >= summarizer(grid).classes.start
    if look.modes == 0 and is_share.any():
        is_share |= np.isin(coordinates, summarizer(grid).coordinates([FeatureGroup.INPUT]))
    return np.flatnonzero(is_share).astype(np.int64)


def classes_of(coordinates: IntArray, grid: Grid) -> int:
    """How many of these coordinates are shares of classes."""
    return int((coordinates >= summarizer(grid).classes.start).sum())


def fit_modes(summaries: DoubleArray, modes: int, *, floor: float = DEVIATION_FLOOR, prior: float = PRIOR_WINDOWS) -> Modes:
    """Hard clusters of vectors float64[n, d], by likelihood, from slices along the longest axis on. Raises: InvalidError (too-few).

    The covariance of each is drawn towards that of all, which counts as `prior` windows, so few windows make no cloud of their own. A
    coordinate that varied less than `floor` in a mode is taken to vary by it, as in `fit_scatter`: a class that was never seen there is no
    alarm at once.
    """
    n = len(summaries)
    if n < 2 * modes:
        raise InvalidError(f"{modes} modes of {n} windows; wanted at least {2 * modes}.", code="too-few")
    if modes == 1:
        return Modes((fit_scatter(summaries, floor=floor, is_floor_variance=True),), np.ones(1))
    deviation = np.maximum(summaries.std(axis=0), floor)
    x = (summaries - summaries.mean(axis=0)) / deviation
    axis = x @ np.linalg.eigh(x.T @ x)[1][:, -1]
    label = np.searchsorted(np.quantile(axis, np.arange(1, modes) / modes), axis)
    del x
    for _ in range(_MAX_ROUNDS):
        found = _clouds(summaries, label, deviation, floor=floor, prior=prior)
        now = found.nearest(summaries)
        if float((now != label).mean()) <= _SETTLED:
            break
        label = now
    return found


def _clouds(summaries: DoubleArray, label: IntArray, deviation: DoubleArray, *, floor: float, prior: float) -> Modes:
    n, d = summaries.shape
    parts = [summaries[label == mode] / deviation for mode in np.unique(label)]
    parts = [part for part in parts if len(part) >= 2]
    means = [part.mean(axis=0) for part in parts]
    for part, mean in zip(parts, means, strict=True):
        np.subtract(part, mean, out=part)  # in place: a device has little memory
    squares = [part.T @ part for part in parts]
    common = sum(squares, start=np.zeros((d, d))) / n
    common += _RIDGE * max(float(np.trace(common)) / d, DEVIATION_FLOOR) * np.eye(d)
    least = (floor / deviation) ** 2
    clouds = []
    for part, mean, square in zip(parts, means, squares, strict=True):
        covariance = (square + prior * common) / (len(part) + prior)
        factor, is_degenerate = factorised(covariance + np.diag(np.maximum(least - np.diag(covariance), 0)))
        shrinkage = prior / (len(part) + prior)
        clouds.append(Scatter(mean * deviation, deviation, factor, 1.0 if is_degenerate else shrinkage, is_degenerate))
    return Modes(tuple(clouds), np.array([len(part) / n for part in parts]))


def _fold_of(summaries: DoubleArray, per_day: int) -> IntArray:
    """Which fourth of the days that have testable rows each row belongs to: int64[n]; rows of days without any count to those before."""
    day = np.arange(len(summaries)) // per_day
    days = np.unique(day[is_testable(summaries)])
    place = np.maximum(np.searchsorted(days, day, side="right") - 1, 0)
    return np.asarray(place * FOLDS // max(len(days), 1), dtype=np.int64)


def _fold_scores(stretches: DoubleArray, fold: IntArray, look: Look, classes: int, *, floor: float) -> DoubleArray:
    known, at = is_testable(stretches), np.arange(len(stretches))
    found = np.full(len(stretches), np.nan)
    for number in np.unique(fold):
        start, stop = np.flatnonzero(fold == number)[[0, -1]]
        # stretches that reach into the fold from before or after it are in neither part
        is_in = (fold == number) & known & (at - look.subwindows + 1 >= start)
        is_out = known & ((at < start) | (at - look.subwindows + 1 > stop))
        if is_in.any():
            found[is_in] = _fitted(stretches[is_out], look, classes, floor=floor).scores(stretches[is_in])
    return found


def _fold_scores_by_powers(rows: DoubleArray, fold: IntArray, look: Look, whole: ClassPowers) -> DoubleArray:
    """The same where classes are followed row by row; the most frequent class is that of the whole."""
    classes = len(whole.dispersion)
    found = np.full(len(rows), np.nan)
    for number in np.unique(fold):
        is_in = (fold == number)[:, None]
        made = fit_class_powers(np.where(is_in, np.nan, rows), classes, look.subwindows, base=whole.base)
        stretches = pooled(made.followed(np.where(is_in, rows, np.nan)), look.subwindows)
        known = is_testable(stretches)
        found[known] = made.scores(stretches[known])
    return found


def _fitted(stretches: DoubleArray, look: Look, classes: int, *, floor: float) -> Modes | ClassShares:
    if not look.modes:
        return fit_class_shares(stretches, classes)
    return fit_modes(stretches, look.modes, floor=floor, prior=PRIOR_WINDOWS * float(np.sqrt(look.subwindows)))


def _fit_look(summaries: DoubleArray, fold: IntArray, look: Look, coordinates: IntArray, classes: int, *, floor: float) -> LookReference:
    """`coordinates`: which columns the look uses, the last so many of them shares of classes."""
    rows = summaries[:, coordinates]
    stretches = pooled(rows, look.subwindows)
    known = is_testable(stretches)
    if not len(coordinates) or not known.any():
        raise InvalidError(f"No testable stretch of {look.subwindows} rows among {len(rows)} of {look.name}.", code="too-few")
    made: Modes | ClassShares | ClassPowers
    if look.judges is Judges.ROWS:
        made = fit_class_powers(rows, classes, look.subwindows)
        scores = _fold_scores_by_powers(rows, fold, look, made)
    else:
        scores = _fold_scores(stretches, fold, look, classes, floor=floor)
        made = _fitted(stretches[known], look, classes, floor=floor)
    kept = made.rounded()
    return LookReference(replace(look, modes=_modes_of(kept), shape=None), coordinates, kept, _tail(scores[~np.isnan(scores)], look.shape))


def _modes_of(modes: Modes | ClassShares | ClassPowers) -> int:
    return len(modes.clouds) if isinstance(modes, Modes) else 0


def _tail(scores: DoubleArray, shape: float | None) -> Tail:
    """The tail of these scores, of this shape or of shape `MIN_SHAPE` at least, its scale by the mean of the excesses."""
    found = fit_tail(scores)
    xi = max(found.xi, MIN_SHAPE) if shape is None else shape
    if found.xi != xi:
        excesses = np.sort(scores.astype(np.float32)).astype(np.float64) - found.q
        found = Tail(found.scores, found.q, xi, float(excesses[excesses > 0].mean()) * (1 - xi))
    return found.thinned(TAIL_SCORES)


def _float32(numbers: DoubleArray) -> DoubleArray:
    return numbers.astype(np.float32).astype(np.float64)
