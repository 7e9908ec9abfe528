"""What lets expect how often each class comes: what else there is, and under what light; what both kinds of looks at classes share; pure.

A class of one percent is a handful of things in an hour, fewer at night: its share is a count in disguise. So what came of it is compared
with what the rest lets expect (how much there is besides the most frequent class, and the first components of the input's coordinates, by
which a model mistakes one class for another), and the distance is the deviance of a count, in units of its dispersion.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.normal import DoubleArray
from protocol.sketches.scatter import DEVIATION_FLOOR

#: Components of the input's coordinates that are followed, and which part of the clean windows lies beyond their ends, on each side.
COMPONENTS, _BEYOND = 8, 0.005
#: Windows that the ridge of the components counts as.
_RIDGE_WINDOWS = 100
#: Least part of a stretch that is taken not to be of the most frequent class; least part of what a class has on average that it is expected
#: to have: components that lie far out expect no less.
LEAST_REST, _LEAST_OF_AVERAGE = 0.02, 0.3
#: Parts of the windows, in the order of time, that are left out in turn when the dispersion is found.
BLOCKS = 4
#: A class is taken to vary at least half as much as the middle one.
_LEAST_DISPERSION = 0.5
#: Windows for each number that is fitted.
_WINDOWS_EACH = 8


Kind = TypeVar("Kind", bound="Expectations")


@dataclass(frozen=True, eq=False)
class Expectations(ABC):
    """What lets expect L classes by C other coordinates. Rows are float64[n, C + L], shares last; stretches are means of `followed` rows.

    Raises on creation: InvalidError (bad-reference).
    """

    #: The most frequent class. In its place the rest counts.
    base: int
    #: Means of the other coordinates, float64[C], and what takes them to components, float64[K, C]; ends of the components, float64[K].
    center: DoubleArray
    components: DoubleArray
    low: DoubleArray
    high: DoubleArray
    #: float64[2 + K, L]: what 1 - rest, the rest and the rest times each component let expect of a class; of the most frequent class 0.
    weights: DoubleArray
    #: What each class has for each part of rest on average, float64[L]; of the most frequent class the rest itself.
    average: DoubleArray
    #: Squared distance of stretches from what is expected, as a part of it: float64[L], above 0.
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
        """Coordinates of a row."""
        return len(self.center) + len(self.dispersion)

    @property
    def is_degenerate(self) -> bool:
        """Never: it needs no covariance."""
        return False

    @abstractmethod
    def followed(self, rows: DoubleArray) -> DoubleArray:
        """What stretches are means of, for rows float64[n, C + L]: float64[n, m]; NaN rows stay NaN."""

    @abstractmethod
    def surprises(self, stretches: DoubleArray) -> DoubleArray:
        """How far each class is off what is expected, in place of the most frequent class the rest: float64[n, L] >= 0."""

    def scores(self, stretches: DoubleArray) -> DoubleArray:
        """The largest surprise of each stretch: float64[n] >= 0."""
        return np.asarray(self.surprises(stretches).max(axis=1), dtype=np.float64)

    def contributions(self, stretch: DoubleArray) -> DoubleArray:
        """The surprise of each class of one stretch float64[m], 0 for the other coordinates: float64[C + L]."""
        return np.concatenate([np.zeros(len(self.center)), self.surprises(stretch[None])[0]])

    def rounded(self) -> Self:
        """The same as float32 has it: what travels."""
        kept = (self.center, self.components, self.low, self.high, self.weights, self.average, self.dispersion)
        return type(self)(self.base, *(one.astype(np.float32).astype(np.float64) for one in kept))

    def components_of(self, rows: DoubleArray) -> DoubleArray:
        """float64[n, K] of rows, within their ends."""
        return np.clip((rows[:, : len(self.center)] - self.center) @ self.components.T, self.low, self.high)

    def raised(self, expected: DoubleArray, rest: DoubleArray, *, least: float) -> DoubleArray:
        """What is expected, float64[n, L], no less than it may be, by the rest of each, float64[n, 1]; of the rest the average alone.

        `least`: what any class is expected to have of the rest.
        """
        found = np.maximum(expected, np.maximum(rest, LEAST_REST) * np.maximum(_LEAST_OF_AVERAGE * self.average, least))
        found[:, self.base] = max(float(self.average[self.base]), LEAST_REST)
        return np.asarray(found, dtype=np.float64)


def deviances(seen: DoubleArray, expected: DoubleArray) -> DoubleArray:
    """2 (k ln(k / m) - k + m) of what was seen and what was expected, above 0: how far a count is off, in units of one thing."""
    k = np.maximum(seen, 0.0)
    logs = np.log(np.maximum(k, 1e-300) / expected)
    return np.asarray(2 * np.maximum(k * logs - k + expected, 0.0), dtype=np.float64)


def require_enough(shares: DoubleArray) -> None:
    """Raises: InvalidError (too-few) for fewer windows than can be fitted, or shares float64[n, L] that never vary."""
    least = _WINDOWS_EACH * (2 + COMPONENTS)
    windows, classes = shares.shape
    if windows < least or classes < 2 or not bool((shares.std(axis=0) > 0).any()):
        raise InvalidError(f"{windows} windows of {classes} classes; wanted {least} of two or more that vary.", code="too-few")


def fit_expectations(kind: type[Kind], context: DoubleArray, seen: DoubleArray, base: int) -> Kind:
    """What other coordinates float64[n, C] let expect of what was seen, float64[n, L]; dispersions are 1, each kind finds its own."""
    center, components = _components(context)
    places = (context - center) @ components.T
    low, high = np.quantile(places, [_BEYOND, 1 - _BEYOND], axis=0)
    weights = fit_weights(seen, np.clip(places, low, high), base)
    usual = seen.mean(axis=0)
    average = np.where(np.arange(len(usual)) == base, usual, usual / max(float(usual[base]), 1e-6))
    return kind(base, center, components, low, high, weights, average, np.ones(len(usual)))


def fit_weights(seen: DoubleArray, components: DoubleArray, base: int) -> DoubleArray:
    """Ridge regressions, windows weighed by what passes in them: the fewer things, the larger their part in a share's noise."""
    rest = seen[:, [base]]
    weights = _ridge(design(rest, components), seen, 1 / np.sqrt(np.maximum(rest, LEAST_REST)))
    weights[:, base] = 0
    return weights


def design(rest: DoubleArray, components: DoubleArray) -> DoubleArray:
    """What weights are of: float64[n, 2 + K] of the rest, float64[n, 1], and components, float64[n, K]."""
    return np.concatenate([1 - rest, rest, rest * components], axis=1)


def dispersion_of(seen: DoubleArray, expected: DoubleArray) -> DoubleArray:
    """Mean squared distance of stretches float64[n, L] from what was expected, as a part of it, at least what is plausible: float64[L]."""
    found = ((seen - expected) ** 2).mean(axis=0) / expected.mean(axis=0)
    return np.asarray(np.maximum(found, max(_LEAST_DISPERSION * float(np.median(found)), 1e-6)), dtype=np.float64)


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


def _ridge(matrix: DoubleArray, wanted: DoubleArray, weight: DoubleArray) -> DoubleArray:
    x, y = matrix * weight, wanted * weight
    gram = x.T @ x
    ridge = np.diag(gram) * _RIDGE_WINDOWS / len(x)
    ridge[:2] = 0
    return np.asarray(np.linalg.solve(gram + np.diag(ridge + 1e-9), x.T @ y), dtype=np.float64)
