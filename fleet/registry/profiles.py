"""From rows of evaluation data to the reference profile of a model version: which features are watched, their grid, how right it was; pure.

What is watched is chosen here, once, and recorded in the profile (DRIFT 1, 2, 6; the rule: docs/adr/0030).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.counts import MOMENT_UNIT, Counts, Sketcher, split
from protocol.sketches.grid import BINS, CONFIDENCE_BINS, MAX_CLASSES, MAX_FEATURES, OTHER, FeatureGrid, Grid, fit_feature
from protocol.sketches.profile import MAX_TRIALS, VALIDATED_ERROR, AccuracyReference, FamilyReference, ModelProfile, TrialReference
from protocol.sketches.summary import summary
from runtime.base import Array
from runtime.features import group_of

CONFIDENCE, ENTROPY, COUNT = "output.confidence", "output.entropy", "output.count"
#: A feature is dropped when more than this share of its values is missing, or more than the second is one and the same value.
MAX_MISSING, MAX_SAME = 0.05, 0.95
#: Rank correlation with one that is watched already from which on a feature tells nothing new.
MAX_CORRELATION = 0.98
#: Kept whatever they correlate with: accuracy is estimated from them.
_NEEDED = (CONFIDENCE, ENTROPY)
_QUANTILE = 0.95
#: Rows of a place, as they are or damaged: of fewer the accuracy is chance.
_MIN_TRIAL_ROWS = 24


@dataclass(frozen=True, slots=True)
class Rows:
    """What some frames or windows gave."""

    #: Of the columns.
    names: tuple[str, ...]
    #: float32 [n, names].
    values: Array
    #: Labels of each row's answer: the best class, or that of each object.
    labels: tuple[tuple[str, ...], ...]
    #: All labels that the model knows, in the manifest's order; empty: it answers no classes.
    known: tuple[str, ...] = ()
    #: Places of what was answered and of what was true in the manifest's labels, int64 [n]; None: not labelled, or not a classifier.
    answered: Array | None = None
    truth: Array | None = None
    #: Frames or windows that gave no answer.
    excluded: int = 0
    #: Which place or device each row is from, [n]; None: not said.
    places: tuple[str, ...] | None = None

    @property
    def right(self) -> Array | None:
        """Of each row, bool [n]; None without labels."""
        return None if self.answered is None or self.truth is None else self.answered == self.truth

    def of_place(self, place: str) -> "Rows":
        """Those of one place alone. Raises: ValueError when no places are known."""
        if self.places is None:
            raise ValueError("rows without places")
        chosen = np.flatnonzero(np.array(self.places) == place)
        answered, truth = (None if column is None else column[chosen] for column in (self.answered, self.truth))
        labels = tuple(self.labels[index] for index in chosen.tolist())
        return Rows(self.names, self.values[chosen], labels, self.known, answered, truth, places=(place,) * len(chosen))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which features are watched, in the order of the columns, and why others are not: "constant", "missing", "like NAME", "limit"."""

    chosen: tuple[str, ...]
    left_out: Mapping[str, str]


def select(rows: Rows, *, limit: int = MAX_FEATURES) -> Selection:
    """The features that tell something, and nothing that another one tells.

    First those are dropped that are missing in more than 5 % of the rows, or have one value in more than 95 %. Confidence and entropy
    come first; then, again and again, the one whose largest rank correlation with those chosen is smallest, until the next would
    exceed 0.98 or `limit` is reached. Raises: InvalidError (no-features) when nothing is left.
    """
    left_out = {}
    alive: list[str] = []
    for name, column in zip(rows.names, rows.values.T, strict=True):
        reason = _uninformative(column, needed=name in _NEEDED)
        if reason:
            left_out[name] = reason
        else:
            alive.append(name)
    if not alive:
        raise InvalidError(
            "Every feature of the evaluation data is constant or missing.",
            code="no-features",
            hint="Are all frames the same? Bring those that the device will see.",
        )
    likeness = _likeness(rows.values[:, [rows.names.index(name) for name in alive]])
    chosen = [alive.index(name) for name in _NEEDED if name in alive] or [0]
    waiting = [index for index in range(len(alive)) if index not in chosen]
    while waiting and len(chosen) < limit:
        nearest = likeness[np.ix_(waiting, chosen)].max(axis=1)
        best = int(nearest.argmin())
        if nearest[best] > MAX_CORRELATION:
            break
        chosen.append(waiting.pop(best))
    for index in waiting:
        likest = max(chosen, key=lambda other: likeness[index, other])
        is_alike = likeness[index, likest] > MAX_CORRELATION
        left_out[alive[index]] = f"like {alive[likest]}" if is_alike else "limit"
    return Selection(tuple(alive[index] for index in sorted(chosen)), left_out)


