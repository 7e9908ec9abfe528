"""How surprising a drift score is: its rank among those of clean windows, beyond them a generalised Pareto tail (DRIFT 5.2, 5.3); pure."""

from dataclasses import dataclass

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.grid import FloatArray
from protocol.sketches.normal import DoubleArray

#: Share of scores below where the tail begins.
QUANTILE = 0.95
#: Shapes of the tail that are tried.
SHAPES = np.arange(5, 51) / 100
#: Fewest scores a tail is fitted to, most that are kept.
MIN_SCORES, MAX_SCORES = 100, 4096
#: p-values are kept within these.
P_MIN, P_MAX = 1e-12, 1 - 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """Scores of clean windows that the covariance was not fitted on. Raises on creation: InvalidError (bad-reference)."""

    #: float32[n], ascending.
    scores: FloatArray
    #: Where the tail begins, its shape, its scale.
    q: float
    xi: float
    sigma: float

    def __post_init__(self) -> None:
        scores = self.scores
        is_so = MIN_SCORES <= len(scores) <= MAX_SCORES and bool(np.isfinite(scores).all() and scores[0] >= 0)
        is_so = is_so and bool((np.diff(scores) >= 0).all()) and scores[0] <= self.q <= scores[-1]
        if not (is_so and 0 < self.xi <= 1 and 0 < self.sigma < np.inf):
            raise InvalidError(
                f"A tail of {len(scores)} scores from {self.q} on with shape {self.xi} and scale {self.sigma}; wanted {MIN_SCORES} to"
                f" {MAX_SCORES} ascending scores, a beginning among them, and both above 0.",
                code="bad-reference",
            )

    def thinned(self, most: int) -> "Tail":
        """The same with at most so many scores, evenly by rank; where the tail begins and how it goes on stays."""
        scores = self.scores
        if len(scores) <= most:
            return self
        return Tail(scores[np.linspace(0, len(scores) - 1, most).round().astype(np.int64)], self.q, self.xi, self.sigma)

    def p_values(self, scores: DoubleArray | FloatArray) -> DoubleArray:
        """float64[n] within `P_MIN` and `P_MAX` of scores [n], taken as float32 as they travel; NaN stays NaN: not testable."""
        with np.errstate(over="ignore"):
            seen = np.asarray(scores, dtype=np.float32)
        above = len(self.scores) - np.searchsorted(self.scores, seen, side="left")
        ranks = (above + 1) / (len(self.scores) + 1)
        excess = np.maximum(seen.astype(np.float64) - self.q, 0)
        beyond = (1 - QUANTILE) * (1 + self.xi * excess / self.sigma) ** (-1 / self.xi)
        p = np.clip(np.where(excess > 0, beyond, ranks), P_MIN, P_MAX)
        return np.where(np.isnan(seen), np.nan, p)


def fit_tail(scores: DoubleArray) -> Tail:
    """The tail of these scores [n]. Raises: InvalidError (too-few) below `MIN_SCORES`, or when none lies above the rest."""
    with np.errstate(over="ignore"):
        kept = np.sort(np.asarray(scores, dtype=np.float32))
    if len(kept) < MIN_SCORES or not np.isfinite(kept).all():
        raise InvalidError(f"A tail of {len(kept)} scores; wanted at least {MIN_SCORES} finite ones.", code="too-few")
    numbers = kept.astype(np.float64)
    q = float(np.quantile(numbers, QUANTILE))
    excesses = numbers[numbers > q] - q
    if not excesses.size:
        raise InvalidError("A tail of scores that are all alike; wanted some that vary.", code="too-few")
    sigmas = excesses.mean() * (1 - SHAPES)
    logs = np.log1p(SHAPES[:, None] * excesses / sigmas[:, None]).sum(axis=1)
    best = int(np.argmax(-len(excesses) * np.log(sigmas) - (1 + 1 / SHAPES) * logs))
    if len(kept) > MAX_SCORES:
        kept = kept[np.linspace(0, len(kept) - 1, MAX_SCORES).round().astype(np.int64)]
    return Tail(kept, q, float(SHAPES[best]), float(sigmas[best]))
