"""Where the tensors of a model file lie, and how the new file is laid out: spans of values, and a skeleton of all other bytes.

A file is never serialized again. Its skeleton is the file with the values cut out; where a format writes small values in varying length
(`Varying`), they are zeros in the skeleton, and their lengths are what zeros need.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from protocol.delta.errors import DeltaError

#: Limits of what is read from a model: UPDATES 3.3.
MAX_TENSORS, MAX_NAME_BYTES, MAX_DIMS = 65_536, 4096, 8

#: Bytes between two times that pages of a mapped file are let go: the system maps up to 2 MiB around each that is read.
LET_GO_EVERY = 1 << 18


class UnknownModelError(DeltaError):
    """The file is no model that this scan understands: no tensor-wise delta is made, or can be applied."""


class Kind(IntEnum):
    """What the values of a tensor are; the numbers are part of a tensor's role and never change."""

    OTHER = 0
    F32 = 1
    I32 = 2
    I8 = 3
    U8 = 4
    F16 = 5
    I64 = 6

    #: Enum's own is a function of Python, and kinds are keys of much that is looked up for each tensor.
    __hash__ = int.__hash__


#: Values of 8 bits, of floating point, and whole numbers that are wider.
SMALL_KINDS, FLOAT_KINDS, WIDE_KINDS = frozenset({Kind.I8, Kind.U8}), frozenset({Kind.F32, Kind.F16}), frozenset({Kind.I32, Kind.I64})


#: How numpy calls the kinds; what is OTHER is bytes.
DTYPES: dict[Kind, "np.dtype[np.generic]"] = {
    Kind.OTHER: np.dtype("u1"),
    Kind.F32: np.dtype("<i4"),
    Kind.I32: np.dtype("<i4"),
    Kind.I8: np.dtype("i1"),
    Kind.U8: np.dtype("u1"),
    Kind.F16: np.dtype("<i2"),
    Kind.I64: np.dtype("<i8"),
}


#: Bytes of a value.
WIDTHS = {kind: type_.itemsize for kind, type_ in DTYPES.items()}


class Varying(NamedTuple):
    """Where the lengths of a tensor lie whose values are written in varying length: the message's, the field's, each {at, bytes}."""

    message_at: int
    message_bytes: int
    message_value: int
    field_at: int
    field_bytes: int


@dataclass(slots=True)
class Tensor:
    """One tensor: `size` bytes at `start` of the file, or of the skeleton (then the values are not there)."""

    name: bytes
    kind: Kind
    dims: tuple[int, ...]
    start: int
    size: int
    #: Values, of `kind`.
    count: int
    varying: Varying | None = None

    @property
    def rows(self) -> int:
        return self.dims[0] if len(self.dims) > 1 else 1


@dataclass(frozen=True, slots=True)
class Links:
    """What the graph says about derived constants, by index of tensor. `scale_axis` maps a quantized tensor to the axis of its scales."""

    #: Quantized tensor → its scale.
    scale_of: dict[int, int] = field(default_factory=dict)
    scale_axis: dict[int, int] = field(default_factory=dict)
    #: Scale of a bias → scale of the input, scale of the weights.
    product_of: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Scan:
    """A model file taken apart."""

    tensors: list[Tensor]
    links: Links
    #: Where the length of the message around all tensors lies {at, bytes, value}, if any; it changes with `Varying` values.
    outer: tuple[int, int, int] | None = None
    by_name: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """A new file: literal pieces {offset, bytes}, the offset of each tensor's values, and the length of it all.

    `copies` are parts of the old file {offset, start, stop} that come first, with values that others overwrite.
    """

    pieces: list[tuple[int, bytes]]
    starts: list[int]
    size: int
    copies: list[tuple[int, int, int]] = field(default_factory=list)


_SHORT = [bytes([value]) for value in range(0x80)]


def varint(value: int) -> bytes:
    """Protobuf's variable-length form of 0 … 2^64 - 1."""
    if value < 0x80:
        return _SHORT[value]
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def varying_bytes(values: Sequence[int]) -> bytes:
    """Small signed values as protobuf writes int32: negative ones in ten bytes."""
    if values and min(values) >= 0 and max(values) < 0x80:
        return bytes(values)
    return b"".join(varint(value & 0xFFFF_FFFF_FFFF_FFFF) for value in values)


def skeleton_of(read: Callable[[int, int], bytes], size: int, scan: Scan) -> tuple[bytes, Scan]:
    """All bytes of the file that are not values, with varying values as zeros, and the scan of that. `read(start, stop)` reads the file."""
    pieces: list[bytes] = []
    tensors: list[Tensor] = []
    outer, at, length = scan.outer, 0, 0
    if outer:
        place, _, value = outer
        shrunk = sum(_shrinkage(tensor) for tensor in scan.tensors if tensor.varying)
        outer = place, len(varint(value - shrunk)), value - shrunk
        pieces += [read(0, place), varint(value - shrunk)]
        at, length = place + scan.outer[1] if scan.outer else 0, place + outer[1]
    for tensor in scan.tensors:
        varying = tensor.varying
        if varying is None:
            piece = read(at, tensor.start)
            length += len(piece)
            tensors.append(Tensor(tensor.name, tensor.kind, tensor.dims, length, tensor.size, tensor.count))
        else:
            count = varint(tensor.count)
            normal = varying.message_value - tensor.size + tensor.count - varying.field_bytes + len(count)
            message = varint(normal)
            before, middle = read(at, varying.message_at), read(varying.message_at + varying.message_bytes, varying.field_at)
            piece = b"".join((before, message, middle, count, bytes(tensor.count)))
            message_at = length + len(before)
            length += len(piece)
            moved = Varying(message_at, len(message), normal, length - tensor.count - len(count), len(count))
            tensors.append(Tensor(tensor.name, tensor.kind, tensor.dims, length - tensor.count, tensor.count, tensor.count, moved))
        pieces.append(piece)
        at = tensor.start + tensor.size
    pieces.append(read(at, size))
    return b"".join(pieces), Scan(tensors, scan.links, outer, scan.by_name)


