"""What accuracy without labels is to be expected, and how sure that is, by the places that a release was tried on; pure (ADR 0044, 0057).

What makes an estimate of accuracy wrong is the place more than the damage, and the place of a device is its own reference: no alarm tells
of it. Two things that a window shows do tell: how far the middle of the estimates lies from the accuracy at release, and what part of the
answers is given beyond their usual shares. Where the model is also less sure than usual, answers beyond their shares are wrong ones, of
which it is sure, and no estimate by confidence sees them; where it is as sure as ever, other things come. How much each of the two counts,
and how wrong that was at places left out, is learned from the trials, and of those from the ones that are like the window: mild damage
tells nothing of places where answers pile up, and strong damage nothing of places as they should be.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.monitoring.audited import Audit, Expected, correction
from protocol.sketches.counts import Counts
from protocol.sketches.profile import ModelProfile, TrialReference
from protocol.sketches.summary import summarizer, summary

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: Fewer places tell nothing of how places differ.
MIN_PLACES = 5
#: An estimate is believed when it is likely to be wrong by no more.
BELIEVED = 0.05
#: Standard deviations of the half width: 19 windows of 20 lie within.
_WIDE = 1.96
#: What is held to be so before a trial is seen: the deviation of each weight from 1, and of the error of a place that is like the others.
_WEIGHT, _LEAST = 0.2, 0.015
#: So much less sure than usual the model is where all answers beyond their shares are held to be wrong; half as much, half of them.
_UNSURE = 0.1
#: The part of the answers held to be wrong that may be another mix of things: the release's mix is one, so no trial tells.
_MIX = 0.5
#: Trials within about so much tell how wrong an estimate is, each place once; what was held before counts as one more place.
_NEAR = 0.05
#: Trials within about so much tell what to expect; farther from all of them what was held before holds.
_ALIKE = 0.15
#: What chance adds to the distance between shares of answers shrinks by so much of the distance itself (ADR 0057).
_FADES = 0.45
#: How often the parts of places and damages are told anew from what each damage leaves unexplained.
_ROUNDS = 3
#: Times the largest distance of a trial from the nearest of another site: a guard against what nobody tried, no measure of errors.
_FARTHER = 2.0
#: Unit of a coordinate that hardly varies between trials.
_FLOOR = 0.05
#: What is remembered of so many profiles, those used longest ago forgotten first: it follows from a profile, which never changes.
_KEPT = 64
_LOCK = threading.Lock()
_LEARNED: OrderedDict[int, "tuple[ModelProfile, Tried | None]"] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Tried:
    """What the trials teach."""

    trials: tuple[TrialReference, ...]
    #: Summaries, float64[trials, d] in units of float64[d], and the largest distance that is none from everything.
    places: DoubleArray
    unit: DoubleArray
    farthest: float
    #: Shares of answers over all evaluation data, and the accuracy on them.
    answers: DoubleArray
    usual: float
    #: float64[trials, 2]: middle of the estimates less the usual accuracy, and answers beyond their shares, freed of chance.
    seen: DoubleArray
    #: float64[trials]: accuracy, and what each trial counts.
    accuracy: DoubleArray
    each: DoubleArray
    #: float64[trials]: squared error of what the other sites let expect, less what so many rows differ by chance.
    squares: DoubleArray
    #: int64[trials]: which place.
    place: IntArray


@dataclass(frozen=True, slots=True)
class Likeness:
    """Where a window lies among what was tried."""

    #: Nearest trial.
    nearest: TrialReference
    #: Accuracy to be expected, and how far it may be off, 0 to 1.
    accuracy: float
    half_width: float
    #: Why it is not to be believed; empty: it is.
    outside: str
    #: Accuracy to be expected without labels of the same place, and what part of the doubt labels took away.
    without_labels: float
    told: float


def middle(estimates: Sequence[float]) -> float:
    """What the three estimates say together: the middle of their range."""
    return (min(estimates) + max(estimates)) / 2


def tried_of(profile: ModelProfile) -> Tried | None:
    """What the profile's trials teach; None when the evaluation data were not from enough places.

    Remembered: it takes a third of a second, and each hour of each device asks.
    """
    with _LOCK:
        known = _LEARNED.get(id(profile))
        if known is not None:
            _LEARNED.move_to_end(id(profile))
            return known[1]
    found = _learn(profile)
    with _LOCK:
        _LEARNED[id(profile)] = profile, found  # held, so that no other profile gets its number
        while len(_LEARNED) > _KEPT:
            _LEARNED.popitem(last=False)
    return found


def _learn(profile: ModelProfile) -> Tried | None:
    accuracy = profile.accuracy
    trials = accuracy.trials if accuracy is not None else ()
    names = [one.place for one in trials]
    if accuracy is None or len(set(names)) < MIN_PLACES:
        return None
    place, site = _numbered(names), _numbered([_site(name) for name in names])
    rows = np.array([one.rows for one in trials], dtype=np.float64)
    answers, classes = _shares(profile.reference.classes), summarizer(profile.grid).classes
    told = np.array([(one.accuracy, middle(one.estimates), *one.summary[classes]) for one in trials])
    damage = _numbered([f"{one.family} {one.severity}" for one in trials])
    smooth, own = _of_place_and_damage(told, place, damage, rows)
    independent = (1 - own) * _of_place(rows, place) + own * rows
    apart = [_apart(shares, answers, count) for shares, count in zip(smooth[:, 2:], independent.tolist(), strict=True)]
    seen, truth = np.column_stack([smooth[:, 1] - accuracy.acc0, apart]), np.clip(smooth[:, 0], 0.0, 1.0)
    each = rows / np.bincount(place, weights=rows)[place]
    errors = _left_out(seen, truth, each, site, accuracy.acc0)
    places = np.array([one.summary for one in trials], dtype=np.float64)
    unit = np.maximum(places.std(axis=0), _FLOOR)
    return Tried(
        trials,
        places / unit,
        unit,
        _FARTHER * _farthest(places / unit, site),
        answers,
        accuracy.acc0,
        seen,
        truth,
        each,
        errors**2 - truth * (1 - truth) / independent,
        place,
    )


def audit(tried: Tried, profile: ModelProfile, counts: Counts, estimates: Sequence[float], *, right: int, labels: int) -> Audit:
    """Labels drawn at random of a span beside what its estimates and counts let expect without them."""
    return Audit(_without_labels(tried, counts, estimates), summary(counts, profile.grid), right, labels)


def likeness(tried: Tried, profile: ModelProfile, counts: Counts, estimates: Sequence[float], *, audits: Sequence[Audit] = ()) -> Likeness:
    """What accuracy to expect of the window, by its three estimates and its counts, and whether to believe it.

    `audits`: what labels said of other spans of the same pipeline, while it ran the same model version.
    """
    where = summary(counts, profile.grid)
    distances = _distances(where, tried.places, tried.unit)
    nearest = tried.trials[int(distances.argmin())]
    expected = _without_labels(tried, counts, estimates)
    corrected = correction(audits, expected)
    accuracy = min(1.0, max(0.0, expected.accuracy + corrected.by))
    half_width = _WIDE * float(np.sqrt(corrected.by_place + expected.by_chance))
    known = [*distances.tolist(), *(_distances(where, one.where[None] / tried.unit, tried.unit)[0] for one in audits)]
    outside = ""
    if half_width > BELIEVED:
        outside = f"{_why(expected, tried.usual, corrected.by_place)} The estimate may be off by {half_width:.0%}."
    elif min(known) > tried.farthest:
        outside = "The window looks like nothing that was tried at release."
    return Likeness(nearest, accuracy, half_width, outside, expected.accuracy, corrected.told)


def _without_labels(tried: Tried, counts: Counts, estimates: Sequence[float]) -> Expected:
    answered = int(counts.classes.sum()) * counts.effective / max(1, counts.rows)  # neighbours in time are one thing
    seen = np.array(_seen(estimates, _shares(counts.classes), answered, tried.answers, tried.usual))
    accuracy = min(1.0, max(0.0, float(_expected(seen[None], tried.seen, tried.accuracy, tried.each, tried.usual)[0])))
    return Expected(seen, accuracy, _variance(tried, seen), accuracy * (1 - accuracy) / max(1, counts.effective))


def _distances(where: DoubleArray, places: DoubleArray, unit: DoubleArray) -> DoubleArray:
    """From a summary to each of `places`, float64[n, d] in units: root mean square of the coordinates that both know."""
    apart = (places - where / unit) ** 2
    return np.asarray(np.sqrt(np.nanmean(apart, axis=1)))


def _site(place: str) -> str:
    """What is before the first slash of a name: places of one site are alike, and left out together."""
    return place.partition("/")[0]


def _of_place(rows: DoubleArray, place: IntArray) -> DoubleArray:
    """Independent rows of each trial's place: damage is done to the same frames again, so its largest trial has them all."""
    most = np.zeros(int(place.max()) + 1)
    np.maximum.at(most, place, rows)
    return np.asarray(most[place])


