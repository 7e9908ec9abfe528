"""Entropy coding: many small range coders side by side (interleaved rANS), so that numpy decodes thousands of symbols at a time.

A coder takes two symbols at once: the lowest 12 bits of its state x are a slot of the first one's table, the next 12 bits of the second's.
With f the slots of a symbol and c the place among them, the state becomes f1 (f2 (x >> 24) + c2) + c1, and takes a word when that is small.
Of n symbols the first half go to coders 0, 1, … as their first, the others as their second; with an odd n the last coder has no second.

A symbol tells a number's sign, its length in bits and the bit after the first; the other bits travel raw beside the symbols. Tables come
from weights of 16 steps an octave, by integer arithmetic only: the same on every machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.delta.errors import DeltaError

Array = npt.NDArray[Any]

#: A table has 2^12 slots. States lie in [2^24, 2^48); two symbols take at most 24 bits, so a coder reads at most a word after each two.
TABLE_BITS = 12
TABLE_SLOTS = 1 << TABLE_BITS
WORD_BITS, WORD_BYTES = 24, 3
STATE_LOW = 1 << WORD_BITS
#: Most coders side by side, and most tables (2.5 MiB of them).
MAX_LANES, MAX_TABLES = 8192, 128
#: Words unpacked at a time.
_WORDS_AHEAD = 1 << 14
#: Lengths of states that share a number of so many bits: WORD_BITS^5 < 2^23.
_SIZES_SHARED, _SHARED_BITS = 5, 23
#: 2^(i/16), 8 bits of fraction.
_STEPS = (256, 267, 279, 292, 304, 318, 332, 347, 362, 378, 395, 412, 431, 450, 470, 490)


#: Symbols of numbers: 0 is zero; else 1 + 4 * (bits - 1) + 2 * (bit after the first) + (1 if negative).
MAX_NUMBER_BITS = 33
NUMBER_SYMBOLS = 1 + 4 * MAX_NUMBER_BITS
_index = np.arange(256)
_bits = np.where(_index > 0, (_index - 1) // 4 + 1, 0)
#: Raw bits after the symbol; 0 for what is no symbol.
NUMBER_RAW_BITS: Array = np.where(_index < NUMBER_SYMBOLS, np.maximum(_bits - 2, 0), 0).astype(np.uint8)
_NUMBER_TOP: Array = np.where(
    _bits >= 2, (2 + (_index - 1) // 2 % 2).astype(np.int64) << np.maximum(_bits - 2, 0), (_bits == 1).astype(np.int64)
)
_NUMBER_SIGN: Array = np.where((_index > 0) & ((_index - 1) % 2 == 1), -1, 1).astype(np.int64)
_VALUES: Array = _NUMBER_TOP * _NUMBER_SIGN
_SMALL_VALUES: Array = _VALUES.astype(np.int16)
_LOW_BYTES: bytes = _VALUES.astype(np.uint8).tobytes()
#: The first symbol with raw bits.
FIRST_LONG = 9


_WEIGHTS: Array = np.array([0] + [_STEPS[(255 - code) % 16] << (255 - code) // 16 for code in range(1, 256)], np.int64)


@dataclass(frozen=True, slots=True)
class Phase:
    """So many coders side by side, for so many symbols; the last phase has no end (0)."""

    lanes: int
    symbols: int


def weights_of(codes: Sequence[int] | Array) -> Array:
    """Weights of the codes 0 … 255: 0 is nothing, 1 the largest, each step a sixteenth of an octave less."""
    made: Array = _WEIGHTS[np.asarray(codes)]
    return made


def frequencies(weights: Array) -> Array:
    """Slots of each symbol of each table {table, symbol}: at least 1 where the weight is above 0, together 2^12. Raises: DeltaError."""
    totals = weights.sum(axis=1, keepdims=True)
    if (totals <= 0).any():
        raise DeltaError("A table of the delta has no symbol.")
    slots = np.where(weights > 0, np.maximum(1, (weights * TABLE_SLOTS + totals // 2) // totals), 0)
    largest = slots.argmax(axis=1)
    rows = np.arange(len(slots))
    slots[rows, largest] += TABLE_SLOTS - slots.sum(axis=1)
    if (slots[rows, largest] < 1).any():
        raise DeltaError("A table of the delta has more symbols than slots.")
    return slots


@dataclass(frozen=True, slots=True)
class Tables:
    """For each slot of each table, one table after the other: {20 bits frequency, 12 bits slot - start}, and the symbol."""

    entries: Array
    symbols: Array

    @classmethod
    def of(cls, slots: Array) -> "Tables":
        """The tables with so many slots for each symbol {table, symbol}."""
        if not len(slots):
            return cls(np.empty(0, np.uint32), np.empty(0, np.uint8))
        starts = np.cumsum(slots, axis=1) - slots
        table, symbol = slots.nonzero()
        often = slots[table, symbol]
        entries = ((often << TABLE_BITS) - starts[table, symbol]).astype(np.uint32).repeat(often).reshape(len(slots), TABLE_SLOTS)
        entries += np.arange(TABLE_SLOTS, dtype=np.uint32)
        return cls(entries.ravel(), symbol.astype(np.uint8).repeat(often))


class Words:
    """The words of the coders, unpacked a part at a time: what a large delta holds of them does not grow."""

    def __init__(self, data: memoryview) -> None:
        if len(data) % WORD_BYTES:
            raise DeltaError("The words of the delta are cut.")
        self._data = data
        self._read = 0
        self.ahead: Array = np.empty(0, np.uint64)
        self.at = 0

    def more(self, count: int) -> None:
        """Have `count` words ahead at least. Raises: DeltaError when they end."""
        left = self.ahead[self.at :]
        stop = min(self._read + WORD_BYTES * max(_WORDS_AHEAD, count - len(left)), len(self._data))
        packed = np.frombuffer(self._data[self._read : stop], np.uint8).reshape(-1, WORD_BYTES)
        wide = np.zeros((len(packed), 8), np.uint8)
        wide[:, :WORD_BYTES] = packed
        self._read = stop
        self.ahead, self.at = np.concatenate([left, wide.view("<u8").ravel()]), 0
        if len(self.ahead) < count:
            raise DeltaError("The symbols of the delta end too early.")

    def put_first(self, words: Array) -> None:
        """Words that come before the others."""
        self.ahead, self.at = np.concatenate([words, self.ahead[self.at :]]), 0

    @property
    def is_done(self) -> bool:
        return self.at == len(self.ahead) and self._read == len(self._data)


class Symbols:
    """The decoder: takes symbols out of the words, with the table that the caller names by its first slot."""

    def __init__(self, phases: Sequence[Phase], states: Array, words: memoryview, tables: Tables) -> None:
        self._phases = list(phases)
        self._words = Words(words)
        self._tables = tables
        self._x = states.astype(np.uint64)
        self._left = self._phases[0].symbols or -1
        self._held: tuple[list[Array], list[Array], Array] | None = None

    def take(self, first_slot: int, count: int) -> Array:
        """The next `count` symbols, all by one table. Raises: DeltaError when the words end."""
        return self._run(first_slot, None, count)

    def take_mixed(self, first_slots: Array) -> Array:
        """The next symbols, each by the table whose first slot stands in its place, int64. Raises: DeltaError when the words end."""
        return self._run(0, first_slots, len(first_slots))

    def finish(self) -> bytes:
        """What the coders began with, 24 bits each. Raises: DeltaError unless all words were used and every coder is back there."""
        if not self._words.is_done or len(self._phases) > 1 or (self._x >> WORD_BITS != 1).any():
            raise DeltaError("The symbols of the delta do not end where they should.")
        return self._x.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :WORD_BYTES].tobytes()

    def _run(self, base: int, bases: Array | None, count: int) -> Array:
        slots = np.empty(count, np.int64)
        done = 0
        while done < count:
            if self._left == 0:
                self._next_phase()
            now = count - done if self._left < 0 else min(count - done, self._left)
            part = slots[done : done + now]
            part_bases = None if bases is None else bases[done : done + now]
            if len(self._x) == 1:
                self._one_by_one(part, base, part_bases)
            else:
                self._side_by_side(part, base, part_bases)
            done += now
            if self._left > 0:
                self._left -= now
        return self._tables.symbols.take(slots)

    def _next_phase(self) -> None:
        """Coders that retire give what their states hold to the others as their next words."""
        self._phases.pop(0)
        keep = self._phases[0].lanes
        retired = self._x[keep:]
        if (retired >> WORD_BITS != 1).any():
            raise DeltaError("The symbols of the delta do not end where they should.")
        self._x = self._x[:keep].copy()
        self._words.put_first(retired & (STATE_LOW - 1))
        self._left = self._phases[0].symbols or -1

    def _side_by_side(self, slots: Array, base: int, bases: Array | None) -> None:
        """Each coder two symbols at once, until all are taken; then the word that those need whose states have become small."""
        words, lanes, count = self._words, len(self._x), len(slots)
        ahead, at = words.ahead, words.at
        wide, narrow, is_low = self._scratch()
        same = np.full(2 * lanes, base, np.uint64) if bases is None else bases.view(np.uint64)
        bits, places = np.uint64(WORD_BITS), slots.view(np.uint64)
        bitwise_and, add, right_shift, multiply, less = np.bitwise_and, np.add, np.right_shift, np.multiply, np.less
        take = self._tables.entries.take
        half = 0
        for start in range(0, count, 2 * lanes):
            stop = min(start + 2 * lanes, count)
            if stop - start != 2 * half:
                half = (stop - start + 1) >> 1
                mask, wide_twelve, frequency, entry, short = [each[: 2 * half] for each in wide]
                x, twelve, twenty_four, least = [each[:half] for each in narrow]
                told, first_slots, small = short[: stop - start], frequency[: stop - start], is_low[:half]
                frequency_1, frequency_2, rest_1, rest_2 = frequency[:half], frequency[half:], entry[:half], entry[half:]
            frequency_1[...] = x
            right_shift(x, twelve, frequency_2)
            bitwise_and(frequency, mask, frequency)
            add(first_slots, same[: stop - start] if bases is None else same[start:stop], places[start:stop])
            take(slots[start:stop], None, told, "clip")
            if stop - start & 1:  # the last coder's second symbol is none
                short[-1] = (TABLE_SLOTS << TABLE_BITS) + int(frequency[-1])
            entry[...] = short
            right_shift(x, twenty_four, x)
            right_shift(entry, wide_twelve, frequency)
            bitwise_and(entry, mask, entry)
            multiply(x, frequency_2, x)
            add(x, rest_2, x)
            multiply(x, frequency_1, x)
            add(x, rest_1, x)
            need = less(x, least, small).nonzero()[0]
            if need.size:
                end = at + need.size
                if end > len(ahead):
                    words.at = at
                    words.more(need.size)
                    ahead, at, end = words.ahead, 0, need.size
                filled = x[need]
                filled <<= bits
                filled |= ahead[at:end]
                x[need] = filled
                at = end
        words.at = at

    def _scratch(self) -> tuple[list[Array], list[Array], Array]:
        """Arrays of two values for each coder, and of one: numpy takes arrays faster than Python's numbers."""
        if self._held is None or len(self._held[2]) != len(self._x):
            lanes = len(self._x)
            wide = [np.full(2 * lanes, value, np.uint64) for value in (TABLE_SLOTS - 1, TABLE_BITS)]
            narrow = [np.full(lanes, value, np.uint64) for value in (TABLE_BITS, WORD_BITS, STATE_LOW)]
            wide += [np.empty(2 * lanes, type_) for type_ in (np.uint64, np.uint64, np.uint32)]
            self._held = wide, [self._x, *narrow], np.empty(lanes, np.bool_)
        return self._held

    def _one_by_one(self, slots: Array, base: int, bases: Array | None) -> None:
        words, entries, count = self._words, self._tables.entries.data, len(slots)
        x, places = int(self._x[0]), [base] * count if bases is None else bases.tolist()
        words.more(0)
        ahead, used = words.ahead[:count].tolist(), 0
        got: list[int] = []
        put = got.append
        for first_base, second_base in zip(places[::2], places[1::2], strict=False):
            put(slot := first_base + (x & 4095))
            first = entries[slot]
            put(slot := second_base + (x >> 12 & 4095))
            second = entries[slot]
            x = (first >> 12) * ((second >> 12) * (x >> 24) + (second & 4095)) + (first & 4095)
            if x < STATE_LOW:
                if used == len(ahead):
                    raise DeltaError("The symbols of the delta end too early.")
                x = x << WORD_BITS | ahead[used]
                used += 1
        if count & 1:  # the last one has no second
            put(slot := places[-1] + (x & 4095))
            first = entries[slot]
            x = (first >> 12) * (x >> 12) + (first & 4095)
            if x < STATE_LOW:
                if used == len(ahead):
                    raise DeltaError("The symbols of the delta end too early.")
                x = x << WORD_BITS | ahead[used]
                used += 1
        slots[:] = got
        self._x[0] = x
        words.at = used


