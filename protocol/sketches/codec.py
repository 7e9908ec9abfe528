"""Counts of one pipeline in one window as they travel: CBOR with whole-number keys (DRIFT 2); pure.

A window says of itself all that its key needs but the device, which the authenticated link says. A reader first looks at the head, which
needs no grid; only who has the grid opens the rest. Everything malformed is refused with a code of `REFUSALS`; unknown keys are ignored.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn, cast

import numpy as np

from protocol.errors import InvalidError
from protocol.ids import NAME_PATTERN
from protocol.sketches import cbor, leb128
from protocol.sketches.counts import MOMENT_LIMIT, Counts, empty_moments, summed
from protocol.sketches.grid import GRID_ID_BYTES, FloatArray, Grid
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import read_floats

FORMAT = 1
#: Longest payload, bytes.
MAX_BYTES = 16 << 10
#: A sub-window is ten minutes; `w0` counts them since 1970.
SUBWINDOW_S, SUBWINDOW_MS = 600, 600_000
SUBWINDOWS_PER_HOUR, MAX_SUBWINDOWS = 6, 144
#: A window may begin this much later than now: clocks differ.
MAX_AHEAD_MS = 600_000
#: Rows per sub-window, ten times what the shortest step gives: sums over years of a fleet stay below 2^63.
MAX_ROWS_PER_SUBWINDOW = 6000
#: Objects counted per class and row.
MAX_OBJECTS_PER_ROW = 1000
MAX_CONDITIONS = 64
_ID_BYTES = 16
_NAME = re.compile(NAME_PATTERN)
_WINDOW_ID = re.compile(r"(0|[1-9][0-9]{0,9})-([1-9][0-9]{0,2})")

#: Conditions that a window tells seconds of: name -> code on the wire. Never renamed, never given again.
CONDITION_CODES: Mapping[str, int] = MappingProxyType(
    {
        "frame_missing": 1,
        "rate_low": 2,
        "frame_frozen": 3,
        "frame_black": 4,
        "frame_white": 5,
        "shape_mismatch": 6,
        "nonfinite": 7,
        "extractor_failed": 8,
        "value_stuck": 9,
        "value_out_of_range": 10,
        "clock_unsynced": 11,
        "clock_jumped": 12,
        "reference_degenerate": 13,
        "detector_failed": 14,
        "grid_wanted": 15,
        "frame_out_of_focus": 16,
        "frame_covered": 17,
    }
)
CONDITION_NAMES: Mapping[int, str] = MappingProxyType({code: name for name, code in CONDITION_CODES.items()})

#: Why a window is refused: code -> what was wrong.
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "too-large": "It has more bytes than a window may have.",
        "malformed": "It is not canonical CBOR, or a field is missing or of another kind.",
        "unknown-version": "Its format is newer than this program.",
        "bad-window": "Its place in time, its mask or its number of rows contradict each other.",
        "future-window": "It begins more than ten minutes after now.",
        "before-grid": "It ended before its grid was made.",
        "unknown-grid": "It was counted on another grid.",
        "leb128": "A number is cut off, too long or below 0.",
        "length": "It has more or fewer numbers than its grid has cells, features or classes.",
        "rows-mismatch": "The cells of a feature do not add up to the rows.",
        "bad-moments": "Sums, least and greatest values of a feature contradict each other.",
        "bad-scores": "A drift score is negative or infinite, or belongs to no reference or to no rows.",
    }
)


class Source(IntEnum):
    """Which slot answered."""

    ACTIVE = 0
    SHADOW = 1


@dataclass(frozen=True, slots=True, eq=False)
class SketchWindow:
    """Counts of one pipeline in `nsub` sub-windows from `w0` on. Raises on creation: InvalidError with a code of `REFUSALS`."""

    pipeline: str
    grid_id: bytes
    #: First 16 bytes of the model version's digest.
    model: bytes
    src: Source
    #: Unix seconds / 600.
    w0: int
    nsub: int
    #: Bit i, least significant first: sub-window w0 + i has rows.
    mask: int
    counts: Counts
    #: float32[nsub]: the device's drift score of each sub-window; NaN where there is none.
    scores: FloatArray
    #: The reference the scores are measured against.
    reference_id: bytes | None = None
    rev: int = 0

    def __post_init__(self) -> None:
        _check_place(self.pipeline, self.src, self.w0, self.nsub, self.mask, self.rev)
        _check_ids(self.grid_id, self.model, self.reference_id)
        _check_rows(self.nsub, self.mask, self.counts)
        _check_scores(self.scores, self.nsub, self.mask, self.reference_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SketchWindow) and encode(self) == encode(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def window_id(self) -> str:
        """The last level of its topic."""
        return window_id(self.w0, self.nsub)

    @property
    def start_ms(self) -> int:
        """Unix ms of its beginning."""
        return self.w0 * SUBWINDOW_MS

    @property
    def end_ms(self) -> int:
        """Unix ms of its end."""
        return (self.w0 + self.nsub) * SUBWINDOW_MS


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What a window says without its grid; checked. The packed numbers are as they came."""

    pipeline: str
    grid_id: bytes
    model: bytes
    src: Source
    w0: int
    nsub: int
    mask: int
    rows: int
    effective: int
    excluded: int
    conditions: Mapping[int, int]
    #: float32[nsub].
    scores: FloatArray
    reference_id: bytes | None
    rev: int
    #: LEB128: cells, moments (zigzag but for the squares), classes.
    cells: bytes
    moments: bytes
    classes: bytes

    @property
    def window_id(self) -> str:
        """The last level of its topic."""
        return window_id(self.w0, self.nsub)


