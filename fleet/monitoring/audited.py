"""What labels drawn at random say of estimates without labels at the same place; pure (ADR 0064).

What makes an estimate wrong is the place more than what happens to it, and that stays: who knows by how much it was wrong at a place while
somebody looked knows most of what it is wrong by later. The error of a place is held to be a Gaussian process over what windows show of
themselves: alike where they are alike, as large as at places that were left out at release. Labels are looks at it, each as sure as so
many labels are (kriging; Rasmussen & Williams 2006, section 2.2). Where they say more than such places let expect, places differ more than
was thought, and that counts for the window too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.monitoring.confidence import confidence_sequence

DoubleArray = npt.NDArray[np.float64]
#: The part of the variance of a place's errors that windows which look the same have in common; the rest is each window's own.
_COMMON = 0.9
#: What windows show of themselves (surer than at release, answers beyond their shares) may differ by so much until errors are unlike.
_ALIKE = 0.15


@dataclass(frozen=True, eq=False)
class Expected:
    """What a window shows of itself, and the accuracy that this lets expect without labels."""

    #: float64[2]: how much surer than at release, and what part of the answers is beyond their shares.
    seen: DoubleArray
    accuracy: float
    #: Variance of its error that is the place's, and what so few independent rows add.
    by_place: float
    by_chance: float


@dataclass(frozen=True, eq=False)
class Audit:
    """Labels drawn at random of one span, and what was expected of that span without them."""

    expected: Expected
    #: Summary of the span, float64[d], NaN where it tells nothing.
    where: DoubleArray
    right: int
    labels: int


@dataclass(frozen=True, slots=True)
class Correction:
    """What labels change of the expectation of a window."""

    #: To be added to the accuracy that is expected without labels.
    by: float
    #: Variance of the error that is left and is the place's.
    by_place: float
    #: What part of that variance labels took away.
    told: float = 0.0


def correction(audits: Sequence[Audit], window: Expected) -> Correction:
    """By how much the window's expectation is off, by the labels of other spans of the same place; without labels none."""
    counted = [one for one in audits if one.labels > 0]
    if not counted:
        return Correction(0.0, window.by_place)
    missing = np.array([one.right / one.labels - one.expected.accuracy for one in counted])
    common = _COMMON * _covariance([one.expected for one in counted], [one.expected for one in counted])
    own = np.diag(np.array([_of_labels(one) for one in counted]))
    with_window = _COMMON * _covariance([window], [one.expected for one in counted])[0]
    wider = _wider(counted, common)
    gain = np.linalg.solve(wider * common + own, wider * with_window)
    told = min(1.0, float(gain @ with_window) / window.by_place)
    return Correction(float(gain @ missing), wider * window.by_place * (1 - told), told)


def _of_labels(one: Audit) -> float:
    """Variance of what the labels of a span say of its place: chance in so few labels, in its rows, and what is the span's own."""
    share = (one.right + 0.5) / (one.labels + 1)  # never quite sure (Jeffreys)
    return share * (1 - share) / one.labels + one.expected.by_chance + (1 - _COMMON) * one.expected.by_place


def _covariance(some: Sequence[Expected], others: Sequence[Expected]) -> DoubleArray:
    """float64[some, others]: of the errors of a place in windows that show this of themselves."""
    apart = np.array([one.seen for one in some])[:, None] - np.array([one.seen for one in others])[None]
    sizes = np.sqrt(np.outer([one.by_place for one in some], [one.by_place for one in others]))
    return np.asarray(sizes * np.exp(-(apart**2).sum(axis=2) / (2 * _ALIKE**2)))


def _wider(audits: Sequence[Audit], common: DoubleArray) -> float:
    """How many times the variance of places has to be for what the labels say together to be no surprise; at least once.

    A surprise is what lies beyond the confidence sequence of all labels: a few wrong answers in a row are none.
    """
    labels = np.array([one.labels for one in audits], dtype=np.float64)
    weights = labels / labels.sum()
    expected = float(weights @ np.array([one.expected.accuracy for one in audits]))
    low, high = confidence_sequence(sum(one.right for one in audits), int(labels.sum()))
    surprise = max(0.0, low - expected, expected - high)
    return max(1.0, surprise**2 / max(float(weights @ common @ weights), 1e-12))
