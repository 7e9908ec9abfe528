"""The plan of a tensor-wise delta: how each tensor is told, and the tables its numbers are coded by; parsed before anything else.

All numbers are varints unless said otherwise:
phases {count; each: log2 of lanes, symbols} · deferred bits, `RIDING` or `IN_BYTES` · classes {count; each: u8 levels, u8 flags, codes} ·
class of row numbers, first class of rows · how each role that occurs is told · exceptions {count; each: gap of index, told} · drifts
{count; class; each: gap of index, rank - 1, shift} · fresh {count; each: gap of index} · kept, when there are any {count; each: gap of
index}.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from protocol.delta import packed
from protocol.delta.entropy import MAX_LANES, MAX_TABLES, NUMBER_SYMBOLS, TABLE_SLOTS, Array, Phase, Tables, frequencies, weights_of
from protocol.delta.errors import DeltaError
from protocol.delta.tensors import SMALL_KINDS, Kind, Links, Tensor

#: How a tensor is told: as in the old file; exactly as predicted; by its bytes; else 3 + the class of its numbers, or 3 + how many classes
#: there are: a class per row.
UNCHANGED, PREDICTED, RAW, FIRST_CLASS = 0, 1, 2, 3
#: Flags of a class.
ASYMMETRIC, PLAIN, EMPTY, PACKED, BYTES = 1, 2, 4, 8, 16
#: Kinds whose raw bits may be deferred, how many of each number, and values that may wait for them.
DEFERRED_KINDS = frozenset({Kind.F32, Kind.F16, Kind.I32})
MAX_DEFERRED_BITS, MAX_DEFERRED_VALUES = 16, 1 << 16
#: In place of how many bits are deferred: none are, and the coders' last states hold what is read after all symbols were taken. That is the
#: beginning of what is packed, or, where nothing is, the end of the raw bits.
RIDING = MAX_DEFERRED_BITS + 1
#: There as well: there are no coders. All symbols stand as bytes, in their order, before what is packed; classes are `BYTES` or packed.
IN_BYTES = RIDING + 1
#: A drift is a sum of so many products of a number per row and one per column, divided by 2^shift.
MAX_RANK, MAX_SHIFT, MAX_DRIFT_NUMBERS = 16, 12, 1 << 19
#: In place of the first slot of a class that has no table.
NO_TABLE = -1
#: Bytes of a plan, raw.
MAX_PLAN_BYTES = 1 << 20
_LEVELS = frozenset({1, 2, 4, 8, 16})
#: Symbols of NUMBER that the kernel gives, by value: 0, ±1, ±2, ±3. Those from `_TAIL` on have codes of their own.
KERNEL_SYMBOLS = (0, 1, 2, 5, 6, 7, 8)
_KERNEL_VALUES = (0, 1, -1, 2, -2, 3, -3)
TAIL = 9


@dataclass(frozen=True, slots=True)
class NumberClass:
    """How the numbers of a kind of tensors, or rows, are spread.

    The distance between a value and its prediction before rounding is spread by `kernel` in steps of 1/levels; `levels` tables follow,
    one for each part that rounding took away. Codes are those of `entropy.weights_of`; `below` is the kernel of negative distances.
    """

    levels: int
    kernel: bytes
    below: bytes
    tail: bytes
    is_plain: bool = False
    #: How each context is packed, when the numbers are no symbols but packed by `packed`.
    ways: bytes = b""
    #: Whether its symbols stand as bytes.
    is_in_bytes: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether all numbers of the class are 0 and none is written."""
        return not self.kernel and not self.is_plain and not self.ways and not self.is_in_bytes

    @property
    def tables(self) -> int:
        return 0 if self.is_empty or self.ways or self.is_in_bytes else self.levels

    @property
    def symbols(self) -> int:
        """Symbols that may have a weight."""
        return len(self.tail) if self.is_plain else TAIL + 2 * len(self.tail)

    def weights(self) -> Array:
        """The weight of each symbol {level, symbol}."""
        return weights_of_classes([self])


def weights_of_classes(classes: Sequence[NumberClass], symbols: int = 256) -> Array:
    """The weight of each of so many symbols in all tables of these classes, one after the other {table, symbol}."""
    places = np.zeros((sum(one.tables for one in classes), symbols), np.int64)
    codes, table, may_be_empty = [b"\0"], 0, np.zeros(len(places), np.bool_)
    at = 1
    for one in classes:
        if not one.tables:
            continue
        rows = places[table : table + one.tables]
        if one.is_plain:
            rows[:, : len(one.tail)] = np.arange(at, at + len(one.tail))
        else:
            kernel = kernel_places(one.levels) + at
            rows[:, :3], rows[:, 5:TAIL] = kernel[:, :3], kernel[:, 3:]  # KERNEL_SYMBOLS
            at += len(one.below) + len(one.kernel)
            rows[:, TAIL : TAIL + 2 * len(one.tail)] = np.arange(2 * at, 2 * (at + len(one.tail))) >> 1
            codes += [one.below, one.kernel]
            may_be_empty[table : table + one.tables] = True
        codes.append(one.tail)
        at += len(one.tail)
        table += one.tables
    made = weights_of(np.frombuffer(b"".join(codes), np.uint8))[places]
    made[may_be_empty & ~made.any(axis=1), 0] = 1  # a level that no number has: any table will do
    return made


