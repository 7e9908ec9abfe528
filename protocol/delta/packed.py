"""Corrections of 8 bits packed several to a byte and compressed by zstd, whose Huffman decoder takes them faster than numpy takes symbols.

Tensors of one class follow one another, and values of one context of it. A context's bytes hold two, three, four or eight values each, as
digits of a number: 0 is the escape, the others stand for values around zero. Escaped values come last, a byte each. Where each row has a
class (`unpack_rows`), a class is a context.
"""

from collections.abc import Sequence

import numpy as np

from protocol.delta.entropy import Array
from protocol.delta.errors import DeltaError

#: Digits of each way to pack {values a byte, digits}: a digit above 0 stands for itself less half of the digits. The last one only tells
#: what changed.
WAYS = ((2, 16), (3, 6), (4, 4), (8, 2))
#: Values told so at most: they and their places are held at once. Larger models have symbols enough for many coders side by side.
MAX_PACKED_VALUES = 1 << 18
#: Symbols that stand as bytes before what is packed, at most.
MAX_BYTE_SYMBOLS = 1 << 16
#: What stands in place of a value that is told apart.
_ESCAPE = 128


def _values(way: int) -> Array:
    """The values of each byte {byte, value}, modulo 256; what is no number of these digits escapes."""
    count, digits = WAYS[way]
    byte = np.arange(256)[:, None]
    digit = byte // digits ** np.arange(count) % digits
    return np.where((digit > 0) & (byte < digits**count), digit - digits // 2, _ESCAPE).astype(np.uint8)


#: The values of each byte as one number of two or four bytes, which numpy takes faster than rows.
_WIDE: tuple[Array, ...] = tuple(
    np.pad(_values(way), ((0, 0), (0, count % 2))).view(f"<u{count + count % 2}").ravel() for way, (count, _) in enumerate(WAYS)
)


def contexts_of(levels: int) -> int:
    """Contexts of a class of so many levels: those above the middle are as those below, with the other sign."""
    return max(1, levels // 2)


def mirrored(fine: Array | None, levels: int) -> tuple[Array | int, Array | int]:
    """The context within its class of each value, and 255 where its sign is the other one, else 0; uint8, or one number for all.

    `fine` says where what was expected lay between two whole numbers, in sixteenths.
    """
    if levels == 1:
        return 0, 0
    bits = levels.bit_length() - 1
    if fine is None:
        return levels // 2 - 1, 255
    level = fine.astype(np.uint8)  # the part that rounding took away is in the lowest bits
    level >>= np.uint8(4 - bits)
    level &= np.uint8(levels - 1)
    sign = np.negative(level >> np.uint8(bits - 1))
    level ^= sign
    level &= np.uint8(levels // 2 - 1)
    return level, sign


def unpack(data: bytes, contexts: Array, runs: Sequence[tuple[int, bytes]]) -> Array:
    """The values, modulo 256, uint8, of classes one after the other {how many, how each context is packed}. Raises: DeltaError.

    `contexts` says of each value which one of its class it is of.
    """
    packed, at, start = np.frombuffer(data, np.uint8), 0, 0
    made: Array = np.empty(len(contexts), np.uint8)
    for count, ways in runs:
        values, of = made[start : start + count], contexts[start : start + count]
        for context, way in enumerate(ways):
            places = (of == context).nonzero()[0] if len(ways) > 1 else of
            end = at - (-len(places) // WAYS[way][0])
            part, at = packed[at:end], end
            if at > len(packed):
                raise DeltaError("The packed values of the delta are cut.")
            taken = _taken(part, way)[: len(places)]
            if len(ways) > 1:
                values[places] = taken
            else:
                values[...] = taken
        start += count
    escaped = (made == _ESCAPE).nonzero()[0]
    if at + len(escaped) != len(data):
        raise DeltaError("The packed values of the delta do not end where they should.")
    made[escaped] = packed[at:]
    return made


def unpack_rows(data: bytes, of: Array, ways: Sequence[int | None]) -> Array:
    """The values, modulo 256, uint8, of rows with a class each: `of` says which of every value, `ways` how each class is packed.

    Values of a class without a way are 0. Escaped values come class by class. Raises: DeltaError.
    """
    packed, at = np.frombuffer(data, np.uint8), 0
    made: Array = np.zeros(len(of), np.uint8)
    escaped = []
    for number, way in enumerate(ways):
        if way is None:
            continue
        places = (of == number).nonzero()[0]
        end = at - (-len(places) // WAYS[way][0])
        part, at = packed[at:end], end
        if at > len(packed):
            raise DeltaError("The packed values of the delta are cut.")
        taken = _taken(part, way)[: len(places)]
        made[places] = taken
        escaped.append(places[taken == _ESCAPE])
    apart = np.concatenate(escaped) if escaped else np.zeros(0, np.int64)
    if at + len(apart) != len(data):
        raise DeltaError("The packed values of the delta do not end where they should.")
    made[apart] = packed[at:]
    return made


def _taken(part: Array, way: int) -> Array:
    """What these bytes hold."""
    values: Array = _WIDE[way].take(part).view(np.uint8)
    count = WAYS[way][0]
    if count % 2 == 0:
        return values
    padded, made = values.reshape(-1, count + 1), np.empty((len(part), count), np.uint8)
    for place in range(count):  # numpy copies few long columns three times as fast as many short rows
        made[:, place] = padded[:, place]
    return made.ravel()


def pack(values: Array, way: int) -> bytes:
    """The inverse for the encoder, of one context: int64 to bytes."""
    count, digits = WAYS[way]
    half = digits // 2
    digit = np.where(is_told(values, way), values + half, 0)
    digit = np.concatenate([digit, np.full(-len(digit) % count, half, digit.dtype)]).reshape(-1, count)
    made: bytes = (digit * digits ** np.arange(count)).sum(axis=1).astype(np.uint8).tobytes()
    return made


def is_told(values: Array, way: int) -> Array:
    """Which of these values have a digit of their own."""
    digits = WAYS[way][1]
    made: Array = (values > -(digits // 2)) & (values < digits - digits // 2)
    return made
