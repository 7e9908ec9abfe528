"""How like a window is to what a release was tried on: places of the evaluation data, as they were and damaged; pure (DRIFT 6, ADR 0041).

What makes an estimate of accuracy wrong is the place more than the damage, and the place of a device is its own reference: no alarm tells
of it. So a window is compared with the trials at release whose estimates were right. It is within their span when the model is about as
sure as it was there, gives its answers in about the same shares, and looks like one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.sketches.counts import Counts
from protocol.sketches.profile import ModelProfile, TrialReference
from protocol.sketches.summary import summarizer, summary

DoubleArray = npt.NDArray[np.float64]
#: Fewer places tell nothing of how places differ.
MIN_PLACES = 5
#: An estimate that is wrong by no more is right (DRIFT, targets).
RIGHT = 0.03
#: Part of the trials with a right estimate that may lie outside: with a lower estimate, with stranger shares of answers. Set on study data.
OUTSIDE_ESTIMATE, OUTSIDE_ANSWERS = 0.08, 0.08
#: Times the largest distance of a trial from the nearest of another place: a guard against what nobody tried, no measure of errors.
_FARTHER = 2.0
#: Unit of a coordinate that hardly varies between trials.
_FLOOR = 0.05


@dataclass(frozen=True, eq=False)
class Span:
    """Within what estimates were right."""

    trials: tuple[TrialReference, ...]
    #: float64[trials, d] in units of float64[d].
    places: DoubleArray
    unit: DoubleArray
    #: Shares of answers over all evaluation data.
    answers: DoubleArray
    #: Least middle of the three estimates, largest distances of answers and of places.
    least: float
    most_apart: float
    farthest: float


@dataclass(frozen=True, slots=True)
class Likeness:
    """Where a window lies in the span of what was tried."""

    #: Nearest trial.
    nearest: TrialReference
    #: Why it is outside; empty: it is within.
    outside: str


def middle(estimates: Sequence[float]) -> float:
    """What the three estimates say together: the middle of their range."""
    return (min(estimates) + max(estimates)) / 2


def span_of(profile: ModelProfile) -> Span | None:
    """The span of the profile's trials; None when the evaluation data were not from enough places, or no estimate was right."""
    trials = profile.accuracy.trials if profile.accuracy is not None else ()
    if len({one.place for one in trials}) < MIN_PLACES:
        return None
    answers = _shares(profile.reference.classes)
    right = np.array([_is_right(one) for one in trials], dtype=bool)
    if not right.any():
        return None
    middles = np.array([middle(one.estimates) for one in trials])
    classes = summarizer(profile.grid).classes
    apart = np.array([_apart(np.array(one.summary[classes]), answers, one.rows) for one in trials])
    places = np.array([one.summary for one in trials], dtype=np.float64)
    unit = np.maximum(places.std(axis=0), _FLOOR)
    names = np.array([one.place for one in trials])
    return Span(
        trials,
        places / unit,
        unit,
        answers,
        float(np.quantile(middles[right], OUTSIDE_ESTIMATE)),
        float(np.quantile(apart[right], 1 - OUTSIDE_ANSWERS)),
        _FARTHER * _farthest(places / unit, names),
    )


def likeness(span: Span, profile: ModelProfile, counts: Counts, estimates: Sequence[float]) -> Likeness:
    """Whether the window is within the span, by its three estimates and its counts."""
    place = summary(counts, profile.grid)
    known = ~np.isnan(place)
    squares = (span.places[:, known] - place[known] / span.unit[known]) ** 2
    distances = np.sqrt(squares.mean(axis=1))
    nearest = span.trials[int(distances.argmin())]
    answers = int(counts.classes.sum())
    apart, by_chance = _apart(_shares(counts.classes), span.answers, answers), _by_chance(span.answers, answers)
    said = middle(estimates)
    if said < span.least - np.sqrt(span.least * (1 - span.least) / counts.rows):  # so few rows may say so by chance
        return Likeness(nearest, f"The model is less sure than where estimates were right at release: {said:.2f}, below {span.least:.2f}.")
    if apart > span.most_apart + by_chance:
        return Likeness(
            nearest,
            f"The model gives other answers than where estimates were right at release: {apart:.0%} of them, above {span.most_apart:.0%}.",
        )
    if float(distances.min()) > span.farthest:
        return Likeness(nearest, "The window looks like nothing that was tried at release.")
    return Likeness(nearest, "")


def _is_right(trial: TrialReference) -> bool:
    """Whether the estimate was right, as far as so many rows can tell."""
    chance = np.sqrt(trial.accuracy * (1 - trial.accuracy) / trial.rows)
    return bool(abs(middle(trial.estimates) - trial.accuracy) <= RIGHT + chance)


def _shares(classes: npt.NDArray[np.int64]) -> DoubleArray:
    return np.asarray(classes / max(1, int(classes.sum())), dtype=np.float64)


def _apart(shares: DoubleArray, usual: DoubleArray, answers: int) -> float:
    """Total variation between the shares beyond what so many answers differ by chance; 0 without classes or answers."""
    if not answers or not shares.size:
        return 0.0
    return max(0.0, float(np.abs(shares - usual).sum() / 2) - _by_chance(usual, answers))


def _by_chance(usual: DoubleArray, answers: int) -> float:
    """Mean of the total variation between the usual shares and those of so many answers."""
    return float(np.sqrt(2 / np.pi) * np.sqrt(usual * (1 - usual) / max(1, answers)).sum() / 2)


def _farthest(places: DoubleArray, names: npt.NDArray[np.str_]) -> float:
    """The largest distance of a trial from the nearest of another place."""
    found = 0.0
    for name in np.unique(names):
        its, others = places[names == name], places[names != name]
        for one in its:
            found = max(found, float(np.sqrt(((others - one) ** 2).mean(axis=1).min())))
    return found
