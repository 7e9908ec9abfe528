"""The reference profile of a device: where its clean windows lie in each look, and how surprising a distance from there is (ADR 0034).

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
from protocol.sketches.expectations import COMPONENTS, Expectations, Kind
from protocol.sketches.grid import FeatureGroup, FloatArray, Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.looks import (
    LOOKS,
    MAX_LOOKS,
    MAX_MODES,
    TAIL_SCORES,
    Judges,
    Look,
    LookReference,
    Modes,
    calibrated,
    classes_of,
    fit_looks,
    is_within_budget,
    judged,
    judged_by,
    leading,
    looks_for,
)
from protocol.sketches.normal import DoubleArray, read_floats
from protocol.sketches.powers import ClassPowers
from protocol.sketches.scatter import DEVIATION_FLOOR, Scatter
from protocol.sketches.shares import ClassShares
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import Tail

FORMAT = 3
#: In base64, with the event around it, it fits one MQTT packet (`protocol.topics.MAX_PACKET_BYTES`).
MAX_REFERENCE_BYTES = 176 << 10
SUBWINDOWS_PER_DAY = 144
#: Rows that a day may have: ten minutes each, or an hour.
PER_DAY = (144, 24)
#: Testable sub-windows that make a day complete: 80 %.
COMPLETE_DAY = 116
#: Complete days for a first fit, and for the measured one.
PROVISIONAL_DAYS, CALIBRATED_DAYS = 14, 28
#: Sub-windows per block: 6 hours, 1, 2 and 7 days.
BLOCKS = (36, 144, 288, 1008)
INDOOR_BLOCK, DEFAULT_BLOCK = 36, 144
#: Fewer blocks than this tell nothing about their dependence.
_MIN_BLOCKS = 4
_ID_BYTES = 16
#: Bytes of all that does not grow with coordinates, of a reference and of each look.
_MOST_HEAD = 160


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
    #: Sub-windows per block: what orders devices and judges groups (DRIFT 5.6).
    subwindows: int
    #: Which coordinates of the summary are judged: int64[k], ascending.
    coordinates: IntArray
    #: Their means, float64[k], as float32 has them: they stand for what a window does not know. NaN: never known, it counts for nothing.
    usual: DoubleArray
    #: The first is at one row and all coordinates: its score travels.
    looks: tuple[LookReference, ...]
    #: First and last sub-window it was learned from.
    first_w0: int
    last_w0: int
    #: Rows it was fitted on.
    windows: int
    #: Learned from a recording, not by the device at work.
    is_recorded: bool = False
    #: Rows per day: 144 of ten minutes, or 24.
    per_day: int = SUBWINDOWS_PER_DAY

    def __post_init__(self) -> None:
        coordinates, looks = self.coordinates, self.looks
        _require(len(self.grid_id) == _ID_BYTES and len(self.model) == _ID_BYTES, "Ids of another length", f"{_ID_BYTES} bytes each")
        _require(self.grade is not Grade.COLLECTING, "A reference that is still collecting", "no reference")
        _require(self.subwindows in BLOCKS, f"Blocks of {self.subwindows} sub-windows", f"one of {BLOCKS}")
        is_so = self.usual.shape == coordinates.shape and bool((np.diff(coordinates) > 0).all()) and coordinates[0] >= 0
        is_so = is_so and not bool(np.isinf(self.usual).any())
        _require(is_so, f"{len(coordinates)} coordinates for {len(self.usual)} means", "as many, ascending")
        is_so = 1 <= len(looks) <= MAX_LOOKS and looks[0].look.subwindows == 1 and len(looks[0].coordinates) == len(coordinates)
        is_so = is_so and looks[0].look.modes > 0
        is_so = is_so and len({one.look.name for one in looks}) == len(looks) and is_within_budget([one.look for one in looks])
        _require(is_so, f"{len(looks)} looks", f"1 to {MAX_LOOKS} of different names, each set in one budget, the first at all of one row")
        _require(self.per_day in PER_DAY, f"{self.per_day} rows per day", f"one of {PER_DAY}")
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

    @cached_property
    def scatter(self) -> Scatter:
        """All modes of the first look as one, NaN as the mean of what was never known: for whoever explains and compares."""
        modes = self.looks[0].modes
        if not isinstance(modes, Modes):
            raise TypeError("a first look without modes; the creation refuses it")
        made = modes.mixture()
        return replace(made, mean=np.where(np.isnan(self.usual), np.nan, made.mean))

    @property
    def tail(self) -> Tail:
        """Of the score that travels."""
        return self.looks[0].tail

    @property
    def may_alarm(self) -> bool:
        """False: only shown, because some covariance could not be factorised."""
        return not any(one.modes.is_degenerate for one in self.looks)

    @property
    def longest(self) -> int:
        """Rows that the longest look needs."""
        return max(one.look.subwindows for one in self.looks)

    @property
    def per_year(self) -> int:
        """Rows of a year: what thresholds are counted by."""
        return 365 * self.per_day

    def looks_at(self, width: int) -> tuple[LookReference, ...]:
        """The looks that judge rows of so many sub-windows, at lengths in such rows; those that are shorter than a row are left out."""
        per_row = SUBWINDOWS_PER_DAY // self.per_day
        if width == per_row:
            return looks_for(self.looks)
        lengths = [(one, one.look.subwindows * per_row // width) for one in looks_for(self.looks, are_means=True)]
        return tuple(replace(one, look=replace(one.look, subwindows=length)) for one, length in lengths if length)

    def filled(self, summaries: DoubleArray) -> DoubleArray:
        """The judged coordinates of whole summaries float64[n, d], unknown ones as usual: float64[n, k]; NaN where a row knows nothing."""
        part = summaries[:, self.coordinates]
        is_unknown = np.isnan(part) | np.isnan(self.usual)
        filled = np.where(is_unknown, np.nan_to_num(self.usual), part)
        filled[np.isnan(part).all(axis=1)] = np.nan
        return filled

    def scores(self, summaries: DoubleArray) -> FloatArray:
        """Of whole summaries float64[n, d], each alone: float32[n], as they travel in key 14; NaN where nothing is known."""
        with np.errstate(over="ignore"):
            scores = self.looks[0].scores(self.filled(summaries)).astype(np.float32)
        return np.minimum(scores, np.finfo(np.float32).max)

    def p_values(self, scores: FloatArray | DoubleArray) -> DoubleArray:
        """float64[n] of what `scores` gave [n]; NaN, not testable, stays NaN."""
        return self.tail.p_values(scores)

    def judged(self, summaries: DoubleArray) -> DoubleArray:
        """See `looks.judged`: float64[n] of consecutive rows of whole summaries float64[n, d], NaN rows where one is not testable.

        As it was found to come, where that was measured.
        """
        return self.valued(judged(self.looks, self.filled(summaries)))

    def valued(self, values: DoubleArray) -> DoubleArray:
        """What the least p / share over some looks [n] says: how seldom so little comes, float64[n] (`looks.calibrated`)."""
        return calibrated(values) if self.is_measured else values

    @cached_property
    def is_measured(self) -> bool:
        """Whether what its looks come to together was measured: 28 days of ten minutes, and no look but those of `LOOKS`."""
        known = {_plain(look) for look in LOOKS}
        own = {_plain(one.look) for one in self.looks}
        return self.grade is Grade.CALIBRATED and self.per_day == SUBWINDOWS_PER_DAY and own <= known

    def leading(self, summaries: DoubleArray) -> LookReference:
        """The look that says most about the last of these rows. Raises: ValueError when none can say anything."""
        return leading(self.looks, self.filled(summaries))

    def contributions(self, summaries: DoubleArray, look: LookReference) -> DoubleArray:
        """What T² of the look's last stretch is made of: float64[k], one for each of `coordinates`."""
        return look.contributions(self.filled(summaries[-look.look.subwindows :]))


