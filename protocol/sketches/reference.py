"""The reference profile of a device: where its clean windows lie, how surprising a distance from there is, how long blocks are (DRIFT 5.2).

Fitted on the device, which alone has the sub-windows, sent up once. Never fitted on training data. Pure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches import cbor, leb128
from protocol.sketches.grid import FeatureGroup, FloatArray, Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray, read_floats
from protocol.sketches.scatter import DEVIATION_FLOOR, Scatter, fit_scatter
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import Tail, fit_tail

FORMAT = 1
MAX_REFERENCE_BYTES = 64 << 10
SUBWINDOWS_PER_DAY = 144
#: Testable sub-windows that make a day complete: 80 %.
COMPLETE_DAY = 116
#: Complete days for a first fit, and for the measured one.
PROVISIONAL_DAYS, CALIBRATED_DAYS = 14, 28
_FOLD_DAYS = 2
#: Sub-windows per block: 6 hours, 1, 2 and 7 days.
BLOCKS = (36, 144, 288, 1008)
INDOOR_BLOCK, DEFAULT_BLOCK = 36, 144
#: Fewer blocks than this tell nothing about their dependence.
_MIN_BLOCKS = 4
_ID_BYTES = 16


class Grade(StrEnum):
    """How far a reference can be trusted."""

    #: Fewer than 14 complete days: no reference, no alarms.
    COLLECTING = "collecting"
    #: 14 to 27, or from a recording: alarms, marked.
    PROVISIONAL = "provisional"
    #: 28 or more: alarms under the promise.
    CALIBRATED = "calibrated"


_GRADES = tuple(Grade)


@dataclass(frozen=True, eq=False)
class DeviceReference:
    """What windows of one device, pipeline and model version are judged by. Raises on creation: InvalidError (bad-reference)."""

    grid_id: bytes
    #: First 16 bytes of the model version's digest.
    model: bytes
    grade: Grade
    #: Sub-windows per block.
    subwindows: int
    #: Which coordinates of the summary are judged: int64[k], ascending.
    coordinates: IntArray
    scatter: Scatter
    tail: Tail
    #: First and last sub-window it was learned from.
    first_w0: int
    last_w0: int
    #: Sub-windows that mean and covariance were fitted on.
    windows: int
    #: Learned from a recording, not by the device at work.
    is_recorded: bool = False

    def __post_init__(self) -> None:
        coordinates = self.coordinates
        _require(len(self.grid_id) == _ID_BYTES and len(self.model) == _ID_BYTES, "Ids of another length", f"{_ID_BYTES} bytes each")
        _require(self.grade is not Grade.COLLECTING, "A reference that is still collecting", "no reference")
        _require(self.subwindows in BLOCKS, f"Blocks of {self.subwindows} sub-windows", f"one of {BLOCKS}")
        is_so = len(coordinates) == len(self.scatter.mean) and bool((np.diff(coordinates) > 0).all()) and coordinates[0] >= 0
        _require(is_so, f"{len(coordinates)} coordinates for {len(self.scatter.mean)} means", "as many, ascending")
        _require(
            0 <= self.first_w0 <= self.last_w0 < 1 << 32 and self.windows >= 2, "No windows it was learned from", "first <= last, 2 or more"
        )

    @cached_property
    def encoded(self) -> bytes:
        """Its canonical bytes."""
        return encode_reference(self)

    @cached_property
    def reference_id(self) -> bytes:
        """16 bytes: the beginning of the SHA-256 of its canonical bytes."""
        return hashlib.sha256(self.encoded).digest()[:_ID_BYTES]

    @property
    def may_alarm(self) -> bool:
        """False: only shown, because no covariance could be factorised."""
        return not self.scatter.is_degenerate

    def scores(self, summaries: DoubleArray) -> FloatArray:
        """T² of whole summaries float64[n, d]: float32[n], as they travel in key 14."""
        with np.errstate(over="ignore"):
            scores = self.scatter.scores(summaries[:, self.coordinates]).astype(np.float32)
        return np.minimum(scores, np.finfo(np.float32).max)

    def p_values(self, scores: FloatArray | DoubleArray) -> DoubleArray:
        """float64[n] of scores [n]; NaN, not testable, stays NaN."""
        return self.tail.p_values(scores)


def complete_days(w0s: IntArray) -> IntArray:
    """UTC days, ascending, with enough of these testable sub-windows: int64."""
    days, counts = np.unique(np.unique(w0s) // SUBWINDOWS_PER_DAY, return_counts=True)
    return np.asarray(days[counts >= COMPLETE_DAY], dtype=np.int64)


def grade_of(days: int) -> Grade:
    """What so many complete days allow."""
    if days >= CALIBRATED_DAYS:
        return Grade.CALIBRATED
    return Grade.PROVISIONAL if days >= PROVISIONAL_DAYS else Grade.COLLECTING


def fit_reference(
    summaries: DoubleArray,
    w0s: IntArray,
    *,
    grid: Grid,
    model: bytes,
    is_indoor: bool = False,
    is_recorded: bool = False,
    floor: float = DEVIATION_FLOOR,
) -> DeviceReference:
    """The reference that these testable, clean sub-windows allow: summaries float64[n, d], their places int64[n].

    14 complete days: mean and covariance of all, the tail by cross-fit in folds of two days. 28: covariance of the first half, tail of the
    second. A recording is provisional whatever its length. Later days are not looked at.
    Raises: InvalidError (too-few) below 14 complete days, or when nothing varies.
    """
    days = complete_days(w0s)
    grade = grade_of(len(days))
    if grade is Grade.COLLECTING:
        raise InvalidError(
            f"{len(days)} complete days of clean windows; wanted {PROVISIONAL_DAYS} with {COMPLETE_DAY} of {SUBWINDOWS_PER_DAY} each.",
            code="too-few",
        )
    day_of = w0s // SUBWINDOWS_PER_DAY
    first = days[:PROVISIONAL_DAYS]
    in_first = np.isin(day_of, first)
    scatter = fit_scatter(summaries[in_first], floor=floor, is_floor_variance=True)
    if grade is Grade.CALIBRATED:
        in_tail = np.isin(day_of, days[PROVISIONAL_DAYS:CALIBRATED_DAYS])
        scores = scatter.scores(summaries[in_tail])
    else:
        in_tail = in_first
        scores = cross_scores(summaries[in_first], day_of[in_first], floor=floor)
    used = w0s[in_first | in_tail]
    return DeviceReference(
        grid_id=grid.grid_id,
        model=model,
        grade=Grade.PROVISIONAL if is_recorded else grade,
        subwindows=choose_block(scores, w0s[in_tail], is_indoor=is_indoor),
        coordinates=np.arange(summaries.shape[1]),
        scatter=scatter,
        tail=fit_tail(scores),
        first_w0=int(used.min()),
        last_w0=int(used.max()),
        windows=int(in_first.sum()),
        is_recorded=is_recorded,
    )


def cross_scores(summaries: DoubleArray, days: IntArray, *, floor: float = DEVIATION_FLOOR) -> DoubleArray:
    """T² of each vector by a scatter fitted on the other folds of two days each: float64[n]."""
    order = np.unique(days)
    fold_of = np.searchsorted(order, days) // _FOLD_DAYS
    scores = np.empty(len(days))
    for fold in np.unique(fold_of):
        is_out = fold_of == fold
        scores[is_out] = fit_scatter(summaries[~is_out], floor=floor, is_floor_variance=True).scores(summaries[is_out])
    return scores


def choose_block(scores: DoubleArray, w0s: IntArray, *, is_indoor: bool = False) -> int:
    """Sub-windows per block: the shortest from 6 hours (indoor) or a day on whose means do not follow each other (DRIFT 5.4)."""
    shortest = INDOOR_BLOCK if is_indoor else DEFAULT_BLOCK
    for subwindows in BLOCKS:
        if subwindows >= shortest and not _blocks_follow_each_other(scores, w0s // subwindows):
            return subwindows
    return BLOCKS[-1]


def _blocks_follow_each_other(scores: DoubleArray, block_of: IntArray) -> bool:
    blocks, places = np.unique(block_of, return_inverse=True)
    if len(blocks) < _MIN_BLOCKS:
        return False
    means = np.bincount(places, weights=scores) / np.bincount(places)
    centered = means - means.mean()
    is_next = np.diff(blocks) == 1
    squares = float((centered**2).sum())
    products = float((centered[:-1] * centered[1:])[is_next].sum())
    return squares > 0 and products / squares > 2 / np.sqrt(len(blocks))


def shared_coordinates(old: Grid, new: Grid) -> tuple[IntArray, IntArray]:
    """Places in the old and in the new summary of input features that both grids hold alike: what a release keeps (DRIFT 5.8)."""
    known = {feature: index for index, feature in enumerate(old.features) if feature.group is FeatureGroup.INPUT}
    if old.step_s != new.step_s:
        known = {}
    pairs = sorted((index, known[feature]) for index, feature in enumerate(new.features) if feature in known)
    news, olds = np.array([new for new, _ in pairs], dtype=np.int64), np.array([old for _, old in pairs], dtype=np.int64)
    return np.concatenate([olds, olds + len(old.features)]), np.concatenate([news, news + len(new.features)])


def carried_over(
    reference: DeviceReference, old: Grid, new: Grid, summaries: DoubleArray, *, model: bytes, clean: Sequence[bool] | None = None
) -> DeviceReference | None:
    """The reference of a new release by the input features it shares; summaries float64[n, d] are stored ones on the OLD grid.

    Its tail is fitted again on those of them (`clean`) that raised no alarm. None when no coordinate is shared.
    Raises: InvalidError (too-few).
    """
    olds, news = shared_coordinates(old, new)
    places = {int(coordinate): place for place, coordinate in enumerate(reference.coordinates)}
    kept = [(places[int(one)], int(one), int(other)) for one, other in zip(olds, news, strict=True) if int(one) in places]
    if not kept:
        return None
    # coordinates ascend in the new grid; those of the covariance come along
    kept.sort(key=lambda row: row[2])
    inside, before, after = (np.array(column, dtype=np.int64) for column in zip(*kept, strict=True))
    scatter = reference.scatter.part(inside)
    used = summaries if clean is None else summaries[np.asarray(clean, dtype=bool)]
    tail = fit_tail(scatter.scores(used[:, before]))
    return replace(reference, grid_id=new.grid_id, model=model, coordinates=after, scatter=scatter, tail=tail)


def encode_reference(reference: DeviceReference) -> bytes:
    """Canonical bytes; `decode_reference(encode_reference(x))` is bit for bit the same. Raises: InvalidError (too-large)."""
    scatter, tail = reference.scatter, reference.tail
    data = cbor.encode(
        {
            0: FORMAT,
            1: reference.grid_id,
            2: reference.model,
            3: _GRADES.index(reference.grade),
            4: reference.subwindows,
            5: leb128.encode(reference.coordinates),
            6: _pack(scatter.mean),
            7: _pack(scatter.deviation),
            8: _pack(scatter.factor[np.tril_indices(len(scatter.mean))]),
            9: _pack(np.array([scatter.shrinkage, tail.q, tail.xi, tail.sigma])),
            10: tail.scores.astype("<f4").tobytes(),
            11: [reference.first_w0, reference.last_w0, reference.windows],
            12: scatter.is_degenerate,
            13: reference.is_recorded,
        }
    )
    if len(data) > MAX_REFERENCE_BYTES:
        raise InvalidError(f"The reference has {len(data)} bytes; at most {MAX_REFERENCE_BYTES} are allowed.", code="too-large")
    return data


def decode_reference(data: bytes, grid: Grid) -> DeviceReference:
    """The reference in these bytes.

    Raises: InvalidError (too-large, malformed, unknown-version, unknown-grid, bad-reference, leb128, length).
    """
    document = cbor.decode(data, max_bytes=MAX_REFERENCE_BYTES, what="A reference")
    _require(isinstance(document, dict), "A reference that is no map", "a map")
    if document.get(0) != FORMAT:
        raise InvalidError(f"A reference of format {str(document.get(0))[:40]}; this program reads {FORMAT}.", code="unknown-version")
    _require(set(document) == set(range(14)), "A reference with other keys", "keys 0 to 13")
    if document[1] != grid.grid_id:
        raise InvalidError(f"A reference on another grid; wanted {grid.grid_id.hex()}.", code="unknown-grid")
    grade, places = document[3], document[5]
    _require(type(grade) is int and 0 <= grade < len(_GRADES), f"Grade {str(grade)[:40]}", f"0 to {len(_GRADES) - 1}")
    _require(type(document[4]) is int and isinstance(document[2], bytes), "No block length or no model", "a whole number and bytes")
    _require(isinstance(places, bytes) and isinstance(document[10], bytes) and len(document[10]) % 4 == 0, "No packed numbers", "bytes")
    _require(all(type(document[key]) is bool for key in (12, 13)), "Keys 12 and 13 of another kind", "true or false")
    mean, deviation, packed, numbers = (_unpack(document[key]) for key in (6, 7, 8, 9))
    d = len(mean)
    dimensions = summarizer(grid).dimensions
    _require(
        0 < d <= dimensions and len(packed) == d * (d + 1) // 2 and len(numbers) == 4, f"{d} coordinates", f"1 to {dimensions}, and more"
    )
    coordinates = leb128.decode(places, d)
    _require(int(coordinates.max()) < dimensions, f"Coordinate {coordinates.max()}", f"below {dimensions}")
    factor = np.zeros((d, d))
    factor[np.tril_indices(d)] = packed
    first_w0, last_w0, windows = _whole(document[11])
    shrinkage, q, xi, sigma = numbers.tolist()
    return DeviceReference(
        grid_id=grid.grid_id,
        model=document[2],
        grade=_GRADES[grade],
        subwindows=document[4],
        coordinates=coordinates,
        scatter=Scatter(mean, deviation, factor, shrinkage, document[12]),
        tail=Tail(read_floats(document[10], np.float32), q, xi, sigma),
        first_w0=first_w0,
        last_w0=last_w0,
        windows=windows,
        is_recorded=document[13],
    )


def _pack(numbers: DoubleArray) -> bytes:
    return np.where(np.isnan(numbers), np.nan, numbers).astype("<f8").tobytes()


def _unpack(data: Any) -> DoubleArray:
    _require(isinstance(data, bytes) and len(data) % 8 == 0, "Numbers that are no float64 bytes", "eight bytes each")
    return read_floats(data, np.float64)


def _whole(values: Any) -> tuple[int, int, int]:
    is_so = isinstance(values, list) and len(values) == 3 and all(type(value) is int and 0 <= value < 1 << 53 for value in values)
    _require(is_so, f"Key 11 is {str(values)[:80]}", "three whole numbers")
    return values[0], values[1], values[2]


def _require(is_so: bool, seen: str, wanted: str) -> None:  # noqa: FBT001 - the condition is what this is about
    if not is_so:
        raise InvalidError(f"{seen}; wanted {wanted}.", code="bad-reference")
