"""How often each class comes, given how much passes and under what light: what a rare class that becomes frequent stands out from; pure.

A class of one percent is a handful of things in an hour, fewer at night: its share is a count in disguise. So each share is compared with
what the rest of the same stretch lets expect (how much there is besides the most frequent class, and the first components of the input's
coordinates, by which a model mistakes one class for another), and the distance is the deviance of a count, in units of its dispersion.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.normal import DoubleArray
from protocol.sketches.scatter import DEVIATION_FLOOR

#: Components of the input's coordinates that are followed, and which part of the clean windows lies beyond their ends, on each side.
COMPONENTS, _BEYOND = 8, 0.005
#: Windows that the ridge of the components counts as.
_RIDGE_WINDOWS = 100
#: Least part of a stretch that is taken not to be of the most frequent class; least part of that which any class is expected to have, and
#: least part of what it has on average: components that lie far out expect no less.
_LEAST_REST, _LEAST_SHARE, _LEAST_OF_AVERAGE = 0.02, 0.002, 0.3
#: Parts of the windows, in the order of time, that are left out in turn when the dispersion is found.
_BLOCKS = 4
#: A class is taken to vary at least half as much as the middle one.
_LEAST_DISPERSION = 0.5
#: Windows for each number that is fitted.
_WINDOWS_EACH = 8


@dataclass(frozen=True, eq=False)
class ClassShares:
    """What lets expect the shares of L classes by C other coordinates. Vectors are float64[n, C + L], shares last.

    Raises on creation: InvalidError (bad-reference).
    """

    #: The most frequent class.
    base: int
    #: Means of the other coordinates, float64[C], and what takes them to components, float64[K, C]; ends of the components, float64[K].
    center: DoubleArray
    components: DoubleArray
    low: DoubleArray
    high: DoubleArray
    #: float64[2 + K, L]: what 1 - rest, the rest and the rest times each component let expect of a class; of the most frequent class 0.
    weights: DoubleArray
    #: What each class has of the rest on average, float64[L]; of the most frequent class the rest itself.
    average: DoubleArray
    #: Squared distance from what is expected, as a part of it: float64[L], above 0.
    dispersion: DoubleArray

    def __post_init__(self) -> None:
        context, classes, k = len(self.center), len(self.dispersion), len(self.low)
        is_so = 0 <= self.base < classes and self.components.shape == (k, context) and self.high.shape == (k,)
        is_so = is_so and k <= COMPONENTS and self.weights.shape == (2 + k, classes) and self.average.shape == (classes,)
        numbers = (self.center, self.components, self.low, self.high, self.weights, self.average, self.dispersion)
        is_so = is_so and all(bool(np.isfinite(one).all()) for one in numbers)
        if not (is_so and bool((self.dispersion > 0).all()) and bool((self.low <= self.high).all())):
            raise InvalidError(
                "Shares of classes of contradicting sizes or not finite; wanted C, K by C, 2 + K by L and L.", code="bad-reference"
            )

    @property
    def dimensions(self) -> int:
        """Coordinates of a vector."""
        return len(self.center) + len(self.dispersion)

    @property
    def is_degenerate(self) -> bool:
        """Never: it needs no covariance."""
        return False

    def scores(self, summaries: DoubleArray) -> DoubleArray:
        """The largest surprise of vectors float64[n, C + L]: float64[n] >= 0."""
        return np.asarray(self.surprises(summaries).max(axis=1), dtype=np.float64)

    def contributions(self, summary: DoubleArray) -> DoubleArray:
        """The surprise of each class of one vector, 0 for the other coordinates: float64[C + L]."""
        return np.concatenate([np.zeros(len(self.center)), self.surprises(summary[None])[0]])

    def surprises(self, summaries: DoubleArray) -> DoubleArray:
        """Deviance of each class's share, of the rest in place of the most frequent class: float64[n, L]."""
        return deviances(_seen(self._shares(summaries), self.base), self.expected(summaries)) / self.dispersion

    def expected(self, summaries: DoubleArray) -> DoubleArray:
        """float64[n, L]: of each class; in place of the most frequent one of the rest, of which the average alone is expected."""
        rest = 1 - self._shares(summaries)[:, [self.base]]
        found = _design(rest, self._components_of(summaries)) @ self.weights
        least = np.maximum(rest, _LEAST_REST) * np.maximum(_LEAST_OF_AVERAGE * self.average, _LEAST_SHARE)
        found = np.maximum(found, least)
        found[:, self.base] = max(float(self.average[self.base]), _LEAST_REST)
        return np.asarray(found, dtype=np.float64)

    def rounded(self) -> "ClassShares":
        """The same as float32 has it: what travels."""
        kept = (self.center, self.components, self.low, self.high, self.weights, self.average, self.dispersion)
        return ClassShares(self.base, *(one.astype(np.float32).astype(np.float64) for one in kept))

    @cached_property
    def _start(self) -> int:
        return len(self.center)

    def _shares(self, summaries: DoubleArray) -> DoubleArray:
        return summaries[:, self._start :]

    def _components_of(self, summaries: DoubleArray) -> DoubleArray:
        return np.clip((summaries[:, : self._start] - self.center) @ self.components.T, self.low, self.high)