def _plain(look: Look) -> Look:
    """The look however many modes its size allowed."""
    return replace(look, modes=0)


def complete_days(w0s: IntArray, *, per_day: int = SUBWINDOWS_PER_DAY) -> IntArray:
    """UTC days, ascending, with enough of these testable rows, each by the sub-window it begins with: int64."""
    days, counts = np.unique(np.unique(w0s) // SUBWINDOWS_PER_DAY, return_counts=True)
    return np.asarray(days[counts >= _complete(per_day)], dtype=np.int64)


def _complete(per_day: int) -> int:
    return -(-COMPLETE_DAY * per_day // SUBWINDOWS_PER_DAY)


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
    looks: Sequence[Look] = LOOKS,
    per_day: int = SUBWINDOWS_PER_DAY,
    coordinates: IntArray | None = None,
) -> DeviceReference:
    """The reference that these testable, clean rows allow: summaries float64[n, k], the sub-windows they begin with int64[n].

    `coordinates`: which of the grid's summary the columns are, int64[k]; None: all. The first 28 complete days count, or what is there from
    14 on; later days are not looked at. A recording is provisional whatever its length.
    Raises: InvalidError (too-few) below 14 complete days, or when nothing varies.
    """
    days = complete_days(w0s, per_day=per_day)
    grade = grade_of(len(days))
    if grade is Grade.COLLECTING:
        raise InvalidError(
            f"{len(days)} complete days of clean windows; wanted {PROVISIONAL_DAYS} with {_complete(per_day)} of {per_day} each.",
            code="too-few",
        )
    places = np.arange(summaries.shape[1]) if coordinates is None else coordinates
    used = np.isin(w0s // SUBWINDOWS_PER_DAY, days[:CALIBRATED_DAYS])
    w0s = w0s[used]
    consecutive, at = _consecutive(summaries[used], w0s, per_day)
    usual = _fill(consecutive)
    wanted = affordable(looks, places, grid)
    fitted = fit_looks(consecutive, grid, looks=wanted, coordinates=places, per_day=per_day, floor=floor)
    return DeviceReference(
        grid_id=grid.grid_id,
        model=model,
        grade=Grade.PROVISIONAL if is_recorded else grade,
        subwindows=choose_block(fitted[0].scores(consecutive)[at], w0s, is_indoor=is_indoor),
        coordinates=places,
        usual=usual,
        looks=fitted,
        first_w0=int(w0s.min()),
        last_w0=int(w0s.max()) + SUBWINDOWS_PER_DAY // per_day - 1,
        windows=len(w0s),
        is_recorded=is_recorded,
        per_day=per_day,
    )


def _fill(rows: DoubleArray) -> DoubleArray:
    """Put the mean in place of what is not known in rows that know something, and return the means as float32 has them, float64[k].

    A coordinate that is never known becomes 0; its mean is NaN.
    """
    is_unknown = np.isnan(rows)
    numbers = (~is_unknown).sum(axis=0)
    means = np.nansum(rows, axis=0) / np.maximum(numbers, 1)
    usual = np.where(numbers > 0, means.astype(np.float32).astype(np.float64), np.nan)
    is_unknown[is_unknown.all(axis=1)] = False
    at = np.nonzero(is_unknown)
    rows[at] = np.nan_to_num(usual)[at[1]]
    return usual


def _consecutive(summaries: DoubleArray, w0s: IntArray, per_day: int) -> tuple[DoubleArray, IntArray]:
    """The rows in the order of time, float64[days x per_day, k], and where each went. Days that are missing are one day of NaN."""
    days, place = np.unique(w0s // SUBWINDOWS_PER_DAY, return_inverse=True)
    begins = np.cumsum(np.concatenate([[0], np.where(np.diff(days) > 1, 2, 1)]))
    at = begins[place] * per_day + w0s % SUBWINDOWS_PER_DAY * per_day // SUBWINDOWS_PER_DAY
    found = np.full(((int(begins[-1]) + 1) * per_day, summaries.shape[1]), np.nan)
    found[at] = summaries
    return found, at


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
    reference: DeviceReference, old: Grid, new: Grid, summaries: DoubleArray, w0s: IntArray, *, model: bytes, is_indoor: bool = False
) -> DeviceReference | None:
    """The reference of a new release by the input features it shares, from clean stored rows on the OLD grid: float64[n, d], int64[n].

    All looks but those at classes are fitted anew on what both releases judge alike. None when no coordinate is shared.
    Raises: InvalidError (too-few).
    """
    olds, news = shared_coordinates(old, new)
    kept = sorted((int(after), int(before)) for before, after in zip(olds, news, strict=True) if before in reference.coordinates)
    if not kept:
        return None
    after, before = (np.array(column, dtype=np.int64) for column in zip(*kept, strict=True))
    looks = tuple(one for one in LOOKS if not one.is_classes)
    return fit_reference(summaries[:, before], w0s, grid=new, model=model, is_indoor=is_indoor, looks=looks, coordinates=after)


def affordable(looks: Sequence[Look], coordinates: IntArray, grid: Grid) -> tuple[Look, ...]:
    """The looks with so many modes that the reference stays within its bytes: the longest of them give some up first."""
    wanted = list(looks)
    while _bytes_of(wanted, coordinates, grid) > MAX_REFERENCE_BYTES:
        able = [place for place, look in enumerate(wanted) if look.modes > 1]
        if not able:
            break
        place = max(able, key=lambda place: (not wanted[place].is_classes, wanted[place].subwindows))
        wanted[place] = replace(wanted[place], modes=wanted[place].modes - 1)
    return tuple(wanted)


def _bytes_of(looks: Sequence[Look], coordinates: IntArray, grid: Grid) -> int:
    """Bytes that a reference of these looks has at most."""
    total = _MOST_HEAD + 6 * len(coordinates)
    for look in looks:
        inside = judged_by(look, coordinates, grid)
        total += 4 * TAIL_SCORES + _MOST_HEAD
        total += (
            _bytes_of_modes(look.modes, len(inside)) if look.modes else _bytes_of_shares(len(inside), classes_of(coordinates[inside], grid))
        )
    return total


def _bytes_of_modes(modes: int, d: int) -> int:
    return modes * (4 * (d * (d + 1) // 2 + d) + 17) + 4 * d


def _bytes_of_shares(d: int, classes: int) -> int:
    return 4 * ((COMPONENTS + 1) * (d - classes) + 2 * COMPONENTS + (COMPONENTS + 4) * classes)


def encode_reference(reference: DeviceReference) -> bytes:
    """Canonical bytes; `decode_reference(encode_reference(x))` is bit for bit the same. Raises: InvalidError (too-large)."""
    data = cbor.encode(
        {
            0: FORMAT,
            1: reference.grid_id,
            2: reference.model,
            3: _GRADES.index(reference.grade),
            4: reference.subwindows,
            5: leb128.encode(reference.coordinates),
            6: _pack(reference.usual, "<f4"),
            7: [_look_document(one) for one in reference.looks],
            8: [reference.first_w0, reference.last_w0, reference.windows],
            9: reference.per_day,
            10: reference.is_recorded,
        }
    )
    if len(data) > MAX_REFERENCE_BYTES:
        raise InvalidError(f"The reference has {len(data)} bytes; at most {MAX_REFERENCE_BYTES} are allowed.", code="too-large")
    return data


def _look_document(one: LookReference) -> list[Any]:
    look, tail = one.look, one.tail
    numbers = _pack(np.array([look.share, tail.q, tail.xi, tail.sigma]), "<f8")
    head = [look.name, look.subwindows, look.is_classes, int(look.judges), numbers]
    parts = _modes_document(one.modes) if isinstance(one.modes, Modes) else _shares_document(one.modes)
    return [*head, *parts, _pack(tail.scores, "<f4")]


def _modes_document(modes: Modes) -> list[Any]:
    clouds = modes.clouds
    lower = np.tril_indices(modes.dimensions)
    return [
        _pack(np.concatenate([modes.shares, [cloud.shrinkage for cloud in clouds]]), "<f8"),
        _pack(clouds[0].deviation, "<f4"),
        _pack(np.concatenate([cloud.mean for cloud in clouds]), "<f4"),
        _pack(np.concatenate([cloud.factor[lower] for cloud in clouds]), "<f4"),
        [cloud.is_degenerate for cloud in clouds],
    ]


def _shares_document(shares: Expectations) -> list[Any]:
    """As many parts as modes have; that there are none tells them apart."""
    return [
        shares.base,
        _pack(shares.dispersion, "<f4"),
        _pack(np.concatenate([shares.center, shares.low, shares.high]), "<f4"),
        _pack(np.concatenate([shares.components.ravel(), shares.weights.ravel(), shares.average]), "<f4"),
        [],
    ]


def decode_reference(data: bytes, grid: Grid) -> DeviceReference:
    """The reference in these bytes.

    Raises: InvalidError (too-large, malformed, unknown-version, unknown-grid, bad-reference, leb128, length).
    """
    document = cbor.decode(data, max_bytes=MAX_REFERENCE_BYTES, what="A reference")
    _require(isinstance(document, dict), "A reference that is no map", "a map")
    if document.get(0) != FORMAT:
        raise InvalidError(f"A reference of format {str(document.get(0))[:40]}; this program reads {FORMAT}.", code="unknown-version")
    _require(set(document) == set(range(11)), "A reference with other keys", "keys 0 to 10")
    if document[1] != grid.grid_id:
        raise InvalidError(f"A reference on another grid; wanted {grid.grid_id.hex()}.", code="unknown-grid")
    grade, places = document[3], document[5]
    _require(type(grade) is int and 0 <= grade < len(_GRADES), f"Grade {str(grade)[:40]}", f"0 to {len(_GRADES) - 1}")
    is_so = all(type(document[key]) is int for key in (4, 9)) and isinstance(document[2], bytes) and isinstance(places, bytes)
    _require(is_so, "No block length, no model, no coordinates or no rows per day", "whole numbers and bytes")
    _require(type(document[10]) is bool, "Key 10 of another kind", "true or false")
    usual = _floats(document[6])
    dimensions = summarizer(grid).dimensions
    _require(0 < len(usual) <= dimensions, f"{len(usual)} coordinates", f"1 to {dimensions}")
    coordinates = leb128.decode(places, len(usual))
    _require(int(coordinates.max()) < dimensions, f"Coordinate {coordinates.max()}", f"below {dimensions}")
    parts = document[7]
    _require(isinstance(parts, list) and 1 <= len(parts) <= MAX_LOOKS, "No looks", f"a list of 1 to {MAX_LOOKS}")
    first_w0, last_w0, windows = _whole(document[8])
    return DeviceReference(
        grid_id=grid.grid_id,
        model=document[2],
        grade=_GRADES[grade],
        subwindows=document[4],
        coordinates=coordinates,
        usual=usual,
        looks=tuple(_look(part, coordinates, grid) for part in parts),
        first_w0=first_w0,
        last_w0=last_w0,
        windows=windows,
        is_recorded=document[10],
        per_day=document[9],
    )


def _look(part: Any, coordinates: IntArray, grid: Grid) -> LookReference:
    """Raises: InvalidError (bad-reference)."""
    _require(isinstance(part, list) and len(part) == 11, "A look that is no list of eleven", "eleven parts")
    name, subwindows, is_classes, judges, numbers, *middle, degenerate, scores = part
    is_so = isinstance(name, str) and type(subwindows) is int and type(is_classes) is bool and isinstance(degenerate, list)
    _require(is_so and all(type(one) is bool for one in degenerate), "A look without name, rows or kind", "a text, a number, true or false")
    _require(type(judges) is int and 0 <= judges < len(Judges), f"A look that judges {str(judges)[:40]}", f"0 to {len(Judges) - 1}")
    share, q, xi, sigma = _sized(_doubles(numbers), 4)
    modes = len(degenerate)
    _require(modes <= MAX_MODES and (modes > 0 or is_classes), f"{modes} modes", f"1 to {MAX_MODES}, or 0 at classes")
    look = Look(name, subwindows, is_classes, modes, float(share), judges=Judges(judges))
    inside = judged_by(look, coordinates, grid)
    _require(len(inside) > 0, "A look at classes that are not judged", "one coordinate or more")
    tail = Tail(_floats(scores).astype(np.float32), float(q), float(xi), float(sigma))
    if not modes:
        classes = classes_of(coordinates[inside], grid)
        if look.judges is Judges.ROWS:
            return LookReference(look, inside, _shares(ClassPowers, middle, len(inside), classes), tail)
        return LookReference(look, inside, _shares(ClassShares, middle, len(inside), classes), tail)
    return LookReference(look, inside, _modes(middle, degenerate, len(inside)), tail)


def _modes(parts: list[Any], degenerate: list[bool], d: int) -> Modes:
    """Raises: InvalidError (bad-reference)."""
    weights, deviation, means, factors = parts
    modes = len(degenerate)
    shares, shrinkage = _sized(_doubles(weights), 2 * modes).reshape(2, modes)
    unit = _sized(_floats(deviation), d)
    places = _sized(_floats(means), modes * d).reshape(modes, d)
    packed = _sized(_floats(factors), modes * (d * (d + 1) // 2)).reshape(modes, -1)
    triangles = np.zeros((modes, d, d))
    triangles[:, *np.tril_indices(d)] = packed
    clouds = [Scatter(places[at], unit, triangles[at], float(shrinkage[at]), degenerate[at]) for at in range(modes)]
    return Modes(tuple(clouds), shares)


def _shares(kind: type[Kind], parts: list[Any], d: int, classes: int) -> Kind:
    """Raises: InvalidError (bad-reference)."""
    base, dispersion, ends, maps = parts
    _require(type(base) is int, "A most frequent class that is no number", f"0 to {classes - 1}")
    context = d - classes
    places = _floats(ends)
    components = (len(places) - context) // 2
    _require(0 <= components <= COMPONENTS and len(places) == context + 2 * components, f"{len(places)} means and ends", "of 4 components")
    numbers = _sized(_floats(maps), components * context + (3 + components) * classes)
    return kind(
        base,
        places[:context],
        numbers[: components * context].reshape(components, context),
        places[context : context + components],
        places[context + components :],
        numbers[components * context : -classes].reshape(2 + components, classes),
        numbers[-classes:],
        _sized(_floats(dispersion), classes),
    )


def _pack(numbers: DoubleArray | FloatArray, kind: str) -> bytes:
    return np.where(np.isnan(numbers), np.nan, numbers).astype(kind).tobytes()


def _doubles(data: Any) -> DoubleArray:
    _require(isinstance(data, bytes) and len(data) % 8 == 0, "Numbers that are no float64 bytes", "eight bytes each")
    return read_floats(data, np.float64)


def _floats(data: Any) -> DoubleArray:
    _require(isinstance(data, bytes) and len(data) % 4 == 0, "Numbers that are no float32 bytes", "four bytes each")
    return read_floats(data, np.float32).astype(np.float64)


def _sized(numbers: DoubleArray, count: int) -> DoubleArray:
    _require(len(numbers) == count, f"{len(numbers)} numbers", str(count))
    return numbers


def _whole(values: Any) -> tuple[int, int, int]:
    is_so = isinstance(values, list) and len(values) == 3 and all(type(value) is int and 0 <= value < 1 << 53 for value in values)
    _require(is_so, f"Key 8 is {str(values)[:80]}", "three whole numbers")
    return values[0], values[1], values[2]


def _require(is_so: bool, seen: str, wanted: str) -> None:  # noqa: FBT001 - the condition is what this is about
    if not is_so:
        raise InvalidError(f"{seen}; wanted {wanted}.", code="bad-reference")
