"""Where the tensors of the old file lie and what its graph says about them, told by the delta, so that the device need not scan the file.

Whole numbers as varints, one column after another, all in the order of the file: {tensors, place of the length around the graph}; forms
{kind + 8 if varying + 16 * dimensions}; first dimensions, second ones, …; bytes between a tensor's values and those before; of tensors
of kind OTHER their bytes; of varying ones the bytes above one a value, and those from the message's length to the values; the way to the
scale (0: none), as zigzag; of those that have one, its axis; and of scales of biases {step of index, zigzag step of the scale of the
input, zigzag way from that to the scale of the weights}.

Nothing here is believed: the digest of the result decides, and a place outside of the file is refused.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np

from protocol.delta.container import MAX_FILE_BYTES
from protocol.delta.entropy import Array
from protocol.delta.errors import DeltaError
from protocol.delta.onnx import MAX_VARYING, varint_of
from protocol.delta.tensors import MAX_DIMS, MAX_TENSORS, WIDTHS, Kind, Links, Scan, Tensor, Varying

#: Bytes of all columns: what numpy makes of them is 2 MB.
MAX_PLACES_BYTES = 1 << 16
#: Bits of a number: files have at most 2^31 bytes.
_MOST_GROUPS = 5
_KINDS = tuple(Kind)
_WIDTH_OF = np.array([WIDTHS[kind] for kind in _KINDS], np.int64)
#: A form: the kind, whether values have varying lengths, and from which bit on how many dimensions.
HAS_VARYING, DIMS_SHIFT = 8, 4
_forms = np.arange(256)
#: Which forms there are: a kind, at most so many dimensions, and varying lengths only of 8 bits.
_IS_FORM: Array = (
    (_forms & 7 < len(_KINDS))
    & (_forms >> DIMS_SHIFT <= MAX_DIMS)
    & ((_forms & HAS_VARYING == 0) | np.isin(_forms & 7, (Kind.I8, Kind.U8)))
)
#: An axis that no tensor has; what lies beyond it is told as this.
NO_AXIS = 255


class _Columns:
    """The numbers, taken a column at a time. Raises: DeltaError when they end too early."""

    def __init__(self, data: bytes) -> None:
        self._numbers, self._at = _numbers(data), 0

    def take(self, count: int) -> Array:
        made = self._numbers[self._at : self._at + count]
        self._at += count
        if len(made) != count:
            raise DeltaError("The places of the delta are cut.")
        return made

    @property
    def left(self) -> int:
        return len(self._numbers) - self._at


def read_places(data: bytes, file: Any, size: int) -> Scan:
    """The scan of the old file of `size` bytes by these columns; its tensors have no names. Raises: DeltaError."""
    columns = _Columns(data)
    count, outer_at = columns.take(2).tolist()
    if count > MAX_TENSORS:
        raise DeltaError(f"The delta places {count} tensors; at most {MAX_TENSORS} are allowed.")
    forms = columns.take(count)
    if not _IS_FORM.take(forms, mode="clip").all():  # the last one is none
        raise DeltaError("The delta places a tensor of a form that does not exist.")
    kinds, varying_ones, ranks = forms & 7, (forms & HAS_VARYING).nonzero()[0], forms >> DIMS_SHIFT
    dims = np.ones((int(ranks.max(initial=0)), count), np.int64)
    for axis, row in enumerate(dims):
        with_axis = (ranks > axis).nonzero()[0]
        row[with_axis] = columns.take(len(with_axis))
    gaps, others = columns.take(count), (kinds == Kind.OTHER).nonzero()[0]
    counts = _counts(dims, others)
    counts[others] = columns.take(len(others))
    sizes = counts * _WIDTH_OF.take(kinds)
    sizes[varying_ones] += columns.take(len(varying_ones))
    ends = np.cumsum(gaps + sizes)
    if count and ends[-1] > size:
        raise DeltaError(f"The delta places tensors up to byte {ends[-1]} of an old file of {size}.")
    starts = ends - sizes
    varying: list[Varying | None] = [None] * count
    for index, one in _varying(columns, varying_ones, counts, starts, sizes, file):
        varying[index] = one
    padded = zip(*dims.tolist(), strict=True) if dims.size else [()] * count
    shapes = [shape[:rank] for shape, rank in zip(padded, ranks.tolist(), strict=True)]
    kind_of = [_KINDS[kind] for kind in kinds.tolist()]
    tensors = list(map(Tensor, repeat(b""), kind_of, shapes, starts.tolist(), sizes.tolist(), counts.tolist(), varying))
    links = _links(columns, kinds, counts)
    return Scan(tensors, links, _outer(file, outer_at))


def _numbers(data: bytes) -> Array:
    """All varints of these bytes, int64."""
    packed = np.frombuffer(data, np.uint8)
    lasts = (packed < 0x80).nonzero()[0]
    if not len(packed) or not len(lasts) or lasts[-1] != len(packed) - 1:
        raise DeltaError("The places of the delta are cut.")
    firsts = np.zeros(len(lasts), np.int64)
    firsts[1:] = lasts[:-1] + 1
    groups = lasts - firsts + 1
    if groups.max() > _MOST_GROUPS:
        raise DeltaError("The places of the delta have a number of more than 35 bits.")
    shifts = (np.arange(len(packed)) - firsts.repeat(groups)) * 7
    made: Array = np.add.reduceat((packed & 0x7F).astype(np.int64) << shifts, firsts)
    return made


def _counts(dims: Array, others: Array) -> Array:
    """Values of each tensor by its dimensions {axis, tensor}; those of kind OTHER have no such number."""
    exact = dims.astype(np.float64).prod(axis=0)  # whole numbers, as far as they are of any file
    exact[others] = 0
    if exact.max(initial=0) > MAX_FILE_BYTES:
        raise DeltaError("The delta places a tensor that is larger than any file.")
    made: Array = exact.astype(np.int64)
    return made


def _varying(columns: _Columns, indices: Array, counts: Array, starts: Array, sizes: Array, file: Any) -> Iterator[tuple[int, Varying]]:
    """Where the lengths around the values of these tensors lie; those of the messages are read there."""
    message_at = starts[indices] - columns.take(len(indices))
    if not len(indices):
        return iter(())
    counts, starts, sizes = counts[indices], starts[indices], sizes[indices]
    if counts.min() < 1 or counts.max() > MAX_VARYING:
        raise DeltaError("The delta places a tensor with too many values of varying length, or with none.")
    field_bytes = 1 + (sizes >> 7 > 0) + (sizes >> 14 > 0)
    if message_at.min() < 0 or (message_at + 3 + field_bytes > starts).any():  # between them stands at least what is of which type
        raise DeltaError("The delta places the length of a tensor where none is.")
    # message lengths as varints of up to three bytes, which lie in front of the values
    first, second, third = np.frombuffer(file, np.uint8)[message_at + np.arange(3)[:, None]].astype(np.int64)
    message_bytes = 1 + (first >> 7) + (first >> 7 & second >> 7)
    value = (first & 0x7F) + ((second & 0x7F) << 7) * (message_bytes > 1) + (third << 14) * (message_bytes > 2)
    if (value < sizes + field_bytes).any() or (third[message_bytes > 2] > 0x7F).any():
        raise DeltaError("The delta places the length of a tensor where none is.")
    columns_ = (message_at, message_bytes, value, starts - field_bytes, field_bytes)
    return zip(indices.tolist(), map(Varying, *[column.tolist() for column in columns_]), strict=True)


def _outer(file: Any, at: int) -> tuple[int, int, int]:
    try:
        value, end = varint_of(file, at)
    except IndexError as error:
        raise DeltaError("The delta places a length behind the end of the old file.") from error
    return at, end - at, value


def _links(columns: _Columns, kinds: Array, counts: Array) -> Links:
    """What scales belong to; every index is one of a tensor, and scales are of floating point."""
    of_scales = columns.take(len(kinds))
    quantized = of_scales.nonzero()[0]
    scales = quantized + _unzigzag(of_scales[quantized])
    axes = columns.take(len(quantized))
    if columns.left % 3:
        raise DeltaError("The places of the delta do not end where they should.")
    products = columns.left // 3
    steps, ways = columns.take(products), _unzigzag(columns.take(2 * products))
    biases, sources = np.cumsum(steps) - 1, np.cumsum(ways[:products])
    weights = sources + ways[products:]
    linked = np.concatenate((scales, biases, sources, weights))
    if len(linked) and (linked.min() < 0 or linked.max() >= len(kinds) or (kinds[linked] != Kind.F32).any()):
        raise DeltaError("The delta links a tensor to a scale that is not there.")
    if (steps == 0).any() or (biases == sources).any() or (biases == weights).any():
        raise DeltaError("The delta makes a scale the product of itself, or tells it twice.")
    if (counts[sources] != 1).any() or (counts[biases] != counts[weights]).any():
        raise DeltaError("The delta makes a scale the product of others that have not as many values.")
    pairs = zip(sources.tolist(), weights.tolist(), strict=True)
    of = quantized.tolist()
    return Links(
        dict(zip(of, scales.tolist(), strict=True)),
        dict(zip(of, axes.tolist(), strict=True)),
        dict(zip(biases.tolist(), pairs, strict=True)),
    )


def _unzigzag(numbers: Array) -> Array:
    made: Array = (numbers >> 1) ^ -(numbers & 1)
    return made
