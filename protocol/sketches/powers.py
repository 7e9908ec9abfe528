"""How often each class comes in ten minutes, by a power of its share: what a rare class that becomes frequent stands out from; pure.

One thing that stays for long looks like many. So of each row's share a power counts, which grows with how many rows have it more than with
how long it fills one. It is compared, row by row, with what the rest of the row lets expect (`expectations.py`); means of both over a
stretch of rows are judged. A class that comes less than expected is no surprise: others then come more, or all of them less.

A mean of rows has another power than its rows have on average: this judges rows like those it was fitted on, never means of several.
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
from protocol.sketches.stretches import is_testable, pooled

#: Of a share in one row this power counts: set on the study (ADR 0051).
POWER = 2 / 3
#: What any class is expected to have, of what is not of the most frequent class, at least.
_LEAST_SHARE = 0.002**POWER


@dataclass(frozen=True, eq=False)
class ClassPowers(Expectations):
    """Stretches are means of what came and of what was expected in each row: float64[n, 2 L]. The rest counts without a power."""

    def followed(self, rows: DoubleArray) -> DoubleArray:
        """What came of each class and what was to be expected of it, in rows float64[n, C + L]: float64[n, 2 L]; NaN rows stay NaN."""
        seen = _seen(rows[:, len(self.center) :], self.base)
        return np.concatenate([seen, design(seen[:, [self.base]], self.components_of(rows)) @ self.weights], axis=1)

    def surprises(self, stretches: DoubleArray) -> DoubleArray:
        """Deviance of each class that came more than expected, else 0: float64[n, L] of stretches float64[n, 2 L].

        In place of the most frequent class of the rest, whether it is more or less.
        """
        seen, expected = stretches[:, : len(self.dispersion)], self.expected(stretches)
        is_counted = ~(seen <= expected)  # what is not known stays so
        is_counted[:, self.base] = True
        return np.where(is_counted, deviances(seen, expected) / self.dispersion, 0.0)

    def expected(self, stretches: DoubleArray) -> DoubleArray:
        """float64[n, L]: of each class; in place of the most frequent one of the rest, of which the average alone is expected."""
        return self.raised(stretches[:, len(self.dispersion) :], stretches[:, [self.base]], least=_LEAST_SHARE)


def fit_class_powers(rows: DoubleArray, classes: int, subwindows: int = 1, *, base: int | None = None) -> ClassPowers:
    """What consecutive clean rows float64[n, C + classes] let expect of stretches of so many; NaN rows are not testable.

    `base`: which class is the most frequent, None: it is looked for. Raises: InvalidError (too-few).
    """
    known = rows[is_testable(rows)]
    context, shares = known[:, : rows.shape[1] - classes], known[:, rows.shape[1] - classes :]
    require_enough(shares)
    base = int(shares.mean(axis=0).argmax()) if base is None else base
    seen = _seen(shares, base)
    made = fit_expectations(ClassPowers, context, seen, base)
    return replace(made, dispersion=_dispersion(made, rows, seen, subwindows))


def _seen(shares: DoubleArray, base: int) -> DoubleArray:
    """What counts of each share, the rest in place of the most frequent class; noise below nothing is nothing."""
    seen = np.maximum(shares, 0.0) ** POWER
    seen[:, base] = 1 - shares[:, base]
    return np.asarray(seen, dtype=np.float64)


def _dispersion(made: ClassPowers, rows: DoubleArray, seen: DoubleArray, subwindows: int) -> DoubleArray:
    """Of stretches of rows that the weights were not fitted on, by the weights of the others, in turn; `seen`: of the testable rows."""
    known = np.flatnonzero(is_testable(rows))
    block = np.arange(len(known)) * BLOCKS // len(known)
    components = made.components_of(rows[known])
    classes = len(made.dispersion)
    followed = np.full((len(rows), 2 * classes), np.nan)
    for number in range(BLOCKS):
        weights = fit_weights(seen[block != number], components[block != number], made.base)
        its = known[block == number]
        followed[its] = replace(made, weights=weights).followed(rows[its])
    stretches = pooled(followed, subwindows)
    stretches = stretches[is_testable(stretches)]
    return dispersion_of(stretches[:, :classes], made.expected(stretches))
