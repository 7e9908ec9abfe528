"""Methods 2 and 3 from the encoder's side: how each tensor is told, which classes its numbers have, and the stream of them.

Everything that the decoder predicts is predicted here by the decoder's own code.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from fleet.registry import delta_drift
from fleet.registry.delta_classes import Fitted, RowChoice, Sample, fit_groups, fit_rows, ids_of
from fleet.registry.delta_coding import Recording, symbols_of
from fleet.registry.delta_frame import changed_gaps, gaps_table, packed_on
from fleet.registry.delta_packing import in_frames, pack_classes, pack_rows
from fleet.registry.delta_places import places_of
from protocol.delta import predict
from protocol.delta.container import CHUNK_BYTES, Method
from protocol.delta.entropy import NUMBER_RAW_BITS, Array, Phase, frequencies
from protocol.delta.expect import Expecting, OldModel, scan_model, steps
from protocol.delta.files import Mapped
from protocol.delta.onnx import varying_values
from protocol.delta.packed import MAX_BYTE_SYMBOLS, MAX_PACKED_VALUES
from protocol.delta.plan import (
    ASYMMETRIC,
    BYTES,
    DEFERRED_KINDS,
    EMPTY,
    FIRST_CLASS,
    IN_BYTES,
    MAX_DEFERRED_VALUES,
    NO_TABLE,
    PACKED,
    PLAIN,
    PREDICTED,
    RAW,
    RIDING,
    UNCHANGED,
    NumberClass,
    kinds_with_classes,
    roles_of,
)
from protocol.delta.tensors import DTYPES, Kind, Scan, skeleton_of, table_of, varint

_ROWS = -1
#: Numbers from which on packing saves the device time, and how much more than symbols they may cost then: half of it comes back, as
#: fewer symbols need fewer coders.
_LEAST_PACKED = 1 << 14
_PACKED_SHARE = 0.12
#: Lowest raw bits of a number that may come last, and bytes of them from which on they do.
_DEFERRED, _LEAST_DEFERRED = 8, 512
#: How much of a delta may say where the old tensors lie. It saves a tenth of the time that a small file takes.
_PLACES_SHARE = 0.02
#: How much longer a delta may become when all symbols stand as bytes. That saves a sixth of the time of a small file.
_BYTES_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Parts:
    """What follows the header: skeleton (raw length, packed) and streams; `records` tensors are told by numbers or bytes."""

    table_raw: int
    table: bytes
    skeleton_raw: int
    skeleton: bytes
    streams: bytes
    records: int
    #: Whether it is told where the tensors of the old file lie.
    has_places: bool = False

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.table) + len(self.skeleton) + len(self.streams)


@dataclass(slots=True)
class _Tensor:
    """Residuals of a tensor: new value minus what the decoder expects, and where that lay between two whole numbers."""

    index: int
    numbers: Array
    fine: Array | None


def build(method: Method, old: Path, new: Path, *, is_packed: bool | None = None) -> Parts:
    """The tensor-wise delta; `is_packed` says whether corrections of 8 bits are packed, and symbols bytes (None: where that pays).

    Raises: UnknownModelError when a file cannot be taken apart.
    """
    old_file, new_file = Mapped(old), Mapped(new)
    try:
        made, has_kept = _built(method, old_file, new_file, is_packed=is_packed)
        if not has_kept:
            return made
        # what drifts save is known at the end only, and they go with values on new scales
        other, _ = _built(method, old_file, new_file, is_packed=is_packed, may_keep=False)
        return min(made, other, key=lambda one: one.size)
    finally:
        old_file.close()
        new_file.close()


def _built(method: Method, old: Mapped, new: Mapped, *, is_packed: bool | None, may_keep: bool = True) -> tuple[Parts, bool]:
    """A delta, and whether it keeps values as they are although their scales change."""
    builder = _Builder(method, old, new, is_packed=is_packed, may_keep=may_keep)
    made = builder.build()
    if builder.counts_on_packing and not builder.packing:
        builder = _Builder(method, old, new, is_packed=False, may_keep=may_keep)
        made = builder.build()
    return made, bool(builder.expecting.kept)


class _Builder:
    def __init__(self, method: Method, old_file: Mapped, new_file: Mapped, *, is_packed: bool | None, may_keep: bool = True) -> None:
        self.may_keep, self.is_packed = may_keep, is_packed
        self.old = OldModel(method, old_file)
        self.data = bytes(new_file.data)
        scan = scan_model(method, self.data)
        self.file_scan = scan
        self.skeleton, normal = skeleton_of(lambda start, stop: self.data[start:stop], len(self.data), scan)
        self.is_onnx = method is Method.ONNX
        self.is_same_table = self.is_onnx or table_of(scan) == table_of(self.old.scan)
        #: Gaps with other bytes, when that is all that differs around the values (ONNX); None: the whole skeleton is told.
        self.gaps = changed_gaps(self.old, self.skeleton, scan, normal)
        self.is_same_skeleton = self.is_same_table and self.gaps is not None
        self.scan: Scan = self.old.normal if self.is_same_skeleton else normal
        self.told = [RAW] * len(scan.tensors)
        #: What the decoder expects while it takes numbers, and at last, when it has the deferred bits as well.
        self.expecting = Expecting(self.old, self.scan, [])
        self.exact = Expecting(self.old, self.scan, [])
        self.classes: list[NumberClass] = []
        self.recording = Recording()
        self.drifts: dict[int, predict.Drift] = {}
        self.drift_numbers = 0
        self.fresh: set[int] = set()
        #: Packed values, as they follow the raw bits; and whether no bits are deferred because these shall ride in the coders' states.
        self.packing = b""
        self.counts_on_packing = False
        #: Class of the numbers of row classes, the first class of rows, and the class of each row of tensors that have them.
        self.row_numbers = self.first_row = 0
        self.row_classes: dict[int, Array] = {}
        #: What is told by its bytes, at the end.
        self.raw_frames = b""

    def build(self) -> Parts:
        tensors, partner = self.scan.tensors, self.expecting.partner
        for index in range(len(tensors)):
            if partner[index] >= 0 and np.array_equal(self._values(index), self._old_values(index)):
                self.told[index] = UNCHANGED
        self.expecting.is_same = self.exact.is_same = [how == UNCHANGED for how in self.told]
        for index in self.exact.wanted:
            self.exact.known[index] = self._values(index)
        changed = [
            index
            for index, tensor in enumerate(tensors)
            if self.told[index] == RAW and partner[index] >= 0 and tensor.kind in kinds_with_classes()
        ]
        self.deferred = self._deferral(changed)
        residuals = [self._refreshed(self._residual(index)) for index in sorted(changed, key=self._stage)]
        coded = []
        for one in residuals:
            if np.abs(one.numbers).max(initial=0) >= 1 << 32:
                continue  # beyond what a symbol can tell: by its bytes
            if one.numbers.any() or tensors[one.index].varying:
                coded.append(one)
            else:
                self.told[one.index] = PREDICTED
        self._choose(coded)
        plan_tail = self._plan_tail()
        self._record(coded)
        weights = [one.weights() for one in self.classes if one.tables]
        slots = frequencies(np.concatenate(weights)) if weights else np.zeros((1, 256), np.int64)
        phases, words, streams_ = self._words(slots)
        plan = _phases_bytes(phases) + varint(self.deferred or RIDING) + plan_tail
        self.raw_frames = self._raw_frames()
        streams, has_places = self._streams(plan, words, *streams_)
        if (in_bytes := self._in_bytes()) and len(in_bytes[0]) <= (1 + _BYTES_SHARE) * len(streams):
            streams, has_places = in_bytes
        return Parts(*self._frame(), streams, sum(how != UNCHANGED for how in self.told), has_places)

    def _frame(self) -> tuple[int, bytes, int, bytes]:
        """What the values stand in: table and skeleton, each {bytes raw, packed}."""
        table_raw = skeleton_raw = 0
        table = skeleton = b""
        if self.gaps:
            table_raw, table = len(made := gaps_table(self.gaps)), made
            joined = b"".join(self.gaps.values())
            skeleton_raw, skeleton = len(joined), packed_on(joined, self.old.gaps(self.gaps))
        elif self.skeleton != self.old.skeleton:
            skeleton_raw, skeleton = len(self.skeleton), packed_on(self.skeleton, self.old.skeleton)
        if not self.is_same_table:
            made = table_of(self.file_scan)
            table_raw, table = len(made), packed_on(made, table_of(self.old.scan))
        return table_raw, table, skeleton_raw, skeleton

    def _streams(self, plan: bytes, words: bytes, bits: bytes, packing: bytes) -> tuple[bytes, bool]:
        """All that follows the skeleton, and whether it tells the places of old tensors."""
        packed, raw, has_places = self._packed_plan(plan, len(words) + len(bits) + len(packing) + len(self.raw_frames))
        lengths = b"".join(map(varint, (raw, len(packed), len(words), len(bits))))
        return b"".join((lengths, packed, words, bits, packing, self.raw_frames)), has_places

    def _in_bytes(self) -> tuple[bytes, bool] | None:
        """The streams with all symbols as bytes, where that can be; it changes classes and how tensors are told."""
        calls = [symbols.tobytes() for _, symbols in self.recording.calls]
        is_by_rows = bool(self.row_classes) and not self.packing
        if self.is_packed is False or self.deferred or is_by_rows or not calls or sum(map(len, calls)) > MAX_BYTE_SYMBOLS:
            return None
        apart = self.first_row if self.packing else len(self.classes)
        one = NumberClass(1, b"", b"", b"", is_in_bytes=True)
        has_rows = self.row_numbers < apart
        self.classes = [one, *self.classes[apart:]]
        self.told = [how if how < FIRST_CLASS else max(FIRST_CLASS, how + 1 - apart) for how in self.told]
        self.row_numbers, self.first_row, self.drift_numbers = 0 if has_rows else len(self.classes), 1, 0
        plan = _phases_bytes([Phase(1, 0)]) + varint(IN_BYTES) + self._plan_tail()
        before, packed = int.from_bytes(self.packing[4:8], "little"), self.packing[8:]
        packing = _packing(sum(map(len, calls)) + before, in_frames(calls) + packed)
        return self._streams(plan, b"", self.recording.bits()[0], packing)

    def _packed_plan(self, plan: bytes, others: int) -> tuple[bytes, int, bool]:
        """The plan compressed, its raw length, and whether it begins with the places of old tensors.

        It does where these cost little beside `others` bytes: the device need not scan the old file then.
        """
        packed = _compressed(plan)
        if self.is_onnx and self.gaps is not None and (places := places_of(self.old.scan, self.old.read(0, self.old.file.size))):
            both = _compressed(places + plan)
            if len(both) - len(packed) <= _PLACES_SHARE * (len(packed) + others):
                return both, len(places) + len(plan), True
        return packed, len(plan), False

    def _words(self, slots: Array) -> tuple[list[Phase], bytes, tuple[bytes, bytes]]:
        """The phases, the states and words, and what of raw bits and packed values did not ride in the coders' last states."""
        bits, late = self.recording.bits()
        if self.deferred:
            phases, words, ridden = self.recording.words(slots, len(self.data), late)
            return phases, words, (bits + late[ridden:], self.packing)
        if self.packing:
            phases, words, ridden = self.recording.words(slots, len(self.data), self.packing)
            return phases, words, (bits, self.packing[ridden:])
        last = bits[len(bits) - self.recording.ending() :]
        phases, words, ridden = self.recording.words(slots, len(self.data), last, from_end=True)
        return phases, words, (bits[: len(bits) - ridden], self.packing)

    def _deferral(self, changed: list[int]) -> int:
        """Whether the lowest bits of scales and biases ride in the coders' states: when they fill many, and many weights changed.

        Where packed values can ride there, they do: the device need not hold scales back then, and predicts by all of their bits.
        """
        tensors = self.scan.tensors
        held = [index for index in changed if tensors[index].kind in DEFERRED_KINDS]
        values = sum(tensors[index].count for index in held)
        others = sum(tensors[index].count for index in changed if tensors[index].kind in {Kind.I8, Kind.U8})
        if values > MAX_DEFERRED_VALUES or others <= 1 << 14:
            return 0
        bits = 0
        for index in held:  # what is predicted from others leaves few bits
            tensor = tensors[index]
            if tensor.kind is Kind.F32 and tensor.count > 1 and index not in self.scan.links.product_of:
                new, old = (predict.ordered(one, tensor.kind).astype(np.int64) for one in (self._values(index), self._old_values(index)))
                bits += int(np.minimum(NUMBER_RAW_BITS[symbols_of(new - old)[0]], _DEFERRED).sum())
        if bits <= 8 * _LEAST_DEFERRED:
            return 0
        self.counts_on_packing = self.is_packed is not False and others <= MAX_PACKED_VALUES
        return 0 if self.counts_on_packing else _DEFERRED

    def _stage(self, index: int) -> int:
        """The order in which the decoder comes to know tensors."""
        if self.scan.tensors[index].kind in {Kind.F32, Kind.F16}:
            return 1 if index in self.scan.links.product_of else 0
        return 2

    def _values(self, index: int) -> Array:
        tensor = self.file_scan.tensors[index]
        if tensor.varying:
            return np.array(varying_values(self.data, tensor), DTYPES[tensor.kind])
        return np.frombuffer(self.data, DTYPES[tensor.kind], tensor.count, tensor.start)

    def _old_values(self, index: int) -> Array:
        return self.old.values(self.expecting.partner[index], 0, self.scan.tensors[index].count)

    def _residual(self, index: int) -> _Tensor:
        tensor = self.scan.tensors[index]
        new = self._values(index)
        if tensor.varying:
            return _Tensor(index, new.astype(np.int64) - self._old_values(index).astype(np.int64), None)
        numbers, fine = [], []
        expecting = self.exact if tensor.kind in {Kind.F32, Kind.F16} else self.expecting
        for pieces in steps([index], self.scan.tensors):
            expected = expecting.expected(tensor.kind, pieces)
            value = new[pieces[0].start : pieces[0].stop]
            if tensor.kind in {Kind.F32, Kind.F16}:
                value = predict.ordered(value, tensor.kind)
            bits = 8 * DTYPES[tensor.kind].itemsize
            whole = expected.whole.view(np.int8) if tensor.kind is Kind.I8 else expected.whole
            gap = value.astype(np.int64) - whole.astype(np.int64)
            numbers.append((gap + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1) if bits < 64 else gap)
            fine.append(expected.fine)
        made = _Tensor(index, np.concatenate(numbers), _joined(fine))
        if index in self.expecting.wanted:
            self.expecting.known[index] = self._known(index, made)
        return made

    def _refreshed(self, one: _Tensor) -> _Tensor:
        """The residuals, or the new values themselves when the old ones say nothing of them, as of a head that was trained anew."""
        tensor = self.scan.tensors[one.index]
        if tensor.kind not in {Kind.I8, Kind.U8} or tensor.varying or tensor.count < 32:
            return one
        one = self._kept(one)
        values = self._values(one.index).astype(np.float32)
        if delta_drift.bits_of(values, None) >= 0.98 * delta_drift.bits_of(one.numbers, None):
            return one
        self.fresh.add(one.index)
        self.expecting.fresh = self.fresh
        return self._residual(one.index)

    def _kept(self, one: _Tensor) -> _Tensor:
        """The residuals against the old values as they are, where that is cheaper than against old values on the new scales."""
        if not self.may_keep or not self.expecting.has_ratio(one.index):
            return one
        self.expecting.keep(one.index, is_kept=True)
        kept = self._residual(one.index)
        if delta_drift.bits_of(kept.numbers, None) < 0.98 * delta_drift.bits_of(one.numbers, one.fine):
            return kept
        self.expecting.keep(one.index, is_kept=False)
        return one

    def _known(self, index: int, made: _Tensor) -> Array:
        """What the decoder knows of a scale when it predicts by it: without its deferred bits."""
        tensor = self.scan.tensors[index]
        if not self.deferred or tensor.kind is not Kind.F32:
            return self._values(index)
        symbols, raw = symbols_of(made.numbers)
        later = np.minimum(NUMBER_RAW_BITS[symbols], self.deferred if tensor.count > 1 else 0).astype(np.int64)
        missing = (raw & ((np.int64(1) << later) - 1)) * np.where(made.numbers < 0, -1, 1)
        whole = np.concatenate([self.expecting.expected(tensor.kind, pieces).whole for pieces in steps([index], self.scan.tensors)])
        return predict.ordered((whole + made.numbers - missing).astype(np.int32), tensor.kind)

    def _rows_or_drifts(self, coded: list[_Tensor], group: list[_Tensor], rows: list[int]) -> RowChoice:
        """Classes without drifts, or with them, whichever costs less; drifts change the residuals in `coded`."""
        without = fit_rows(_samples(group), rows)
        moved = [self._drifted(one) for one in group]
        if not self.drifts:
            return without
        choice = fit_rows(_samples(moved), rows)
        factors = fit_groups([Sample(symbols_of(np.concatenate([_factors(drift) for drift in self.drifts.values()]))[0], None)], (1,))[0][0]
        if choice.cost + factors.cost >= without.cost:
            self.drifts.clear()
            self.expecting.drifts.clear()
            return without
        self.drift_numbers = len(self.classes)
        self.classes.append(factors.number_class)
        by_index = {one.index: one for one in moved}
        coded[:] = [by_index.get(one.index, one) for one in coded]
        return choice

    def _packed(self, coded: list[_Tensor], group: list[_Tensor], choice: RowChoice) -> RowChoice:
        """The choice with its numbers packed, where that costs little more: the device decodes them several times as fast."""
        indices = {one.index for one in group}
        group = [one for one in coded if one.index in indices]
        total = sum(len(one.numbers) for one in group)
        if self.is_packed is False or total > MAX_PACKED_VALUES or (self.is_packed is None and total < _LEAST_PACKED):
            return choice
        best, packing = self._packed_tensors(group, choice)
        if choice.ids is not None:
            best, packing = min([(best, packing), self._packed_rows(group, choice)], key=lambda one: one[0].cost)
        if self.is_packed is None and best.cost > choice.cost * (1 + _PACKED_SHARE):
            return choice
        self.packing = packing
        return best

    def _packed_tensors(self, group: list[_Tensor], choice: RowChoice) -> tuple[RowChoice, bytes]:
        """Packed with a class for each tensor, and what the delta holds of it."""
        whole = choice if choice.ids is None else fit_rows(_samples(group), [0] * len(group))
        order = sorted(range(len(group)), key=lambda place: (whole.chosen[place], self.scan.tensors[group[place].index].kind, place))
        members = [[group[place] for place in order if whole.chosen[place] == number] for number in range(len(whole.classes))]
        levels = whole.classes[0].number_class.levels
        made = pack_classes([[(one.numbers, one.fine) for one in member] for member in members], levels)
        classes = [Fitted(NumberClass(levels, b"", b"", b"", ways=ways), 0.0, np.empty(0)) for ways in made.ways]
        return RowChoice(classes, whole.chosen, [None] * len(group), None, 8.0 * len(made.frames)), _packing(made.raw, made.frames)

    def _packed_rows(self, group: list[_Tensor], choice: RowChoice) -> tuple[RowChoice, bytes]:
        """Packed with a class for each row."""
        order = sorted(range(len(group)), key=lambda place: (self.scan.tensors[group[place].index].kind, place))
        ids = []
        for place in order:
            its = choice.rows[place]
            ids.append(np.full(self.scan.tensors[group[place].index].rows, choice.chosen[place]) if its is None else its)
        made = pack_rows([group[place].numbers for place in order], ids)
        ways = [b"" if way is None else bytes([way]) for way in made.ways]
        classes = [Fitted(NumberClass(1, b"", b"", b"", ways=way), 0.0, np.empty(0)) for way in ways]
        rows: list[Array | None] = [None] * len(group)
        for place, its in zip(order, made.rows, strict=True):
            rows[place] = its
        table = ids_of(np.concatenate(made.rows), len(classes))
        return RowChoice(classes, [0] * len(group), rows, table, made.cost), _packing(made.raw, made.frames)

    def _drifted(self, one: _Tensor) -> _Tensor:
        """The tensor with a drift, when that saves bytes."""
        tensor = self.scan.tensors[one.index]
        if tensor.kind not in {Kind.I8, Kind.U8} or tensor.varying or one.index in self.fresh or not one.numbers.any():
            return one
        drift = delta_drift.find(self._gap(one.index), tensor.rows)
        if drift is None:
            return one
        self.drifts[one.index] = self.expecting.drifts[one.index] = drift
        return self._residual(one.index)

    def _gap(self, index: int) -> Array:
        """New value minus old one on the new scale, before rounding."""
        kind = self.scan.tensors[index].kind
        parts = []
        for pieces in steps([index], self.scan.tensors):
            new = self._values(index)[pieces[0].start : pieces[0].stop].astype(np.float32)
            parts.append(new - self.expecting.exact(kind, pieces))
        return np.concatenate(parts)

    def _choose(self, coded: list[_Tensor]) -> None:
        """Classes for everything that is told by numbers."""
        tensors = self.scan.tensors
        for kinds, is_varying, levels in (
            ({Kind.I8, Kind.U8}, True, (1,)),
            ({Kind.I64}, False, (1,)),
            ({Kind.F32, Kind.F16}, False, (1,)),
            ({Kind.I32}, False, (1, 8)),
        ):
            group = [one for one in coded if tensors[one.index].kind in kinds and (tensors[one.index].varying is not None) == is_varying]
            if group:
                samples = [Sample(symbols_of(one.numbers)[0], one.fine) for one in group]
                fitted, chosen = fit_groups(samples, levels)
                for one, number in zip(group, chosen, strict=True):
                    self.told[one.index] = FIRST_CLASS + len(self.classes) + number
                self.classes += [fit.number_class for fit in fitted]
        group = [one for one in coded if tensors[one.index].varying is None and tensors[one.index].kind in {Kind.I8, Kind.U8}]
        if group:
            rows = [tensors[one.index].rows for one in group]
            choice = self._packed(coded, group, self._rows_or_drifts(coded, group, rows))
            base = len(self.classes)
            if choice.ids is not None:
                self.row_numbers = base
                self.classes.append(choice.ids)
                base += 1
            self.first_row = base
            self.classes += [fit.number_class for fit in choice.classes]
            for one, number, ids in zip(group, choice.chosen, choice.rows, strict=True):
                self.told[one.index] = FIRST_CLASS + base + number if ids is None else _ROWS
                if ids is not None:
                    self.row_classes[one.index] = ids
            if choice.ids is None:
                self.row_numbers = len(self.classes)
        else:
            self.row_numbers = len(self.classes)
        self.told = [FIRST_CLASS + len(self.classes) if how == _ROWS else how for how in self.told]

    def _plan_tail(self) -> bytes:
        made = [varint(len(self.classes)), *map(_class_bytes, self.classes), varint(self.row_numbers)]
        if self.row_numbers < len(self.classes):
            made.append(varint(self.first_row))
        roles = roles_of(self.scan.tensors, self.scan.links)
        usual = {}
        for role in sorted(set(roles)):
            told = [how for how, other in zip(self.told, roles, strict=True) if other == role]
            usual[role] = max(set(told), key=told.count)
            made.append(varint(usual[role]))
        exceptions = [index for index, role in enumerate(roles) if self.told[index] != usual[role]]
        made.append(varint(len(exceptions)))
        before = -1
        for index in exceptions:
            made += [varint(index - before - 1), varint(self.told[index])]
            before = index
        made.append(varint(len(self.drifts)))
        before = -1
        for number, (index, drift) in enumerate(sorted(self.drifts.items())):
            made += [] if number else [varint(self.drift_numbers)]
            made += [varint(index - before - 1), varint(drift.of_rows.shape[1] - 1), varint(drift.shift)]
            before = index
        made.append(_indices_bytes(self.fresh))
        if self.expecting.kept:
            made.append(_indices_bytes(self.expecting.kept))
        return b"".join(made)

    def _record(self, coded: list[_Tensor]) -> None:
        """The numbers in the order in which the decoder takes them: see `protocol.delta.rebuild`."""
        tensors, links = self.scan.tensors, self.scan.links
        by_index = {one.index: one for one in coded}
        self.starts = np.cumsum([0, *(one.tables for one in self.classes)])[: len(self.classes)]
        self.starts[[not one.tables for one in self.classes]] = NO_TABLE
        order = sorted(by_index)
        plain = [index for index in order if tensors[index].varying is None]
        floats = [index for index in plain if tensors[index].kind in {Kind.F32, Kind.F16}]
        small = [index for index in plain if tensors[index].kind in {Kind.I8, Kind.U8}]
        self._record_steps([index for index in order if tensors[index].varying is not None], by_index)
        for group in (
            [index for index in plain if tensors[index].kind is Kind.I64],
            [index for index in floats if index not in links.product_of],
            [index for index in floats if index in links.product_of],
            [index for index in plain if tensors[index].kind is Kind.I32],
        ):
            self._record_kinds(group, by_index)
        if self.drifts:
            factors = np.concatenate([_factors(drift) for _, drift in sorted(self.drifts.items())])
            self.recording.put_numbers(np.full(len(factors), self.starts[self.drift_numbers]), factors)
        rows = [index for index in small if index in self.row_classes]
        if rows:
            ids = np.concatenate([self.row_classes[index] for index in rows])
            self.recording.put(self.starts[self.row_numbers], ids.astype(np.uint8))
        self._record_kinds([index for index in small if not self.packing], by_index)

    def _record_kinds(self, indices: list[int], by_index: dict[int, _Tensor]) -> None:
        for kind in sorted({self.scan.tensors[index].kind for index in indices}):
            self._record_steps([index for index in indices if self.scan.tensors[index].kind is kind], by_index)

    def _record_steps(self, indices: list[int], by_index: dict[int, _Tensor]) -> None:
        for pieces in steps(indices, self.scan.tensors):
            tables, numbers = [], []
            for piece in pieces:
                one = by_index[piece.index]
                fine = None if one.fine is None else one.fine[piece.start : piece.stop]
                numbers.append(one.numbers[piece.start : piece.stop])
                if piece.index in self.row_classes:
                    tensor = self.scan.tensors[piece.index]
                    classes = (
                        predict.repeated(self.row_classes[piece.index], tensor.count // tensor.rows, piece.start, piece.stop)
                        + self.first_row
                    )
                else:
                    classes = np.full(piece.stop - piece.start, self.told[piece.index] - FIRST_CLASS)
                level = predict.levels_of(fine, len(classes), self.classes[int(classes[0])].levels)
                tables.append(np.where(self.starts[classes] == NO_TABLE, NO_TABLE, self.starts[classes] + level))
            is_held = self.scan.tensors[indices[0]].kind in DEFERRED_KINDS
            deferred = self.expecting.deferred(pieces, self.deferred if is_held else 0)
            self.recording.put_numbers(np.concatenate(tables), np.concatenate(numbers), deferred=deferred)

    def _raw_frames(self) -> bytes:
        made = []
        for index, how in enumerate(self.told):
            if how == RAW:
                tensor = self.file_scan.tensors[index]
                for start in range(tensor.start, tensor.start + tensor.size, CHUNK_BYTES):
                    raw = self.data[start : min(start + CHUNK_BYTES, tensor.start + tensor.size)]
                    packed = zstandard.ZstdCompressor(level=19).compress(raw)
                    packed = packed if len(packed) < len(raw) else raw
                    made += [len(packed).to_bytes(4, "little"), packed]
        return b"".join(made)


def _indices_bytes(indices: Collection[int]) -> bytes:
    made, before = [varint(len(indices))], -1
    for index in sorted(indices):
        made.append(varint(index - before - 1))
        before = index
    return b"".join(made)


def _compressed(plan: bytes) -> bytes:
    packed = zstandard.ZstdCompressor(level=19, compression_params=None, write_content_size=True).compress(plan)
    return packed if len(packed) < len(plan) else plan


def _samples(group: list[_Tensor]) -> list[Sample]:
    return [Sample(symbols_of(one.numbers)[0], one.fine) for one in group]


def _joined(parts: list[Array | None]) -> Array | None:
    """All parts one after the other, where there are any."""
    found = [one for one in parts if one is not None]
    return np.concatenate(found) if found else None


def _factors(drift: predict.Drift) -> Array:
    return np.concatenate([drift.of_rows.ravel(), drift.of_columns.ravel()]).astype(np.int64)


def _packing(raw: int, frames: bytes) -> bytes:
    """What stands before packed values, and they."""
    return len(frames).to_bytes(4, "little") + raw.to_bytes(4, "little") + frames


def _phases_bytes(phases: list[Phase]) -> bytes:
    return varint(len(phases)) + b"".join(varint(one.lanes.bit_length() - 1) + varint(one.symbols) for one in phases)


def _class_bytes(one: NumberClass) -> bytes:
    if one.is_empty:
        return bytes([one.levels, EMPTY])
    if one.is_in_bytes:
        return bytes([1, BYTES])
    if one.ways:
        return bytes([one.levels, PACKED]) + one.ways
    if one.is_plain:
        return bytes([1, PLAIN]) + varint(len(one.tail)) + one.tail
    flags = ASYMMETRIC if one.below != one.kernel else 0
    below = one.below if flags else b""
    return bytes([one.levels, flags]) + one.kernel + below + varint(len(one.tail)) + one.tail
