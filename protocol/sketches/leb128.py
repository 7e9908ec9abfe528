"""Unsigned LEB128 (DWARF 5, 7.6) of many numbers at once: seven bits a byte, lowest first, high bit while more follow; pure.

Each number has one form, the shortest; at most nine bytes, so it fits a signed 64-bit integer. A server reads the numbers of a fleet, by
numpy and without a loop; a device writes a thousand of them in ten minutes, by Python, which brings no library into its memory.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidError

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
_Whole = TypeVar("_Whole", int, IntArray)
#: Longest form of a number, bytes.
MAX_BYTES = 9
MAX_NUMBER = (1 << 7 * MAX_BYTES) - 1
#: Bytes that are summed up in one go: they stay in the processor's cache.
_CHUNK_BYTES = 256 << 10


def encode(numbers: npt.NDArray[np.integer] | Sequence[int]) -> bytes:
    """The bytes of the numbers, flat. Raises: InvalidError (leb128) when one is below 0."""
    values: list[int] = np.asarray(numbers, dtype=np.int64).ravel().tolist()
    if values and min(values) < 0:
        raise InvalidError(f"LEB128 of {min(values)}; wanted numbers of 0 to 2^63-1.", code="leb128")
    packed = bytearray()
    for value in values:
        rest = value
        while rest > 0x7F:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    return bytes(packed)


def decode(data: bytes, count: int) -> IntArray:
    """The `count` numbers in these bytes, int64. Raises: InvalidError (leb128, length)."""
    raw: ByteArray = np.frombuffer(data, dtype=np.uint8)
    is_last = raw < 0x80
    _check_length(int(np.count_nonzero(is_last)), count, is_whole=not raw.size or bool(is_last[-1]))
    if raw.size == count:
        return raw.astype(np.int64)
    lasts = np.flatnonzero(is_last)
    starts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - starts + 1
    if lengths.max() > MAX_BYTES:
        raise InvalidError(f"LEB128 of {lengths.max()} bytes; wanted at most {MAX_BYTES}.", code="leb128")
    if ((raw[lasts] == 0) & (lengths > 1)).any():
        raise InvalidError("LEB128 that is longer than its number needs; wanted the shortest form.", code="leb128")
    places = np.arange(raw.size) - np.repeat(starts, lengths)
    groups = (raw & 0x7F).astype(np.int64) << (7 * places)
    return np.add.reduceat(groups, starts).astype(np.int64, copy=False)


def summed(parts: Sequence[bytes], count: int) -> IntArray:
    """The sum, place by place, of many encodings of `count` numbers each: int64[count].

    Raises: InvalidError (leb128, length) when one of the encodings does not hold `count` numbers. Numbers are not asked for their shortest
    form again: `decode` did, before they were stored.
    """
    total = np.zeros(count, dtype=np.int64)
    for group in _chunks(parts):
        total += _summed_chunk(group, count)
    return total


def zigzag(numbers: _Whole) -> _Whole:
    """Signed numbers as unsigned ones, small ones staying small: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return (numbers << 1) ^ (numbers >> 63)


def unzigzag(numbers: IntArray) -> IntArray:
    """`unzigzag(zigzag(x)) == x`."""
    return (numbers >> 1) ^ -(numbers & 1)


def _chunks(parts: Sequence[bytes]) -> list[Sequence[bytes]]:
    if not parts:
        return []
    size = max(1, _CHUNK_BYTES // max(1, *map(len, parts)))
    return [parts[at : at + size] for at in range(0, len(parts), size)]


def _summed_chunk(parts: Sequence[bytes], count: int) -> IntArray:
    raw: ByteArray = np.frombuffer(b"".join(parts), dtype=np.uint8)
    more = np.flatnonzero(raw >= 0x80)
    ends = np.cumsum([len(part) for part in parts])
    _check_length(raw.size - more.size, count * len(parts), is_whole=not raw.size or bool((raw[ends - 1] < 0x80).all()))
    numbers_before = ends - np.searchsorted(more, ends)
    if (numbers_before != count * np.arange(1, len(parts) + 1)).any():
        raise InvalidError(f"LEB128 of parts that do not hold {count} numbers each.", code="length")
    total = np.zeros(count, dtype=np.int64)
    if not more.size:
        total += raw.reshape(len(parts), count).sum(axis=0, dtype=np.int64)
        return total
    is_first = np.ones(raw.size, dtype=bool)
    is_first[more + 1] = False
    # the lowest seven bits of every number, as if there were no more
    firsts = raw[is_first]
    firsts &= 0x7F
    total += firsts.reshape(len(parts), count).sum(axis=0, dtype=np.int64)
    # what follows a byte that announces more, wherever it stands in its number
    after = more + 1
    number = after - np.arange(1, more.size + 1)  # numbers ended before it
    order = np.arange(more.size)
    begins = np.concatenate([[True], np.diff(more) != 1])
    depth = order - np.maximum.accumulate(np.where(begins, order, 0)) + 1
    if depth.max() >= MAX_BYTES:
        raise InvalidError(f"LEB128 of more than {MAX_BYTES} bytes.", code="leb128")
    highs = (raw[after] & 0x7F).astype(np.int64) << (7 * depth)
    np.add.at(total, number % count, highs)
    return total


def _check_length(seen: int, wanted: int, *, is_whole: bool) -> None:
    if not is_whole:
        raise InvalidError("LEB128 that ends in the middle of a number.", code="leb128")
    if seen != wanted:
        raise InvalidError(f"LEB128 of {seen} numbers; wanted {wanted}.", code="length")