def deviances(seen: DoubleArray, expected: DoubleArray) -> DoubleArray:
    """2 (k ln(k / m) - k + m) of what was seen and what was expected, above 0: how far a count is off, in units of one thing."""
    k = np.maximum(seen, 0.0)
    logs = np.log(np.maximum(k, 1e-300) / expected)
    return np.asarray(2 * np.maximum(k * logs - k + expected, 0.0), dtype=np.float64)


def fit_class_shares(summaries: DoubleArray, classes: int) -> ClassShares:
    """What consecutive clean vectors float64[n, C + classes] let expect, without NaN. Raises: InvalidError (too-few)."""
    context, shares = summaries[:, : summaries.shape[1] - classes], summaries[:, summaries.shape[1] - classes :]
    least = _WINDOWS_EACH * (2 + COMPONENTS)
    if len(summaries) < least or classes < 2 or not bool((shares.std(axis=0) > 0).any()):
        raise InvalidError(f"{len(summaries)} windows of {classes} classes; wanted {least} of two or more that vary.", code="too-few")
    base = int(shares.mean(axis=0).argmax())
    center, components = _components(context)
    places = (context - center) @ components.T
    low, high = np.quantile(places, [_BEYOND, 1 - _BEYOND], axis=0)
    weights = _weights(shares, np.clip(places, low, high), base)
    seen = _seen(shares, base).mean(axis=0)
    average = np.where(np.arange(classes) == base, seen, seen / max(float(seen[base]), 1e-6))
    made = ClassShares(base, center, components, low, high, weights, average, np.ones(classes))
    return replace(made, dispersion=_dispersion(made, summaries))


def _components(context: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Means, float64[C], and the map to at most `COMPONENTS` components of deviation 1, float64[K, C]."""
    center, deviation = context.mean(axis=0), np.maximum(context.std(axis=0), DEVIATION_FLOOR)
    if not context.shape[1]:
        return center, np.empty((0, 0))
    x = (context - center) / deviation
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values, vectors = values[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
    kept = values > 1e-6 * max(float(values[0]), DEVIATION_FLOOR)
    return center, np.asarray((vectors[:, kept] / np.sqrt(values[kept]) / deviation[:, None]).T, dtype=np.float64)


def _design(rest: DoubleArray, components: DoubleArray) -> DoubleArray:
    return np.concatenate([1 - rest, rest, rest * components], axis=1)


def _seen(shares: DoubleArray, base: int) -> DoubleArray:
    """The shares with the rest in place of the most frequent one."""
    seen = shares.copy()
    seen[:, base] = 1 - shares[:, base]
    return seen


def _weights(shares: DoubleArray, components: DoubleArray, base: int) -> DoubleArray:
    """Ridge regressions, windows weighed by what passes in them: the fewer things, the larger their part in a share's noise."""
    seen = _seen(shares, base)
    rest = seen[:, [base]]
    weights = _ridge(_design(rest, components), seen, 1 / np.sqrt(np.maximum(rest, _LEAST_REST)))
    weights[:, base] = 0
    return weights


def _ridge(design: DoubleArray, wanted: DoubleArray, weight: DoubleArray) -> DoubleArray:
    x, y = design * weight, wanted * weight
    gram = x.T @ x
    ridge = np.diag(gram) * _RIDGE_WINDOWS / len(x)
    ridge[:2] = 0
    return np.asarray(np.linalg.solve(gram + np.diag(ridge + 1e-9), x.T @ y), dtype=np.float64)


def _dispersion(made: ClassShares, summaries: DoubleArray) -> DoubleArray:
    """Of windows that the weights were not fitted on, by the weights of the others, in turn."""
    shares, components = made._shares(summaries), made._components_of(summaries)  # noqa: SLF001 - its own module
    block = np.arange(len(summaries)) * _BLOCKS // len(summaries)
    expected = np.empty_like(shares)
    for number in range(_BLOCKS):
        weights = _weights(shares[block != number], components[block != number], made.base)
        expected[block == number] = replace(made, weights=weights).expected(summaries[block == number])
    squares = (_seen(shares, made.base) - expected) ** 2
    found = squares.mean(axis=0) / expected.mean(axis=0)
    return np.asarray(np.maximum(found, max(_LEAST_DISPERSION * float(np.median(found)), 1e-6)), dtype=np.float64)
