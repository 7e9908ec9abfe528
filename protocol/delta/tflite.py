"""TFLite files taken apart: FlatBuffers are read in place, never written. Values are tensors' buffers, scales, zero points and ranges.

What is read may have holes (`Gapped`): then the values are not there, and nothing here looks at them.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.delta.tensors import LET_GO_EVERY, MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS, Kind, Links, Scan, Tensor, UnknownModelError

#: TensorType → our kind and bytes per value.
_KINDS = {0: (Kind.F32, 4), 1: (Kind.F16, 2), 2: (Kind.I32, 4), 3: (Kind.U8, 1), 9: (Kind.I8, 1), 4: (Kind.I64, 8)}
#: BuiltinOperator: convolution, depthwise convolution, fully connected, transposed convolution has its bias elsewhere.
_WITH_BIAS = frozenset({3, 4, 9})
#: What a tensor's quantization holds: field, suffix of the name, kind, bytes per value.
_QUANTIZATION = ((0, b"#min", Kind.F32, 4), (1, b"#max", Kind.F32, 4), (2, b"#scale", Kind.F32, 4), (3, b"#zero", Kind.I64, 8))


class Readable(Protocol):
    """Bytes, or what can be read like them."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice) -> bytes: ...


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


@dataclass(frozen=True, slots=True)
class _Found:
    name: bytes
    dims: tuple[int, ...]
    type: int
    buffer: int
    quantization: int


def scan_tflite(data: Readable, *, let_go: Callable[[], None] = lambda: None) -> Scan:
    """Where the tensors of the model lie. Raises: UnknownModelError when it is no TFLite file."""
    if bytes(data[4:8]) != b"TFL3":
        raise UnknownModelError("The file is no TFLite model.")
    return _Reader(data, let_go).scan()


class _Reader:
    def __init__(self, data: Readable, let_go: Callable[[], None]) -> None:
        self.data, self.let_go = data, let_go
        #: Bytes of values passed since pages of the mapped file were let go.
        self.passed = 0
        self.tensors: list[Tensor] = []
        self.seen: set[int] = set()
        #: Tables and bytes of names so far. Vectors may share what they point to, so a small file could name the same thing without end.
        self.tables = self.name_bytes = 0

    def scan(self) -> Scan:
        model = self._u32(0)
        buffers = self._tables(model, 4)
        codes = [self._operator(one) for one in self._tables(model, 1)]
        links, scales, values = Links(), {}, {}
        for graph in self._tables(model, 2):
            found = [self._tensor(one) for one in self._counted(self._tables(graph, 0))]
            for number, one in enumerate(found):
                scales[graph, number], values[graph, number] = self._add(one, buffers)
            for operator in self._counted(self._tables(graph, 3)):
                code = self._number(operator, 0, 4)
                if code < len(codes) and codes[code] in _WITH_BIAS:
                    values_of = self._numbers(operator, 1, first=3)
                    self._link(links, [scales.get((graph, one)) for one in values_of], self.tensors)
            for number, one in enumerate(found):
                value, scale = values[graph, number], scales[graph, number]
                if value is not None and scale is not None:
                    links.scale_of[value] = scale
                    links.scale_axis[value] = self._number(one.quantization, 6, 4)
        return self._ordered(links)

    def _ordered(self, links: Links) -> Scan:
        order = sorted(range(len(self.tensors)), key=lambda index: self.tensors[index].start)
        place = {index: number for number, index in enumerate(order)}
        tensors = [self.tensors[index] for index in order]
        end = 0
        for tensor in tensors:
            if tensor.start < end or tensor.start + tensor.size > len(self.data):
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
            for field, suffix, kind, width in _QUANTIZATION:
                start, count = self._vector(found.quantization, field, width)
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
        start, size = self._number(buffer, 1, 8), self._number(buffer, 2, 8)
        if start <= 1:  # the schema: 0 and 1 stand for "inside"
            return self._vector(buffer, 0, 1)
        if start + size > len(self.data):
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
        start, length = self._vector(table, 3, 1)
        if length > MAX_NAME_BYTES:
            raise UnknownModelError(f"The name of a tensor has {length} bytes; at most {MAX_NAME_BYTES} are allowed.")
        self.name_bytes += length
        if self.name_bytes > len(self.data):
            raise UnknownModelError("The names of the tensors are longer than the file.")
        dims = tuple(self._numbers(table, 0, first=MAX_DIMS + 1))
        if len(dims) > MAX_DIMS:
            raise UnknownModelError(f"A tensor has more than the {MAX_DIMS} dimensions allowed.")
        quantization = self._field(table, 4)
        return _Found(
            self._read(start, length) if length else b"",
            dims,
            self._number(table, 1, 1),
            self._number(table, 2, 4),
            quantization + self._u32(quantization) if quantization else 0,
        )

    def _operator(self, table: int) -> int:
        return max(self._number(table, 0, 1), self._number(table, 3, 4))

    def _read(self, at: int, count: int) -> bytes:
        if at < 0 or at + count > len(self.data):
            raise UnknownModelError("The model points outside of its file.")
        made = bytes(self.data[at : at + count])
        if len(made) != count:
            raise UnknownModelError("The model points into values.")
        return made

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._read(at, 4), "little")

    def _field(self, table: int, number: int) -> int:
        """Where a field of a table lies; 0 when it is not there."""
        vtable = table - int.from_bytes(self._read(table, 4), "little", signed=True)
        if 4 + 2 * number + 2 > int.from_bytes(self._read(vtable, 2), "little"):
            return 0
        offset = int.from_bytes(self._read(vtable + 4 + 2 * number, 2), "little")
        return table + offset if offset else 0

    def _number(self, table: int, field: int, width: int) -> int:
        at = self._field(table, field) if table else 0
        return int.from_bytes(self._read(at, width), "little") if at else 0

    def _vector(self, table: int, field: int, width: int) -> tuple[int, int]:
        """Where the elements of a vector lie, and how many they are."""
        at = self._field(table, field)
        if not at:
            return 0, 0
        at += self._u32(at)
        count = self._u32(at)
        if at + 4 + count * width > len(self.data):
            raise UnknownModelError("A vector of the model is longer than its file.")
        return at + 4, count

    def _numbers(self, table: int, field: int, *, first: int) -> list[int]:
        """The numbers that a vector begins with, at most `first`."""
        start, count = self._vector(table, field, 4)
        count = min(count, first)
        data = self._read(start, 4 * count) if count else b""
        return [int.from_bytes(data[4 * one : 4 * one + 4], "little") for one in range(count)]

    def _counted(self, tables: list[int]) -> list[int]:
        self.tables += len(tables)
        if self.tables > MAX_TENSORS:
            raise UnknownModelError(f"The model has more than {MAX_TENSORS} tensors and operators.")
        return tables

    def _tables(self, table: int, field: int) -> list[int]:
        start, count = self._vector(table, field, 4)
        if count > MAX_TENSORS:
            raise UnknownModelError("The model has too many tables.")
        return [start + 4 * one + self._u32(start + 4 * one) for one in range(count)]