def _of_place_and_damage(told: DoubleArray, place: IntArray, damage: IntArray, rows: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Each column as a part of its place, one of its damage and what is its own; and what share of its own is kept, float64[trials].

    A trial is of few rows, and what it says is chance for the most part; together a place's are many, and so are a damage's. Strong
    damage does not hurt every place alike: of what the two parts leave unexplained that share is kept which is more than chance,
    one for each damage; and the more is left, the less such trials say of what places are.
    """
    parts = np.hstack([np.eye(int(place.max()) + 1)[place], np.eye(int(damage.max()) + 1)[damage]])
    counted, found, kept = rows, told, np.zeros(len(told))
    for _ in range(_ROUNDS):
        root = np.sqrt(counted)[:, None]
        weights, *_ = np.linalg.lstsq(parts * root, told * root, rcond=None)
        found = np.asarray(parts @ weights)
        by_chance = _chance_in(found, told, damage, rows)
        kept, counted = 1 - by_chance, rows * by_chance
    return found + kept[:, None] * (told - found), kept


def _chance_in(found: DoubleArray, told: DoubleArray, damage: IntArray, rows: DoubleArray) -> DoubleArray:
    """What part of `told - found`, accuracy and shares of answers, is chance: float64[trials], one number for each damage."""
    counted = np.r_[0, 2 : told.shape[1]]  # the middle of the estimates is no share of rows
    share = np.clip(found[:, counted], 0.0, 1.0)
    chance = (share * (1 - share)).sum(axis=1) / rows
    left = ((told - found)[:, counted] ** 2).sum(axis=1)
    of_damage = np.bincount(damage, weights=chance) / np.maximum(np.bincount(damage, weights=left), 1e-12)
    return np.asarray(np.minimum(1.0, of_damage)[damage])


def _seen(estimates: Sequence[float], shares: DoubleArray, answered: float, usual_shares: DoubleArray, usual: float) -> tuple[float, float]:
    """How much surer than at release, and what part of the answers is beyond their usual shares."""
    return middle(estimates) - usual, _apart(shares, usual_shares, answered)


def _expected(at: DoubleArray, seen: DoubleArray, accuracy: DoubleArray, each: DoubleArray, usual: float) -> DoubleArray:
    """Accuracy to be expected at each row of `at`, float64[m], by trials at `seen`: weights that explain best what those alike were.

    The weights are drawn to 0, to what holds before a trial is seen. `each`: what each trial counts.
    """
    features, missing = _features(seen), accuracy - _base(seen, usual)
    apart = (_where(at)[:, None] - _where(seen)[None]) / _ALIKE
    alike = each * np.exp(-(apart**2).sum(axis=2) / 2)
    products = (features[:, :, None] * features[:, None, :]).reshape(len(seen), 9)
    drawn = (_LEAST / _WEIGHT) ** 2 * np.eye(3)
    weights = np.linalg.solve((alike @ products).reshape(-1, 3, 3) + drawn, (alike @ (features * missing[:, None]))[:, :, None])
    return np.asarray(_base(at, usual) + (_features(at) * weights[:, :, 0]).sum(axis=1))


def _base(seen: DoubleArray, usual: float) -> DoubleArray:
    """What holds before a trial is seen: the middle of the estimates, for the part of the answers that is not held to be wrong."""
    return np.asarray((usual + seen[:, 0]) * (1 - _wrong(seen)))


def _wrong(seen: DoubleArray) -> DoubleArray:
    return np.asarray(seen[:, 1] * np.clip(-seen[:, 0] / _UNSURE, 0.0, 1.0))


def _where(seen: DoubleArray) -> DoubleArray:
    return np.column_stack([seen[:, 0], _wrong(seen)])


def _features(seen: DoubleArray) -> DoubleArray:
    return np.column_stack([np.ones(len(seen)), _where(seen)])


def _left_out(seen: DoubleArray, accuracy: DoubleArray, each: DoubleArray, site: IntArray, usual: float) -> DoubleArray:
    """Errors of each trial by what the trials of other sites teach: float64[n]."""
    errors = np.zeros(len(seen))
    for index in range(int(site.max()) + 1):
        its = site == index
        errors[its] = _expected(seen[its], seen[~its], accuracy[~its], each[~its], usual) - accuracy[its]
    return errors


def _variance(tried: Tried, seen: DoubleArray) -> float:
    """Of the error at a place that nobody tried: what it was at places like this one, and what was held before as one more."""
    near = np.exp(-((tried.seen - seen) ** 2).sum(axis=1) / (2 * _NEAR**2))
    of_place = np.bincount(tried.place, weights=near)
    squares = np.bincount(tried.place, weights=near * tried.squares) / np.maximum(of_place, 1e-12)
    counted = np.zeros(len(of_place))
    np.maximum.at(counted, tried.place, near)
    before = _LEAST**2 + _WEIGHT**2 * float(seen @ seen)
    by_mix = (_MIX * float(_wrong(seen[None])[0])) ** 2
    return max(_LEAST**2, float(counted @ squares + before) / (float(counted.sum()) + 1)) + by_mix


def _why(expected: Expected, usual: float, by_place: float) -> str:
    """In words what makes an estimate unsure, of whose place so much variance is left."""
    surer, apart = expected.seen.tolist()
    if expected.by_chance > by_place:
        return "So few rows that are independent say little."
    if apart >= abs(surer):
        return f"The model gives other answers than at release: {apart:.0%} of them are beyond their shares."
    return f"The model is {'less sure' if surer < 0 else 'surer'} than at release: {usual + surer:.2f} where {usual:.2f} was usual."


def _shares(classes: npt.NDArray[np.int64]) -> DoubleArray:
    return np.asarray(classes / max(1, int(classes.sum())), dtype=np.float64)


def _apart(shares: DoubleArray, usual: DoubleArray, answers: float) -> float:
    """Total variation between the shares, freed of what so many answers differ by chance; 0 without classes or answers.

    Chance adds all of its mean where the shares are the usual ones, less the farther they are apart, and nothing in the end.
    """
    if not answers or not shares.size:
        return 0.0
    total = float(np.abs(shares - usual).sum() / 2)
    return min(total, max(0.0, total - _by_chance(usual, answers)) / (1 - _FADES))


def _by_chance(usual: DoubleArray, answers: float) -> float:
    """Mean of the total variation between the usual shares and those of so many answers."""
    return float(np.sqrt(2 / np.pi) * np.sqrt(usual * (1 - usual) / max(1, answers)).sum() / 2)


def _farthest(places: DoubleArray, site: IntArray) -> float:
    """The largest distance of a trial from the nearest of another site; endless where all are of one."""
    found = 0.0
    for index in range(int(site.max()) + 1):
        its, others = places[site == index], places[site != index]
        for one in its:
            found = max(found, float(np.sqrt(((others - one) ** 2).mean(axis=1).min(initial=np.inf))))
    return found


def _numbered(names: Sequence[str]) -> IntArray:
    """Which of the different names each one is."""
    return np.asarray(np.unique(np.array(names), return_inverse=True)[1].reshape(-1), dtype=np.int64)