def make_profile(
    rows: Rows, *, made_at_ms: int, damaged: Mapping[tuple[str, int], Rows] | None = None, step_s: int = 1
) -> tuple[ModelProfile, Selection]:
    """The profile of the rows; `damaged` are rows of some of the same frames per (corruption family, severity).

    Raises: InvalidError (no-features, none-right).
    """
    selection = select(rows)
    edges = _thresholds(rows) if rows.right is not None and set(_NEEDED) <= set(selection.chosen) else {}
    features = tuple(_fit(name, rows.values[:, rows.names.index(name)], edges.get(name)) for name in selection.chosen)
    grid = Grid(features, _classes(rows), step_s, made_at_ms)
    reference = counted(rows, grid)
    accuracy = _accuracy(rows, grid, reference, edges, damaged or {}) if edges else None
    return ModelProfile(grid, reference, accuracy), selection


def counted(rows: Rows, grid: Grid) -> Counts:
    """The rows on the grid, as a device would count them."""
    sketcher = Sketcher(grid)
    columns = [rows.names.index(feature.name) for feature in grid.features]
    for values, labels in zip(rows.values[:, columns], rows.labels, strict=True):
        sketcher.add(values)
        for label in labels:
            place = grid.slot(label)
            if place is not None:
                sketcher.count_class(place)
    sketcher.exclude(rows.excluded)
    return sketcher.take()


def estimates(counts: Counts, grid: Grid, accuracy: AccuracyReference) -> tuple[float, float, float]:
    """Accuracy as DoC, ATC on the entropy and CBPE from the bins see it, 0..1 (DRIFT 6); what a server knows without labels."""
    cells = dict(zip((feature.name for feature in grid.features), split(counts, grid), strict=True))
    confidence, entropy = grid.features[grid.index(CONFIDENCE)], grid.features[grid.index(ENTROPY)]
    bins = _bins(cells[CONFIDENCE])
    total = max(1, int(bins.sum()))
    moment = int(counts.moments[grid.index(CONFIDENCE), 0])
    mean = confidence.center + confidence.scale * moment / (MOMENT_UNIT * total)
    certain = _bins(cells[ENTROPY])
    up_to = entropy.edges.index(accuracy.entropy_edge) + 1
    doc = accuracy.acc0 - (accuracy.conf0 - mean)
    atc = float(certain[:up_to].sum()) / max(1, int(certain.sum()))
    cbpe = float(bins @ np.asarray(accuracy.bin_accuracy)) / total
    return _share(doc), _share(atc), _share(cbpe)


# --- selection ---


def _uninformative(column: Array, *, needed: bool) -> str:
    finite = column[np.isfinite(column)]
    if finite.size < (1.0 - MAX_MISSING) * column.size or finite.size < 2:
        return "missing"
    _, counts = np.unique(finite, return_counts=True)
    most = 1.0 if needed else MAX_SAME
    return "constant" if counts.max() >= most * finite.size else ""


def _likeness(values: Array) -> Array:
    """Size of the rank correlation (Spearman) of each two columns, [f, f]; missing values stand in the middle."""
    ranks = np.stack([_ranks(column) for column in values.T])
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks /= np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
    return np.asarray(np.abs(ranks @ ranks.T))