def window_id(w0: int, nsub: int) -> str:
    """The name of a window in its topic; `parse_window_id(window_id(w0, nsub)) == (w0, nsub)`."""
    return f"{w0}-{nsub}"


def parse_window_id(text: str) -> tuple[int, int]:
    """`w0` and `nsub`. Raises: InvalidError (bad-window)."""
    match = _WINDOW_ID.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= MAX_SUBWINDOWS:
        _refuse("bad-window", f"Window {text[:40]!r}", f"w0-nsub with nsub of 1 to {MAX_SUBWINDOWS}")
    return int(match[1]), int(match[2])


def encode(window: SketchWindow) -> bytes:
    """Its canonical bytes. Raises: InvalidError (too-large)."""
    counts = window.counts
    document: dict[int, Any] = {
        0: FORMAT,
        1: window.grid_id,
        2: window.model,
        3: int(window.src),
        4: window.w0,
        5: window.nsub,
        6: window.mask.to_bytes(_mask_bytes(window.nsub), "little"),
        7: counts.rows,
        8: counts.effective,
        9: counts.excluded,
        10: leb128.encode(counts.cells),
        11: encode_moments(counts.moments),
        12: leb128.encode(counts.classes),
        13: {code: seconds for code, seconds in sorted(counts.conditions.items()) if seconds},
        14: _score_bytes(window.scores),
        16: window.rev,
        17: window.pipeline,
    }
    if window.reference_id is not None:
        document[15] = window.reference_id
    data = cbor.encode(document)
    if len(data) > MAX_BYTES:
        _refuse("too-large", f"A window of {len(data)} bytes", f"at most {MAX_BYTES}")
    return data


