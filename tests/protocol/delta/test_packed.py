"""Corrections packed several to a byte, and gaps with other bytes: what comes back, and what is refused."""

from dataclasses import replace
from pathlib import Path

import delta_models as models
import numpy as np
import onnx
import pytest
import zstandard

from fleet.registry import delta_tensors
from fleet.registry.delta_encoder import encode
from fleet.registry.delta_packing import RowPacking, pack_classes, pack_rows
from protocol.canonical import digest_of
from protocol.delta import frames, packed, rebuild
from protocol.delta.container import HEADER_BYTES, Header, Method
from protocol.delta.decoder import apply
from protocol.delta.entropy import FIRST_LONG, Bits, ByteSymbols
from protocol.delta.errors import DeltaError
from protocol.delta.onnx import scan_onnx
from protocol.delta.plan import BYTES, IN_BYTES, PLAIN, RIDING, Plan, Reader, read_plan, table_starts
from protocol.delta.tensors import Links, varint

LIMIT = 1 << 24


def classes(levels: int) -> list[list[tuple[np.ndarray, np.ndarray | None]]]:
    """Two classes of two tensors each: small corrections, the largest and the smallest, and one expected from nothing finer."""
    random = np.random.default_rng(levels)
    made = []
    for spread in (0.4, 3.0):
        numbers = [np.rint(random.normal(0, spread, count)).astype(np.int64) for count in (1001, 64)]
        numbers[0][:4] = 127, -128, 100, -7
        made.append([(numbers[0], random.integers(0, 1 << 12, 1001).astype(np.uint16)), (numbers[1], None)])
    return made


def unpacked(data: bytes, of_classes: list[list[tuple[np.ndarray, np.ndarray | None]]], levels: int, ways: list[bytes]) -> np.ndarray:
    """What the decoder makes of it, as whole numbers."""
    told = [one for tensors in of_classes for one in tensors]
    marks = [packed.mirrored(fine, levels) for _, fine in told]
    contexts, signs = (
        np.concatenate([np.broadcast_to(np.uint8(mark[part]), len(one)) for mark, (one, _) in zip(marks, told, strict=True)])
        for part in (0, 1)
    )
    runs = [(sum(len(one) for one, _ in tensors), of) for tensors, of in zip(of_classes, ways, strict=True)]
    values = packed.unpack(data, contexts, runs)
    return ((values ^ signs) - signs).view(np.int8)


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16])
def test_packed_corrections_come_back(levels):
    of_classes = classes(levels)
    made = pack_classes(of_classes, levels)
    data = frames.decode_all(memoryview(made.frames), made.raw, window_log=20)
    wanted = np.concatenate([numbers for tensors in of_classes for numbers, _ in tensors])
    assert np.array_equal(unpacked(data, of_classes, levels, made.ways), wanted)


@pytest.mark.parametrize("way", range(len(packed.WAYS)))
def test_each_way_tells_its_digits_and_lets_the_others_escape(way):
    values = np.arange(-128, 128)
    is_told = packed.is_told(values, way)
    data = packed.pack(values, way) + values[~is_told].astype(np.uint8).tobytes()
    assert is_told.sum() == packed.WAYS[way][1] - 1
    made = packed.unpack(data, np.zeros(256, np.uint8), [(256, bytes([way]))])
    assert np.array_equal(made.view(np.int8), values)


def test_packed_corrections_that_are_cut_or_too_many_are_refused():
    of_classes = classes(4)
    made = pack_classes(of_classes, 4)
    data = frames.decode_all(memoryview(made.frames), made.raw, window_log=20)
    for damaged in (data[:-1], data[:5], b"", data + b"\0"):
        with pytest.raises(DeltaError, match="packed values"):
            unpacked(damaged, of_classes, 4, made.ways)
    for raw in (made.raw - 1, made.raw + 1, 0):
        with pytest.raises(DeltaError, match="zstd frames hold"):
            frames.decode_all(memoryview(made.frames), raw, window_log=20)
    for damaged in (b"\0" + made.frames[1:], made.frames[:-1], made.frames[:30]):
        with pytest.raises(DeltaError, match="zstd frame"):
            frames.decode_all(memoryview(damaged), made.raw, window_log=20)
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=24, write_content_size=False)
    wide = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    with pytest.raises(DeltaError, match="zstd frame"):
        frames.decode_all(memoryview(wide.compress(b"x") + wide.flush()), 1, window_log=20)


