"""TFLite files taken apart: FlatBuffers are read in place, never written. Values are tensors' buffers, scales, zero points and ranges.

What is read may have holes (`Gapped`): then the values are not there, and nothing here looks at them.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from mmap import mmap
from struct import Struct
from typing import NamedTuple

from protocol.delta.tensors import LET_GO_EVERY, MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS, Kind, Links, Scan, Tensor, UnknownModelError

#: TensorType → our kind and bytes per value.
_KINDS = {0: (Kind.F32, 4), 1: (Kind.F16, 2), 2: (Kind.I32, 4), 3: (Kind.U8, 1), 9: (Kind.I8, 1), 4: (Kind.I64, 8)}
#: BuiltinOperator: convolution, depthwise convolution, fully connected, transposed convolution has its bias elsewhere.
_WITH_BIAS = frozenset({3, 4, 9})
#: What a tensor's quantization holds: field, suffix of the name, kind, bytes per value.
_QUANTIZATION = ((0, b"#min", Kind.F32, 4), (1, b"#max", Kind.F32, 4), (2, b"#scale", Kind.F32, 4), (3, b"#zero", Kind.I64, 8))


#: Little-endian numbers of FlatBuffers: widths, ways to what is told elsewhere, and the signed way back to a table's vtable.
_U8, _U16, _U32, _U64, _BACK = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q"), Struct("<i")
#: Fields of a table that are looked at, by number: no schema's number here is higher.
_FIELDS = 7
#: Vtables that are remembered: the tables of one kind share theirs, and a hostile file has one for each.
_MAX_VTABLES = 64


class Gapped:
    """A skeleton read at the positions of the whole file; `spans` are where values would lie {start, bytes}, in order and apart."""

    def __init__(self, skeleton: bytes, spans: Sequence[tuple[int, int]]) -> None:
        self._skeleton = skeleton
        self._size = len(skeleton) + sum(size for _, size in spans)
        self._ends, self._gone = [0], [0]
        for start, size in spans:
            self._ends.append(start + size)
            self._gone.append(self._gone[-1] + size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        place = bisect_right(self._ends, key.start) - 1
        return self._skeleton[key.start - self._gone[place] : key.stop - self._gone[place]]

    def unpack(self, form: Struct, at: int) -> tuple[int, ...]:
        """Numbers of this form that stand there. Raises: struct.error when values or the end of the file do."""
        return form.unpack(self[at : at + form.size])


#: Bytes, or what can be read like them.
Readable = bytes | mmap | Gapped


class _Found(NamedTuple):
    name: bytes
    dims: tuple[int, ...]
    type: int
    buffer: int
    quantization: int


def scan_tflite(data: Readable, *, let_go: Callable[[], None] = lambda: None) -> Scan:
    """Where the tensors of the model lie. Raises: UnknownModelError when it is no TFLite file."""
    if bytes(data[4:8]) != b"TFL3":
        raise UnknownModelError("The file is no TFLite model.")
    try:
        return _Reader(data, let_go).scan()
    except struct.error as error:
        raise UnknownModelError("The model points outside of its file, or into values.") from error


@lru_cache(maxsize=64)
def _words(count: int) -> Struct:
    return Struct(f"<{count}I")


class _Reader:
    """Positions are never negative but for vtables, whose ways go back: what lies behind the end is `struct.error`."""

    def __init__(self, data: Readable, let_go: Callable[[], None]) -> None:
        self.data, self.let_go = data, let_go
        self.size = len(data)
        #: The numbers of a form that stand at a place.
        self.unpack: Callable[[Struct, int], tuple[int, ...]]
        self.unpack = data.unpack if isinstance(data, Gapped) else lambda form, at: form.unpack_from(data, at)
        #: Where the first fields of a table lie, from its start (0: nowhere), by the place of its vtable.
        self.vtables: dict[int, tuple[int, ...]] = {}
        #: Bytes of values passed since pages of the mapped file were let go.
        self.passed = 0
        self.tensors: list[Tensor] = []
        self.seen: set[int] = set()
        #: Tables and bytes of names so far. Vectors may share what they point to, so a small file could name the same thing without end.
        self.tables = self.name_bytes = 0

    def scan(self) -> Scan:
        model = self.unpack(_U32, 0)[0]
        buffers = self._tables(model, 4)
        codes = [self._operator(one) for one in self._tables(model, 1)]
        links, scales, values = Links(), {}, {}
        for graph in self._tables(model, 2):
            found = [self._tensor(one) for one in self._counted(self._tables(graph, 0))]
            for number, one in enumerate(found):
                scales[graph, number], values[graph, number] = self._add(one, buffers)
            for operator in self._counted(self._tables(graph, 3)):
                fields = self._fields(operator)
                code = self._number(operator, fields[0], _U32)
                if code < len(codes) and codes[code] in _WITH_BIAS:
                    values_of = self._numbers(operator, fields[1], first=3)
                    self._link(links, [scales.get((graph, one)) for one in values_of], self.tensors)
            for number, one in enumerate(found):
                value, scale = values[graph, number], scales[graph, number]
                if value is not None and scale is not None:
                    links.scale_of[value] = scale
                    links.scale_axis[value] = self._number(one.quantization, self._fields(one.quantization)[6], _U32)
        return self._ordered(links)

    def _ordered(self, links: Links) -> Scan:
        order = sorted(range(len(self.tensors)), key=lambda index: self.tensors[index].start)
        place = {index: number for number, index in enumerate(order)}
        tensors = [self.tensors[index] for index in order]
        end = 0
        for tensor in tensors:
            if tensor.start < end or tensor.start + tensor.size > self.size:
                raise UnknownModelError("Two tensors of the model overlap, or one lies outside of the file.")
            end = tensor.start + tensor.size
        names = {tensor.name: index for index, tensor in enumerate(tensors)}
        if len(names) != len(tensors):
            raise UnknownModelError("Two tensors of the model have one name.")
        moved = Links(
            {place[one]: place[other] for one, other in links.scale_of.items()},
            {place[one]: axis for one, axis in links.scale_axis.items()},
            {place[one]: (place[a], place[b]) for one, (a, b) in links.product_of.items()},
        )
        return Scan(tensors, moved, None, names)

    def _add(self, found: _Found, buffers: list[int]) -> tuple[int | None, int | None]:
        """The scale and the values of a tensor, by index; None where there are none, or another tensor has them."""
        scale = None
        if found.quantization:
            fields = self._fields(found.quantization)
            for field, suffix, kind, width in _QUANTIZATION:
                if not fields[field]:
                    continue
                start, count = self._vector(found.quantization, fields[field], width)
                if count and self._is_new(start):
                    self.tensors.append(Tensor(found.name + suffix, kind, (count,), start, count * width, count))
                    scale = len(self.tensors) - 1 if suffix == b"#scale" else scale
        if not 0 < found.buffer < len(buffers):
            return scale, None
        start, size = self._values(buffers[found.buffer])
        if not size or not self._is_new(start):
            return scale, None
        kind, width = _KINDS.get(found.type, (Kind.OTHER, 1))
        count = 1
        for dim in found.dims:
            count *= dim
        if kind is not Kind.OTHER and count * width != size:
            kind, width = Kind.OTHER, 1
        self.tensors.append(Tensor(found.name, kind, found.dims, start, size, size // width))
        self.passed += size
        if self.passed > LET_GO_EVERY:
            self.passed = 0
            self.let_go()
        return scale, len(self.tensors) - 1

    def _values(self, buffer: int) -> tuple[int, int]:
        """Where the bytes of a buffer lie, and how many: in the FlatBuffer, or behind it at `offset`, as large models keep them."""
        fields = self._fields(buffer)
        start, size = self._number(buffer, fields[1], _U64), self._number(buffer, fields[2], _U64)
        if start <= 1:  # the schema: 0 and 1 stand for "inside"
            return self._vector(buffer, fields[0], 1)
        if start + size > self.size:
            raise UnknownModelError("The values of a tensor lie outside of the file.")
        return start, size

    def _is_new(self, start: int) -> bool:
        if len(self.tensors) >= MAX_TENSORS:
            raise UnknownModelError(f"The model has more than {MAX_TENSORS} tensors.")
        if start in self.seen:
            return False
        self.seen.add(start)
        return True

    @staticmethod
    def _link(links: Links, scales: list[int | None], tensors: list[Tensor]) -> None:
        if len(scales) < 3:
            return
        source, weight, bias = scales[:3]
        if source is None or weight is None or bias is None or bias in {source, weight}:
            return
        if tensors[source].count == 1 and tensors[weight].count == tensors[bias].count:
            links.product_of.setdefault(bias, (source, weight))

    def _tensor(self, table: int) -> _Found:
        fields = self._fields(table)
        start, length = self._vector(table, fields[3], 1)
        if length > MAX_NAME_BYTES:
            raise UnknownModelError(f"The name of a tensor has {length} bytes; at most {MAX_NAME_BYTES} are allowed.")
        self.name_bytes += length
        if self.name_bytes > self.size:
            raise UnknownModelError("The names of the tensors are longer than the file.")
        dims = self._numbers(table, fields[0], first=MAX_DIMS + 1)
        if len(dims) > MAX_DIMS:
            raise UnknownModelError(f"A tensor has more than the {MAX_DIMS} dimensions allowed.")
        quantization = table + fields[4] if fields[4] else 0
        return _Found(
            bytes(self.data[start : start + length]) if length else b"",
            dims,
            self._number(table, fields[1], _U8),
            self._number(table, fields[2], _U32),
            quantization + self.unpack(_U32, quantization)[0] if quantization else 0,
        )

    def _operator(self, table: int) -> int:
        fields = self._fields(table)
        return max(self._number(table, fields[0], _U8), self._number(table, fields[3], _U32))

    def _fields(self, table: int) -> tuple[int, ...]:
        """Where the first `_FIELDS` fields of a table lie, from its start; 0 for one that is not there."""
        vtable = table - self.unpack(_BACK, table)[0]
        fields = self.vtables.get(vtable)
        return self._vtable(vtable) if fields is None else fields

    def _vtable(self, at: int) -> tuple[int, ...]:
        if at < 0:
            raise UnknownModelError("The model points outside of its file.")
        count = min(max(0, self.unpack(_U16, at)[0] - 4) // 2, _FIELDS)
        fields = self.unpack(Struct(f"<{count}H"), at + 4) + (0,) * (_FIELDS - count)
        if len(self.vtables) == _MAX_VTABLES:
            self.vtables.clear()
        self.vtables[at] = fields
        return fields

    def _number(self, table: int, field: int, form: Struct) -> int:
        """The number at a place in a table; 0 when it is not there."""
        return self.unpack(form, table + field)[0] if field else 0

    def _vector(self, table: int, field: int, width: int) -> tuple[int, int]:
        """Where the elements of a vector lie, and how many they are."""
        if not field:
            return 0, 0
        at = table + field
        at += self.unpack(_U32, at)[0]
        count = self.unpack(_U32, at)[0]
        if at + 4 + count * width > self.size:
            raise UnknownModelError("A vector of the model is longer than its file.")
        return at + 4, count

    def _numbers(self, table: int, field: int, *, first: int) -> tuple[int, ...]:
        """The numbers that a vector begins with, at most `first`."""
        start, count = self._vector(table, field, 4)
        return self.unpack(_words(min(count, first)), start)

    def _counted(self, tables: list[int]) -> list[int]:
        self.tables += len(tables)
        if self.tables > MAX_TENSORS:
            raise UnknownModelError(f"The model has more than {MAX_TENSORS} tensors and operators.")
        return tables

    def _tables(self, table: int, field: int) -> list[int]:
        """Where the tables of a vector lie, which is the field of that number."""
        start, count = self._vector(table, self._fields(table)[field], 4)
        if count > MAX_TENSORS:
            raise UnknownModelError("The model has too many tables.")
        ways = self.unpack(_words(count), start)
        return [start + 4 * number + way for number, way in enumerate(ways)]