@cache
def kernel_places(levels: int) -> Array:
    """Where in {codes below, codes above} the weight of each kernel symbol stands {level, symbol}."""
    made = np.empty((levels, len(_KERNEL_VALUES)), np.int64)
    for column, value in enumerate(_KERNEL_VALUES):
        for level in range(levels):
            place = value if levels == 1 else 2 * value * levels - 2 * level - 1 + levels
            step = abs(place) if levels == 1 else (abs(place) - 1) // 2
            made[level, column] = step + (kernel_codes(levels) if place >= 0 else 0)
    return made


def kernel_codes(levels: int) -> int:
    """Codes of one side of a kernel."""
    return 4 if levels == 1 else 7 * levels // 2


@dataclass(frozen=True, slots=True)
class Plan:
    phases: list[Phase]
    classes: list[NumberClass]
    #: Class of the numbers of row classes, and the first class that a row may have; None: no tensor has classes per row.
    row_numbers: int
    first_row_class: int
    #: How each tensor is told, by index.
    told: list[int]
    #: So many of the lowest raw bits of numbers of DEFERRED_KINDS come after all symbols.
    deferred: int
    #: Whether the coders' last states hold a part of what is packed, or of the raw bits: `RIDING`.
    rides: bool
    #: Whether symbols are bytes: `IN_BYTES`.
    is_in_bytes: bool
    #: Class of the numbers of drifts, and the drifts {index of tensor: rank, shift}.
    drift_numbers: int
    drifts: dict[int, tuple[int, int]]
    #: Tensors whose old values say nothing of the new ones: 0 is expected.
    fresh: frozenset[int]
    #: Tensors whose values stay as they are although their scales change: a training with batch normalization moves these alone.
    kept: frozenset[int]

    @property
    def rows_told(self) -> int:
        """What stands for "a class per row"."""
        return FIRST_CLASS + len(self.classes)

    @property
    def has_packed_rows(self) -> bool:
        """Whether the classes of rows are packed."""
        return any(one.ways for one in self.classes[self.first_row_class :]) and self.row_numbers < len(self.classes)


class Reader:
    """Varints and bytes of a plan. Raises: DeltaError when it ends."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def number(self, most: int) -> int:
        value, shift, data, at = 0, 0, self._data, self.at
        while True:
            if at >= len(data) or shift > 35:
                raise DeltaError("The plan of the delta is cut.")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        self.at = at
        if value > most:
            raise DeltaError(f"The plan of the delta holds {value} where at most {most} is allowed.")
        return value

    @property
    def is_done(self) -> bool:
        return self.at == len(self._data)

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self._data):
            raise DeltaError("The plan of the delta is cut.")
        self.at += count
        return self._data[self.at - count : self.at]

    def finish(self) -> None:
        if self.at != len(self._data):
            raise DeltaError("Bytes follow the plan of the delta.")


def roles_of(tensors: Sequence[Tensor], links: Links) -> list[int]:
    """A number for each tensor: those with the same are usually told alike."""
    linked = links.product_of.keys() | links.scale_of.keys()
    return [
        tensor.kind * 8 + (4 if index in linked else 0) + (2 if tensor.varying else 0) + (1 if tensor.count > 1 else 0)
        for index, tensor in enumerate(tensors)
    ]


def read_plan(data: bytes, tensors: Sequence[Tensor], links: Links) -> Plan:
    """The plan for these tensors of the new file. Raises: DeltaError."""
    reader = Reader(data)
    phases = _phases(reader)
    deferred = reader.number(IN_BYTES)
    classes = [_class(reader) for _ in range(reader.number(MAX_TABLES))]
    if sum(one.tables for one in classes) > MAX_TABLES:
        raise DeltaError(f"The delta has more than {MAX_TABLES} tables.")
    row_numbers = reader.number(len(classes))
    first_row_class = reader.number(len(classes)) if row_numbers < len(classes) else len(classes)
    most = FIRST_CLASS + len(classes)
    roles = roles_of(tensors, links)
    usual = {role: reader.number(most) for role in sorted(set(roles))}
    told = [usual[role] for role in roles]
    at = -1
    for _ in range(reader.number(len(tensors))):
        at += 1 + reader.number(len(tensors))
        if at >= len(tensors):
            raise DeltaError("The plan of the delta speaks of a tensor that is not there.")
        told[at] = reader.number(most)
    drifts: dict[int, tuple[int, int]] = {}
    at, drift_numbers = -1, 0
    for number in range(reader.number(len(tensors))):
        drift_numbers = drift_numbers if number else reader.number(max(0, len(classes) - 1))
        at += 1 + reader.number(len(tensors))
        if at >= len(tensors) or tensors[at].kind not in SMALL_KINDS or tensors[at].varying or told[at] < PREDICTED or told[at] == RAW:
            raise DeltaError("The plan of the delta gives a drift to a tensor that has none.")
        drifts[at] = 1 + reader.number(MAX_RANK - 1), reader.number(MAX_SHIFT)
    fresh = _indices(reader, len(tensors))
    kept = frozenset[int]() if reader.is_done else _indices(reader, len(tensors))
    reader.finish()
    rides, is_in_bytes, deferred = deferred == RIDING, deferred == IN_BYTES, deferred if deferred < RIDING else 0
    plan = Plan(phases, classes, row_numbers, first_row_class, told, deferred, rides, is_in_bytes, drift_numbers, drifts, fresh, kept)
    if any(one.is_in_bytes != is_in_bytes for one in classes if not one.ways and not one.is_empty):
        raise DeltaError("The plan of the delta has symbols in bytes and in coders.")
    if plan.rows_told in told and not _has_row_classes(plan):
        raise DeltaError("The plan of the delta names classes per row, and has none.")
    return plan


def _indices(reader: Reader, count: int) -> frozenset[int]:
    found, at = set(), -1
    for _ in range(reader.number(count)):
        at += 1 + reader.number(count)
        found.add(at)
    return frozenset(found)


def table_starts(plan: Plan) -> tuple[list[int], Tables]:
    """The first slot of each class's first table, and all tables."""
    starts: list[int] = []
    count, symbols = 0, max((one.symbols for one in plan.classes), default=0)
    for one in plan.classes:
        starts.append(count * TABLE_SLOTS if one.tables else NO_TABLE)
        count += one.tables
    return starts, Tables.of(frequencies(weights_of_classes(plan.classes, symbols)) if count else np.zeros((0, 256), np.int64))


