"""Methods 2 and 3: the new model tensor by tensor, from the old one, a skeleton, a plan and a stream of numbers.

After table and skeleton: varints {plan raw, plan packed, bytes of states and words, of raw bits}, then plan, words, bits, and zstd frames:
of packed values {u32 packed, u32 raw}, when a class has them, and {u32 packed} of what is told by its bytes. In a delta with the flag, the
places of `protocol.delta.places` stand before the plan {varint bytes, places}. Order of numbers: varying values; int64; floating point;
scales of biases; int32; drifts; rows' classes; int8, uint8; at last the deferred bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from protocol.delta import frames, packed, predict
from protocol.delta.container import CHUNK_BYTES, Header
from protocol.delta.entropy import (
    TABLE_BITS,
    TABLE_SLOTS,
    Array,
    Bits,
    ByteSymbols,
    Symbols,
    deferred_numbers,
    numbers,
    small_numbers,
    states_of,
)
from protocol.delta.errors import DeltaError
from protocol.delta.expect import Expecting, OldModel, Piece, repeated_runs, steps
from protocol.delta.files import Mapped, Output
from protocol.delta.places import MAX_PLACES_BYTES, read_places
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
from protocol.delta.surroundings import Frame, frame_of
from protocol.delta.tensors import (
    DTYPES,
    FLOAT_KINDS,
    SMALL_KINDS,
    Kind,
    Layout,
    lay_out,
    lay_out_like,
    varying_bytes,
)

#: glibc maps blocks from a size on and gives free memory back, so that using it again costs page faults (0.2 ms for 100 of them). The size
#: is that of the largest mapped block that was freed: this one, which is never touched.
np.empty(4 << 20, np.uint8)


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
        raw, length = reader.number(MAX_PLAN_BYTES), reader.number(MAX_PLAN_BYTES)
        words, bit_bytes = reader.number(1 << 32), reader.number(1 << 32)
        at = reader.at
        ends = [at + length, at + length + words, at + length + words + bit_bytes]
        if ends[-1] > len(data):
            raise DeltaError("The streams of the delta are cut.")
        plan = data[at : at + length]
        return cls(
            bytes(plan) if length == raw else frames.decode(plan, raw, window_log=20),
            data[ends[0] : ends[1]],
            Bits(data[ends[1] : ends[2]]),
            data[ends[2] :],
        )


def needed_kib(header: Header) -> int:
    """What the decoder of methods 2 and 3 holds at most, KiB, from the header alone."""
    return (12 << 10) + (4 * (header.skeleton_raw + header.table_raw) >> 10)


def write_tensors(header: Header, payload: memoryview, file: Mapped, output: Output, let_go: Callable[[], None]) -> None:
    """Write the new file; `let_go` gives the pages of the delta back. Raises: DeltaError; OSError."""
    behind = payload[header.table_packed + header.skeleton_packed :]
    if header.has_places:
        streams = Streams.parse(behind)
        places, told = _parted(streams.plan)
        old = OldModel(header.method, file, read_places(places, file.data, file.size))
        frame = frame_of(header, payload, old)
        if frame.skeleton is not None:
            raise DeltaError("The delta says where the old tensors lie, and has a skeleton that needs their names.")
    else:
        old = OldModel(header.method, file)
        frame = frame_of(header, payload, old)
        streams = Streams.parse(behind)
        told = streams.plan
    plan = read_plan(told, frame.scan.tensors, frame.scan.links)
    Rebuilding(old, frame, plan, streams, output, let_go).run()


def _parted(told: bytes) -> tuple[bytes, bytes]:
    """Where the old tensors lie, and the plan."""
    reader = Reader(told)
    return reader.bytes(reader.number(MAX_PLACES_BYTES)), told[reader.at :]


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

    def __init__(self, old: OldModel, frame: Frame, plan: Plan, streams: Streams, output: Output, let_go: Callable[[], None]) -> None:
        self.old, self.skeleton, self.scan, self.gaps = old, frame.skeleton, frame.scan, frame.gaps
        self.plan, self.streams, self.output = plan, streams, output
        self.let_go = let_go
        self.starts, self.symbols = self._opened()
        self.expecting = Expecting(old, frame.scan, [how == UNCHANGED for how in plan.told])
        self.expecting.fresh, self.expecting.kept = plan.fresh, plan.kept
        self.partner = self.expecting.partner
        self.has_empty = NO_TABLE in self.starts
        #: How tensors are told whose numbers are packed.
        self.packed = {FIRST_CLASS + number for number, one in enumerate(plan.classes) if one.ways}
        if plan.has_packed_rows:
            self.packed.add(plan.rows_told)
        self.starts_of_classes = np.array(self.starts, np.int64)
        self.row_classes: dict[int, Array] = {}
        self.layout: Layout
        #: Values that wait for their lowest bits.
        self.held_values = 0
        self.held: list[_Held] = []

    def _opened(self) -> tuple[list[int], Symbols | ByteSymbols]:
        """The first slot of each class, and what gives symbols."""
        plan, words = self.plan, self.streams.words
        if plan.is_in_bytes:
            if len(words):
                raise DeltaError("The delta has words of coders, and no coders.")
            data = self._frame_bytes(b"", packed.MAX_BYTE_SYMBOLS + 2 * packed.MAX_PACKED_VALUES)
            return [NO_TABLE] * len(plan.classes), ByteSymbols(data)
        starts, tables = table_starts(plan)
        states, state_bytes = states_of(words, plan.phases[0].lanes)
        return starts, Symbols(plan.phases, states, words[state_bytes:], tables)

    def run(self) -> None:
        told, links = self.plan.told, self.scan.links
        varying: list[int] = []
        of_kind: dict[Kind, list[int]] = {kind: [] for kind in Kind}
        raw: list[int] = []
        same: list[int] = []
        for index, (how, tensor, partner) in enumerate(zip(told, self.scan.tensors, self.partner, strict=True)):
            if partner < 0 and how != RAW:
                raise DeltaError("The delta changes a tensor that the old file does not have.")
            if tensor.varying:
                varying.append(index)
            elif how == UNCHANGED:
                same.append(index)
            elif how == RAW:
                raw.append(index)
            else:
                of_kind[tensor.kind].append(index)
        if of_kind[Kind.OTHER]:
            raise DeltaError("The delta tells a tensor by numbers that can only be told by bytes.")
        small = of_kind[Kind.I8] + of_kind[Kind.U8]
        packed_ = [index for index in small if told[index] in self.packed]
        if self.plan.rides and not packed_:
            self.streams.bits.more = self.symbols.finish
        floats = of_kind[Kind.F32] + of_kind[Kind.F16]
        if isinstance(self.symbols, ByteSymbols):
            self._foresee(self.symbols, varying + of_kind[Kind.I64] + floats + of_kind[Kind.I32])
        self._lay_out(varying)
        self._write_numbers(of_kind[Kind.I64])
        self._write_numbers([index for index in floats if index not in links.product_of])
        self._write_numbers([index for index in floats if index in links.product_of])
        self.expecting.learn_ratios({*of_kind[Kind.I32], *small})
        self._write_numbers(of_kind[Kind.I32])
        self._take_drifts()
        self._take_row_classes(sorted([index for index in small if told[index] == self.plan.rows_told]))
        self._write_numbers([index for index in small if told[index] not in self.packed])
        self._write_packed(packed_)
        self._finish()
        self._write_raw(raw)
        self._write_same(same)

    def _foresee(self, symbols: ByteSymbols, indices: list[int]) -> None:
        """Read the numbers of these tensors and of the drifts, which come before all others, at once."""
        told, tensors = self.plan.told, self.scan.tensors
        count = sum([tensors[index].count for index in indices if told[index] >= FIRST_CLASS]) + sum(self._drift_counts())
        if count > packed.MAX_BYTE_SYMBOLS:
            raise DeltaError(f"The delta has {count} symbols as bytes; at most {packed.MAX_BYTE_SYMBOLS} are allowed.")
        symbols.foresee(count, self.streams.bits)

    def _finish(self) -> None:
        """Complete what waits for its lowest bits: those that rode in the states of the coders first."""
        if self.plan.rides:
            if any(self.streams.bits.rest()):
                raise DeltaError("The raw bits of the delta do not end where they should.")
            return
        ridden = self.symbols.finish()
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
            if self.plan.told[index] in {PREDICTED, RAW, self.plan.rows_told} | self.packed:
                raise DeltaError("The delta tells a varying tensor in a way that is not for it.")
            if self.plan.told[index] == UNCHANGED and self.skeleton is not None:
                spelled[index] = self.old.spelled(self.partner[index])
        coded = [index for index in varying if self.plan.told[index] >= FIRST_CLASS]
        values: dict[int, list[int]] = {index: [] for index in coded}
        for pieces in steps(coded, self.scan.tensors):
            was = self.old.values_of(pieces, self.partner)
            now, at = (was.astype(np.int16) + self._numbers(pieces, None)).astype(was.dtype).tolist(), 0
            for index, start, stop in pieces:
                values[index] += now[at : at + stop - start]
                at += stop - start
        spelled |= {index: varying_bytes(one) for index, one in values.items()}
        if self.skeleton is None:
            self.layout = lay_out_like(self.old.file.size, self.scan, spelled, self.gaps)
        else:
            self.layout = lay_out(self.skeleton, self.scan, spelled)
        if self.layout.size != self.output.size:
            raise DeltaError(f"The parts of the new file make {self.layout.size} bytes; {self.output.size} were announced.")
        for offset, start, stop in self.layout.copies:
            self._copy(offset, start, stop)
        self.output.write_parts(self.layout.pieces)

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
            for pieces in steps(of_kind, tensors):
                self._write_step(kind, pieces)
                self.old.file.let_go()
                self.let_go()

    def _write_packed(self, indices: list[int]) -> None:
        """Corrections of 8 bits that are packed: all are expected first, then corrected at once."""
        if not indices:
            return
        total = sum([self.scan.tensors[index].count for index in indices])
        if total > packed.MAX_PACKED_VALUES:
            raise DeltaError(f"The delta packs {total} values; at most {packed.MAX_PACKED_VALUES} are allowed.")
        (self._write_packed_rows if self.plan.has_packed_rows else self._write_packed_classes)(indices, total)

    def _write_packed_classes(self, indices: list[int], total: int) -> None:
        """Tensors of one class after those of another; what is expected of them all comes in few steps, whatever their classes."""
        tensors, told, classes = self.scan.tensors, self.plan.told, self.plan.classes
        whole, contexts, signs = np.empty(total, np.uint8), np.zeros(total, np.uint8), np.zeros(total, np.uint8)
        order = sorted(indices, key=lambda index: (told[index], tensors[index].kind))
        written: list[tuple[Kind, list[Piece], int, int]] = []
        at = 0
        for (kind, levels), alike in groupby(order, key=lambda index: (tensors[index].kind, classes[told[index] - FIRST_CLASS].levels)):
            for pieces in steps(list(alike), tensors):
                expected = self.expecting.expected(kind, pieces)
                end = at + len(expected.whole)
                whole[at:end] = expected.whole
                contexts[at:end], signs[at:end] = packed.mirrored(expected.fine, levels)
                written.append((kind, pieces, at, end))
                at = end
        runs = [
            (sum([tensors[index].count for index in of_class]), classes[how - FIRST_CLASS].ways)
            for how, of_class in groupby(order, key=told.__getitem__)
        ]
        numbers_ = packed.unpack(self._packed_bytes(total), contexts, runs)
        numbers_ ^= signs
        numbers_ -= signs
        whole += numbers_
        for kind, pieces, at, end in written:
            self._write_made(kind, pieces, whole[at:end])

    def _write_packed_rows(self, indices: list[int], total: int) -> None:
        """Tensors each row of which has a class."""
        tensors, plan = self.scan.tensors, self.plan
        if any(plan.told[index] != plan.rows_told for index in indices):
            raise DeltaError("The delta packs tensors by rows and as a whole.")
        whole, runs = np.empty(total, np.uint8), []
        written: list[tuple[Kind, list[Piece], int, int]] = []
        at = 0
        for kind, of_kind in groupby(sorted(indices, key=lambda index: tensors[index].kind), key=lambda index: tensors[index].kind):
            for pieces in steps(list(of_kind), tensors):
                end = at + sum([piece.stop - piece.start for piece in pieces])
                whole[at:end] = self.expecting.expected(kind, pieces).whole
                for index, start, stop in pieces:
                    runs.append(predict.run(self.row_classes[index], tensors[index].count // tensors[index].rows, start, stop))
                written.append((kind, pieces, at, end))
                at = end
        of = repeated_runs(runs, np.uint8)
        of -= np.uint8(plan.first_row_class)
        ways = [one.ways[0] if one.ways else None for one in plan.classes[plan.first_row_class :]]
        whole += packed.unpack_rows(self._packed_bytes(total), of, ways)
        for kind, pieces, at, end in written:
            self._write_made(kind, pieces, whole[at:end])

    def _packed_bytes(self, most: int) -> bytes:
        """What is packed, and before that what of it rode in the states of the coders."""
        if isinstance(self.symbols, ByteSymbols):
            return self.symbols.rest()
        return self._frame_bytes(self.symbols.finish() if self.plan.rides else b"", 2 * most)

    def _frame_bytes(self, ridden: bytes, most: int) -> bytes:
        """What stands in the frames {u32 packed, u32 raw}, at most so many bytes; the first bytes of that are `ridden`."""
        data = self.streams.frames
        head = ridden[:8] + bytes(data[: max(0, 8 - len(ridden))])
        length, raw = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        end = max(0, 8 + length - len(ridden))
        if end > len(data) or len(head) < 8 or raw > most or any(ridden[8 + length :]):
            raise DeltaError("The packed values of the delta are cut, or too many.")
        self.streams.frames = data[end:]
        return frames.decode_all(memoryview(ridden + data[:end])[8 : 8 + length], raw, window_log=20)

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
            self.expecting.learn(pieces, predict.ordered((whole + made).astype(DTYPES[kind]), kind))

    def _write_made(self, kind: Kind, pieces: list[Piece], made: Array) -> None:
        if kind in FLOAT_KINDS:
            made = predict.ordered(made.astype(DTYPES[kind]), kind)
        elif kind not in SMALL_KINDS:
            made = made.astype(DTYPES[kind], copy=False)
        data, width, at, starts, parts = made.tobytes(), made.itemsize, 0, self.layout.starts, []
        for index, start, stop in pieces:
            end = at + (stop - start) * width
            parts.append((starts[index] + start * width, data[at:end]))
            at = end
        self.output.write_parts(parts)
        if kind is Kind.F32 and not self.expecting.wanted.isdisjoint([piece.index for piece in pieces]):
            self.expecting.learn(pieces, made)

    def _numbers(self, pieces: list[Piece], fine: Array | None) -> Array | int:
        """The numbers that correct these values; those of 8 bits modulo 256, uint8."""
        symbols = self._symbols(pieces, fine)
        tensor = self.scan.tensors[pieces[0].index]
        is_small = tensor.kind in SMALL_KINDS
        if symbols is None:
            return np.zeros(1, np.uint8) if is_small else 0
        if is_small and not tensor.varying:
            return small_numbers(symbols, self.streams.bits)
        return self._numbers_of(symbols, is_small=is_small)

    def _numbers_of(self, symbols: Array, *, is_small: bool) -> Array:
        """The numbers of these symbols, which were taken last."""
        if isinstance(self.symbols, ByteSymbols):
            return self.symbols.taken(len(symbols))
        return numbers(symbols, self.streams.bits, is_small=is_small)

    def _symbols(self, pieces: list[Piece], fine: Array | None) -> Array | None:
        """The symbols of these values; None when they are as expected."""
        told_of, classes = self.plan.told, self.plan.classes
        told = {told_of[piece.index] for piece in pieces}
        if told == {PREDICTED}:
            return None
        if not self.packed.isdisjoint(told):
            raise DeltaError("The delta packs numbers that have more than 8 bits.")
        count = sum([piece.stop - piece.start for piece in pieces])
        if self.plan.is_in_bytes:
            return self.symbols.take(0, count)
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

    def _drift_counts(self) -> list[int]:
        """How many numbers each drift has."""
        tensors = self.scan.tensors
        return [
            rank * (tensors[index].rows + tensors[index].count // max(1, tensors[index].rows))
            for index, (rank, _) in self.plan.drifts.items()
        ]

    def _take_drifts(self) -> None:
        tensors, drifts = self.scan.tensors, self.plan.drifts
        if not drifts:
            return
        counts = self._drift_counts()
        first, one = self.starts[self.plan.drift_numbers], self.plan.classes[self.plan.drift_numbers]
        if (first == NO_TABLE and not one.is_in_bytes) or one.is_plain or one.levels != 1 or sum(counts) > MAX_DRIFT_NUMBERS:
            raise DeltaError("The delta has drifts without a fitting class, or too many of them.")
        taken = self._numbers_of(self.symbols.take(first, sum(counts)), is_small=True).astype(np.float32)
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
                length = int.from_bytes(data[at : at + 4], "little")
                piece = data[at + 4 : at + 4 + length]
                at += 4 + length
                if at > len(data):
                    raise DeltaError("A tensor of the delta is cut.")
                self.output.write_at(
                    self.layout.starts[index] + start, piece if length == raw else frames.decode(piece, raw, window_log=20)
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
