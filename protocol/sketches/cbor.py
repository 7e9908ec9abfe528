"""The subset of CBOR (RFC 8949) that sketches, grids and references are written in: definite lengths, no tags, one byte form per value.

A reader of its own, because what a device sends must not reach a general decoder: cbor2 builds regular expressions, messages and
decimals from tags. What is accepted here equals what `encode` writes, byte for byte. A writer of its own, because the control process of
a device would import 0.7 MB for these few kinds of values.
"""

import struct
from typing import Any

from protocol.errors import InvalidError

#: Maps and lists inside each other.
MAX_DEPTH = 6
_UINT, _TEXT = 0, 3
_SIMPLE = {20: False, 21: True, 22: None}
_FLOATS = {25: (">e", 2), 26: (">f", 4), 27: (">d", 8)}
#: First byte of each; a half float has one NaN.
_WORDS, _NAN = {False: b"\xf4", True: b"\xf5", None: b"\xf6"}, b"\xf9\x7e\x00"


def encode(value: Any) -> bytes:
    """Canonical CBOR of numbers, bytes, text, lists and maps (RFC 8949, 4.2). Raises: TypeError for anything else, or past 64 bits."""
    data = bytearray()
    _put(data, value)
    return bytes(data)


def _put(data: bytearray, value: Any) -> None:
    kind = type(value)
    if kind is int:
        data += _head(0, value) if value >= 0 else _head(1, -1 - value)
    elif kind is bytes:
        data += _head(2, len(value))
        data += value
    elif kind is float:
        data += _float(value)
    elif kind is str:
        text = value.encode()
        data += _head(3, len(text))
        data += text
    elif kind is list or kind is tuple:
        data += _head(4, len(value))
        for one in value:
            _put(data, one)
    elif kind is dict:
        data += _head(5, len(value))
        keyed = [(encode(key), one) for key, one in value.items()]
        for key, one in sorted(keyed, key=lambda pair: (len(pair[0]), pair[0])):
            data += key
            _put(data, one)
    elif kind is bool or value is None:
        data += _WORDS[value]
    elif isinstance(value, int | float | str):
        _put(data, next(plain(value) for plain in (int, float, str) if isinstance(value, plain)))  # an enum, a number of numpy
    else:
        raise TypeError(f"{kind.__name__} has no place in this CBOR")


def _head(major: int, number: int) -> bytes:
    """The kind, and a number in its shortest form."""
    if number < 24:
        return bytes((major << 5 | number,))
    low = 24 if number < 1 << 8 else 25 if number < 1 << 16 else 26 if number < 1 << 32 else 27
    if number >= 1 << 64:
        raise TypeError(f"a number of {number.bit_length()} bits; wanted 64 at most")
    return bytes((major << 5 | low,)) + number.to_bytes(1 << (low - 24))


def _float(value: float) -> bytes:
    """The shortest form that holds the number whole."""
    if value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return _NAN
    for low, (form, _) in _FLOATS.items():
        try:
            packed = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, packed)[0] == value:
            return bytes((7 << 5 | low,)) + packed
    raise RuntimeError("a float64 holds every float")


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