def rows_of(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Numbers of two tensors of 40 and 7 rows, and the class of each row: dense and small, a few and large, none."""
    random, numbers, rows = np.random.default_rng(seed), [], []
    for count, width in ((40, 25), (7, 8)):
        of = random.integers(0, 3, count)
        small, large = np.rint(random.normal(0, 1, (count, width))), random.integers(-128, 128, (count, width))
        few = np.where(random.random((count, width)) < 0.1, large, 0)
        numbers.append(np.where(of[:, None] == 0, small, np.where(of[:, None] == 1, few, 0)).astype(np.int64).ravel())
        rows.append(of.astype(np.uint8))
    return numbers, rows


def unpacked_rows(data: bytes, numbers: list[np.ndarray], made: RowPacking) -> np.ndarray:
    of = np.concatenate([np.repeat(its, len(one) // len(its)) for its, one in zip(made.rows, numbers, strict=True)])
    return packed.unpack_rows(data, of, made.ways).view(np.int8)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_are_packed_come_back(seed):
    numbers, rows = rows_of(seed)
    made = pack_rows(numbers, rows)
    data = frames.decode_all(memoryview(made.frames), made.raw, window_log=20)
    assert np.array_equal(unpacked_rows(data, numbers, made), np.concatenate(numbers))
    assert made.ways[-1] is None, "of rows that did not change nothing is told"


def test_packed_rows_that_are_cut_or_too_many_are_refused():
    numbers, rows = rows_of(1)
    made = pack_rows(numbers, rows)
    data = frames.decode_all(memoryview(made.frames), made.raw, window_log=20)
    for damaged in (data[:-1], data[:5], b"", data + b"\0"):
        with pytest.raises(DeltaError, match="packed values"):
            unpacked_rows(damaged, numbers, made)


def written(folder: Path, old: bytes, new: bytes, parts: delta_tensors.Parts) -> tuple[Path, Path]:
    """The old file and a delta of these parts."""
    header = Header(
        method=Method.ONNX,
        window_log=23,
        old_bytes=len(old),
        new_bytes=len(new),
        old_sha256=digest_of(old),
        new_sha256=digest_of(new),
        memory_kib=1,
        table_raw=parts.table_raw,
        table_packed=len(parts.table),
        skeleton_raw=parts.skeleton_raw,
        skeleton_packed=len(parts.skeleton),
        has_places=parts.has_places,
    )
    (folder / "old").write_bytes(old)
    (folder / "delta").write_bytes(header.pack() + parts.table + parts.skeleton + parts.streams)
    return folder / "old", folder / "delta"


def built(folder: Path, old: bytes, new: bytes, *, is_packed: bool | None = None) -> delta_tensors.Parts:
    (folder / "before").write_bytes(old)
    (folder / "after").write_bytes(new)
    return delta_tensors.build(Method.ONNX, folder / "before", folder / "after", is_packed=is_packed)


def with_numbered_scales(data: bytes) -> bytes:
    """The model with all scales but the first written as numbers before their names, not as raw bytes behind them."""
    model = onnx.load_from_string(data)
    for tensor in list(model.graph.initializer)[1:]:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.fixture
def models_of() -> tuple[bytes, bytes]:
    old = models.weights(channels=24)
    return models.onnx_bytes(old), models.onnx_bytes(models.tuned(old))


def test_a_model_of_many_weights_is_packed_and_rebuilt(tmp_path: Path):
    old = models.weights(channels=640)
    before, after = models.onnx_bytes(old), models.onnx_bytes(models.tuned(old))
    (tmp_path / "old").write_bytes(before)
    (tmp_path / "new").write_bytes(after)
    encode(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    data = memoryview((tmp_path / "delta").read_bytes())
    assert Header.parse(data).method is Method.ONNX
    assert len(rebuild.Streams.parse(data[HEADER_BYTES:]).frames) > 1000, "packed corrections follow the raw bits"
    apply(tmp_path / "delta", tmp_path / "old", tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


@pytest.mark.parametrize("change", [models.tuned, models.normalized, models.new_head, models.pruned])
def test_packed_models_are_rebuilt_bit_by_bit(tmp_path: Path, change):
    old = models.weights()
    before, after = models.onnx_bytes(old), models.onnx_bytes(change(old))
    base, delta = written(tmp_path, before, after, built(tmp_path, before, after, is_packed=True))
    apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


def test_rows_that_changed_here_and_there_are_packed_by_rows(tmp_path: Path):
    old = models.weights(channels=640)
    before, after = models.onnx_bytes(old), models.onnx_bytes(models.pruned(old))
    base, delta = written(tmp_path, before, after, built(tmp_path, before, after, is_packed=True))
    assert plan_of(before, after, delta).has_packed_rows
    apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


@pytest.mark.parametrize("type_", [np.float32, np.float16, np.int8])
def test_raw_bits_of_the_last_numbers_ride_whatever_kind_they_are_of(tmp_path: Path, type_):
    random = np.random.default_rng(4)
    values = random.normal(0, 40, 3000).astype(type_)
    moved = (values + random.normal(0, 30, 3000)).astype(type_)
    before, after = (models.onnx_bytes(models.weights(), extra={"last": one}) for one in (values, moved))
    base, delta = written(tmp_path, before, after, built(tmp_path, before, after, is_packed=False))
    assert plan_of(before, after, delta).rides
    apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


def test_bits_of_scales_wait_for_the_end_only_where_no_packed_values_can_ride_in_their_place(tmp_path: Path):
    old = models.weights(channels=1300)
    before, after = models.onnx_bytes(old), models.onnx_bytes(models.tuned(old))
    for is_packed in (True, False):
        base, delta = written(tmp_path, before, after, built(tmp_path, before, after, is_packed=is_packed))
        plan = plan_of(before, after, delta)
        assert (plan.deferred > 0) != is_packed
        apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
        assert (tmp_path / "out").read_bytes() == after
        (tmp_path / "out").unlink()


def test_symbols_beside_many_packed_values_stand_as_bytes(tmp_path: Path):
    old = models.weights(channels=1300)
    before, after = models.onnx_bytes(old), models.onnx_bytes(models.tuned(old))
    base, delta = written(tmp_path, before, after, built(tmp_path, before, after))
    assert plan_of(before, after, delta).is_in_bytes
    apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


def test_symbols_in_bytes_that_are_cut_or_left_are_refused():
    symbols = ByteSymbols(b"\x01\x02\x03")
    assert symbols.take(0, 2).tolist() == [1, 2]
    with pytest.raises(DeltaError, match="where they should"):
        symbols.finish()
    with pytest.raises(DeltaError, match="too early"):
        symbols.take_mixed(np.zeros(2, np.int64))
    whole = ByteSymbols(b"\x01\x02\x03")
    assert whole.take(0, 1).tolist() == [1]
    assert whole.rest() == b"\x02\x03"
    assert whole.finish() == b""


def test_numbers_of_symbols_in_bytes_are_read_at_once_and_no_further_than_foreseen():
    long = np.uint8(FIRST_LONG)
    symbols, bits = ByteSymbols(bytes([1, 2, long, long, 0])), Bits(memoryview(b"\x02"))
    symbols.foresee(4, bits)
    taken = [symbols.taken(len(symbols.take(0, count))).tolist() for count in (1, 3)]
    assert taken == [[1], [-1, 4, 5]]
    symbols.take(0, 1)
    with pytest.raises(DeltaError, match="more symbols"):
        symbols.taken(1)
    with pytest.raises(DeltaError, match="too early"):
        ByteSymbols(b"\x01").foresee(2, bits)


@pytest.mark.parametrize(("mode", "flags"), [(IN_BYTES, PLAIN), (RIDING, BYTES)])
def test_a_plan_of_symbols_in_bytes_and_in_coders_is_refused(mode, flags):
    one = bytes([1, flags]) + (b"" if flags == BYTES else b"\x01\x01")
    plan = b"\x01\x00\x00" + varint(mode) + b"\x01" + one + b"\x01" + b"\x00\x00\x00"
    with pytest.raises(DeltaError, match="in bytes and in coders"):
        read_plan(plan, [], Links())


def test_a_plan_with_a_table_without_symbols_is_refused():
    plan = b"\x01\x00\x00" + varint(RIDING) + b"\x01" + bytes([1, PLAIN, 0]) + b"\x01" + b"\x00\x00\x00"
    with pytest.raises(DeltaError, match="without symbols"):
        table_starts(read_plan(plan, [], Links()))


def plan_of(before: bytes, after: bytes, delta: Path) -> Plan:
    """The plan of a delta between files of the same tensors."""
    scan = scan_onnx(before)
    data = memoryview(delta.read_bytes())
    header = Header.parse(data)
    streams = rebuild.Streams.parse(data[HEADER_BYTES + header.table_packed + header.skeleton_packed :])
    assert [tensor.name for tensor in scan_onnx(after).tensors] == [tensor.name for tensor in scan.tensors]
    reader = Reader(streams.plan)
    if header.has_places:
        reader.bytes(reader.number(len(streams.plan)))
    return read_plan(streams.plan[reader.at :], scan.tensors, scan.links)


@pytest.mark.parametrize(("change", "channels"), [(models.tuned, 24), (models.pruned, 24), (models.tuned, 1300)])
def test_every_damage_of_a_packed_delta_is_refused_and_leaves_no_file(tmp_path: Path, change, channels):
    old = models.weights(channels=channels)
    before, after = models.onnx_bytes(old), models.onnx_bytes(change(old))
    base, delta = written(tmp_path, before, after, built(tmp_path, before, after, is_packed=True))
    data = delta.read_bytes()
    random = np.random.default_rng(1)
    for place in sorted({*range(HEADER_BYTES, HEADER_BYTES + 60), *random.integers(HEADER_BYTES, len(data), 60).tolist()}):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        delta.write_bytes(changed)
        try:
            apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
        except DeltaError:
            assert not (tmp_path / "out").exists(), place
            continue
        assert (tmp_path / "out").read_bytes() == after, "what fills a last byte may be anything"
        (tmp_path / "out").unlink()


def test_values_that_moved_in_their_field_are_told_by_gaps(tmp_path: Path):
    old = models.weights(channels=24)
    before, after = with_numbered_scales(models.onnx_bytes(old, raw_scalars=True)), models.onnx_bytes(models.tuned(old), raw_scalars=True)
    parts = built(tmp_path, before, after)
    assert parts.table_raw == len(parts.table) > 0
    assert parts.skeleton_raw < len(after) // 2
    base, delta = written(tmp_path, before, after, parts)
    apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert (tmp_path / "out").read_bytes() == after


def gap_table(*gaps: tuple[int, int]) -> bytes:
    return b"".join(varint(gap) + varint(size) for gap, size in gaps)


@pytest.mark.parametrize(
    ("table", "raw", "words"),
    [
        (gap_table((200, 3)), 3, "at most"),
        (gap_table((0, 1), (0, 1), (13, 1)), 3, "not there|at most|lengths"),
        (gap_table((1, 3)), 4, "do not take"),
        (gap_table((1, 9)), 3, "at most"),
        (b"\x01", 3, "cut"),
        (b"\xff" * 9, 3, "cut"),
    ],
)
def test_gaps_that_are_not_there_are_refused(tmp_path: Path, models_of, table, raw, words):
    before, _ = models_of
    packed_ = zstandard.ZstdCompressor().compress(b"x" * raw)
    parts = built(tmp_path, before, models_of[1])
    base, delta = written(
        tmp_path, before, models_of[1], replace(parts, table_raw=len(table), table=table, skeleton_raw=raw, skeleton=packed_)
    )
    with pytest.raises(DeltaError, match=words):
        apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
    assert not (tmp_path / "out").exists()


def test_a_gap_before_a_value_of_varying_length_is_not_told(tmp_path: Path, models_of):
    before, after = models_of
    scan = scan_onnx(before)
    place = next(index for index, tensor in enumerate(scan.tensors) if tensor.varying and index)
    parts = built(tmp_path, before, after)
    made = zstandard.ZstdCompressor().compress(b"xyz")
    base, delta = written(
        tmp_path, before, after, replace(parts, table_raw=2, table=gap_table((place - 1, 3)), skeleton_raw=3, skeleton=made)
    )
    with pytest.raises(DeltaError, match="lengths which values move"):
        apply(delta, base, tmp_path / "out", max_new_bytes=LIMIT)
