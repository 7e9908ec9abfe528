"""The writing side of `protocol.delta.packed`: corrections of 8 bits as bytes of several values, each context a block of one zstd frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from protocol.delta import packed
from protocol.delta.entropy import Array

#: zstd's windows for packed values: all of them fit.
_WINDOW_LOG = 18
#: What zstd is tried with: its matches help where nearly nothing changed, and cost a little elsewhere.
_LEVELS = (1, 3, 19, 22)


@dataclass(frozen=True, slots=True)
class Packing:
    """How each class packs its contexts, and a frame of each: `raw` bytes before they were compressed."""

    ways: list[bytes]
    raw: int
    frames: bytes


@dataclass(frozen=True, slots=True)
class _Context:
    way: int
    raw: int
    frame: bytes
    is_told: Array


def pack_classes(classes: Iterable[Sequence[tuple[Array, Array | None]]], levels: int) -> Packing:
    """Pack these classes {numbers, and where what was expected lay, of each tensor in the order of the decoder}."""
    ways, frames, raw, escaped = [], [], 0, []
    for tensors in classes:
        values, contexts = _mirrored(tensors, levels)
        missed = np.zeros(len(values), np.bool_)
        found = []
        for context in range(packed.contexts_of(levels)):
            places = np.flatnonzero(contexts == context)
            best = _best(values[places])
            missed[places] = ~best.is_told
            found.append(best)
        ways.append(bytes([one.way for one in found]))
        frames += [one.frame for one in found if one.raw]
        raw += sum(one.raw for one in found)
        escaped.append(values[missed].astype(np.uint8).tobytes())
    apart = b"".join(escaped)
    frames += [_frame(apart)] if apart else []
    return Packing(ways, raw + len(apart), b"".join(frames))


@dataclass(frozen=True, slots=True)
class RowPacking:
    """How rows are packed: the class of each row of each tensor, how each class packs its values (None: it has none), and the frames."""

    rows: list[Array]
    ways: list[int | None]
    raw: int
    frames: bytes
    #: Bits that all this takes, the classes of the rows included.
    cost: float


def pack_rows(numbers: Sequence[Array], rows: Sequence[Array]) -> RowPacking:
    """Pack tensors {numbers, in the order of the decoder} each row of which is of a class; classes are merged while that saves bytes."""
    values = np.concatenate(numbers)
    sizes = [len(one) // len(its) for one, its in zip(numbers, rows, strict=True)]
    of = np.concatenate([np.repeat(its, size) for its, size in zip(rows, sizes, strict=True)]).astype(np.int64)
    is_told = np.bincount(of, values != 0) > 0
    every = np.concatenate(rows).astype(np.int64)
    merged = _merged(values, of, every, [int(one) for one in np.flatnonzero(is_told)])
    number_of = np.full(len(is_told), len(merged))
    for number, members in enumerate(merged):
        number_of[list(members)] = number
    parts = [values[np.isin(of, list(members))] for members in merged]
    best = [_best_of_class(one) for one in parts]
    frames = [one.frame for one in best if one.raw]
    apart = [part[~one.is_told].astype(np.uint8).tobytes() for part, one in zip(parts, best, strict=True)]
    raw = sum(one.raw for one in best) + sum(map(len, apart))
    ways: list[int | None] = [one.way for one in best]
    if not is_told.all():
        ways.append(None)
    joined = b"".join(frames) + in_frames(apart)
    cost = 8.0 * len(joined) + _bits_of(number_of[every]) + 8 * len(ways)
    return RowPacking([number_of[its].astype(np.uint8) for its in rows], ways, raw, joined, cost)


def _merged(values: Array, of: Array, every: Array, told: list[int]) -> list[tuple[int, ...]]:
    """Sets of classes that take fewer bytes together, in the order of how far their values lie from zero."""

    def price(members: tuple[int, ...]) -> float:
        part = values[np.isin(of, members)]
        best = _best_of_class(part)
        # a row tells the class that it is of: the more rows a class has, the less that takes
        share = float(np.isin(every, members).mean())
        apart = _frame(part[~best.is_told].astype(np.uint8).tobytes())
        return 8.0 * (len(best.frame) + len(apart)) - len(every) * share * float(np.log2(share))

    alive: list[tuple[int, ...]] = [(number,) for number in told]
    prices = {members: price(members) for members in alive}
    while len(alive) > 1:
        pairs = [(a, b) for a in alive for b in alive if a < b]
        prices |= {both: price(both) for a, b in pairs if (both := tuple(sorted(a + b))) not in prices}
        a, b = max(pairs, key=lambda pair: prices[pair[0]] + prices[pair[1]] - prices[tuple(sorted(pair[0] + pair[1]))])
        both = tuple(sorted(a + b))
        if prices[a] + prices[b] <= prices[both]:
            break
        alive = [one for one in alive if one not in (a, b)] + [both]
    return sorted(alive, key=lambda members: float(np.abs(values[np.isin(of, members)]).mean()))


def _best_of_class(values: Array) -> _Context:
    """As `_best`, with what is told apart compressed as well."""
    made = []
    for way in range(len(packed.WAYS)):
        data, is_told = packed.pack(values, way), packed.is_told(values, way)
        made.append((_Context(way, len(data), _frame(data), is_told), len(_frame(values[~is_told].astype(np.uint8).tobytes()))))
    return min(made, key=lambda one: len(one[0].frame) + one[1])[0]


def in_frames(parts: Sequence[bytes]) -> bytes:
    """These bytes one after the other, in as many frames as take the fewest bytes."""
    best = [b""]
    for stop in range(1, len(parts) + 1):
        best.append(
            min((best[start] + (_frame(whole) if (whole := b"".join(parts[start:stop])) else b"") for start in range(stop)), key=len)
        )
    return best[-1]


def _bits_of(numbers: Array) -> float:
    """The entropy of these numbers, bits in all."""
    often = np.bincount(numbers)
    often = often[often > 0].astype(np.float64)
    return float((often * np.log2(often.sum() / often)).sum())


def _mirrored(tensors: Sequence[tuple[Array, Array | None]], levels: int) -> tuple[Array, Array]:
    """The values of a class, those above the middle with the other sign, and the context of each."""
    values, contexts = [], []
    for numbers, fine in tensors:
        context, sign = packed.mirrored(fine, levels)
        values.append(np.where(np.asarray(sign) > 0, -numbers, numbers))
        contexts.append(np.broadcast_to(np.asarray(context, np.uint8), numbers.shape))
    return np.concatenate(values), np.concatenate(contexts)


def _best(values: Array) -> _Context:
    """The values of a context in the way that takes the fewest bytes."""
    made = []
    for way in range(len(packed.WAYS)):
        data, is_told = packed.pack(values, way), packed.is_told(values, way)
        made.append(_Context(way, len(data), _frame(data), is_told))
    return min(made, key=lambda one: len(one.frame) + int((~one.is_told).sum()))


def _frame(data: bytes) -> bytes:
    """The smallest frame of these bytes."""
    made = []
    for level in _LEVELS:
        options = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=len(data), window_log=_WINDOW_LOG, write_content_size=False, write_checksum=False
        )
        made.append(zstandard.ZstdCompressor(compression_params=options).compress(data))
    return min(made, key=len)
