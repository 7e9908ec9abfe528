"""What a release carries for drift: the grid, the counts of the evaluation data on it, and how right the model was on it (`profile.cbor`).

Made at release time by the very artifact a device runs (DRIFT 2 and 6). Signed with the release; a release without it has no drift.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches import PROFILE_NAME, cbor, leb128
from protocol.sketches.codec import decode_moments, encode_moments
from protocol.sketches.counts import Counts
from protocol.sketches.grid import MAX_GRID_BYTES, Grid, decode_grid

FORMAT = 1
FILE_NAME = PROFILE_NAME
MAX_PROFILE_BYTES = 256 << 10
#: Corruptions, each at some severities, whose effect is told.
MAX_FAMILIES = 64
#: Places times what they were tried under.
MAX_TRIALS = 400
#: A family is validated when its worst error at release is at most this (DRIFT 6).
VALIDATED_ERROR = 0.05
_MAX_ROWS = 1 << 32
_MAX_NAME = 63


@dataclass(frozen=True, slots=True)
class FamilyReference:
    """What one corruption of the evaluation data did. Raises on creation: InvalidError (bad-profile)."""

    family: str
    #: 1 is the mildest.
    severity: int
    #: Accuracy under it, 0..1.
    accuracy: float
    #: Largest distance of the three estimates from that accuracy.
    error: float
    #: How far the summary vector of windows moves: float32-exact, in the coordinates of `summary`.
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        _require(
            1 <= len(self.family) <= _MAX_NAME and 1 <= self.severity <= 100, f"Family {self.family[:80]!r}", "a name, severity 1 to 100"
        )
        _require_shares(f"Family {self.family}", (self.accuracy, self.error))
        _require(_is_exact(self.shift), f"Family {self.family} with a shift of other numbers", "finite float32 numbers")


@dataclass(frozen=True, slots=True)
class TrialReference:
    """What the model was on the evaluation data of one place, as they are or damaged. Raises on creation: InvalidError (bad-profile)."""

    #: Where the data are from.
    place: str
    #: What was done to them; "" with severity 0: nothing.
    family: str
    severity: int
    #: Labelled rows, and the part of them that was answered right, 0..1.
    rows: int
    accuracy: float
    #: DoC, ATC on the entropy, CBPE, each 0..1.
    estimates: tuple[float, float, float]
    #: The summary vector of these rows, float32-exact; 0 where nothing is known.
    summary: tuple[float, ...]

    def __post_init__(self) -> None:
        what = f"Trial {self.family[:80]!r} at {self.place[:80]!r}"
        is_named = 1 <= len(self.place) <= _MAX_NAME and len(self.family) <= _MAX_NAME
        is_named = is_named and (1 <= self.severity <= 100 if self.family else self.severity == 0)
        _require(is_named and 1 <= self.rows <= _MAX_ROWS, what, "a place, a family with a severity of 1 to 100 or neither, and rows")
        _require(len(self.estimates) == 3, what, "three estimates")
        _require_shares(what, (self.accuracy, *self.estimates))
        _require(_is_exact(self.summary), f"{what} with a summary of other numbers", "finite float32 numbers")


@dataclass(frozen=True, slots=True)
class AccuracyReference:
    """What estimates of accuracy without labels start from. Raises on creation: InvalidError (bad-profile)."""

    #: Features on the grid.
    confidence: str
    entropy: str
    #: Accuracy and mean confidence on the evaluation data.
    acc0: float
    conf0: float
    #: Edge of the confidence grid above which as many rows lie as were right.
    confidence_edge: float
    #: Edge of the entropy grid up to which as many rows lie as were right: minus the threshold t' of the negative entropy.
    entropy_edge: float
    #: Share of right answers per bin 1..K of the confidence.
    bin_accuracy: tuple[float, ...]
    #: P(predicted i | true j): row i, column j, in the order of the grid's classes. Columns sum to 1; zeros where class j was not there.
    confusion: tuple[tuple[float, ...], ...]
    families: tuple[FamilyReference, ...]
    #: 95 % quantile of the sizes of errors over the validated families.
    epsilon: float
    #: What each place's data were alone, when the evaluation data say where they are from.
    trials: tuple[TrialReference, ...] = ()

    def __post_init__(self) -> None:
        _require_shares("The accuracy reference", (self.acc0, self.conf0, self.epsilon, *self.bin_accuracy))
        _require(all(map(math.isfinite, (self.confidence_edge, self.entropy_edge))), "Thresholds that are not finite", "finite numbers")
        size = len(self.confusion)
        _require(all(len(row) == size for row in self.confusion), "A confusion matrix that is no square", "L rows of L shares")
        _require_shares("The confusion matrix", (share for row in self.confusion for share in row))
        columns = np.array(self.confusion, dtype=np.float64).reshape(size, size).sum(axis=0)
        _require(
            bool(((np.abs(columns - 1) < 1e-6) | (columns == 0)).all()), "A column of confusion with another sum", "1, or 0 throughout"
        )
        _require(len(self.families) <= MAX_FAMILIES, f"{len(self.families)} families", f"at most {MAX_FAMILIES}")
        _require(len(self.trials) <= MAX_TRIALS, f"{len(self.trials)} trials", f"at most {MAX_TRIALS}")

    def validated(self) -> frozenset[str]:
        """Families whose estimates were right enough at every severity."""
        bad = {one.family for one in self.families if one.error > VALIDATED_ERROR}
        return frozenset(one.family for one in self.families) - bad


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The reference profile of a model version. Raises on creation: InvalidError (bad-profile) when its parts do not fit each other."""

    grid: Grid
    #: Counts of the evaluation data.
    reference: Counts
    #: None: a task whose accuracy cannot be told without labels.
    accuracy: AccuracyReference | None = None

    def __post_init__(self) -> None:
        _require(len(self.reference.cells) == self.grid.cells, "Counts of another grid", "those of this one")
        accuracy = self.accuracy
        if accuracy is None:
            return
        features = {feature.name: feature for feature in self.grid.features}
        _require(
            {accuracy.confidence, accuracy.entropy} <= features.keys(), "Confidence or entropy that is not on the grid", "its features"
        )
        bins = features[accuracy.confidence].bins
        _require(len(accuracy.bin_accuracy) == bins, f"Accuracy of {len(accuracy.bin_accuracy)} bins", f"{bins}, as of the confidence")
        _require(len(accuracy.confusion) == len(self.grid.classes), "Confusion of other classes", f"{len(self.grid.classes)} of them")
        dimensions = 2 * len(self.grid.features) + len(self.grid.classes)
        _require(all(len(one.shift) == dimensions for one in accuracy.families), "A shift of another length", f"{dimensions} numbers")
        _require(all(len(one.summary) == dimensions for one in accuracy.trials), "A summary of another length", f"{dimensions} numbers")


