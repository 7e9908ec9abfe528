"""Where the tensors of the old file lie, told by the delta: what the device finds there, and what is refused."""

from dataclasses import replace
from pathlib import Path

import delta_models as models
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.registry import delta_tensors
from fleet.registry.delta_encoder import encode
from fleet.registry.delta_places import places_of, write_places
from protocol.canonical import digest_of
from protocol.delta.container import HEADER_BYTES, Header, Method
from protocol.delta.decoder import apply
from protocol.delta.errors import DeltaError
from protocol.delta.onnx import scan_onnx
from protocol.delta.places import MAX_PLACES_BYTES, read_places
from protocol.delta.plan import Reader
from protocol.delta.rebuild import Streams
from protocol.delta.tensors import Kind, Links, Scan, Tensor, lay_out_like, varint

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits" / "models"
LIMIT = 1 << 24
OLD = models.weights(channels=640)
BEFORE, AFTER = models.onnx_bytes(OLD), models.onnx_bytes(models.tuned(OLD))
COLUMNS = write_places(scan_onnx(BEFORE))


def nameless(scan: Scan) -> Scan:
    return Scan([replace(tensor, name=b"") for tensor in scan.tensors], scan.links, scan.outer)


@pytest.mark.parametrize(
    "data",
    [
        BEFORE,
        models.onnx_bytes(OLD, raw_scalars=True),
        models.onnx_bytes(OLD, extra={"wide": np.arange(700), "half": np.arange(64, dtype=np.float16), "double": np.arange(3.0)}),
        (DIGITS / "1.0" / "onnx" / "model.onnx").read_bytes(),
    ],
    ids=["varying", "raw", "other", "digits"],
)
def test_places_say_what_a_scan_finds(data):
    scan = scan_onnx(data)
    assert scan.tensors
    assert read_places(write_places(scan), data, len(data)) == nameless(scan)


def test_a_delta_beside_which_places_cost_little_tells_them(tmp_path: Path):
    header, _ = told(tmp_path)
    assert header.has_places


def test_a_delta_that_is_small_itself_tells_no_places(tmp_path: Path):
    (tmp_path / "old").write_bytes(BEFORE)
    (tmp_path / "new").write_bytes(models.onnx_bytes(models.recalibrated(OLD)))
    encode(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    assert not Header.parse((tmp_path / "delta").read_bytes()).has_places


@pytest.mark.parametrize("type_", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_models_of_floating_point_are_told_tensor_by_tensor_with_their_places(tmp_path: Path, type_):
    before, after = float_model(0, type_), float_model(1, type_)
    (tmp_path / "old").write_bytes(before)
    (tmp_path / "new").write_bytes(after)
    assert encode(tmp_path / "old", tmp_path / "new", tmp_path / "delta").method == Method.ONNX
    assert Header.parse((tmp_path / "delta").read_bytes()).has_places
    apply(tmp_path / "delta", tmp_path / "old", tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


def float_model(version: int, type_: int) -> bytes:
    """A network of four layers, the second version of which was tuned."""
    random, moves = np.random.default_rng(0), np.random.default_rng(1)
    kind = onnx.helper.tensor_dtype_to_np_dtype(type_)
    tensors = []
    for number in range(4):
        weight = random.normal(0, 0.1, (64, 64))
        weight = weight + version * moves.normal(0, 1e-4, weight.shape)
        tensors.append(onnx.numpy_helper.from_array(weight.astype(kind), f"layer{number}"))
    nodes = [onnx.helper.make_node("MatMul", [f"x{number}", f"layer{number}"], [f"x{number + 1}"]) for number in range(4)]
    ends = [onnx.helper.make_tensor_value_info(name, type_, [1, 64]) for name in ("x0", "x4")]
    return bytes(onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)).SerializeToString())


def told(folder: Path) -> tuple[Header, Streams]:
    """The header and the streams of the delta between the two models, which is proven."""
    (folder / "old").write_bytes(BEFORE)
    (folder / "new").write_bytes(AFTER)
    encode(folder / "old", folder / "new", folder / "delta")
    data = memoryview((folder / "delta").read_bytes())
    return Header.parse(data), Streams.parse(data[HEADER_BYTES:])


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Header, bytes, bytes]:
    """A folder with the old file; the header, the plan behind the places, and what follows the plan."""
    folder = tmp_path_factory.mktemp("places")
    header, streams = told(folder)
    reader = Reader(streams.plan)
    assert reader.bytes(reader.number(MAX_PLACES_BYTES)) == COLUMNS
    data = (folder / "delta").read_bytes()
    lengths = Reader(data[HEADER_BYTES:])
    _, packed, words, bits = [lengths.number(1 << 30) for _ in range(4)]
    behind = varint(words) + varint(bits), data[HEADER_BYTES + lengths.at + packed :]
    return folder, header, streams.plan[reader.at :], behind