def _has_row_classes(plan: Plan) -> bool:
    """Whether there are classes for rows: all of symbols, or all packed in one context each; some may be empty."""
    rows = plan.classes[plan.first_row_class :]
    told = [one for one in rows if not one.is_empty]
    return (
        bool(rows)
        and (plan.classes[plan.row_numbers].is_plain or plan.classes[plan.row_numbers].is_in_bytes)
        and len({one.levels for one in rows}) == 1
        and not any(one.is_plain for one in rows)
        and (not any(one.ways for one in told) or all(len(one.ways) == 1 for one in told))
    )


def _phases(reader: Reader) -> list[Phase]:
    phases = []
    for _ in range(reader.number(16)):
        log2, symbols = reader.number(13), reader.number(1 << 34)
        phases.append(Phase(1 << log2, symbols))
    lanes = [phase.lanes for phase in phases]
    if (
        not lanes
        or lanes[0] > MAX_LANES
        or sorted(set(lanes), reverse=True) != lanes
        or [p for p in phases if not p.symbols] != phases[-1:]
    ):
        raise DeltaError("The plan of the delta has no sensible phases.")
    return phases


def _class(reader: Reader) -> NumberClass:
    levels, flags = reader.bytes(2)
    if levels not in _LEVELS or flags not in {0, ASYMMETRIC, PLAIN, EMPTY, PACKED, BYTES}:
        raise DeltaError(f"The plan of the delta has a class of {levels} levels and flags {flags}.")
    if flags == EMPTY:
        return NumberClass(levels, b"", b"", b"")
    if flags == BYTES:
        return NumberClass(1, b"", b"", b"", is_in_bytes=True)
    if flags == PACKED:
        ways = reader.bytes(packed.contexts_of(levels))
        if max(ways) >= len(packed.WAYS):
            raise DeltaError("The plan of the delta packs values in a way that does not exist.")
        return NumberClass(levels, b"", b"", b"", ways=ways)
    if flags == PLAIN:
        if not (codes := reader.bytes(reader.number(256))):
            raise DeltaError("The plan of the delta has a table without symbols.")
        return NumberClass(1, b"", b"", codes, is_plain=True)
    kernel = reader.bytes(kernel_codes(levels))
    below = reader.bytes(kernel_codes(levels)) if flags & ASYMMETRIC else kernel
    return NumberClass(levels, kernel, below, reader.bytes(reader.number((NUMBER_SYMBOLS - TAIL) // 2)))


def kinds_with_classes() -> frozenset[Kind]:
    """Kinds whose values can be told by numbers; others travel as bytes when they changed."""
    return frozenset({Kind.F32, Kind.F16, Kind.I32, Kind.I8, Kind.U8, Kind.I64})
