"""Methods 2 and 3: the new model tensor by tensor, from the old one, a skeleton, a plan and a stream of numbers.

After table and skeleton: varints {plan raw, plan packed, bytes of states and words, of raw bits}, then plan, words, bits, and zstd frames
{u32 packed} of what is told by its bytes. Order of numbers: varying values; int64; floating point; scales of biases; int32; drifts; rows'
classes; int8, uint8; at last the deferred bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from protocol.delta import frames, predict
from protocol.delta.container import CHUNK_BYTES, MAX_FILE_BYTES, Header, Method
from protocol.delta.entropy import TABLE_BITS, TABLE_SLOTS, Array, Bits, Symbols, deferred_numbers, numbers, small_numbers, states_of
from protocol.delta.errors import DeltaError
from protocol.delta.expect import Expecting, OldModel, Piece, cut, repeated_runs, steps
from protocol.delta.files import Mapped, Output
from protocol.delta.onnx import scan_onnx
from protocol.delta.plan import (
    DEFERRED_KINDS,
    FIRST_CLASS,
    MAX_DEFERRED_VALUES,
    MAX_DRIFT_NUMBERS,
    MAX_PLAN_BYTES,
    NO_TABLE,
    PREDICTED,
    RAW,
    UNCHANGED,
    Plan,
    Reader,
    read_plan,
    table_starts,
)
from protocol.delta.tensors import DTYPES, MAX_TENSORS, Kind, Layout, Scan, lay_out, lay_out_like, table_of, varying_bytes, without_values
from protocol.delta.tflite import Gapped, scan_tflite


@dataclass(slots=True)
class Streams:
    """What follows the skeleton."""

    plan: bytes
    words: memoryview
    bits: Bits
    frames: memoryview

    @classmethod
    def parse(cls, data: memoryview) -> "Streams":
        reader = Reader(bytes(data[:32]))
        raw, packed = reader.number(MAX_PLAN_BYTES), reader.number(MAX_PLAN_BYTES)
        words, bit_bytes = reader.number(1 << 32), reader.number(1 << 32)
        at = reader.at
        ends = [at + packed, at + packed + words, at + packed + words + bit_bytes]
        if ends[-1] > len(data):
            raise DeltaError("The streams of the delta are cut.")
        plan = data[at : at + packed]
        return cls(
            bytes(plan) if packed == raw else frames.decode(plan, raw, window_log=20),
            data[ends[0] : ends[1]],
            Bits(data[ends[1] : ends[2]]),
            data[ends[2] :],
        )


def needed_kib(header: Header) -> int:
    """What the decoder of methods 2 and 3 holds at most, KiB, from the header alone."""
    return (12 << 10) + (4 * (header.skeleton_raw + header.table_raw) >> 10)


def write_tensors(header: Header, payload: memoryview, file: Mapped, output: Output, let_go: Callable[[], None]) -> None:
    """Write the new file; `let_go` gives the pages of the delta back. Raises: DeltaError; OSError."""
    old = OldModel(header.method, file)
    skeleton, scan, after = _skeleton(header, payload, old)
    streams = Streams.parse(payload[after:])
    plan = read_plan(streams.plan, scan.tensors, scan.links)
    Rebuilding(old, skeleton, scan, plan, streams, output, let_go).run()


def _skeleton(header: Header, payload: memoryview, old: OldModel) -> tuple[bytes | None, Scan, int]:
    """The skeleton of the new file (None: as the old one's) and its scan, and where the streams begin."""
    table_end = header.table_packed
    end = table_end + header.skeleton_packed
    if end > len(payload) or (header.method is Method.ONNX and header.table_raw):
        raise DeltaError("The skeleton of the delta is cut, or it has a table and needs none.")
    if not end:
        if header.skeleton_raw or header.table_raw:
            raise DeltaError("The delta announces a skeleton and has none.")
        return None, old.scan, 0
    skeleton = old.skeleton
    if header.skeleton_packed:
        packed = payload[table_end:end]
        skeleton = frames.decode(packed, header.skeleton_raw, prefix=old.skeleton, window_log=header.window_log)
    if header.method is Method.ONNX:
        return skeleton, scan_onnx(skeleton, has_holes=True), end
    table = table_of(old.scan)
    if header.table_packed:
        table = frames.decode(payload[:table_end], header.table_raw, prefix=table, window_log=header.window_log)
    scan = scan_tflite(Gapped(skeleton, _spans(table, len(skeleton), header.new_bytes)))
    return skeleton, without_values(scan), end


def _spans(table: bytes, skeleton_bytes: int, new_bytes: int) -> list[tuple[int, int]]:
    """Where values lie in the new file, by its table."""
    spans: list[tuple[int, int]] = []
    reader, end, sizes = Reader(table), 0, 0
    while not reader.is_done:
        if len(spans) > MAX_TENSORS:
            raise DeltaError(f"The delta has more than {MAX_TENSORS} tensors.")
        start = end + reader.number(MAX_FILE_BYTES)
        size = reader.number(MAX_FILE_BYTES)
        spans.append((start, size))
        end, sizes = start + size, sizes + size
    if end > new_bytes or sizes + skeleton_bytes != new_bytes:
        raise DeltaError("The table of the delta does not fit the new file.")
    return spans


class _Held(NamedTuple):
    """Values of a step without their lowest bits: what was expected (None: products of what is only known at last) and corrects it."""

    kind: Kind
    pieces: list[Piece]
    whole: Array | None
    numbers: Array | int
    signs: Array | int
    later: Array | None


class Rebuilding:
    """One decoding; `run` writes everything, in the order of the numbers."""

    def __init__(
        self, old: OldModel, skeleton: bytes | None, scan: Scan, plan: Plan, streams: Streams, output: Output, let_go: Callable[[], None]
    ) -> None:
        self.old, self.skeleton, self.scan, self.plan, self.streams, self.output = old, skeleton, scan, plan, streams, output
        self.let_go = let_go
        self.starts, tables = table_starts(plan)
        states, state_bytes = states_of(streams.words, plan.phases[0].lanes)
        self.symbols = Symbols(plan.phases, states, streams.words[state_bytes:], tables)
        self.expecting = Expecting(old, scan, [how == UNCHANGED for how in plan.told])
        self.expecting.fresh, self.expecting.kept = plan.fresh, plan.kept
        self.partner = self.expecting.partner
        self.has_empty = NO_TABLE in self.starts
        self.starts_of_classes = np.array(self.starts, np.int64)
        self.row_classes: dict[int, Array] = {}
        self.layout: Layout
        #: Values that wait for their lowest bits.
        self.held_values = 0
        self.held: list[_Held] = []

    def run(self) -> None:
        told, tensors, links = self.plan.told, self.scan.tensors, self.scan.links
        for index, how in enumerate(told):
            if how != RAW and self.partner[index] < 0:
                raise DeltaError("The delta changes a tensor that the old file does not have.")
        self._lay_out([index for index, tensor in enumerate(tensors) if tensor.varying])
        coded = [index for index, how in enumerate(told) if how not in {UNCHANGED, RAW} and not tensors[index].varying]
        floats = [index for index in coded if tensors[index].kind in {Kind.F32, Kind.F16}]
        self._write_numbers([index for index in coded if tensors[index].kind is Kind.I64])
        self._write_numbers([index for index in floats if index not in links.product_of])
        self._write_numbers([index for index in floats if index in links.product_of])
        self._write_numbers([index for index in coded if tensors[index].kind is Kind.I32])
        small = [index for index in coded if tensors[index].kind in {Kind.I8, Kind.U8}]
        self._take_drifts()
        self._take_row_classes([index for index in small if told[index] == self.plan.rows_told])
        self._write_numbers(small)
        if len(floats) + len(small) + sum(tensors[index].kind in {Kind.I32, Kind.I64} for index in coded) != len(coded):
            raise DeltaError("The delta tells a tensor by numbers that can only be told by bytes.")
        self._finish(self.symbols.finish())
        self._write_raw([index for index, how in enumerate(told) if how == RAW])
        self._write_same([index for index, how in enumerate(told) if how == UNCHANGED and not tensors[index].varying])

    def _finish(self, ridden: bytes) -> None:
        """Complete what waits for its lowest bits: those that rode in the states of the coders first."""
        if not self.plan.deferred:
            if any(ridden) or len(self.streams.bits.rest()):
                raise DeltaError("The raw bits of the delta do not end where they should.")
            return
        bits = Bits(memoryview(ridden + bytes(self.streams.bits.rest())))
        self.expecting.known.clear()
        for kind, pieces, whole, numbers_, signs, later in self.held:
            exact = numbers_ if later is None else numbers_ + bits.take(later) * signs
            self._write_made(kind, pieces, (self.expecting.expected_floats(kind, pieces) if whole is None else whole) + exact)
        if len(bits.rest()) > len(ridden) or any(bits.rest()):
            raise DeltaError("The raw bits of the delta do not end where they should.")

    def _lay_out(self, varying: list[int]) -> None:
        spelled: dict[int, bytes] = {}
        for index in varying:
            if self.plan.told[index] in {PREDICTED, RAW, self.plan.rows_told}:
                raise DeltaError("The delta tells a varying tensor in a way that is not for it.")
            if self.plan.told[index] == UNCHANGED and self.skeleton is not None:
                spelled[index] = self.old.spelled(self.partner[index])
        coded = [index for index in varying if self.plan.told[index] >= FIRST_CLASS]
        values: dict[int, list[int]] = {index: [] for index in coded}
        for pieces in steps(coded, self.scan.tensors):
            was = self.old.values_of(pieces, self.partner)
            now = was.astype(np.int16) + self._numbers(pieces, None)
            for piece, part in cut(pieces, now):
                values[piece.index] += part.astype(DTYPES[self.scan.tensors[piece.index].kind]).tolist()
        spelled |= {index: varying_bytes(one) for index, one in values.items()}
        if self.skeleton is None:
            size, outer = self.old.file.size, self.scan.outer
            self.layout = lay_out_like(size, self.scan, self.old.read(0, outer[0]) if outer else b"", spelled)
        else:
            self.layout = lay_out(self.skeleton, self.scan, spelled)
        if self.layout.size != self.output.size:
            raise DeltaError(f"The parts of the new file make {self.layout.size} bytes; {self.output.size} were announced.")
        for offset, start, stop in self.layout.copies:
            self._copy(offset, start, stop)
        for offset, data in self.layout.pieces:
            self.output.write_at(offset, data)

    def _copy(self, offset: int, start: int, stop: int) -> None:
        """A part of the old file as it is."""
        if stop - start <= CHUNK_BYTES:
            self.output.write_at(offset, self.old.read(start, stop))
            return
        for at in range(start, stop, CHUNK_BYTES):
            self.output.write_at(offset + at - start, self.old.read(at, min(at + CHUNK_BYTES, stop)))
            self.old.file.let_go()

    def _write_numbers(self, indices: list[int]) -> None:
        tensors = self.scan.tensors

        def order(index: int) -> tuple[Kind, bool]:
            return tensors[index].kind, self.plan.told[index] != PREDICTED

        for (kind, _), group in groupby(sorted(indices, key=order), key=order):
            of_kind = list(group)
            if kind in {Kind.I8, Kind.U8}:
                self.expecting.learn_ratios(set(of_kind))
            for pieces in steps(of_kind, tensors):
                self._write_step(kind, pieces)
                self.old.file.let_go()
                self.let_go()

    def _write_step(self, kind: Kind, pieces: list[Piece]) -> None:
        if kind in DEFERRED_KINDS and self.plan.deferred:
            self._hold(kind, pieces)
            return
        expected = self.expecting.expected(kind, pieces)
        self._write_made(kind, pieces, expected.whole + self._numbers(pieces, expected.fine))

    def _hold(self, kind: Kind, pieces: list[Piece]) -> None:
        """Learn scales as far as they are known, and keep all values until their lowest bits come."""
        expected = self.expecting.expected(kind, pieces)
        whole = expected.whole
        symbols = self._symbols(pieces, expected.fine)
        made: Array | int = 0
        signs: Array | int = 0
        later: Array | None = None
        if symbols is not None:
            made, signs, later = deferred_numbers(symbols, self.streams.bits, self.expecting.deferred(pieces, self.plan.deferred))
        is_final = self.scan.links.product_of.keys().isdisjoint([piece.index for piece in pieces])
        self.held.append(_Held(kind, pieces, whole if is_final else None, made, signs, later))
        self.held_values += len(whole)
        if self.held_values > MAX_DEFERRED_VALUES:
            raise DeltaError(f"The delta defers bits of more than {MAX_DEFERRED_VALUES} values.")
        if kind is not Kind.I32 and not self.expecting.wanted.isdisjoint([piece.index for piece in pieces]):
            almost = predict.ordered((whole + made).astype(DTYPES[kind]), kind)
            for piece, part in cut(pieces, almost):
                if piece.index in self.expecting.wanted:
                    self.expecting.learn(piece, part)

    def _write_made(self, kind: Kind, pieces: list[Piece], made: Array) -> None:
        if kind in {Kind.F32, Kind.F16}:
            made = predict.ordered(made.astype(DTYPES[kind]), kind)
        elif kind is Kind.I8:
            made = made.view(np.int8)
        else:
            made = made.astype(DTYPES[kind], copy=False)
        data, width, at = made.tobytes(), made.itemsize, 0
        starts, wanted = self.layout.starts, self.expecting.wanted
        for piece in pieces:
            index, start, stop = piece
            end = at + stop - start
            self.output.write_at(starts[index] + start * width, data[at * width : end * width])
            if index in wanted:
                self.expecting.learn(piece, made[at:end])
            at = end

    def _numbers(self, pieces: list[Piece], fine: Array | None) -> Array | int:
        """The numbers that correct these values; those of 8 bits modulo 256, uint8."""
        symbols = self._symbols(pieces, fine)
        tensor = self.scan.tensors[pieces[0].index]
        is_small = tensor.kind in {Kind.I8, Kind.U8}
        if symbols is None:
            return np.zeros(1, np.uint8) if is_small else 0
        if is_small and not tensor.varying:
            return small_numbers(symbols, self.streams.bits)
        return numbers(symbols, self.streams.bits, is_small=is_small)

    def _symbols(self, pieces: list[Piece], fine: Array | None) -> Array | None:
        """The symbols of these values; None when they are as expected."""
        told_of, classes = self.plan.told, self.plan.classes
        told = {told_of[piece.index] for piece in pieces}
        if told == {PREDICTED}:
            return None
        count = sum([piece.stop - piece.start for piece in pieces])
        every = {classes[min(how - FIRST_CLASS, len(classes) - 1)].levels for how in told}
        if len(every) > 1:
            raise DeltaError("The delta tells values of one kind by classes of different levels.")
        levels = every.pop()
        if len(told) == 1 and self.plan.rows_told not in told and levels == 1:
            first = self.starts[told.pop() - FIRST_CLASS]
            return np.zeros(count, np.uint8) if first == NO_TABLE else self.symbols.take(first, count)
        slots = self._first_slots(pieces)
        if not self.has_empty or not (slots < 0).any():
            self._add_levels(slots, fine, levels)
            return self.symbols.take_mixed(slots)
        told_at = (slots >= 0).nonzero()[0]
        slots = slots[told_at]
        self._add_levels(slots, None if fine is None else fine[told_at], levels)
        symbols = np.zeros(count, np.uint8)
        symbols[told_at] = self.symbols.take_mixed(slots)
        return symbols

    @staticmethod
    def _add_levels(slots: Array, fine: Array | None, levels: int) -> None:
        """From each class's first table to that of the level of each value."""
        if levels == 1:
            return
        if fine is None:
            slots += (predict.MIDDLE * levels >> predict.FINE_BITS) * TABLE_SLOTS
        else:
            # the highest bits of the level, moved to where tables are counted: at most 2^16
            shift = TABLE_BITS + levels.bit_length() - 1 - predict.FINE_BITS
            slots += (fine << shift) & fine.dtype.type((levels - 1) * TABLE_SLOTS)

    def _first_slots(self, pieces: list[Piece]) -> Array:
        """The first slot of the table of level 0 for each value; NO_TABLE where there is none."""
        told, rows_told, starts, runs = self.plan.told, self.plan.rows_told, self.starts_of_classes, []
        for index, start, stop in pieces:
            how = told[index] - FIRST_CLASS
            if told[index] != rows_told:
                runs.append((starts[how : how + 1], stop - start))
            else:
                tensor = self.scan.tensors[index]
                runs.append(predict.run(starts[self.row_classes[index]], tensor.count // tensor.rows, start, stop))
        return repeated_runs(runs, np.int64)

    def _take_drifts(self) -> None:
        tensors, drifts = self.scan.tensors, self.plan.drifts
        if not drifts:
            return
        counts = [rank * (tensors[index].rows + tensors[index].count // max(1, tensors[index].rows)) for index, (rank, _) in drifts.items()]
        first, one = self.starts[self.plan.drift_numbers], self.plan.classes[self.plan.drift_numbers]
        if first == NO_TABLE or one.is_plain or one.levels != 1 or sum(counts) > MAX_DRIFT_NUMBERS:
            raise DeltaError("The delta has drifts without a fitting class, or too many of them.")
        taken = numbers(self.symbols.take(first, sum(counts)), self.streams.bits, is_small=True).astype(np.float32)
        if taken.size and np.abs(taken).max() > 127:
            raise DeltaError("The delta has a drift of more than 127.")
        at = 0
        for (index, (rank, shift)), count in zip(drifts.items(), counts, strict=True):
            rows = tensors[index].rows
            of_rows, of_columns = taken[at : at + rank * rows].reshape(rows, rank), taken[at + rank * rows : at + count].reshape(rank, -1)
            self.expecting.drifts[index] = predict.Drift(of_rows, of_columns, shift)
            at += count

    def _take_row_classes(self, indices: list[int]) -> None:
        if not indices:
            return
        rows = [self.scan.tensors[index].rows for index in indices]
        taken = self.symbols.take(self.starts[self.plan.row_numbers], sum(rows))
        if taken.size and int(taken.max()) + self.plan.first_row_class >= len(self.plan.classes):
            raise DeltaError("The delta gives a row a class that does not exist.")
        ends = np.cumsum(rows)
        for index, count, end in zip(indices, rows, ends.tolist(), strict=True):
            self.row_classes[index] = taken[end - count : end] + np.uint8(self.plan.first_row_class)

    def _write_raw(self, indices: list[int]) -> None:
        data, at = self.streams.frames, 0
        for index in indices:
            tensor = self.scan.tensors[index]
            for start in range(0, tensor.size, CHUNK_BYTES):
                raw = min(CHUNK_BYTES, tensor.size - start)
                packed = int.from_bytes(data[at : at + 4], "little")
                piece = data[at + 4 : at + 4 + packed]
                at += 4 + packed
                if at > len(data):
                    raise DeltaError("A tensor of the delta is cut.")
                self.output.write_at(
                    self.layout.starts[index] + start, piece if packed == raw else frames.decode(piece, raw, window_log=20)
                )
                self.let_go()
        if at != len(data):
            raise DeltaError("Bytes follow the tensors of the delta.")

    def _write_same(self, indices: list[int]) -> None:
        if self.layout.copies:
            return  # they are there
        for index in indices:
            source = self.old.scan.tensors[self.partner[index]]
            self._copy(self.layout.starts[index], source.start, source.start + self.scan.tensors[index].size)