def lay_out(skeleton: bytes, scan: Scan, spelled: Mapping[int, bytes]) -> Layout:
    """The file of this scanned skeleton; `spelled` holds the values of the varying tensors by index, as they are written."""
    pieces: list[tuple[int, bytes]] = []
    starts: list[int] = []
    grown = 0
    heads: dict[int, tuple[bytes, bytes]] = {}
    for index, tensor in enumerate(scan.tensors):
        if tensor.varying:
            data = spelled[index]
            length = varint(len(data))
            message = varint(tensor.varying.message_value + len(data) - tensor.size + len(length) - tensor.varying.field_bytes)
            heads[index] = message, length
            grown += len(data) - tensor.size + len(length) - tensor.varying.field_bytes + len(message) - tensor.varying.message_bytes
    offset = at = 0
    if scan.outer:
        place, length_bytes, value = scan.outer
        head = skeleton[:place] + varint(value + grown)
        pieces.append((0, head))
        offset, at = len(head), place + length_bytes
    for index, tensor in enumerate(scan.tensors):
        if tensor.varying:
            message, length = heads[index]
            data = spelled[index]
            varying = tensor.varying
            piece = skeleton[at : varying.message_at] + message + skeleton[varying.message_at + varying.message_bytes : varying.field_at]
            piece += length
            pieces.append((offset, piece + data))
            offset += len(piece)
            starts.append(offset)
            offset += len(data)
            at = tensor.start + tensor.size
        else:
            if tensor.start > at:
                pieces.append((offset, skeleton[at : tensor.start]))
            offset += tensor.start - at
            starts.append(offset)
            offset += tensor.size
            at = tensor.start
    pieces.append((offset, skeleton[at:]))
    return Layout(pieces, starts, offset + len(skeleton) - at)


def lay_out_like(size: int, scan: Scan, spelled: Mapping[int, bytes], gaps: Mapping[int, bytes]) -> Layout:
    """The file of `size` bytes of this scan, changed: other varying values with the lengths that they move, and other bytes in some gaps.

    Gap n lies before the values of tensor n, the last one behind all. Raises: DeltaError when a gap has lengths that are moved.
    """
    tensors, edits = scan.tensors, []
    for index, data in spelled.items():
        tensor = tensors[index]
        if len(data) == tensor.size:
            continue
        varying = tensor.varying
        if varying is None:
            raise DeltaError("The delta gives a tensor another length that cannot have one.")
        length = varint(len(data))
        message = varint(varying.message_value + len(data) - tensor.size + len(length) - varying.field_bytes)
        edits += [
            (varying.message_at, varying.message_at + varying.message_bytes, message),
            (varying.field_at, tensor.start, length),
            (tensor.start, tensor.start + tensor.size, data),
        ]
    for index, data in gaps.items():
        before = tensors[index - 1]
        edits.append((before.start + before.size, tensors[index].start if index < len(tensors) else size, data))
    edits.sort()
    if scan.outer and edits:
        place, length_bytes, value = scan.outer
        grown = sum([len(data) - stop + start for start, stop, data in edits])
        if value + grown < 0:
            raise DeltaError("The delta takes more bytes out of the old file than its graph has.")
        edits.insert(0, (place, place + length_bytes, varint(value + grown)))
    pieces, copies, starts = [], [], []
    offset = at = first = 0
    for start, stop, data in edits:
        if start < at:
            raise DeltaError("The delta changes a place of the old file twice.")
        copies.append((offset, at, start))
        while first < len(tensors) and tensors[first].start < stop:
            starts.append(tensors[first].start + offset - at)
            first += 1
        offset += start - at
        pieces.append((offset, data))
        offset, at = offset + len(data), stop
    starts += [tensor.start + offset - at for tensor in tensors[first:]]
    copies.append((offset, at, size))
    pieces += [(starts[index], data) for index, data in spelled.items() if len(data) == tensors[index].size]
    return Layout(pieces, starts, offset + size - at, copies)


def without_values(scan: Scan) -> Scan:
    """The same scan at the positions of the skeleton, for formats without varying values."""
    tensors, gone = [], 0
    for tensor in scan.tensors:
        tensors.append(Tensor(tensor.name, tensor.kind, tensor.dims, tensor.start - gone, tensor.size, tensor.count))
        gone += tensor.size
    return Scan(tensors, scan.links, None, scan.by_name)


def table_of(scan: Scan) -> bytes:
    """Where the values lie: varints {gap since the last ones, bytes}. Only formats whose skeleton does not say it need this."""
    made, end = [], 0
    for tensor in scan.tensors:
        made += [varint(tensor.start - end), varint(tensor.size)]
        end = tensor.start + tensor.size
    return b"".join(made)


def _shrinkage(tensor: Tensor) -> int:
    varying = tensor.varying
    if varying is None:
        return 0
    fewer = tensor.size - tensor.count + varying.field_bytes - len(varint(tensor.count))
    return fewer + varying.message_bytes - len(varint(varying.message_value - fewer))
