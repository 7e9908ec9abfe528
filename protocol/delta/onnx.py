"""ONNX files taken apart at the level of protobuf's wire format: initializers of the main graph, and what its nodes say about them.

With `has_holes` the bytes are a skeleton: the values that their lengths speak of are not there.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from protocol.delta.tensors import (
    LET_GO_EVERY,
    MAX_DIMS,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    Kind,
    Links,
    Scan,
    Tensor,
    UnknownModelError,
    Varying,
    varint,
)

#: TensorProto.DataType → our kind and bytes per value.
_KINDS = {1: (Kind.F32, 4), 6: (Kind.I32, 4), 3: (Kind.I8, 1), 2: (Kind.U8, 1), 10: (Kind.F16, 2)}
_VARYING = frozenset({2, 3})
#: Most values of a tensor that is written in varying length; larger ones stay as they are.
_MAX_VARYING = 4096
_LENGTH, _VARINT, _FIXED64, _FIXED32 = 2, 0, 1, 5
#: Nodes that are kept, and inputs of each: QLinearConv has nine. More would take memory that no header announces.
_MAX_NODES, _MAX_INPUTS = 65_536, 10
#: Keys of TensorProto: dims, data_type; and name, raw_data, float_data, int32_data, packed dims.
_PLAIN, _SIZED = frozenset({0x08, 0x10}), frozenset({0x42, 0x4A, 0x22, 0x2A, 0x0A})
#: Operators of nodes that derive constants, as field 4; how nearly all of them look; and how the attribute `axis` begins.
_OPERATOR = re.compile(rb"\x22[\x04\x0b\x0d](Conv|Gemm|QLinearConv|ConvTranspose)")
_DEQUANTIZES = b"\x22\x10DequantizeLinear"
_AXIS = b"\x0a\x04axis\x18"


def scan_onnx(data: Any, *, has_holes: bool = False, let_go: Callable[[], None] = lambda: None) -> Scan:
    """Where the tensors of the model lie. Raises: UnknownModelError when it is no ONNX file, or one with data outside of it."""
    try:
        return _Walker(data, has_holes=has_holes, let_go=let_go).walk()
    except (IndexError, ValueError, OverflowError) as error:
        raise UnknownModelError("The file is no ONNX model, or it is cut.") from error


class _Node(NamedTuple):
    op: bytes
    inputs: list[bytes]
    output: bytes | None
    axis: int


class _Walker:
    """Positions are those of `data`; `self.gone` counts bytes of values that are not there: a message ends at a position plus `gone`."""

    def __init__(self, data: Any, *, has_holes: bool, let_go: Callable[[], None]) -> None:
        self.data, self.has_holes, self.let_go = data, has_holes, let_go
        self.size = len(data)
        self.gone = 0
        self.tensors: list[Tensor] = []
        self.nodes: list[_Node] = []

    def walk(self) -> Scan:
        at, outer = 0, None
        while at < self.size:
            key, at = self._varint(at)
            if key >> 3 == 7 and key & 7 == _LENGTH:
                if outer is not None:
                    raise UnknownModelError("The model has two graphs.")
                place = at
                length, at = self._varint(at)
                outer = (place, at - place, length)
                if varint(length) != bytes(self.data[place:at]):
                    raise UnknownModelError("The length of the graph is not in its shortest form.")
                at = self._graph(at, at + self.gone + length)
            else:
                at = self._skip(key, at)
        if outer is None:
            raise UnknownModelError("The file holds no graph.")
        if at != self.size:
            raise UnknownModelError("The model ends in the middle of a field.")
        names = {tensor.name: index for index, tensor in enumerate(self.tensors)}
        if len(names) != len(self.tensors):
            raise UnknownModelError("Two tensors of the model have one name.")
        return Scan(self.tensors, _links(self.nodes, names, self.tensors), outer, names)

    def _varint(self, at: int) -> tuple[int, int]:
        byte = self.data[at]
        if byte < 0x80:
            return byte, at + 1
        value, shift = byte & 0x7F, 7
        while True:
            at += 1
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at + 1
            shift += 7
            if shift > 63:
                raise UnknownModelError("A number of the model is longer than 64 bits.")

    def _skip(self, key: int, at: int) -> int:
        kind = key & 7
        if kind == _VARINT:
            return self._varint(at)[1]
        if kind == _LENGTH:
            length, at = self._varint(at)
            at += length
        elif kind == _FIXED32:
            at += 4
        elif kind == _FIXED64:
            at += 8
        else:
            raise UnknownModelError(f"The model has a field of wire type {kind}.")
        if at > self.size:
            raise UnknownModelError("The model is cut.")
        return at

    def _graph(self, at: int, end: int) -> int:
        data, varint_at, tensor_at, node_at, until = self.data, self._varint, self._tensor, self._node, LET_GO_EVERY
        while at + self.gone < end:
            key = data[at]
            key, at = (key, at + 1) if key < 0x80 else varint_at(at)
            if key == 0x2A:  # initializer
                at = tensor_at(at)
                if at > until:
                    until = at + LET_GO_EVERY
                    self.let_go()
            elif key == 0x0A:  # node
                length, at = data[at], at + 1
                if length >= 0x80:
                    length, at = (length - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_at(at - 1)
                node_at(at, at + length)
                at += length
            else:
                at = self._skip(key, at)
        if at + self.gone != end:
            raise UnknownModelError("The graph ends in the middle of a field.")
        return at

    def _node(self, at: int, end: int) -> None:
        """Keep the names of a node that derives constants: inputs and outputs come first, as protobuf writes fields in their order."""
        data, op, axis = self.data, b"DequantizeLinear", 1
        is_dequantizing = data.find(_DEQUANTIZES, at, end) >= 0
        if not is_dequantizing:
            found = _OPERATOR.search(data, at, end)
            if found is None:
                return
            op = found[1]
        inputs: list[bytes] = []
        output = None
        while at < end and (key := data[at]) in {0x0A, 0x12} and output is None:
            length = data[at + 1]
            length, at = (length, at + 2) if length < 0x80 else self._varint(at + 1)
            if at + length > end:
                raise UnknownModelError("A node ends in the middle of a field.")
            if key == 0x12:
                output = data[at : at + length]
            elif len(inputs) < _MAX_INPUTS:
                inputs.append(data[at : at + length])
            at += length
        if is_dequantizing and (place := data.find(_AXIS, at, end)) >= 0:
            axis = self._varint(place + len(_AXIS))[0]
        self.nodes.append(_Node(op, inputs, output, axis))
        if len(self.nodes) > _MAX_NODES:
            raise UnknownModelError(f"The model has more than {_MAX_NODES} nodes of the kinds that derive constants.")

    def _tensor(self, at: int) -> int:
        data, varint_at, has_holes = self.data, self._varint, self.has_holes
        message_at, before = at, self.gone
        length, at = data[at], at + 1
        if length >= 0x80:  # mostly of two bytes: without a call
            length, at = (length - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_at(at - 1)
        message_bytes, end = at - message_at, at + before + length
        #: Where the message ends at the positions of `data`, and where `data` does.
        last, size_of_data = end - before, self.size
        dims: list[int] = []
        type_, name, value, elements = 0, b"", None, None
        # nearly every tensor begins like this
        while at < last and data[at] == 0x08 and (value_of := data[at + 1]) < 0x80 and len(dims) <= MAX_DIMS:
            dims.append(value_of)
            at += 2
        while at < last:
            key, at = data[at], at + 1
            if key >= 0x80:
                key, at = varint_at(at - 1)
            if key in _PLAIN:
                value_of, at = data[at], at + 1
                if value_of >= 0x80:
                    value_of, at = varint_at(at - 1)
                if key == 0x08:
                    dims.append(value_of)
                    if len(dims) > MAX_DIMS:
                        raise UnknownModelError(f"A tensor has more than the {MAX_DIMS} dimensions allowed.")
                else:
                    type_ = value_of
            elif key in _SIZED:
                field_at = at
                size, at = data[at], at + 1
                if size >= 0x80:
                    size, at = (size - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_at(at - 1)
                if key == 0x42:
                    if size > MAX_NAME_BYTES:
                        raise UnknownModelError(f"The name of a tensor has {size} bytes; at most {MAX_NAME_BYTES} are allowed.")
                    name = data[at : at + size]
                elif key == 0x2A:
                    elements = (field_at, at, size) if elements is None else (-1, -1, -1)
                elif key == 0x0A:
                    dims += self._packed_dims(at, at + size)
                elif size:
                    if value is not None:
                        raise UnknownModelError("A tensor has its values twice.")
                    value = at, size
                    if has_holes:
                        self.gone += size
                        last -= size
                        at -= size
                at += size
            elif key >> 3 == 13 or key == 0x70:
                raise UnknownModelError("The model keeps values outside of its file.")
            else:
                at = self._skip(key, at)
            if at > size_of_data:
                raise UnknownModelError("The model is cut.")
        if at != last or len(dims) > MAX_DIMS:
            raise UnknownModelError("A tensor ends in the middle of a field, or it has too many dimensions.")
        if len(self.tensors) >= MAX_TENSORS:
            raise UnknownModelError(f"The model has more than {MAX_TENSORS} tensors.")
        if value is not None:
            self._add(name, type_, dims, value)
        elif elements is not None:
            self._add_varying(name, type_, dims, elements, (message_at, message_bytes, length))
        return at

    def _packed_dims(self, at: int, stop: int) -> list[int]:
        dims: list[int] = []
        while at < stop and len(dims) <= MAX_DIMS:
            dim, at = self._varint(at)
            dims.append(dim)
        return dims

    def _add(self, name: bytes, type_: int, dims: list[int], value: tuple[int, int]) -> None:
        kind, width = _KINDS.get(type_, (Kind.OTHER, 1))
        count = 1
        for dim in dims:
            count *= dim
        if kind is not Kind.OTHER and count * width != value[1]:
            kind = Kind.OTHER
            width = 1
        self.tensors.append(Tensor(name, kind, tuple(dims), value[0], value[1], value[1] // width))

    def _add_varying(self, name: bytes, type_: int, dims: list[int], elements: tuple[int, int, int], message: tuple[int, int, int]) -> None:
        """Taken apart only when it is written as expected: each value once, each length in its shortest form."""
        field_at, at, size = elements
        message_at, message_bytes, length = message
        count = 1
        for dim in dims:
            count *= dim
        if type_ not in _VARYING or field_at < 0 or not 0 < count <= _MAX_VARYING or count > size:
            return
        if self.data[message_at : message_at + message_bytes] != varint(length) or self.data[field_at:at] != varint(size):
            return
        varying = Varying(message_at, message_bytes, length, field_at, at - field_at)
        self.tensors.append(Tensor(name, _KINDS[type_][0], tuple(dims), at, size, count, varying))


def varying_values(data: Any, tensor: Tensor) -> list[int]:
    """The values of a varying tensor. Raises: UnknownModelError when they are not written in their shortest form."""
    values, at, stop = [], tensor.start, tensor.start + tensor.size
    if tensor.size == tensor.count and (short := data[at:stop]) and max(short) < 0x80:
        return list(short)
    low, high = (-128, 127) if tensor.kind is Kind.I8 else (0, 255)
    while at < stop:
        value, shift = 0, 0
        while True:
            if at >= stop or shift > 63:
                raise UnknownModelError("A value of the model is cut.")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        value -= 1 << 64 if value >> 63 else 0
        if not low <= value <= high:
            raise UnknownModelError("A value of the model does not fit its type.")
        values.append(value)
    if len(values) != tensor.count:
        raise UnknownModelError("A tensor has another number of values than its dimensions say.")
    return values


def _links(nodes: list[_Node], names: dict[bytes, int], tensors: list[Tensor]) -> Links:
    links = Links()
    dequantized: dict[bytes, tuple[int | None, int | None]] = {}
    for node in nodes:
        if node.op == b"DequantizeLinear" and len(node.inputs) >= 2 and node.output is not None:
            value, scale = names.get(node.inputs[0]), names.get(node.inputs[1])
            dequantized[node.output] = value, scale
            if value is not None and scale is not None and tensors[scale].kind is Kind.F32:
                links.scale_of[value] = scale
                links.scale_axis[value] = node.axis
    for node in nodes:
        if node.op == b"DequantizeLinear":
            continue
        if node.op == b"QLinearConv":
            if len(node.inputs) == 9:
                _link_qlinear(links, [names.get(name) for name in node.inputs], tensors)
            continue
        if len(node.inputs) < 3:
            continue
        source, weight, bias = (dequantized.get(name) for name in node.inputs[:3])
        if source and weight and bias:
            _link_product(links, source[1], weight[1], bias[1], tensors)
    return links


def _link_product(links: Links, source: int | None, weight: int | None, bias: int | None, tensors: list[Tensor]) -> None:
    if source is None or weight is None or bias is None or bias in {source, weight}:
        return
    a, b, c = tensors[source], tensors[weight], tensors[bias]
    if a.kind is b.kind is c.kind is Kind.F32 and a.count == 1 and b.count == c.count:
        links.product_of.setdefault(bias, (source, weight))


def _link_qlinear(links: Links, inputs: list[int | None], tensors: list[Tensor]) -> None:
    weight, scale = inputs[3], inputs[4]
    if weight is not None and scale is not None and tensors[scale].kind is Kind.F32:
        links.scale_of.setdefault(weight, scale)
        links.scale_axis.setdefault(weight, 0)