def encode_profile(profile: ModelProfile) -> bytes:
    """Canonical bytes; `decode_profile(encode_profile(x)) == x`. Raises: InvalidError (too-large)."""
    reference = profile.reference
    document: dict[int, Any] = {
        0: FORMAT,
        1: profile.grid.encoded,
        2: [reference.rows, reference.effective, reference.excluded],
        3: leb128.encode(reference.cells),
        4: encode_moments(reference.moments),
        5: leb128.encode(reference.classes),
    }
    if profile.accuracy is not None:
        document[6] = _accuracy_document(profile.accuracy)
    data = cbor.encode(document)
    if len(data) > MAX_PROFILE_BYTES:
        raise InvalidError(f"The profile has {len(data)} bytes; at most {MAX_PROFILE_BYTES} are allowed.", code="too-large")
    return data


def decode_profile(data: bytes) -> ModelProfile:
    """The profile in these bytes. Raises: InvalidError (too-large, malformed, unknown-version, bad-grid, bad-profile, leb128, length)."""
    document = cbor.decode(data, max_bytes=MAX_PROFILE_BYTES, what=FILE_NAME)
    _require(isinstance(document, dict), "A profile that is no map", "a map")
    if document.get(0) != FORMAT:
        raise InvalidError(f"A profile of format {str(document.get(0))[:40]}; this program reads {FORMAT}.", code="unknown-version")
    _require(set(document) <= set(range(7)), "A profile with other keys", "keys 0 to 6")
    packed = [document.get(key) for key in (1, 3, 4, 5)]
    _require(all(isinstance(part, bytes) for part in packed), "A profile without its packed numbers", "bytes in keys 1, 3, 4, 5")
    grid_bytes, cells_bytes, moments_bytes, classes_bytes = packed
    _require(len(grid_bytes) <= MAX_GRID_BYTES, f"A grid of {len(grid_bytes)} bytes", f"at most {MAX_GRID_BYTES}")
    grid = decode_grid(grid_bytes)
    rows, effective, excluded = _whole(document.get(2), 3)
    _require(max(rows, excluded) <= _MAX_ROWS and effective <= rows, f"{rows} rows, {effective} effective", f"up to {_MAX_ROWS}, in order")
    cells = leb128.decode(cells_bytes, grid.cells)
    sums = np.add.reduceat(cells, np.array(grid.offsets[:-1]))
    _require(
        int(cells.max()) <= rows and bool((sums == rows).all()), f"Features with {sums.min()} to {sums.max()} values", f"{rows}, the rows"
    )
    classes = leb128.decode(classes_bytes, len(grid.classes))
    moments = decode_moments(moments_bytes, rows - cells[list(grid.offsets[:-1])])
    accuracy = _accuracy(document[6]) if 6 in document else None
    return ModelProfile(grid, Counts(rows, effective, excluded, cells, moments, classes), accuracy)