def read_head(data: bytes) -> Head:
    """All that needs no grid. Raises: InvalidError with a code of `REFUSALS`."""
    document = cbor.decode(data, max_bytes=MAX_BYTES, what="A window")
    if not isinstance(document, dict):
        _refuse("malformed", "A window that is no map", "a map")
    if document.get(0) != FORMAT or type(document[0]) is not int:
        _refuse("unknown-version", f"A window of format {str(document.get(0))[:40]}", f"{FORMAT}")
    field = _Fields(document)
    nsub, packed_mask, scores = field.number(5), field.data(6), field.data(14)
    src = field.number(3)
    if src not in (0, 1):
        _refuse("malformed", f"A window of source {src}", "0 (active slot) or 1 (shadow)")
    if not 1 <= nsub <= MAX_SUBWINDOWS or len(packed_mask) != _mask_bytes(nsub):
        _refuse(
            "bad-window", f"A window of {nsub} sub-windows with a mask of {len(packed_mask)} bytes", f"1 to {MAX_SUBWINDOWS}, a bit each"
        )
    if len(scores) != 4 * nsub:
        _refuse("bad-scores", f"Scores of {len(scores)} bytes", f"{4 * nsub}: a float32 per sub-window")
    head = Head(
        pipeline=field.text(17),
        grid_id=field.data(1),
        model=field.data(2),
        src=Source(src),
        w0=field.number(4),
        nsub=nsub,
        mask=int.from_bytes(packed_mask, "little"),
        rows=field.number(7),
        effective=field.number(8),
        excluded=field.number(9),
        conditions=field.conditions(13),
        scores=read_floats(scores, np.float32),
        reference_id=field.data(15) if 15 in document else None,
        rev=field.number(16),
        cells=field.data(10),
        moments=field.data(11),
        classes=field.data(12),
    )
    _check_place(head.pipeline, head.src, head.w0, head.nsub, head.mask, head.rev)
    _check_ids(head.grid_id, head.model, head.reference_id)
    _check_totals(head.nsub, head.mask, (head.rows, head.effective, head.excluded), head.conditions)
    _check_scores(head.scores, head.nsub, head.mask, head.reference_id)
    return head


def check_time(head: Head, *, now_ms: int, made_at_ms: int = 0) -> None:
    """Refuse a window that begins too far ahead or was over when its grid was made. Raises: InvalidError (future-window, before-grid)."""
    if head.w0 * SUBWINDOW_MS > now_ms + MAX_AHEAD_MS:
        _refuse("future-window", f"Window {head.window_id} at {now_ms} ms", f"a beginning at most {MAX_AHEAD_MS} ms ahead; check the clock")
    if (head.w0 + 1) * SUBWINDOW_MS <= made_at_ms:
        _refuse("before-grid", f"Window {head.window_id} on a grid made at {made_at_ms} ms", "windows after that")


def decode(data: bytes, grid: Grid) -> SketchWindow:
    """The window in these bytes; `decode(encode(x), grid) == x`. Raises: InvalidError with a code of `REFUSALS`."""
    return open_head(read_head(data), grid)


def open_head(head: Head, grid: Grid) -> SketchWindow:
    """The window of this head, its numbers checked against its grid. Raises: InvalidError with a code of `REFUSALS`."""
    if head.grid_id != grid.grid_id:
        _refuse("unknown-grid", f"A window on grid {head.grid_id.hex()}", grid.grid_id.hex())
    cells = leb128.decode(head.cells, grid.cells)
    sums = np.add.reduceat(cells, np.array(grid.offsets[:-1]))
    # no single cell may pass what all may hold: their sum could wrap around
    if int(cells.max()) > head.rows or (sums != head.rows).any():
        _refuse("rows-mismatch", f"A window of {head.rows} rows with features of {sums.min()} to {sums.max()}", "as many cells as rows")
    classes = leb128.decode(head.classes, len(grid.classes))
    values = head.rows - cells[list(grid.offsets[:-1])]
    moments = decode_moments(head.moments, values)
    counts = Counts(head.rows, head.effective, head.excluded, cells, moments, classes, head.conditions)
    return SketchWindow(
        pipeline=head.pipeline,
        grid_id=head.grid_id,
        model=head.model,
        src=head.src,
        w0=head.w0,
        nsub=head.nsub,
        mask=head.mask,
        counts=counts,
        scores=head.scores,
        reference_id=head.reference_id,
        rev=head.rev,
    )


