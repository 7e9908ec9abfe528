"""The fixed grid of a model version: inner edges per feature, made once from its evaluation data (DRIFT 2); pure.

A value x of float32 lies in bin k when e_(k-1) < x <= e_k; below `low` it counts as under, above `high` as over, not finite as NaN.
A grid is never changed, only followed by another one: its id is the digest of its bytes, and only counts of equal id are added.
"""

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidError
from protocol.sketches import cbor

FloatArray = npt.NDArray[np.float32]
#: Limits per model version (DRIFT 1).
MAX_FEATURES, MAX_CLASSES = 32, 20
#: Bins of one feature: 64 of the confidence, and room for thresholds as edges.
MAX_BINS = 96
#: Bins of a feature, and of the confidence.
BINS, CONFIDENCE_BINS = 32, 64
#: Seconds between rows that a device may choose from.
STEPS_S = (1, 2, 4, 8)
#: The class that all classes beyond the most frequent ones are counted as.
OTHER = "(other)"
#: Longest encoded grid, bytes.
MAX_GRID_BYTES = 64 << 10
GRID_ID_BYTES = 16
FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_MAX_LABEL = 200
_IQR_PER_DEVIATION = 1.349


class FeatureGroup(StrEnum):
    """Where a feature comes from; after a release input features keep their reference (DRIFT 5.8)."""

    #: The model's input tensor, or a sensor.
    INPUT = "input"
    #: Numbers that stand for the picture as a whole.
    EMBEDDING = "embedding"
    #: What the model answered.
    OUTPUT = "output"


_GROUPS = tuple(FeatureGroup)


@dataclass(frozen=True, slots=True)
class FeatureGrid:
    """The grid of one feature; all numbers are float32-exact. Raises on creation: InvalidError (bad-grid)."""

    name: str
    group: FeatureGroup
    #: Inner edges, strictly ascending, low <= e < high.
    edges: tuple[float, ...]
    #: Smallest and largest value of the evaluation data.
    low: float
    high: float
    #: Share of the evaluation data per bin; sum 1.
    masses: tuple[float, ...]
    #: Median, and interquartile range / 1.349 (1 when that is 0): the units of moments.
    center: float
    scale: float

    def __post_init__(self) -> None:
        _require(_NAME.fullmatch(self.name) is not None, f"Feature {self.name[:80]!r}", f"a name like {_NAME.pattern}")
        what = f"The grid of feature {self.name}"
        numbers = (*self.edges, self.low, self.high, self.center, self.scale, *self.masses)
        _require(len(self.edges) < MAX_BINS, f"{what} with {len(self.edges) + 1} bins", f"at most {MAX_BINS}")
        _require(len(self.masses) == len(self.edges) + 1, f"{what} with {len(self.masses)} masses", f"{len(self.edges) + 1}, one per bin")
        _require(all(map(math.isfinite, numbers)), f"{what} with NaN or infinity", "finite numbers")
        _require(_are_float32(numbers), f"{what} with numbers of more than 24 bits", "float32 numbers")
        bounds = [self.low, *self.edges, self.high]
        is_ascending = all(a < b for a, b in pairwise(bounds[1:])) and (not self.edges or self.low <= self.edges[0])
        _require(self.low <= self.high and is_ascending, f"{what} with edges out of order", "low <= e1 < e2 < … < high")
        _require(self.scale > 0, f"{what} with scale {self.scale}", "more than 0")
        _require(
            min(self.masses) >= 0 and abs(sum(self.masses) - 1) < 1e-3,
            f"{what} with masses that sum to {sum(self.masses):.6g}",
            "shares that sum to 1",
        )

    @property
    def bins(self) -> int:
        """K: one more than there are edges."""
        return len(self.edges) + 1

    @property
    def cells(self) -> int:
        """NaN, under, the K bins, over."""
        return self.bins + 3


