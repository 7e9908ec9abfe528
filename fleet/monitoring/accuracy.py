"""Accuracy without labels, as a range with a flag that says whether to believe it; and with labels, as a bound (DRIFT 6). Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.monitoring.audited import Audit
from fleet.monitoring.confidence import confidence_sequence
from fleet.monitoring.drift_model import AccuracyRange, Alarm, Cause, Measured, Trust
from fleet.monitoring.tried import Likeness, Tried, audit, likeness, middle, tried_of
from protocol.sketches.counts import Counts, split
from protocol.sketches.grid import FeatureGrid, Grid
from protocol.sketches.profile import AccuracyReference, ModelProfile

DoubleArray = npt.NDArray[np.float64]
#: Fewer rows than this say nothing: a row per minute for half an hour.
MIN_ROWS = 30
#: What labels have to take of the doubt about a place for the range to be theirs.
HALF = 0.5
#: Labels drawn at random that one alarm and group may cost (DRIFT 6).
LABEL_BUDGET = 200


@dataclass(frozen=True, slots=True)
class Match:
    """Whether what moved is a shift whose estimates were right at release."""

    #: Family and severity; empty: none fits.
    family: str
    severity: int = 0


@dataclass(frozen=True, eq=False)
class Labelled:
    """A span of the same pipeline and model version, and what labels drawn at random say of its answers."""

    counts: Counts
    right: int
    labels: int


def estimate(profile: ModelProfile, counts: Counts) -> Mapping[str, float] | None:
    """doc, atc, atc_confidence and cbpe, 0 to 1; None when the release carries nothing for it, or there are too few rows."""
    reference = profile.accuracy
    if reference is None or counts.rows < MIN_ROWS:
        return None
    grid = profile.grid
    confidence = _finite_cells(grid, counts, reference.confidence)
    entropy = _finite_cells(grid, counts, reference.entropy)
    if not confidence.sum() or not entropy.sum():
        return None
    shares = _bins(confidence)
    found = {
        "doc": reference.acc0 - (reference.conf0 - _mean(grid, counts, reference.confidence)),
        "atc": _share_up_to(grid.features[grid.index(reference.entropy)], _bins(entropy), reference.entropy_edge),
        "atc_confidence": 1 - _share_up_to(grid.features[grid.index(reference.confidence)], shares, reference.confidence_edge),
        "cbpe": float(shares @ np.array(reference.bin_accuracy)),
    }
    return {name: float(min(1.0, max(0.0, value))) for name, value in found.items()}


def class_priors(reference: AccuracyReference, classes: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """How often each class really is there (BBSE): w that minimizes ‖C·w - q‖, cut at 0, summing to 1; q the predicted shares.

    Empty without classes or counts.
    """
    confusion = np.array(reference.confusion, dtype=np.float64)
    total = int(classes.sum())
    if not confusion.size or not total:
        return ()
    known = confusion.sum(axis=0) > 0
    solved, *_ = np.linalg.lstsq(confusion[:, known], classes / total, rcond=1e-6)
    weights = np.zeros(len(classes))
    weights[known] = np.maximum(solved, 0.0)
    if weights.sum() <= 0:
        return ()
    return tuple((weights / weights.sum()).tolist())


def range_of(
    profile: ModelProfile,
    counts: Counts,
    *,
    alarms: Iterable[Alarm],
    match: Match | None,
    measured: Sequence[Measured] = (),
    labelled: Sequence[Labelled] = (),
) -> AccuracyRange | None:
    """The range of accuracy with its flag; None when there is nothing to estimate with.

    By the places that the release was tried on where it says so (then `estimates` has `places`, the accuracy to be expected); else
    [min - ε, max + ε] of DoC, ATC by entropy and CBPE. `alarms`: open ones of the pipeline and of groups that hold it. `match`: what the
    family of the shift was found to be, if looked for; it counts where the release does not say what places it was tried on.
    `labelled`: spans of which labels tell by how much the estimate is off here; they count where it does (then `estimates` has
    `labels`, the accuracy to be expected with them, which the range is of).
    """
    estimates = estimate(profile, counts)
    reference = profile.accuracy
    if estimates is None or reference is None:
        return None
    used = _three(estimates)
    low, high = min(used) - reference.epsilon, max(used) + reference.epsilon
    tried = tried_of(profile)
    audits = [] if tried is None else [found for one in labelled if (found := _audit(tried, profile, one)) is not None]
    like = None if tried is None else likeness(tried, profile, counts, used, audits=audits)
    if like is not None:
        estimates = {**estimates, "places": like.without_labels} | ({"labels": like.accuracy} if audits else {})
        low, high = like.accuracy - like.half_width, like.accuracy + like.half_width
        if like.told < HALF:  # answers beyond their shares are no errors where other things come than at release; labels know
            high = max(high, middle(used))
    trust, reason = trust_of(alarms, match, like)
    if like is not None and audits:
        reason = f"{reason} {_labels_words(sum(one.labels for one in audits), like.accuracy - like.without_labels)}"
    return AccuracyRange(
        low=max(0.0, low),
        high=min(1.0, high),
        trust=trust,
        reason=reason,
        estimates=estimates,
        priors=class_priors(reference, counts.classes),
        rows=counts.rows,
        measured=tuple(measured),
    )


def _audit(tried: Tried, profile: ModelProfile, one: Labelled) -> Audit | None:
    estimates = estimate(profile, one.counts)
    if estimates is None or one.labels <= 0:
        return None
    return audit(tried, profile, one.counts, _three(estimates), right=one.right, labels=one.labels)


def _labels_words(labels: int, by: float) -> str:
    """What labels of the same pipeline say of its estimates."""
    if round(100 * abs(by)) == 0:
        return f"By {labels} labels of the last days estimates are right here."
    return f"By {labels} labels of the last days estimates are {abs(by):.0%} too {'high' if by < 0 else 'low'} here; that is corrected."


def _three(estimates: Mapping[str, float]) -> list[float]:
    return [estimates[name] for name in ("doc", "atc", "cbpe")]


def trust_of(alarms: Iterable[Alarm], match: Match | None, like: Likeness | None = None) -> tuple[Trust, str]:
    """Whether an estimate may be believed while these alarms are open, and why.

    `like`: where the window lies among the places that the release was tried on. It decides alone whether an input that moved, or a place
    that raises no alarm because it is its own reference, is one where estimates were right. None: the release does not know places.
    """
    listed = [one for one in alarms if one.is_open]
    if any(one.cause is Cause.CONCEPT for one in listed):
        return Trust.NOT_TRUSTED, "Labels say that the same input means something else now; no estimate without labels sees that."
    moved = [one for one in listed if one.moves_input]
    if like is not None and like.outside:
        return Trust.NOT_TRUSTED, like.outside
    if like is not None and moved:
        nearest = f"{like.nearest.place} under {like.nearest.family}" if like.nearest.family else like.nearest.place
        return Trust.MATCHED, f"The input moved within what was tried at release, where estimates were right; nearest is {nearest}."
    if not moved:
        return Trust.TRUSTED, "No alarm on what the camera or sensor delivers is open."
    if match is not None and match.family:
        return (
            Trust.MATCHED,
            f"The input moved like {match.family} of severity {match.severity}, for which estimates were right at release.",
        )
    return Trust.NOT_TRUSTED, f"Alarm {moved[0].alarm} is open, and the input moved like nothing that was tried at release."


def measured(right: int, labels: int, name: str = "") -> Measured:
    """Accuracy by labels of one slice ("": all), with its confidence sequence."""
    low, high = confidence_sequence(right, labels)
    return Measured(right, labels, low, high, name)


def concept_moved(reference_accuracy: float, by_labels: Measured, without_labels: AccuracyRange | None) -> bool:
    """Whether labels say that the model is worse than both its release and what its input lets expect: the meaning moved.

    `reference_accuracy`: at release. A trusted estimate that is as low explains the fall by input or priors.
    """
    expected = reference_accuracy
    if without_labels is not None and without_labels.trust is not Trust.NOT_TRUSTED:
        expected = min(expected, without_labels.low)
    return by_labels.labels > 0 and by_labels.high < expected


def _finite_cells(grid: Grid, counts: Counts, name: str) -> npt.NDArray[np.int64]:
    """Under, bins 1..K, over."""
    return split(counts, grid)[grid.index(name)][1:]


def _bins(cells: npt.NDArray[np.int64]) -> DoubleArray:
    """Shares of the bins 1..K, under in the first and over in the last."""
    bins = cells[1:-1].astype(np.float64)
    bins[0] += cells[0]
    bins[-1] += cells[-1]
    shares: DoubleArray = bins / bins.sum()
    return shares


def _mean(grid: Grid, counts: Counts, name: str) -> float:
    """The mean of a feature from its moments: exact to 1/256 of its scale."""
    index = grid.index(name)
    feature, values = grid.features[index], int(split(counts, grid)[index][1:].sum())
    return feature.center + feature.scale * int(counts.moments[index, 0]) / 256 / values


def _share_up_to(feature: FeatureGrid, shares: DoubleArray, edge: float) -> float:
    """Share of values up to an edge of the grid."""
    return float(shares[: int(np.searchsorted(np.array(feature.edges), edge, side="right"))].sum())