def merged(windows: Sequence[SketchWindow], grid: Grid) -> SketchWindow:
    """One window over all, from the first's beginning to the last's end; scores against an older reference than the last one vanish.

    Raises: InvalidError (bad-window) when there are none, when they overlap, span more than `MAX_SUBWINDOWS`, or are not of one pipeline,
    grid, model version and source.
    """
    parts = sorted(windows, key=lambda window: window.w0)
    if not parts:
        _refuse("bad-window", "No windows to merge", "at least one")
    first, last = parts[0], parts[-1]
    subject = (first.pipeline, first.grid_id, first.model, first.src)
    if any((part.pipeline, part.grid_id, part.model, part.src) != subject for part in parts):
        _refuse("bad-window", "Windows of several subjects", "one pipeline, grid, model version and source")
    if any(a.w0 + a.nsub > b.w0 for a, b in pairwise(parts)):
        _refuse("bad-window", f"Windows that overlap between {first.window_id} and {last.window_id}", "windows that do not")
    nsub = last.w0 + last.nsub - first.w0
    if nsub > MAX_SUBWINDOWS:
        _refuse("bad-window", f"A window of {nsub} sub-windows", f"at most {MAX_SUBWINDOWS}")
    reference_id = next((part.reference_id for part in reversed(parts) if part.reference_id is not None), None)
    scores = np.full(nsub, np.nan, dtype=np.float32)
    mask = 0
    for part in parts:
        at = part.w0 - first.w0
        mask |= part.mask << at
        if part.reference_id == reference_id:
            scores[at : at + part.nsub] = part.scores
    counts = summed((part.counts for part in parts), grid)
    return replace(first, nsub=nsub, mask=mask, counts=counts, scores=scores, reference_id=reference_id, rev=0)


def encode_moments(moments: IntArray) -> bytes:
    """int64[features, 4] packed; those of a feature without any finite value as zeros."""
    packed = list[int]()
    for total, squares, least, greatest in moments.tolist():
        zigzag = (leb128.zigzag(total), squares, leb128.zigzag(least), leb128.zigzag(greatest))
        packed += (0, 0, 0, 0) if least > greatest else zigzag
    return leb128.encode(packed)


def decode_moments(data: bytes, values: IntArray) -> IntArray:
    """int64[features, 4]; `values` int64[features]: finite values of each. Raises: InvalidError (leb128, length, bad-moments)."""
    packed = leb128.decode(data, 4 * len(values)).reshape(-1, 4)
    moments = leb128.unzigzag(packed)
    moments[:, 1] = packed[:, 1]
    is_empty = values == 0
    total, squares, least, greatest = moments.T
    within = (np.abs(least) <= MOMENT_LIMIT) & (np.abs(greatest) <= MOMENT_LIMIT) & (least <= greatest)
    within &= (np.abs(total) <= values * MOMENT_LIMIT) & (squares <= values * MOMENT_LIMIT**2)
    # only now no product can pass 2^63
    bounded = np.where(within, moments.T, 0)
    within &= (bounded[0] >= values * bounded[2]) & (bounded[0] <= values * bounded[3])
    within &= bounded[1] <= values * np.maximum(bounded[2] ** 2, bounded[3] ** 2)
    within &= bounded[1].astype(np.float64) * values >= bounded[0].astype(np.float64) ** 2 * (1 - 1e-9)
    within &= ~is_empty | (packed == 0).all(axis=1)
    if not within.all():
        worst = int(np.argmin(within))
        _refuse(
            "bad-moments", f"Moments {moments[worst].tolist()} of {values[worst]} values in feature {worst}", "sums between the extremes"
        )
    moments[is_empty] = empty_moments(1)
    return moments


def sum_cells(parts: Sequence[bytes], cells: int) -> IntArray:
    """The cells of many heads, added up: int64[cells]. The hot path of sums over a fleet. Raises: InvalidError (leb128, length)."""
    return leb128.summed(parts, cells)


class _Fields:
    __slots__ = ("document",)

    def __init__(self, document: Mapping[int | str, Any]) -> None:
        self.document = document

    def number(self, key: int) -> int:
        value = self.document.get(key)
        if type(value) is not int or not 0 <= value < 1 << 53:
            self._malformed(key, "a whole number below 2^53")
        return value

    def data(self, key: int) -> bytes:
        value = self.document.get(key)
        if not isinstance(value, bytes):
            self._malformed(key, "bytes")
        return value

    def text(self, key: int) -> str:
        value = self.document.get(key)
        if not isinstance(value, str):
            self._malformed(key, "a text")
        return value

    def conditions(self, key: int) -> Mapping[int, int]:
        value = self.document.get(key)
        if not isinstance(value, dict) or not all(type(code) is int and type(seconds) is int for code, seconds in value.items()):
            self._malformed(key, "a map of condition codes to seconds")
        return cast("dict[int, int]", value)

    def _malformed(self, key: int, wanted: str) -> NoReturn:
        _refuse("malformed", f"Key {key} of a window is {str(self.document.get(key, 'missing'))[:80]}", wanted)


