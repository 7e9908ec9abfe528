"""The share of each class in a whole stretch, against what the rest of it lets expect: for rows that are means, as those of hours; pure.

A share of a mean is the mean of the shares, so it does not matter of how many ten minutes a row is made (`powers.py` is for those alone).
"""

from dataclasses import dataclass, replace

import numpy as np

from protocol.sketches.expectations import (
    BLOCKS,
    Expectations,
    design,
    deviances,
    dispersion_of,
    fit_expectations,
    fit_weights,
    require_enough,
)
from protocol.sketches.normal import DoubleArray

#: What any class is expected to have, of what is not of the most frequent class, at least.
_LEAST_SHARE = 0.002


@dataclass(frozen=True, eq=False)
class ClassShares(Expectations):
    """Stretches are means of rows as they are, float64[n, C + L]: what is expected is that of the whole stretch. Less surprises, too."""

    def followed(self, rows: DoubleArray) -> DoubleArray:
        """Rows float64[n, C + L] as they are."""
        return rows

    def surprises(self, stretches: DoubleArray) -> DoubleArray:
        """Deviance of each class's share, of the rest in place of the most frequent class: float64[n, L] of stretches float64[n, C + L]."""
        return deviances(_seen(stretches[:, len(self.center) :], self.base), self.expected(stretches)) / self.dispersion

    def expected(self, stretches: DoubleArray) -> DoubleArray:
        """float64[n, L]: of each class; in place of the most frequent one of the rest, of which the average alone is expected."""
        rest = 1 - stretches[:, [len(self.center) + self.base]]
        return self.raised(design(rest, self.components_of(stretches)) @ self.weights, rest, least=_LEAST_SHARE)


def fit_class_shares(stretches: DoubleArray, classes: int) -> ClassShares:
    """What consecutive clean stretches float64[n, C + classes] let expect, without NaN. Raises: InvalidError (too-few)."""
    context, shares = stretches[:, : stretches.shape[1] - classes], stretches[:, stretches.shape[1] - classes :]
    require_enough(shares)
    base = int(shares.mean(axis=0).argmax())
    seen = _seen(shares, base)
    made = fit_expectations(ClassShares, context, seen, base)
    return replace(made, dispersion=_dispersion(made, stretches, seen))


def _seen(shares: DoubleArray, base: int) -> DoubleArray:
    """The shares with the rest in place of the most frequent one."""
    seen = shares.copy()
    seen[:, base] = 1 - shares[:, base]
    return seen


def _dispersion(made: ClassShares, stretches: DoubleArray, seen: DoubleArray) -> DoubleArray:
    """Of stretches that the weights were not fitted on, by the weights of the others, in turn."""
    components = made.components_of(stretches)
    block = np.arange(len(stretches)) * BLOCKS // len(stretches)
    expected = np.empty_like(seen)
    for number in range(BLOCKS):
        weights = fit_weights(seen[block != number], components[block != number], made.base)
        expected[block == number] = replace(made, weights=weights).expected(stretches[block == number])
    return dispersion_of(seen, expected)