class ByteSymbols:
    """Symbols that stand as bytes, in the order in which they are taken: zstd's Huffman decoder needs no time for a few thousand."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._at = 0
        self._numbers: Array = np.empty(0, np.int64)

    def foresee(self, count: int, bits: "Bits") -> None:
        """Read the numbers of the first `count` symbols, with their raw bits: one pass for all. Raises: DeltaError when they end."""
        if count > len(self._data):
            raise DeltaError("The symbols of the delta end too early.")
        self._numbers = numbers(self._data[:count], bits, is_small=False)

    def taken(self, count: int) -> Array:
        """The foreseen numbers of the `count` symbols that were taken last, int64. Raises: DeltaError when they were not foreseen."""
        made = self._numbers[self._at - count : self._at]
        if len(made) != count:
            raise DeltaError("The delta has more symbols than its tensors have values.")
        return made

    def take(self, _first_slot: int, count: int) -> Array:
        """The next `count` symbols; there are no tables. Raises: DeltaError when they end."""
        made = self._data[self._at : self._at + count]
        self._at += count
        if len(made) != count:
            raise DeltaError("The symbols of the delta end too early.")
        return made

    def take_mixed(self, first_slots: Array) -> Array:
        """As many symbols. Raises: DeltaError when they end."""
        return self.take(0, len(first_slots))

    def rest(self) -> bytes:
        """What follows the symbols."""
        made: bytes = self._data[self._at :].tobytes()
        self._at = len(self._data)
        return made

    def finish(self) -> bytes:
        """Nothing, as no coder holds anything. Raises: DeltaError when symbols are left."""
        if self._at != len(self._data):
            raise DeltaError("The symbols of the delta do not end where they should.")
        return b""


class Bits:
    """Raw bits, the lowest of each byte first; `more` gives further bytes, once, when they end."""

    def __init__(self, data: memoryview, more: Callable[[], bytes] | None = None) -> None:
        self._data = data
        self._at = 0
        self.more = more

    def take(self, lengths: Array) -> Array:
        """The next numbers of these lengths, at most 32 bits each, as int64. Raises: DeltaError when the bits end."""
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        if not total:
            return np.zeros(len(lengths), np.int64)
        if self._at + total > 8 * len(self._data):
            if self.more is None:
                raise DeltaError("The raw bits of the delta end too early.")
            self._take_more()
            if self._at + total > 8 * len(self._data):
                raise DeltaError("The raw bits of the delta end too early.")
        first = self._at >> 3
        bytes_ = np.zeros(((self._at + total + 7) >> 3) - first + 8, np.uint8)
        bytes_[:-8] = np.frombuffer(self._data[first : first + len(bytes_) - 8], np.uint8)
        windows: Array = np.ndarray((len(bytes_) - 7,), np.dtype("<u8"), bytes_.data, strides=(1,))
        starts = ends - lengths + (self._at & 7)
        self._at += total
        values = (windows[starts >> 3] >> (starts & 7).astype(np.uint64)).astype(np.int64)
        made: Array = values & ((np.int64(1) << lengths.astype(np.int64)) - 1)
        return made

    def _take_more(self) -> None:
        if self.more is not None:
            first = self._at >> 3
            self._data, self._at = memoryview(bytes(self._data[first:]) + self.more()), self._at & 7
            self.more = None

    def rest(self) -> memoryview:
        """The whole bytes that are left, with what comes after them."""
        self._take_more()
        return self._data[(self._at + 7) >> 3 :]


def deferred_numbers(symbols: Array, bits: Bits, deferred: Array | int) -> tuple[Array, Array, Array]:
    """As `numbers`, int64, without up to `deferred` of the lowest raw bits of each; the signs, and how many bits are still to come."""
    lengths = NUMBER_RAW_BITS[symbols]
    later = np.minimum(lengths, deferred)
    raw = bits.take(lengths - later) << later.astype(np.int64)
    return (_NUMBER_TOP[symbols] + raw) * _NUMBER_SIGN[symbols], _NUMBER_SIGN[symbols], later


def numbers(symbols: Array, bits: Bits, *, is_small: bool) -> Array:
    """The numbers of these symbols, with their raw bits taken; int16 when they are corrections of 8 bits, else int64."""
    made: Array = (_SMALL_VALUES if is_small else _VALUES).take(symbols)
    long = (symbols >= FIRST_LONG).nonzero()[0]
    if long.size:
        of_long = symbols[long]
        raw = bits.take(NUMBER_RAW_BITS[of_long])
        made[long] += (raw * _NUMBER_SIGN[of_long]).astype(made.dtype)
    return made


def small_numbers(symbols: Array, bits: Bits) -> Array:
    """As `numbers`, of 8 bits: what they are modulo 256, uint8."""
    made: Array = np.frombuffer(bytearray(symbols.tobytes().translate(_LOW_BYTES)), np.uint8)
    long = (symbols >= FIRST_LONG).nonzero()[0]
    if long.size:
        of_long = symbols[long]
        made[long] += (bits.take(NUMBER_RAW_BITS[of_long]) * _NUMBER_SIGN[of_long]).astype(np.uint8)
    return made


def states_of(data: memoryview, lanes: int) -> tuple[Array, int]:
    """The coders' states, and the bytes they take.

    The low 24 bits of each; how many bits the others have less 1, five lengths in a number of 23 bits; these bits without the first.
    """
    low_bytes, shared = WORD_BYTES * lanes, -(-lanes // _SIZES_SHARED)
    size_bytes = (_SHARED_BITS * shared + 7) >> 3
    if low_bytes + size_bytes > len(data):
        raise DeltaError("The states of the delta are cut.")
    wide = np.zeros((lanes, 8), np.uint8)
    wide[:, :WORD_BYTES] = np.frombuffer(data[:low_bytes], np.uint8).reshape(-1, WORD_BYTES)
    packed = Bits(data[low_bytes : low_bytes + size_bytes]).take(np.full(shared, _SHARED_BITS))
    sizes = (packed[:, None] // WORD_BITS ** np.arange(_SIZES_SHARED) % WORD_BITS).ravel()[:lanes]
    raw_bytes = (int(sizes.sum()) + 7) >> 3
    high = Bits(data[low_bytes + size_bytes : low_bytes + size_bytes + raw_bytes]).take(sizes) | np.int64(1) << sizes
    return wide.view("<u8").ravel() | high.astype(np.uint64) << np.uint64(WORD_BITS), low_bytes + size_bytes + raw_bytes


def packed_states(x: Array) -> tuple[Array, Array, Array, Array]:
    """The inverse for the encoder: low bits; shared lengths; lengths and values of the other bits without the first."""
    high = (x >> np.uint64(WORD_BITS)).astype(np.int64)
    sizes = np.frexp(high.astype(np.float64))[1].astype(np.int64) - 1
    padded = np.zeros(-(-len(x) // _SIZES_SHARED) * _SIZES_SHARED, np.int64)
    padded[: len(x)] = sizes
    shared = (padded.reshape(-1, _SIZES_SHARED) * WORD_BITS ** np.arange(_SIZES_SHARED)).sum(axis=1)
    return (x & np.uint64(STATE_LOW - 1)).astype(np.int64), shared, sizes, high - (np.int64(1) << sizes)
