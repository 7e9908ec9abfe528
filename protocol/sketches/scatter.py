"""Mean and shrunk covariance of summary vectors, and the distance T² of others from them (DRIFT 5.2); float64, pure."""

from dataclasses import dataclass

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray

#: A coordinate that varies less than this is taken to vary this much.
DEVIATION_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Scatter:
    """Where vectors of d coordinates lie: x = (s - mean) / deviation has the covariance L Lᵀ. Raises on creation: InvalidError."""

    #: float64[d]; NaN for a coordinate that was never known: it counts as average for ever.
    mean: DoubleArray
    #: float64[d], at least `DEVIATION_FLOOR`.
    deviation: DoubleArray
    #: L: float64[d, d], lower triangle.
    factor: DoubleArray
    #: How much of the covariance is the identity, 0..1.
    shrinkage: float
    #: No covariance could be factorised: no alarms (condition `reference_degenerate`).
    is_degenerate: bool = False

    def __post_init__(self) -> None:
        d = len(self.mean)
        is_so = self.deviation.shape == (d,) and self.factor.shape == (d, d) and d > 0
        is_so = is_so and bool(np.isfinite(self.deviation).all() and np.isfinite(self.factor).all() and not np.isinf(self.mean).any())
        is_so = is_so and bool((self.deviation > 0).all() and (np.diag(self.factor) > 0).all()) and 0 <= self.shrinkage <= 1
        if not is_so:
            raise InvalidError("A covariance of contradicting sizes or not finite; wanted d, d and d by d numbers.", code="bad-reference")

    @property
    def inverse(self) -> DoubleArray:
        """L⁻¹, float64[d, d], made anew: whoever asks often keeps what it makes of it. Raises: InvalidError (bad-reference) without one."""
        try:
            inverse = np.tril(np.linalg.inv(self.factor))
        except np.linalg.LinAlgError:
            inverse = np.full(self.factor.shape, np.nan)
        if not np.isfinite(inverse).all():
            raise InvalidError("A covariance that cannot be inverted; wanted one with an inverse of finite numbers.", code="bad-reference")
        return inverse

    def standardized(self, summaries: DoubleArray) -> DoubleArray:
        """The x of vectors float64[n, d]; 0 where a coordinate is not known."""
        return np.nan_to_num((summaries - self.mean) / self.deviation, nan=0.0)

    def scores(self, summaries: DoubleArray) -> DoubleArray:
        """T² of vectors float64[n, d]: float64[n]."""
        with np.errstate(over="ignore"):
            y = self.standardized(summaries) @ self.inverse.T
            squares: DoubleArray = np.einsum("nd,nd->n", y, y)
        return squares

    def contributions(self, summary: DoubleArray) -> DoubleArray:
        """x_j (Σ̂⁻¹ x)_j of one vector: float64[d]; they add up to T²."""
        x, inverse = self.standardized(summary[None]).reshape(-1), self.inverse
        return np.asarray(x * (inverse.T @ (inverse @ x)), dtype=np.float64)

    def part(self, coordinates: IntArray) -> "Scatter":
        """The scatter of some coordinates alone. Raises: InvalidError when none are left."""
        covariance = self.factor @ self.factor.T
        factor, is_degenerate = factorised(covariance[np.ix_(coordinates, coordinates)])
        return Scatter(
            self.mean[coordinates],
            self.deviation[coordinates],
            factor,
            1.0 if is_degenerate else self.shrinkage,
            self.is_degenerate or is_degenerate,
        )


def fit_scatter(summaries: DoubleArray, *, floor: float = DEVIATION_FLOOR, is_floor_variance: bool = False) -> Scatter:
    """The scatter of vectors float64[n, d], shrunk as Ledoit and Wolf 2004 (Journal of Multivariate Analysis 88, lemma 3.2 to 3.5).

    `is_floor_variance`: a coordinate that varied less than `floor` is taken to vary by it. Otherwise only its unit is `floor`, and its
    variance is what shrinkage leaves of almost nothing: one prediction of a class that the reference never saw would raise an alarm.
    Raises: InvalidError (too-few) below two vectors.
    """
    n, d = summaries.shape
    if n < 2:
        raise InvalidError(f"A covariance of {n} windows; wanted at least 2.", code="too-few")
    known = ~np.isnan(summaries)
    numbers = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, summaries, 0.0).sum(axis=0) / numbers
    centered = np.where(known, summaries - mean, 0.0)
    deviation = np.maximum(np.sqrt((centered**2).sum(axis=0) / numbers), floor)
    x = centered / deviation
    s = x.T @ x / n
    m = float(np.trace(s)) / d
    distance = float(((s - m * np.eye(d)) ** 2).sum()) / d
    noise = (float(((x**2).sum(axis=1) ** 2).sum()) / n**2 - float((s**2).sum()) / n) / d
    w = min(1.0, max(0.0, noise / distance)) if distance > 0 else 1.0
    covariance = w * m * np.eye(d) + (1 - w) * s
    if is_floor_variance:
        covariance += np.diag(np.where(deviation <= floor, np.maximum(1 - np.diag(covariance), 0), 0))
    factor, is_degenerate = factorised(covariance)
    return Scatter(np.where(known.any(axis=0), mean, np.nan), deviation, factor, 1.0 if is_degenerate else w, is_degenerate)


def factorised(covariance: DoubleArray) -> tuple[DoubleArray, bool]:
    """L of a covariance float64[d, d], and whether only a multiple of the identity has one."""
    d = len(covariance)
    m = float(np.trace(covariance)) / max(1, d)
    try:
        factor: DoubleArray = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:
        factor = np.zeros((d, d))
    diagonal = np.diag(factor)
    if d and np.isfinite(factor).all() and diagonal.min() > 1e-9 * np.sqrt(max(m, 0.0)):
        return factor, False
    return np.eye(d) * float(np.sqrt(m) if np.isfinite(m) and m > 0 else 1.0), True