def _ranks(column: Array) -> Array:
    """Ranks, equal values share their mean."""
    known = np.where(np.isfinite(column), column, np.median(column[np.isfinite(column)]))
    _, inverse, counts = np.unique(known, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(((last - counts + last - 1) / 2.0)[inverse.reshape(-1)])


# --- grid ---


def _fit(name: str, column: Array, edge: float | None) -> FeatureGrid:
    bins = CONFIDENCE_BINS if name == CONFIDENCE else BINS
    if name == COUNT:
        extra = tuple(float(half) + 0.5 for half in range(int(min(column.max(), bins))))
        return fit_feature(name, group_of(name), column, 1, extra)
    return fit_feature(name, group_of(name), column, bins, () if edge is None else (edge,))


def _classes(rows: Rows) -> tuple[str, ...]:
    """What classes are counted as: all labels in the manifest's order; of more than 20 the 19 most frequent answers, and `OTHER`."""
    known = tuple(dict.fromkeys(rows.known))
    if len(known) <= MAX_CLASSES:
        return known
    seen = Counter(label for labels in rows.labels for label in labels)
    kept = {label for label, _ in sorted(seen.items(), key=lambda item: (-item[1], known.index(item[0])))[: MAX_CLASSES - 1]}
    return (*(label for label in known if label in kept), OTHER)


# --- accuracy ---


def _thresholds(rows: Rows) -> dict[str, float]:
    """ATC thresholds: above the one of the confidence, and up to the one of the entropy, lies the share of right answers (DRIFT 6)."""
    right = rows.right
    if right is None or not right.any():
        raise InvalidError(
            f"Of {len(rows.values)} labelled frames or windows none was answered right.",
            code="none-right",
            hint="Do the labels count as the manifest's labels do? Is the color of the frames RGB?",
        )
    accuracy = float(right.mean())
    confidence, entropy = (rows.values[:, rows.names.index(name)] for name in _NEEDED)
    return {CONFIDENCE: _cut(confidence, 1.0 - accuracy), ENTROPY: _cut(entropy, accuracy)}


def _cut(column: Array, share: float) -> float:
    """The value up to which the share of the column lies most nearly; never the largest, which could be no edge."""
    values, counts = np.unique(column[np.isfinite(column)].astype(np.float32), return_counts=True)
    up_to = np.cumsum(counts) / counts.sum()
    return float(values[int(np.abs(up_to[:-1] - share).argmin())])


def _accuracy(
    rows: Rows, grid: Grid, reference: Counts, edges: Mapping[str, float], damaged: Mapping[tuple[str, int], Rows]
) -> AccuracyReference:
    right = rows.right
    if right is None:
        raise RuntimeError("accuracy wants labels")
    confidence = rows.values[:, rows.names.index(CONFIDENCE)]
    plain = AccuracyReference(
        confidence=CONFIDENCE,
        entropy=ENTROPY,
        acc0=float(right.mean()),
        conf0=_share(float(confidence.mean())),
        confidence_edge=edges[CONFIDENCE],
        entropy_edge=edges[ENTROPY],
        bin_accuracy=_bin_accuracy(confidence, right, grid.features[grid.index(CONFIDENCE)]),
        confusion=_confusion(rows, grid),
        families=(),
        epsilon=0.0,
    )
    whole = summary(reference, grid)
    families = tuple(_family(name, severity, one, grid, plain, whole) for (name, severity), one in sorted(damaged.items()))
    tried = {("", 0): rows, **damaged}
    # where not all fit, strong damage of every family tells more than mild: the frames are the same, and mild damage changes few answers
    order = sorted(tried.items(), key=lambda one: (one[0] != ("", 0), -one[0][1], one[0][0]))
    trials = tuple(one for (name, severity), every in order for one in _trials(name, severity, every, grid, plain))
    return replace(plain, families=families, epsilon=_epsilon(families), trials=trials[:MAX_TRIALS])


def _bin_accuracy(confidence: Array, right: Array, feature: FeatureGrid) -> tuple[float, ...]:
    """Share of right answers per bin; of a bin without rows that of all rows."""
    places = np.searchsorted(np.asarray(feature.edges, np.float32), confidence, side="left")
    total = np.bincount(places, minlength=feature.bins)
    hits = np.bincount(places, weights=right.astype(np.float64), minlength=feature.bins)
    overall = float(right.mean())
    return tuple(float(hit / count) if count else overall for hit, count in zip(hits, total, strict=True))


def _confusion(rows: Rows, grid: Grid) -> tuple[tuple[float, ...], ...]:
    """P(predicted i | true j) over the grid's classes."""
    if rows.truth is None:
        raise RuntimeError("confusion wants labels")
    size = len(grid.classes)
    counts = np.zeros((size, size))
    for labels, true in zip(rows.labels, rows.truth.tolist(), strict=True):
        place, wanted = grid.slot(labels[0]) if labels else None, grid.slot(rows.known[true])
        if place is not None and wanted is not None:
            counts[place, wanted] += 1
    sums = counts.sum(axis=0)
    shares = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
    return tuple(tuple(row) for row in shares.tolist())


def _family(name: str, severity: int, rows: Rows, grid: Grid, accuracy: AccuracyReference, whole: Array) -> FamilyReference:
    right = rows.right
    if right is None:
        raise RuntimeError("a family wants labels")
    counts = counted(rows, grid)
    seen = float(right.mean())
    moved = (np.nan_to_num(summary(counts, grid)) - np.nan_to_num(whole)).astype(np.float32)
    error = max(abs(one - seen) for one in estimates(counts, grid, accuracy))
    return FamilyReference(name, severity, seen, error, tuple(moved.tolist()))


def _trials(name: str, severity: int, rows: Rows, grid: Grid, accuracy: AccuracyReference) -> Iterator[TrialReference]:
    """What these rows were of each place alone, in the order of names; nothing where places are not known or there is only one."""
    names = sorted(set(rows.places or ()))
    for place in names if len(names) > 1 else ():
        its = rows.of_place(place)
        right = its.right
        if right is None or len(right) < _MIN_TRIAL_ROWS:
            continue
        counts = counted(its, grid)
        where = tuple(np.nan_to_num(summary(counts, grid)).astype(np.float32).tolist())
        yield TrialReference(place, name, severity, len(right), float(right.mean()), estimates(counts, grid, accuracy), where)


def _epsilon(families: Sequence[FamilyReference]) -> float:
    """95 % quantile of the errors of families whose every severity was estimated right within 0.05; of all when none was."""
    bad = {one.family for one in families if one.error > VALIDATED_ERROR}
    errors = [one.error for one in families if one.family not in bad] or [one.error for one in families]
    return float(np.quantile(errors, _QUANTILE)) if errors else VALIDATED_ERROR


def _bins(cells: Array) -> Array:
    """int64 [K]: bins with under and over added to the outer ones; of cells NaN, under, 1..K, over."""
    bins = cells[2:-1].copy()
    bins[0] += cells[1]
    bins[-1] += cells[-1]
    return np.asarray(bins)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