def applied(pair, columns: bytes, **changes) -> bytes:
    """What comes out with these columns. Raises: DeltaError; then there is no file."""
    folder, header, plan, (lengths, data) = pair
    whole = varint(len(columns)) + columns + plan
    (folder / "changed").write_bytes(replace(header, **changes).pack() + varint(len(whole)) * 2 + lengths + whole + data)
    out = folder / "out"
    out.unlink(missing_ok=True)
    try:
        apply(folder / "changed", folder / "old", out, max_new_bytes=LIMIT)
    except DeltaError:
        assert not out.exists()
        raise
    return out.read_bytes()


def test_the_new_file_is_made_by_the_places_alone(pair):
    assert applied(pair, COLUMNS) == AFTER


@given(edits=st.lists(st.tuples(st.integers(0, len(COLUMNS) - 1), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 3))
def test_whatever_the_places_say_the_new_file_is_right_or_none(pair, edits, cut):
    changed = bytearray(COLUMNS)
    for place, value in edits:
        changed[place] = value
    try:
        assert applied(pair, bytes(changed[: len(changed) - cut])) == AFTER
    except DeltaError:
        return


@given(numbers=st.lists(st.integers(0, 1 << 34), max_size=60))
def test_any_columns_place_tensors_inside_of_the_file_or_are_refused(numbers):
    """Raises nothing but DeltaError."""
    data = b"".join(varint(number) for number in numbers)
    try:
        scan = read_places(data, BEFORE, len(BEFORE))
    except DeltaError:
        return
    at = 0
    for tensor in scan.tensors:
        assert at <= tensor.start <= tensor.start + tensor.size <= len(BEFORE)
        at = tensor.start + tensor.size


def columns_of(*tensors: Tensor, outer: int = 0, tail: bytes = b"", scales: bytes | None = None) -> bytes:
    """Columns of plain tensors with these links behind them."""
    made = write_places(Scan(list(tensors), Links(), (outer, 1, 0)))
    return made[: len(made) - len(tensors)] + (bytes(len(tensors)) if scales is None else scales) + tail


def scale(start: int, count: int = 1, kind: Kind = Kind.F32) -> Tensor:
    return Tensor(b"", kind, (count,), start, 4 * count, count)


THREE = (scale(0), scale(4), scale(8))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (b"", "cut"),
        (b"\x80", "cut"),
        (varint(3) + b"\0", "cut"),
        (varint(65_537) + b"\0", "at most 65536"),
        (b"\xff" * 5 + b"\x01\0", "35 bits"),
        (b"\x01\0" + bytes([7]), "form that does not exist"),
        (b"\x01\0" + varint(1 + (9 << 4)), "form that does not exist"),
        (b"\x01\0" + bytes([1 + 8]), "form that does not exist"),
        (b"\x01\0" + varint(1 << 20), "form that does not exist"),
        (columns_of(scale(0, 1 << 32)), "larger than any file"),
        (columns_of(scale(0, 1 << 20)), f"old file of {len(BEFORE)}"),
        (columns_of(scale(len(BEFORE))), f"old file of {len(BEFORE)}"),
        (columns_of(scale(0), outer=len(BEFORE)), "behind the end"),
        (columns_of(*THREE, scales=b"\x06\0\0", tail=b"\0"), "scale that is not there"),
        (columns_of(scale(0), scale(4, kind=Kind.I32), scales=b"\x02\0", tail=b"\0"), "scale that is not there"),
        (columns_of(*THREE, tail=b"\x01\0"), "do not end"),
        (columns_of(*THREE, tail=b"\x01\x00\x02"), "product of itself"),
        (columns_of(*THREE, tail=b"\x03\x00" + b"\x00\x00" + b"\x02\x02"), "tells it twice"),
        (columns_of(scale(0, 2), scale(8), scale(12), tail=b"\x03\x00\x02"), "not as many values"),
        (columns_of(scale(0), scale(4, 2), scale(12), tail=b"\x03\x00\x02"), "not as many values"),
    ],
)
def test_places_that_cannot_be_are_refused(columns, words):
    with pytest.raises(DeltaError, match=words):
        read_places(columns, BEFORE, len(BEFORE))


