"""ONNX files taken apart at the level of protobuf's wire format: initializers of the main graph, and what its nodes say about them.

With `has_holes` the bytes are a skeleton: the values that their lengths speak of are not there.
"""

import re
from collections.abc import Callable
from typing import Any

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
_OTHER = Kind.OTHER, 1
_VARYING = frozenset({2, 3})
#: Most values of a tensor that is written in varying length; larger ones stay as they are.
MAX_VARYING = 4096
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


#: Operator, inputs, first output, axis.
_Node = tuple[bytes, list[bytes], bytes | None, int]


def varint_of(data: Any, at: int) -> tuple[int, int]:
    """The number at this place in protobuf's variable-length form, and where it ends. Raises: UnknownModelError; IndexError."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise UnknownModelError("A number of the model is longer than 64 bits.")


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
            key, at = varint_of(self.data, at)
            if key >> 3 == 7 and key & 7 == _LENGTH:
                if outer is not None:
                    raise UnknownModelError("The model has two graphs.")
                place = at
                length, at = varint_of(self.data, at)
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

    def _skip(self, key: int, at: int) -> int:
        kind = key & 7
        if kind == _VARINT:
            return varint_of(self.data, at)[1]
        if kind == _LENGTH:
            length, at = varint_of(self.data, at)
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
        data, tensor_at, node_of, until = self.data, self._tensor, self._node, LET_GO_EVERY
        while at + self.gone < end:
            key = data[at]
            key, at = (key, at + 1) if key < 0x80 else varint_of(data, at)
            if key == 0x2A:  # initializer
                at = tensor_at(at)
                if at > until:
                    until = at + LET_GO_EVERY
                    self.let_go()
            elif key == 0x0A:  # node
                length, at = data[at], at + 1
                if length >= 0x80:
                    length, at = (length - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_of(data, at - 1)
                node_of(data[at : at + length])
                at += length
            else:
                at = self._skip(key, at)
        if at + self.gone != end:
            raise UnknownModelError("The graph ends in the middle of a field.")
        return at

    def _node(self, body: bytes) -> None:
        """Keep the names of a node that derives constants: inputs and outputs come first, as protobuf writes fields in their order."""
        is_dequantizing = _DEQUANTIZES in body
        op = b"DequantizeLinear"
        if not is_dequantizing:
            if not (b"Conv" in body or b"Gemm" in body) or (found := _OPERATOR.search(body)) is None:
                return
            op = found[1]
        inputs: list[bytes] = []
        output, at, end = None, 0, len(body)
        while at < end and ((key := body[at]) == 0x0A or key == 0x12) and output is None:
            length, at = body[at + 1], at + 2
            if length >= 0x80:
                length, at = varint_of(body, at - 1)
            after = at + length
            if after > end:
                raise UnknownModelError("A node ends in the middle of a field.")
            if key == 0x12:
                output = body[at:after]
            elif len(inputs) < _MAX_INPUTS:
                inputs.append(body[at:after])
            at = after
        axis = 1
        if is_dequantizing and (place := body.find(_AXIS, at)) >= 0:
            axis = varint_of(body, place + len(_AXIS))[0]
        self.nodes.append((op, inputs, output, axis))
        if len(self.nodes) > _MAX_NODES:
            raise UnknownModelError(f"The model has more than {_MAX_NODES} nodes of the kinds that derive constants.")

    def _tensor(self, at: int) -> int:
        data = self.data
        message_at = at
        length, at = data[at], at + 1
        if length >= 0x80:  # mostly of two bytes: without a call
            length, at = (length - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_of(data, at - 1)
        message_bytes = at - message_at
        #: Where the message ends at the positions of `data`.
        last = at + length
        dims: list[int] = []
        type_, name, value, elements = 0, b"", None, None
        # nearly every tensor begins like this
        while at < last and data[at] == 0x08 and len(dims) <= MAX_DIMS:
            value_of, at = data[at + 1], at + 2
            if value_of >= 0x80:
                value_of, at = varint_of(data, at - 1)
            dims.append(value_of)
        if at < last and data[at] == 0x10 and data[at + 1] < 0x80:
            type_, at = data[at + 1], at + 2
        while at < last:
            key, at = data[at], at + 1
            if key in _SIZED:
                field_at = at
                size, at = data[at], at + 1
                if size >= 0x80:
                    size, at = (size - 0x80 + (more << 7), at + 1) if (more := data[at]) < 0x80 else varint_of(data, at - 1)
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
                    if self.has_holes:
                        self.gone += size
                        last -= size
                        at -= size
                at += size
                if at > self.size:
                    raise UnknownModelError("The model is cut.")
            else:
                at, type_ = self._rare(at - 1, dims, type_)
        if at != last or len(dims) > MAX_DIMS:
            raise UnknownModelError("A tensor ends in the middle of a field, or it has too many dimensions.")
        if len(self.tensors) >= MAX_TENSORS:
            raise UnknownModelError(f"The model has more than {MAX_TENSORS} tensors.")
        if value is not None:
            self._add(name, type_, dims, value)
        elif elements is not None:
            self._add_varying(name, type_, dims, elements, (message_at, message_bytes, length))
        return at

    def _rare(self, at: int, dims: list[int], type_: int) -> tuple[int, int]:
        """A field of a tensor that comes in another place than usual, or says nothing of values; where it ends, and the type."""
        key, at = varint_of(self.data, at)
        if key in _PLAIN:
            value, at = varint_of(self.data, at)
            if key == 0x10:
                return at, value
            dims.append(value)
            if len(dims) > MAX_DIMS:
                raise UnknownModelError(f"A tensor has more than the {MAX_DIMS} dimensions allowed.")
            return at, type_
        if key >> 3 == 13 or key == 0x70:
            raise UnknownModelError("The model keeps values outside of its file.")
        return self._skip(key, at), type_

    def _packed_dims(self, at: int, stop: int) -> list[int]:
        dims: list[int] = []
        while at < stop and len(dims) <= MAX_DIMS:
            dim, at = varint_of(self.data, at)
            dims.append(dim)
        return dims

    def _add(self, name: bytes, type_: int, dims: list[int], value: tuple[int, int]) -> None:
        kind, width = _KINDS.get(type_, _OTHER)
        count = 1
        for dim in dims:
            count *= dim
        start, size = value
        if count * width != size:
            kind, count = Kind.OTHER, size
        self.tensors.append(Tensor(name, kind, tuple(dims), start, size, count))

    def _add_varying(self, name: bytes, type_: int, dims: list[int], elements: tuple[int, int, int], message: tuple[int, int, int]) -> None:
        """Taken apart only when it is written as expected: each value once, each length in its shortest form."""
        field_at, at, size = elements
        message_at, message_bytes, length = message
        count = 1
        for dim in dims:
            count *= dim
        if type_ not in _VARYING or field_at < 0 or not 0 < count <= MAX_VARYING or count > size:
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
    index_of, scale_of, scale_axis = names.get, links.scale_of, links.scale_axis
    others = []
    for node in nodes:
        op, inputs, output, axis = node
        if op != b"DequantizeLinear":
            others.append(node)
        elif len(inputs) >= 2 and output is not None:
            value, scale = index_of(inputs[0]), index_of(inputs[1])
            dequantized[output] = value, scale
            if value is not None and scale is not None and tensors[scale].kind is Kind.F32:
                scale_of[value] = scale
                scale_axis[value] = axis
    for op, inputs, _, _ in others:
        if op == b"QLinearConv":
            if len(inputs) == 9:
                _link_qlinear(links, [index_of(name) for name in inputs], tensors)
            continue
        if len(inputs) < 3:
            continue
        source, weight, bias = (dequantized.get(name) for name in inputs[:3])
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