def _check_place(pipeline: str, src: int, w0: int, nsub: int, mask: int, rev: int) -> None:
    if not _NAME.fullmatch(pipeline):
        _refuse("malformed", f"Pipeline {pipeline[:80]!r}", f"a name like {NAME_PATTERN}")
    if src not in (0, 1) or not 0 <= rev < 1 << 32:
        _refuse("malformed", f"Source {src}, rev {rev}", "0 or 1, and 0 to 2^32")
    if not 1 <= nsub <= MAX_SUBWINDOWS or not 0 <= w0 < 1 << 32:
        _refuse("bad-window", f"A window of {nsub} sub-windows from {w0} on", f"1 to {MAX_SUBWINDOWS} of them")
    if not 0 <= mask < 1 << nsub:
        _refuse("bad-window", f"A mask of {mask.bit_length()} bits for {nsub} sub-windows", "a bit for each")


def _check_ids(grid_id: bytes, model: bytes, reference_id: bytes | None) -> None:
    if len(grid_id) != GRID_ID_BYTES or len(model) != _ID_BYTES or (reference_id is not None and len(reference_id) != _ID_BYTES):
        _refuse("malformed", "An id of another length", f"{_ID_BYTES} bytes")


def _check_rows(nsub: int, mask: int, counts: Counts) -> None:
    _check_totals(nsub, mask, (counts.rows, counts.effective, counts.excluded), counts.conditions)
    classes: list[int] = counts.classes.tolist()
    objects = max(classes, default=0)
    if objects > counts.rows * MAX_OBJECTS_PER_ROW or min(classes, default=0) < 0:
        _refuse("bad-window", f"{objects} objects of a class in {counts.rows} rows", f"0 to {MAX_OBJECTS_PER_ROW} a row")


def _check_totals(nsub: int, mask: int, totals: tuple[int, int, int], conditions: Mapping[int, int]) -> None:
    rows, effective, excluded = totals
    most = nsub * MAX_ROWS_PER_SUBWINDOW
    if not 0 <= rows <= most or not 0 <= excluded <= most or not 0 <= effective <= rows:
        _refuse(
            "bad-window", f"{rows} rows, {effective} effective, {excluded} excluded in {nsub} sub-windows", f"at most {most} and in order"
        )
    if (rows > 0) != (mask > 0):
        _refuse("bad-window", f"{rows} rows with the mask {mask:#x}", "a bit for each sub-window that has rows")
    if len(conditions) > MAX_CONDITIONS:
        _refuse("bad-window", f"{len(conditions)} conditions", f"at most {MAX_CONDITIONS}")
    if any(not 0 < code < 1 << 16 or not 0 <= seconds <= 2 * SUBWINDOW_S * nsub for code, seconds in conditions.items()):
        _refuse("bad-window", f"Conditions {dict(conditions)}"[:200], f"codes below 65536, seconds within {nsub} sub-windows")


def _check_scores(scores: FloatArray, nsub: int, mask: int, reference_id: bytes | None) -> None:
    if scores.shape != (nsub,):
        _refuse("bad-scores", f"{scores.size} scores", f"{nsub}, one per sub-window")
    known: dict[int, float] = {index: score for index, score in enumerate(scores.tolist()) if not math.isnan(score)}
    if any(score < 0 or math.isinf(score) for score in known.values()):
        _refuse("bad-scores", "A score that is negative or infinite", "0 or more, or NaN")
    if known and reference_id is None:
        _refuse("bad-scores", "Scores without a reference id", "both or neither")
    if any(not mask >> index & 1 for index in known):
        _refuse("bad-scores", "A score of a sub-window without rows", "NaN there")


def _mask_bytes(nsub: int) -> int:
    return -(-nsub // 8)


def _score_bytes(scores: FloatArray) -> bytes:
    return struct.pack(f"<{len(scores)}f", *(math.nan if math.isnan(score) else score for score in scores.tolist()))


def _refuse(code: str, seen: str, wanted: str) -> NoReturn:
    raise InvalidError(f"{seen}; wanted {wanted}.", code=code)