def _accuracy_document(accuracy: AccuracyReference) -> dict[int, Any]:
    document: dict[int, Any] = {
        0: accuracy.confidence,
        1: accuracy.entropy,
        2: _pack((accuracy.acc0, accuracy.conf0, accuracy.confidence_edge, accuracy.entropy_edge, accuracy.epsilon)),
        3: _pack(accuracy.bin_accuracy),
        4: _pack(share for row in accuracy.confusion for share in row),
        5: [
            [one.family, one.severity, _pack((one.accuracy, one.error)), np.asarray(one.shift, dtype="<f4").tobytes()]
            for one in accuracy.families
        ],
    }
    if accuracy.trials:
        document[6] = [
            [
                one.place,
                one.family,
                one.severity,
                one.rows,
                _pack((one.accuracy, *one.estimates)),
                np.asarray(one.summary, dtype="<f4").tobytes(),
            ]
            for one in accuracy.trials
        ]
    return document


def _accuracy(document: Any) -> AccuracyReference:
    is_so = isinstance(document, dict) and set(range(6)) <= set(document) <= set(range(7))
    _require(is_so, "An accuracy reference with other keys", "a map with keys 0 to 5, and 6 at most")
    confidence, entropy = document[0], document[1]
    _require(isinstance(confidence, str) and isinstance(entropy, str), "Names of features that are no text", "texts")
    numbers, flat = _unpack(document[2]), _unpack(document[4])
    _require(len(numbers) == 5, f"{len(numbers)} numbers in key 2", "acc0, conf0, two thresholds, epsilon")
    size = math.isqrt(len(flat))
    _require(size * size == len(flat), f"A confusion of {len(flat)} numbers", "a square")
    families = document[5]
    _require(isinstance(families, list) and len(families) <= MAX_FAMILIES, "Families that are no list", f"a list of at most {MAX_FAMILIES}")
    trials = document.get(6, [])
    _require(isinstance(trials, list) and len(trials) <= MAX_TRIALS, "Trials that are no list", f"a list of at most {MAX_TRIALS}")
    acc0, conf0, confidence_edge, entropy_edge, epsilon = numbers
    return AccuracyReference(
        confidence=confidence,
        entropy=entropy,
        acc0=acc0,
        conf0=conf0,
        confidence_edge=confidence_edge,
        entropy_edge=entropy_edge,
        bin_accuracy=_unpack(document[3]),
        confusion=tuple(flat[row * size : (row + 1) * size] for row in range(size)),
        families=tuple(map(_family, families)),
        epsilon=epsilon,
        trials=tuple(map(_trial, trials)),
    )


def _family(document: Any) -> FamilyReference:
    _require(isinstance(document, list) and len(document) == 4, "A family that is no list of four", "name, severity, numbers, shift")
    name, severity, numbers, shift = document
    _require(isinstance(name, str) and type(severity) is int, "A family without name and severity", "a text and a whole number")
    measured = _unpack(numbers)
    _require(len(measured) == 2, f"A family with {len(measured)} numbers", "accuracy and error")
    _require(isinstance(shift, bytes) and len(shift) % 4 == 0, "A shift that is no float32 bytes", "four bytes a coordinate")
    accuracy, error = measured
    return FamilyReference(name, severity, accuracy, error, tuple(np.frombuffer(shift, dtype="<f4").tolist()))


def _trial(document: Any) -> TrialReference:
    _require(isinstance(document, list) and len(document) == 6, "A trial that is no list of six", "names, counts, numbers, summary")
    place, family, severity, rows, numbers, summary = document
    is_named = isinstance(place, str) and isinstance(family, str) and type(severity) is int and type(rows) is int
    _require(is_named, "A trial without names and counts", "two texts and two whole numbers")
    measured = _unpack(numbers)
    _require(len(measured) == 4, f"A trial with {len(measured)} numbers", "accuracy and three estimates")
    _require(isinstance(summary, bytes) and len(summary) % 4 == 0, "A summary that is no float32 bytes", "four bytes a coordinate")
    accuracy, doc, atc, cbpe = measured
    return TrialReference(place, family, severity, rows, accuracy, (doc, atc, cbpe), tuple(np.frombuffer(summary, dtype="<f4").tolist()))


def _is_exact(numbers: tuple[float, ...]) -> bool:
    """Finite, and the same as float32."""
    values = np.array(numbers, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((np.isfinite(values) & (values == values.astype(np.float32))).all())


def _pack(numbers: Iterable[float]) -> bytes:
    return np.array(list(numbers), dtype="<f8").tobytes()


def _unpack(data: Any) -> tuple[float, ...]:
    _require(isinstance(data, bytes) and len(data) % 8 == 0, "Numbers that are no float64 bytes", "eight bytes each")
    return tuple(np.frombuffer(data, dtype="<f8").tolist())


def _whole(values: Any, count: int) -> tuple[int, ...]:
    is_so = isinstance(values, list) and len(values) == count and all(type(value) is int and value >= 0 for value in values)
    _require(is_so, f"Whole numbers {str(values)[:80]}", f"{count} of them")
    return tuple(values)


def _require_shares(what: str, shares: Iterable[float]) -> None:
    for share in shares:
        _require(0 <= share <= 1, f"{what} with {share}", "shares of 0 to 1")


def _require(is_so: bool, seen: str, wanted: str) -> None:  # noqa: FBT001 - the condition is what this is about
    if not is_so:
        raise InvalidError(f"{seen}; wanted {wanted}.", code="bad-profile")
