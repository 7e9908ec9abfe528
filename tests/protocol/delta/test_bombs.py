"""A few kilobytes that would become gigabytes: what a header announces too little of, and what no header announces."""

from pathlib import Path

import pytest
import zstandard

from protocol.canonical import digest_of
from protocol.delta.container import Header, Method
from protocol.delta.decoder import apply
from protocol.delta.errors import DeltaError
from protocol.delta.onnx import scan_onnx
from protocol.delta.tensors import UnknownModelError, varint
from protocol.delta.tflite import scan_tflite

OLD = b"\x3a\x00"  # a model with an empty graph
NODE = b"\x0a\x02ab\x12\x02cd\x22\x10DequantizeLinear"


def model(*fields: bytes) -> bytes:
    body = b"".join(fields)
    return b"\x3a" + varint(len(body)) + body


def message(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(body)) + body


def write_bomb(folder: Path, skeleton: bytes, *, memory_kib: int = 1) -> Path:
    """A delta whose skeleton is this, and whose header says that hardly any memory is needed."""
    compressor = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(OLD, dict_type=zstandard.DICT_TYPE_RAWCONTENT))
    packed = compressor.compress(skeleton)
    header = Header(
        method=Method.ONNX,
        window_log=27,
        old_bytes=len(OLD),
        new_bytes=9,
        old_sha256=digest_of(OLD),
        new_sha256=digest_of(b"123456789"),
        memory_kib=memory_kib,
        skeleton_raw=len(skeleton),
        skeleton_packed=len(packed),
    )
    (folder / "old").write_bytes(OLD)
    (folder / "bomb").write_bytes(header.pack() + packed)
    assert (folder / "bomb").stat().st_size < 16_384
    return folder / "bomb"


def test_a_skeleton_that_does_not_fit_the_memory_is_refused_before_it_is_unpacked(tmp_path):
    bomb = write_bomb(tmp_path, bytes(20 << 20))
    with pytest.raises(DeltaError, match="KiB of memory; 65536 KiB are allowed"):
        apply(bomb, tmp_path / "old", tmp_path / "new", max_new_bytes=9, memory_kib=65_536)
    assert not (tmp_path / "new").exists()


def test_a_skeleton_of_more_nodes_than_a_model_may_have_is_refused(tmp_path):
    bomb = write_bomb(tmp_path, model(message(1, NODE) * 100_000))
    with pytest.raises(DeltaError, match="more than 65536 nodes"):
        apply(bomb, tmp_path / "old", tmp_path / "new", max_new_bytes=9, memory_kib=65_536)


def test_a_node_keeps_no_more_inputs_than_any_operator_has():
    scan = scan_onnx(model(message(1, b"\x0a\x02ab" * 100_000 + NODE)))
    assert scan.tensors == []


@pytest.mark.parametrize("dims", [b"\x08\x01" * 9, message(1, b"\x01" * 9), b"\x08\x01" * 100_000, message(1, b"\x01" * 100_000)])
def test_a_tensor_with_more_dimensions_than_eight_is_refused(dims):
    with pytest.raises(UnknownModelError):
        scan_onnx(model(message(5, dims + message(8, b"name") + message(9, b"\x01"))))


def test_a_tensor_with_eight_dimensions_is_read():
    (tensor,) = scan_onnx(model(message(5, b"\x10\x03" + b"\x08\x01" * 8 + message(8, b"name") + message(9, b"\x01")))).tensors
    assert tensor.dims == (1,) * 8


class Flat:
    """A TFLite file written front to back; what points, points forward to a label."""

    def __init__(self) -> None:
        self.data = bytearray(b"....TFL3")
        self.pointers = [(0, "model")]
        self.labels: dict[str, int] = {}

    def table(self, label: str, **fields: str) -> None:
        """A table whose field `f3` points to the label given."""
        numbers = {int(name[1:]): to for name, to in fields.items()}
        count = max(numbers) + 1
        self.data += (4 + 2 * count).to_bytes(2, "little") + (4 + 4 * count).to_bytes(2, "little")
        self.data += b"".join((4 + 4 * one if one in numbers else 0).to_bytes(2, "little") for one in range(count))
        self.labels[label] = at = len(self.data)
        self.data += (4 + 2 * count).to_bytes(4, "little") + bytes(4 * count)
        self.pointers += [(at + 4 + 4 * one, to) for one, to in numbers.items()]

    def vector(self, label: str, count: int, to: str | None = None) -> None:
        """Pointers to one label, or zeros."""
        self.labels[label] = at = len(self.data)
        self.data += count.to_bytes(4, "little") + bytes(4 * count)
        self.pointers += [(at + 4 + 4 * one, to) for one in range(count) if to]

    def __bytes__(self) -> bytes:
        for at, to in self.pointers:
            self.data[at : at + 4] = (self.labels[to] - at).to_bytes(4, "little")
        return bytes(self.data)


def shared(*, graphs: int = 1, tensors: int = 1, operators: int = 0, inputs: int = 0, name_bytes: int = 4, dims: int = 1) -> bytes:
    """A small file in which a thing stands once and is named many times."""
    flat = Flat()
    flat.table("model", f1="codes", f2="graphs", f4="buffers")
    flat.vector("graphs", graphs, "graph")
    flat.table("graph", f0="tensors", f3="operators")
    flat.vector("tensors", tensors, "tensor")
    flat.vector("operators", operators, "operator")
    flat.table("tensor", f0="dims", f3="name")
    flat.table("operator", f1="inputs")
    flat.vector("codes", 1, "code")
    flat.table("code", f5="buffers")
    flat.vector("buffers", 0)
    flat.vector("dims", dims)
    flat.vector("inputs", inputs)
    flat.vector("name", name_bytes // 4)
    data = bytearray(bytes(flat))
    data[flat.labels["name"] : flat.labels["name"] + 4] = name_bytes.to_bytes(4, "little")
    return bytes(data)


def test_a_file_of_shared_tables_is_read_when_it_is_small():
    assert scan_tflite(shared(graphs=2, tensors=30, operators=20, inputs=5)).tensors == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"graphs": 60_000, "tensors": 40_000}, "more than 65536"),
        ({"graphs": 60_000, "operators": 40_000, "inputs": 60_000}, "more than 65536"),
        ({"tensors": 60_000, "name_bytes": 1000}, "names of the tensors are longer than the file"),
        ({"tensors": 60_000, "dims": 60_000}, "more than the 8 dimensions"),
    ],
)
def test_a_small_file_that_names_the_same_thing_without_end_is_refused(what, words):
    data = shared(**what)
    assert len(data) < 1 << 20
    with pytest.raises(UnknownModelError, match=words):
        scan_tflite(data)


def test_inputs_of_an_operator_are_read_no_further_than_they_are_needed():
    assert scan_tflite(shared(operators=60_000, inputs=60_000)).tensors == []


def test_a_scan_of_a_large_file_lets_go_of_what_it_has_passed():
    gone: list[int] = []
    tensors = [message(5, b"\x10\x03" + message(8, b"t%d" % number) + message(9, bytes(300_000))) for number in range(8)]
    scan = scan_onnx(model(*tensors), let_go=lambda: gone.append(1))
    assert len(scan.tensors) == len(gone) == 8