@dataclass(frozen=True)
class Grid:
    """What counts of a model version are counted on. Raises on creation: InvalidError (bad-grid) beyond the limits of DRIFT 1."""

    features: tuple[FeatureGrid, ...]
    #: Labels in the order of class counts; `OTHER` last when there are more classes than these. Empty: none are counted.
    classes: tuple[str, ...]
    #: Seconds between two rows.
    step_s: int
    #: Windows before this are refused: Unix ms, UTC.
    made_at_ms: int

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        _require(1 <= len(names) <= MAX_FEATURES, f"A grid of {len(names)} features", f"1 to {MAX_FEATURES}")
        _require(len(set(names)) == len(names), "A grid with a feature twice", "different names")
        _require(len(self.classes) <= MAX_CLASSES, f"A grid of {len(self.classes)} classes", f"at most {MAX_CLASSES}")
        _require(
            len(set(self.classes)) == len(self.classes) and all(1 <= len(label) <= _MAX_LABEL for label in self.classes),
            "A grid with doubled, empty or long class labels",
            f"different labels of 1 to {_MAX_LABEL} characters",
        )
        _require(self.step_s in STEPS_S, f"A grid with a step of {self.step_s} s", f"one of {STEPS_S}")
        _require(0 <= self.made_at_ms < 1 << 53, f"A grid made at {self.made_at_ms}", "Unix milliseconds")

    @cached_property
    def encoded(self) -> bytes:
        """Its canonical bytes."""
        return encode_grid(self)

    @cached_property
    def grid_id(self) -> bytes:
        """16 bytes: the beginning of the SHA-256 of its canonical bytes."""
        return hashlib.sha256(self.encoded).digest()[:GRID_ID_BYTES]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each feature's cells begin in the flat counts, and one more: their number."""
        return tuple(accumulate((feature.cells for feature in self.features), initial=0))

    @property
    def cells(self) -> int:
        """Length of the flat counts."""
        return self.offsets[-1]

    def slot(self, label: str) -> int | None:
        """Where a class is counted: its own place, or that of `OTHER`; None when neither is there."""
        places = self._places
        return places.get(label, places.get(OTHER))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.classes)}

    def index(self, name: str) -> int:
        """The place of a feature. Raises: LookupError when the grid has none of this name."""
        for index, feature in enumerate(self.features):
            if feature.name == name:
                return index
        raise LookupError(f"feature {name!r} is not on the grid")


def fit_feature(name: str, group: FeatureGroup, values: npt.ArrayLike, bins: int = BINS, extra_edges: Sequence[float] = ()) -> FeatureGrid:
    """The grid at quantiles of these values (any shape; not finite ones are left out), with the extra edges that lie inside their range.

    Equal quantiles collapse, so there may be fewer bins than asked. Raises: InvalidError (bad-grid) without two finite values, or
    beyond `MAX_BINS`.
    """
    finite = _finite(name, values)
    at = np.quantile(finite, np.arange(1, bins) / bins, method="inverted_cdf") if bins > 1 else finite[:0]
    return fit_on_edges(name, group, finite, np.concatenate([at, np.asarray(extra_edges, dtype=np.float32)]).tolist())


def fit_on_edges(name: str, group: FeatureGroup, values: npt.ArrayLike, edges: Sequence[float]) -> FeatureGrid:
    """The grid with these edges, as far as they lie inside the range of the values; the rest comes from the values.

    Raises: InvalidError (bad-grid) without two finite values, or beyond `MAX_BINS`.
    """
    finite = _finite(name, values)
    low, high = finite.min(), finite.max()
    inner = np.unique(np.asarray(edges, dtype=np.float32))
    inner = inner[(inner >= low) & (inner < high)]
    counts = np.bincount(np.searchsorted(inner, finite, side="left"), minlength=len(inner) + 1)
    first, center, third = np.quantile(finite.astype(np.float64), (0.25, 0.5, 0.75)).tolist()
    with np.errstate(over="ignore"):
        scale = np.float32((third - first) / _IQR_PER_DEVIATION)
    masses = (counts / len(finite)).astype(np.float32)
    return FeatureGrid(
        name=name,
        group=group,
        edges=tuple(inner.tolist()),
        low=float(low),
        high=float(high),
        masses=tuple(masses.tolist()),
        center=float(np.float32(center)),
        scale=float(scale) if scale > 0 and np.isfinite(scale) else 1.0,
    )