def varying_columns(head: int, extra: int = 0, dim: int = 1, gap: int = 40) -> bytes:
    return b"\x01\0" + varint(3 + 8 + 16) + varint(dim) + varint(gap) + varint(extra) + varint(head) + b"\0"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (varying_columns(head=41), "where none is"),
        (varying_columns(head=3), "where none is"),
        (varying_columns(head=30, dim=5000), "too many values"),
        (varying_columns(head=30, dim=0), "none"),
    ],
)
def test_lengths_of_varying_values_that_cannot_be_are_refused(columns, words):
    with pytest.raises(DeltaError, match=words):
        read_places(columns, b"\0" * 40 + bytes(6000), 6040)


@pytest.mark.parametrize("data", [bytes(6040), b"\xff" * 6040], ids=["shorter than its values", "longer than three bytes"])
def test_lengths_that_do_not_stand_in_the_old_file_are_refused(data):
    with pytest.raises(DeltaError, match="where none is"):
        read_places(varying_columns(head=30), data, len(data))


def test_a_graph_that_would_get_a_negative_length_is_refused():
    scan = Scan([scale(0), scale(14)], Links(), (100, 1, 0))
    with pytest.raises(DeltaError, match="more bytes"):
        lay_out_like(200, scan, {}, {1: b""})


def test_places_beside_a_whole_skeleton_are_refused(tmp_path: Path):
    before = models.onnx_bytes(OLD, extra={"gone": np.arange(9.0)})
    (tmp_path / "old").write_bytes(before)
    (tmp_path / "new").write_bytes(AFTER)
    parts = delta_tensors.build(Method.ONNX, tmp_path / "old", tmp_path / "new")
    assert parts.skeleton_raw
    assert not parts.has_places
    header = Header(
        method=Method.ONNX,
        window_log=23,
        old_bytes=len(before),
        new_bytes=len(AFTER),
        old_sha256=digest_of(before),
        new_sha256=digest_of(AFTER),
        memory_kib=1,
        skeleton_raw=parts.skeleton_raw,
        skeleton_packed=len(parts.skeleton),
        has_places=True,
    )
    plan = places_of(scan_onnx(before), before)
    assert plan is not None
    streams = varint(len(plan)) * 2 + b"\0\0" + plan
    (tmp_path / "delta").write_bytes(header.pack() + parts.skeleton + streams)
    with pytest.raises(DeltaError, match="needs their names"):
        apply(tmp_path / "delta", tmp_path / "old", tmp_path / "out", max_new_bytes=LIMIT)


@pytest.mark.parametrize("method", [Method.FULL, Method.PATCH, Method.TFLITE])
def test_only_deltas_of_onnx_models_have_places(pair, method):
    with pytest.raises(DeltaError, match="only method 2 does"):
        Header.parse(replace(pair[1], method=method).pack())


def test_a_flag_that_this_decoder_does_not_know_is_refused(pair):
    data = bytearray(pair[1].pack())
    data[6] = 2
    with pytest.raises(DeltaError, match="flags 2"):
        Header.parse(data)
