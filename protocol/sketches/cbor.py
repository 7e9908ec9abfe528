"""The subset of CBOR (RFC 8949) that sketches, grids and references are written in: definite lengths, no tags, one byte form per value.

A reader of its own, because what a device sends must not reach a general decoder: cbor2 builds regular expressions, messages and
decimals from tags. What is accepted here equals what `encode` writes, byte for byte.
"""

import struct
from typing import Any

import cbor2

from protocol.errors import InvalidError

#: Maps and lists inside each other.
MAX_DEPTH = 6
_UINT, _TEXT = 0, 3
_SIMPLE = {20: False, 21: True, 22: None}
_FLOATS = {25: (">e", 2), 26: (">f", 4), 27: (">d", 8)}


def encode(value: Any) -> bytes:
    """Canonical CBOR of numbers, bytes, text, lists and maps (RFC 8949, 4.2)."""
    return bytes(cbor2.dumps(value, canonical=True))


def decode(data: bytes, *, max_bytes: int, what: str) -> Any:
    """The value in these bytes. Raises: InvalidError (too-large, malformed) when they are too many or anything but canonical CBOR."""
    if len(data) > max_bytes:
        raise InvalidError(f"{what} has {len(data)} bytes; at most {max_bytes} are allowed.", code="too-large")
    reader = _Reader(data, what)
    value = reader.value(0)
    if reader.at != len(data):
        raise reader.malformed(f"{len(data) - reader.at} bytes follow its end")
    if encode(value) != data:
        raise reader.malformed("its keys are out of order or doubled, or a number is not in shortest form")
    return value


class _Reader:
    __slots__ = ("at", "data", "what")

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def malformed(self, why: str) -> InvalidError:
        return InvalidError(f"{self.what} is not canonical CBOR: {why}.", code="malformed")

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.malformed(f"it is nested deeper than {MAX_DEPTH}")
        first = self._take(1)[0]
        major, low = first >> 5, first & 31
        if major == 7:
            return self._simple(low)
        number = self._number(low)
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self._take(number)
            case 3:
                return self._text(number)
            case 4:
                return [self.value(depth + 1) for _ in range(self._items(number))]
            case 5:
                return {self._key(): self.value(depth + 1) for _ in range(self._items(number))}
        raise self.malformed("it holds a tag")

    def _take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.malformed(f"it ends after {len(self.data)} bytes in the middle of a value")
        self.at += count
        return self.data[self.at - count : self.at]

    def _number(self, low: int) -> int:
        if low < 24:
            return low
        if low > 27:
            raise self.malformed("a length is indefinite or reserved")
        return int.from_bytes(self._take(1 << (low - 24)))

    def _items(self, count: int) -> int:
        if count > len(self.data) - self.at:
            raise self.malformed(f"it announces {count} items, more than bytes are left")
        return count

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError:
            raise self.malformed("a text is not UTF-8") from None

    def _key(self) -> int | str:
        first = self._take(1)[0]
        major, number = first >> 5, self._number(first & 31)
        if major == _UINT:
            return number
        if major == _TEXT:
            return self._text(number)
        raise self.malformed("a key is neither a whole number nor a text")

    def _simple(self, low: int) -> Any:
        if low in _SIMPLE:
            return _SIMPLE[low]
        if low not in _FLOATS:
            raise self.malformed("it holds a value of an unknown kind")
        form, size = _FLOATS[low]
        return struct.unpack(form, self._take(size))[0]