def encode_grid(grid: Grid) -> bytes:
    """Canonical bytes; `decode_grid(encode_grid(x)) == x`."""
    features = [
        {
            0: feature.name,
            1: _GROUPS.index(feature.group),
            2: _pack(feature.edges),
            3: _pack((feature.low, feature.high, feature.center, feature.scale)),
            4: _pack(feature.masses),
        }
        for feature in grid.features
    ]
    return cbor.encode({0: FORMAT, 1: features, 2: list(grid.classes), 3: grid.step_s, 4: grid.made_at_ms})


def decode_grid(data: bytes) -> Grid:
    """The grid in these bytes. Raises: InvalidError (too-large, malformed, unknown-version, bad-grid)."""
    return _grid(cbor.decode(data, max_bytes=MAX_GRID_BYTES, what="A grid"))


def _grid(document: Any) -> Grid:
    _require(isinstance(document, dict), "A grid that is no map", "a map")
    if document.get(0) != FORMAT:
        raise InvalidError(f"A grid of format {document.get(0)!r}; this program reads {FORMAT}.", code="unknown-version")
    features, classes = document.get(1), document.get(2)
    step_s, made_at_ms = document.get(3), document.get(4)
    _require(isinstance(features, list) and isinstance(classes, list), "A grid without lists of features and classes", "both")
    _require(type(step_s) is int and type(made_at_ms) is int, "A grid without step and time of making", "whole numbers")
    _require(all(isinstance(label, str) for label in classes), "A grid with a class label that is no text", "texts")
    _require(set(document) == {0, 1, 2, 3, 4}, "A grid with other keys", "keys 0 to 4")
    return Grid(tuple(map(_feature, features)), tuple(classes), step_s, made_at_ms)


def _feature(document: Any) -> FeatureGrid:
    _require(isinstance(document, dict) and set(document) == {0, 1, 2, 3, 4}, "A feature with other keys", "a map with keys 0 to 4")
    name, group = document[0], document[1]
    _require(isinstance(name, str), "A feature whose name is no text", "a text")
    _require(type(group) is int and 0 <= group < len(_GROUPS), f"A feature of group {group!r}", f"0 to {len(_GROUPS) - 1}")
    edges, units, masses = (_unpack(document[key]) for key in (2, 3, 4))
    _require(len(units) == 4, f"Feature {name[:80]} with {len(units)} numbers in key 3", "low, high, center, scale")
    low, high, center, scale = units
    return FeatureGrid(name, _GROUPS[group], edges, low, high, masses, center, scale)


def _pack(numbers: Sequence[float]) -> bytes:
    return np.asarray(numbers, dtype="<f4").tobytes()


def _unpack(data: Any) -> tuple[float, ...]:
    _require(isinstance(data, bytes) and len(data) % 4 == 0 and len(data) <= 4 * MAX_BINS, "Numbers of a feature", "float32 bytes")
    return tuple(cast("list[float]", np.frombuffer(data, dtype="<f4").tolist()))


def _are_float32(numbers: Sequence[float]) -> bool:
    form = f"<{len(numbers)}f"
    try:
        return struct.unpack(form, struct.pack(form, *numbers)) == tuple(numbers)
    except OverflowError:
        return False


def _finite(name: str, values: npt.ArrayLike) -> FloatArray:
    numbers = np.asarray(values, dtype=np.float32).ravel()
    finite = numbers[np.isfinite(numbers)]
    _require(len(finite) >= 2, f"Feature {name} with {len(finite)} finite values", "at least 2")
    return finite


def _require(is_so: bool, seen: str, wanted: str) -> None:  # noqa: FBT001 - the condition is what this is about
    if not is_so:
        raise InvalidError(f"{seen}; wanted {wanted}.", code="bad-grid")
