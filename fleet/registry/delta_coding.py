"""The writing side of `protocol.delta.entropy`: numbers to symbols and raw bits, symbols to the words of coders side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from protocol.delta.entropy import NUMBER_RAW_BITS, STATE_LOW, TABLE_BITS, TABLE_SLOTS, WORD_BITS, WORD_BYTES, Array, Phase, packed_states
from protocol.delta.plan import NO_TABLE

#: Seconds that a step of many coders takes, two symbols each, and how many more each coder (measured: 8 µs with 256, 18 µs with 2048);
#: and what a coder alone takes for a symbol.
_STEP_S, _LANE_S, _SCALAR_S = 10e-6, 6e-9, 0.3e-6
#: Bytes of a coder's first state that say nothing: 4.1 bits.
_START_WASTE = 0.51
#: Decoded bytes a second that the device shall reach, and how much a share of that time weighs against the same share of the delta's size.
#: A smaller file counts as one of `_SMALL_BYTES`: opening and syncing take its time, whatever the coders do
_WANTED_RATE, _TIME_WEIGHT, _SMALL_BYTES = 50e6, 0.25, 200_000
#: What a delta costs to deliver besides its symbols, bytes: header, plan, and the request for it.
_FELT_BYTES = 1500


def symbols_of(numbers: Array) -> tuple[Array, Array]:
    """The symbol of each number, and its raw bits; inverse of `entropy.numbers`."""
    size = np.abs(numbers.astype(np.int64))
    _, bits = np.frexp(size.astype(np.float64))
    bits = np.where(size >= (np.int64(1) << np.minimum(bits.astype(np.int64), 62)), bits + 1, bits)
    bits = np.where((size > 0) & (size < (np.int64(1) << np.maximum(bits.astype(np.int64) - 1, 0))), bits - 1, bits).astype(np.int64)
    shift = np.maximum(bits - 2, 0)
    second = np.where(bits >= 2, (size >> shift) & 1, 0)
    symbols = np.where(size > 0, 1 + 4 * (bits - 1) + 2 * second + (numbers < 0), 0).astype(np.uint8)
    return symbols, size & ((np.int64(1) << shift) - 1)


@dataclass(slots=True)
class Recording:
    """What the decoder will take, in its order: one entry of `calls` is one call."""

    calls: list[tuple[Array, Array]] = field(default_factory=list)
    _raw: list[tuple[Array, Array]] = field(default_factory=list)
    _deferred: list[tuple[Array, Array]] = field(default_factory=list)
    _ends_in_numbers: bool = False

    def put(self, tables: Array, symbols: Array) -> None:
        """Symbols, each by its table."""
        self.calls.append((np.broadcast_to(tables, symbols.shape).astype(np.int64), symbols))
        self._ends_in_numbers = False

    def put_numbers(self, tables: Array, numbers: Array, *, deferred: Array | int = 0) -> None:
        """Numbers: symbols, each by its table (none where that is `NO_TABLE`), and raw bits, the lowest `deferred` of which come last."""
        symbols, raw = symbols_of(numbers)
        is_told = tables != NO_TABLE
        self.put(tables[is_told], symbols[is_told])
        lengths = NUMBER_RAW_BITS[symbols]
        later = np.minimum(lengths, deferred)
        self._raw.append((lengths - later, raw >> later.astype(np.int64)))
        self._deferred.append((later, raw & ((np.int64(1) << later.astype(np.int64)) - 1)))
        self._ends_in_numbers = True

    def bits(self) -> tuple[bytes, bytes]:
        """All raw bits: those at once, and those that come last."""
        return self._packed(self._raw), self._packed(self._deferred)

    def _packed(self, parts: list[tuple[Array, Array]]) -> bytes:
        if not parts:
            return b""
        lengths = np.concatenate([one for one, _ in parts]).astype(np.int64)
        values = np.concatenate([one for _, one in parts])
        values, lengths = values[lengths > 0], lengths[lengths > 0]
        made = np.zeros(int(lengths.sum()), np.uint8)
        starts = np.cumsum(lengths) - lengths
        for place in range(int(lengths.max(initial=0))):
            has = lengths > place
            made[starts[has] + place] = (values[has] >> place) & 1
        return np.packbits(made, bitorder="little").tobytes()

    def ending(self) -> int:
        """How many of the last bytes of the raw bits hold nothing but those of the last call."""
        if not self._ends_in_numbers:
            return 0
        total, last = (sum(int(lengths.sum()) for lengths, _ in parts) for parts in (self._raw, self._raw[-1:]))
        return -(-total // 8) - -(-(total - last) // 8)

    def words(
        self, slots: Array, file_bytes: int, riders: bytes, *, from_end: bool = False, choices: Sequence[list[Phase]] | None = None
    ) -> tuple[list[Phase], bytes, int]:
        """The phases, the states and words, and how many bytes of `riders`, the first or the last ones, ride in the last states.

        The phases are the first of `choices` that fit (None: those that suit the symbols).
        """
        frequency = slots.astype(np.uint64)
        start = np.cumsum(frequency, axis=1) - frequency
        costs = [np.log2(4096 / frequency[tables, symbols].astype(np.float64)) for tables, symbols in self.calls]
        cost = np.concatenate(costs) if costs else np.zeros(0)
        for phases in _choices(cost, len(riders), file_bytes) if choices is None else choices:
            room = min(WORD_BYTES * phases[-1].lanes, len(riders))
            words = self._encode(phases, frequency, start, riders[len(riders) - room :] if from_end else riders[:room])
            if words is not None:
                return phases, words, room
        raise RuntimeError("a single phase always fits")

    def _encode(self, phases: list[Phase], frequency: Array, start: Array, riders: bytes) -> bytes | None:
        """States and words; None when a phase has fewer words than retiring coders have room for."""
        parts = _split(self.calls, phases)
        x = STATE_LOW + _words_of(riders.ljust(WORD_BYTES * phases[-1].lanes, b"\0"))
        rest = np.zeros(0, np.uint64)
        for number in range(len(phases) - 1, -1, -1):
            emitted: list[Array] = []
            for tables, symbols in reversed(parts[number]):
                emitted += _encode_call(x, frequency[tables, symbols], start[tables, symbols])
            rest = np.concatenate([*reversed(emitted), rest]) if emitted else rest
            if number:
                more = phases[number - 1].lanes - len(x)
                if len(rest) < more:
                    return None
                x = np.concatenate([x, STATE_LOW + rest[:more]])
                rest = rest[more:]
        low, shared, sizes, high = packed_states(x)
        lengths = self._packed([(np.full(len(shared), 23), shared)])
        return _bytes_of(low) + lengths + self._packed([(sizes, high)]) + _bytes_of(rest)


def _words_of(data: bytes) -> Array:
    wide = np.zeros((len(data) // WORD_BYTES, 8), np.uint8)
    wide[:, :WORD_BYTES] = np.frombuffer(data, np.uint8).reshape(-1, WORD_BYTES)
    return wide.view("<u8").ravel()


def _bytes_of(words: Array) -> bytes:
    return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :WORD_BYTES].tobytes()


def _encode_call(x: Array, frequency: Array, start: Array) -> list[Array]:
    """Encode one call from its end, changing the states `x`; the words of each two symbols, the last ones first."""
    both, emitted, bits = 2 * len(x), [], np.uint64(TABLE_BITS)
    for at in range((len(frequency) - 1) // both * both if len(frequency) else -1, -1, -both):
        f, c = frequency[at : at + both], start[at : at + both]
        if len(f) & 1:  # no second symbol: as one that is certain
            f, c = np.append(f, np.uint64(TABLE_SLOTS)), np.append(c, np.uint64(0))
        half = len(f) // 2
        (f1, f2), (c1, c2), now = (f[:half], f[half:]), (c[:half], c[half:]), x[:half]
        full = now >= f1 * f2 << np.uint64(WORD_BITS)
        emitted.append(now[full] & np.uint64(STATE_LOW - 1))
        now[full] >>= np.uint64(WORD_BITS)
        rest, now[:] = now % f1, now // f1
        now[:] = ((now // f2) << bits | now % f2 + c2) << bits | rest + c1
    return emitted


def _choices(cost: Array, riders: int, file_bytes: int) -> list[list[Phase]]:
    """Coders for symbols of this cost in bits, and phases with fewer at the end, the best first by bytes wasted and by time of the decoder.

    Coders waste what their states hold at the start, and at the end unless `riders` bytes of raw bits or words of a next phase fill it.
    """
    total, behind = len(cost), np.cumsum(cost[::-1])
    whole = _FELT_BYTES + float(cost.sum()) / 8
    found: list[tuple[float, list[Phase]]] = []
    for lanes in (1, *(1 << log2 for log2 in range(5, 13))):
        for factor in (4, 8):
            for count in range(4):
                steps = [lanes >> number * (2 if factor == 4 else 3) for number in range(count + 1)]
                if steps[-1] < 1 or (count and steps[-1] < 8):
                    continue
                ends, needed = [], 0.0
                for more, fewer in reversed(list(pairwise(steps))):
                    needed += WORD_BITS * (more - fewer) * 1.02 + 28 * fewer + 40
                    ends.append(int(np.searchsorted(behind, needed)) + 1)
                if ends and ends[-1] >= total:
                    continue
                bounds = [0, *(total - end for end in reversed(ends)), total]
                sizes = [after - before for before, after in pairwise(bounds)]
                time = sum(
                    size / (2 * one) * (_STEP_S + _LANE_S * one) if one > 1 else size * _SCALAR_S
                    for size, one in zip(sizes, steps, strict=True)
                )
                wasted = _START_WASTE * lanes + max(0, WORD_BYTES * steps[-1] - riders) + (lanes - steps[-1]) / 16
                price = wasted / whole + _TIME_WEIGHT * time / (max(file_bytes, _SMALL_BYTES) / _WANTED_RATE)
                phases = [Phase(one, size) for one, size in zip(steps, sizes, strict=True)]
                found.append((price, [*phases[:-1], Phase(steps[-1], 0)]))
    return [phases for _, phases in sorted(found, key=lambda one: one[0])]


def _split(calls: list[tuple[Array, Array]], phases: list[Phase]) -> list[list[tuple[Array, Array]]]:
    """The calls of each phase; one that a phase's end cuts is two."""
    parts: list[list[tuple[Array, Array]]] = [[] for _ in phases]
    number, left = 0, phases[0].symbols or -1
    for tables, symbols in calls:
        at = 0
        while at < len(symbols):
            if left == 0:
                number += 1
                left = phases[number].symbols or -1
            now = len(symbols) - at if left < 0 else min(left, len(symbols) - at)
            parts[number].append((tables[at : at + now], symbols[at : at + now]))
            at += now
            left -= now if left > 0 else 0
    return parts
