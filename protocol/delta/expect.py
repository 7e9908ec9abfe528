"""What the decoder expects of a tensor of the new file before it is told, from the old file and from what was told before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from protocol.delta import predict
from protocol.delta.container import Method
from protocol.delta.entropy import Array
from protocol.delta.errors import DeltaError
from protocol.delta.files import Mapped
from protocol.delta.onnx import scan_onnx, varying_values
from protocol.delta.tensors import DTYPES, FLOAT_KINDS, WIDTHS, Kind, Scan, Tensor, skeleton_of
from protocol.delta.tflite import scan_tflite

_F4 = np.dtype("<f4")
#: The ratio of scales that did not change.
_ONE = np.full(1, predict.FINE, np.float32)


class Piece(NamedTuple):
    """Values start … stop of a tensor of the new file."""

    index: int  # type: ignore[assignment]  # nobody looks for a value in a piece
    start: int
    stop: int


class OldModel:
    """The old file, taken apart, or as a delta says that it is (`told`)."""

    def __init__(self, method: Method, file: Mapped, told: Scan | None = None) -> None:
        self.file = file
        self._data = file.data
        self.scan = scan_model(method, self._data, let_go=file.let_go) if told is None else told
        self._skeleton: tuple[bytes, Scan] | None = None
        file.let_go()

    @property
    def skeleton(self) -> bytes:
        return self._normalized()[0]

    @property
    def normal(self) -> Scan:
        """The scan of the skeleton."""
        return self._normalized()[1]

    def _normalized(self) -> tuple[bytes, Scan]:
        if self._skeleton is None:
            self._skeleton = skeleton_of(self.read, self.file.size, self.scan)
            self.file.let_go()
        return self._skeleton

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]

    def gaps(self, indices: Iterable[int]) -> bytes:
        """What lies before the values of these tensors since the values before them; behind all values for the number of tensors."""
        tensors, made = self.scan.tensors, []
        for index in indices:
            before = tensors[index - 1]
            made.append(self.read(before.start + before.size, tensors[index].start if index < len(tensors) else self.file.size))
        return b"".join(made)

    def spelled(self, index: int) -> bytes:
        """The values of a varying tensor as they are written."""
        tensor = self.scan.tensors[index]
        return self.read(tensor.start, tensor.start + tensor.size)

    def values(self, index: int, start: int, stop: int) -> Array:
        """Old values of a tensor, in the type of its kind."""
        tensor = self.scan.tensors[index]
        if tensor.varying:
            return np.array(varying_values(self._data, tensor)[start:stop], DTYPES[tensor.kind])
        width = DTYPES[tensor.kind].itemsize
        return np.frombuffer(self.read(tensor.start + start * width, tensor.start + stop * width), DTYPES[tensor.kind])

    def values_of(self, pieces: Sequence[Piece], partner: Sequence[int]) -> Array:
        """Old values of pieces of one kind, one after the other; `partner` gives the old tensor of each."""
        tensors, data = self.scan.tensors, self._data
        first = tensors[partner[pieces[0].index]]
        kind, width = first.kind, WIDTHS[first.kind]
        if first.varying:
            made = [
                bytes([value & 0xFF for value in varying_values(data, tensors[partner[index]])[start:stop]])
                for index, start, stop in pieces
            ]
        else:
            made = [
                data[(at := tensors[partner[index]].start) + start * width : at + stop * width]  # one pass: there are hundreds of them
                for index, start, stop in pieces
            ]
        return np.frombuffer(made[0] if len(made) == 1 else b"".join(made), DTYPES[kind])


def scan_model(method: Method, data: Any, *, let_go: Callable[[], None] = lambda: None) -> Scan:
    """The model taken apart. Raises: UnknownModelError."""
    return scan_tflite(data, let_go=let_go) if method is Method.TFLITE else scan_onnx(data, let_go=let_go)


class Expecting:
    """Predictions for the tensors of `scan`. `is_same` says of each whether it is told as unchanged; what changed is put into `known`."""

    def __init__(self, old: OldModel, scan: Scan, is_same: Sequence[bool]) -> None:
        self.old, self.scan, self.is_same = old, scan, is_same
        self.partner = list(range(len(scan.tensors))) if scan is old.scan else [self._partner(tensor) for tensor in scan.tensors]
        #: New values that later predictions need, by index.
        self.known: dict[int, Array] = {}
        #: How tensors were moved, by index.
        self.drifts: dict[int, predict.Drift] = {}
        #: Tensors of which the old file says nothing.
        self.fresh: frozenset[int] | set[int] = frozenset()
        #: Tensors whose values stay although their scales change.
        self.kept: frozenset[int] | set[int] = frozenset()
        self._ratios_of: dict[int, Array | None] = {}
        self.wanted = set(scan.links.scale_of.values()) | {one for pair in scan.links.product_of.values() for one in pair}

    def _partner(self, tensor: Tensor) -> int:
        """The old tensor of the same name and form; -1 when there is none."""
        index = self.old.scan.by_name.get(tensor.name, -1)
        if index >= 0:
            other = self.old.scan.tensors[index]
            if (
                other.kind != tensor.kind
                or other.dims != tensor.dims
                or (other.size != tensor.size and not tensor.varying)
                or ((other.varying is None) != (tensor.varying is None))
            ):
                return -1
        return index

    def learn(self, pieces: Sequence[Piece], values: Array) -> None:
        """Keep the new values of those of these pieces that a later prediction needs."""
        wanted, known, at = self.wanted, self.known, 0
        for index, start, stop in pieces:
            end = at + stop - start
            if index in wanted:
                part = values[at:end]
                known[index] = np.concatenate([known[index], part]) if start and index in known else part.copy()
            at = end

    def expected(self, kind: Kind, pieces: list[Piece]) -> predict.Expected:
        """What the values of these pieces are predicted to be; all of one kind."""
        if kind in FLOAT_KINDS:
            return predict.Expected(self.expected_floats(kind, pieces), None)
        old = self._old(kind, pieces)
        fine = None if kind is Kind.I64 else self._exact(kind, pieces, old)
        if kind is Kind.I32:
            return predict.Expected(old.astype(np.int64), None) if fine is None else predict.rounded_wide(fine)
        if kind is Kind.I64:
            return predict.Expected(old, None)
        return predict.Expected(old.view(np.uint8), None) if fine is None else predict.rounded_small(fine, is_signed=kind is Kind.I8)

    def expected_floats(self, kind: Kind, pieces: list[Piece]) -> Array:
        """The same of floating point numbers, as integers in their order, int64."""
        old = self.old.values_of(pieces, self.partner)
        of_products = [piece.index in self.scan.links.product_of for piece in pieces]
        if any(of_products):
            old = self._products(pieces, of_products, old)
        return predict.ordered(old, kind).astype(np.int64)

    def exact(self, kind: Kind, pieces: list[Piece]) -> Array:
        """Predictions of values of 8 bits before they are rounded."""
        old = self._old(kind, pieces)
        fine = self._exact(kind, pieces, old)
        made: Array = old.astype(np.float32) if fine is None else fine * np.float32(1 / predict.FINE)
        return made

    def _old(self, kind: Kind, pieces: list[Piece]) -> Array:
        old = self.old.values_of(pieces, self.partner)
        if self.fresh and not self.fresh.isdisjoint(piece.index for piece in pieces):
            is_known = [np.full(piece.stop - piece.start, piece.index not in self.fresh) for piece in pieces]
            old = np.where(np.concatenate(is_known), old, 0).astype(DTYPES[kind])
        return old

    def _exact(self, kind: Kind, pieces: list[Piece], old: Array) -> Array | None:
        """The old values on their new scales, moved by the drifts, in steps of 1 / FINE; None when nothing is as that."""
        ratios = self._ratios_of
        if any(piece.index not in ratios for piece in pieces):
            self.learn_ratios({piece.index for piece in pieces})
        has_drift = bool(self.drifts) and any(piece.index in self.drifts for piece in pieces)
        if not has_drift and all(ratios[piece.index] is None for piece in pieces):
            return None
        fine = repeated_runs([self._ratios(piece) for piece in pieces], np.float64 if kind is Kind.I32 else np.float32)
        np.multiply(fine, old.astype(fine.dtype), out=fine)
        if has_drift:
            self._move(pieces, fine)
        return fine

    def _move(self, pieces: list[Piece], fine: Array) -> None:
        """Add the drifts."""
        at = 0
        for index, start, stop in pieces:
            if drift := self.drifts.get(index):
                fine[at : at + stop - start] += drift.part(start, stop)
            at += stop - start

    def deferred(self, pieces: list[Piece], most: int) -> Array | int:
        """How many raw bits of each value may come last: none of a single scale, which counts for much."""
        tensors = self.scan.tensors
        counts = [tensors[piece.index].count for piece in pieces]
        if 1 not in counts:
            return most
        return np.repeat([most if count > 1 else 0 for count in counts], [piece.stop - piece.start for piece in pieces])

    def _products(self, pieces: list[Piece], of_products: list[bool], old: Array) -> Array:
        """Scales of biases as products of new scales; the other values as they were."""
        sources, weights, counts = [], [], []
        product_of, new_scale = self.scan.links.product_of, self._new_scale
        for (index, start, stop), is_product in zip(pieces, of_products, strict=True):
            if is_product:
                source, weight = product_of[index]
                sources.append(new_scale(source))
                weights.append(new_scale(weight)[start:stop])
                counts.append(stop - start)
        made = predict.product(np.concatenate(sources).repeat(counts), np.concatenate(weights))
        if all(of_products):
            return made
        mixed = old.copy()
        mixed[np.repeat(of_products, [piece.stop - piece.start for piece in pieces])] = made
        return mixed

    def keep(self, index: int, *, is_kept: bool) -> None:
        """Expect the old values as they are from now on, or no longer."""
        self.kept = {*self.kept, index} if is_kept else {*self.kept} - {index}
        self._ratios_of.pop(index, None)

    def has_ratio(self, index: int) -> bool:
        """Whether other values are expected than the old ones, because scales change."""
        self.learn_ratios({index})
        return self._ratios_of[index] is not None

    def learn_ratios(self, indices: set[int]) -> None:
        """Ratios of scales, many tensors at once."""
        scales: dict[int, int] = {}
        for index in indices - self._ratios_of.keys():
            scale = self.scan.links.scale_of.get(index, -1)
            self._ratios_of[index] = None
            if scale >= 0 and self.partner[scale] >= 0 and not self.is_same[scale] and index not in self.kept:
                scales[index] = scale
        if not scales:
            return
        counts = [self.scan.tensors[scale].count for scale in scales.values()]
        new = [self._new_scale(scale) for scale in scales.values()]
        if counts != [len(one) for one in new]:
            raise DeltaError("The delta needs a scale before it tells it.")
        old = self.old.values_of([Piece(scale, 0, count) for scale, count in zip(scales.values(), counts, strict=True)], self.partner)
        wide = predict.ratio(old.view("<f4"), np.concatenate(new)) * predict.FINE
        small, at, tensors = wide.astype(np.float32), 0, self.scan.tensors
        for index, count in zip(scales, counts, strict=True):
            self._ratios_of[index] = (wide if tensors[index].kind is Kind.I32 else small)[at : at + count]
            at += count

    def _ratios(self, piece: Piece) -> tuple[Array, int]:
        """FINE times the ratios of the values, each so many times over."""
        made = self._ratios_of[piece.index]
        if made is None:
            return _ONE, piece.stop - piece.start
        return predict.spread(made, self.scan.tensors[piece.index], self.scan.links.scale_axis.get(piece.index, 0), piece.start, piece.stop)

    def _new_scale(self, index: int) -> Array:
        if index not in self.known:
            if not self.is_same[index] or self.partner[index] < 0:
                raise DeltaError("The delta needs a scale before it tells it.")
            self.known[index] = self.old.values(self.partner[index], 0, self.scan.tensors[index].count)
        return self.known[index].view(_F4)


def repeated_runs(runs: Sequence[tuple[Array, int]], type_: Any) -> Array:
    """All the runs {values, how often each of them} one after the other."""
    made, at = np.empty(sum([len(values) * times for values, times in runs]), type_), 0
    for values, times in runs:
        end = at + len(values) * times
        if len(values) == 1:
            made[at:end] = values[0]
        elif times == 1:
            made[at:end] = values
        else:
            made[at:end].reshape(-1, times)[...] = values[:, None]
        at = end
    return made


def steps(indices: Sequence[int], tensors: Sequence[Tensor]) -> Iterator[list[Piece]]:
    """The values of these tensors in steps of bounded size: small tensors together, large ones in parts."""
    pieces: list[Piece] = []
    held = 0
    for index in indices:
        start, count = 0, tensors[index].count
        if 0 < count < predict.STEP - held:
            pieces.append(Piece(index, 0, count))
            held += count
            continue
        while start < count:
            stop = min(count, start + predict.STEP - held)
            pieces.append(Piece(index, start, stop))
            held += stop - start
            start = stop
            if held == predict.STEP:
                yield pieces
                pieces, held = [], 0
    if pieces:
        yield pieces
