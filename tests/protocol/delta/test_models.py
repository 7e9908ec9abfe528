"""Methods 2 and 3: models tensor by tensor; what must hold for every delta, damaged and hostile ones too."""

import hashlib
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import delta_models as models
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.registry.delta_encoder import encode
from fleet.registry.delta_inspecting import inspect
from protocol.delta.container import HEADER_BYTES, Header, Method
from protocol.delta.decoder import apply
from protocol.delta.errors import DeltaError
from protocol.files import digest_of_file

ROOT = Path(__file__).resolve().parents[3]
DIGITS = ROOT / "examples" / "digits" / "models"
GOLDEN = ROOT / "tests" / "golden" / "delta"
LIMIT = 1 << 24


def _pair(folder: Path, old: bytes, new: bytes) -> tuple[Path, Path, Path]:
    for name, data in (("old", old), ("new", new)):
        (folder / name).write_bytes(data)
    return folder / "old", folder / "new", folder / "delta"


def _round_trip(folder: Path, old: bytes, new: bytes) -> tuple[int, int]:
    """The method and the length of the smallest delta, after it was applied and compared."""
    base, wanted, delta = _pair(folder, old, new)
    made = encode(base, wanted, delta)
    apply(delta, base, folder / "out", max_new_bytes=len(new), expected_sha256=digest_of_file(wanted))
    assert (folder / "out").read_bytes() == new
    return made.method, made.length


@pytest.fixture(scope="module")
def tuned_pair(tmp_path_factory) -> tuple[Path, Path, Path]:
    old = models.weights(channels=24)
    paths = _pair(tmp_path_factory.mktemp("pair"), models.onnx_bytes(old), models.onnx_bytes(models.tuned(old)))
    assert encode(*paths).method == Method.ONNX
    return paths


def test_a_recalibration_costs_little_more_than_what_is_new(tmp_path: Path):
    old = models.weights(channels=64)
    method, length = _round_trip(tmp_path, models.onnx_bytes(old), models.onnx_bytes(models.recalibrated(old)))
    assert method == Method.ONNX
    assert length < HEADER_BYTES + 150


def test_rows_that_only_changed_their_scale_cost_their_scale(tmp_path: Path):
    old = models.weights(channels=128)
    method, length = _round_trip(tmp_path, models.onnx_bytes(old), models.onnx_bytes(models.normalized(old)))
    assert method == Method.ONNX
    assert length < 1600, "of 128 scales and 3,456 weights, of which one in fifty changed"


@pytest.mark.parametrize("change", [models.tuned, models.normalized, models.new_head, models.recalibrated])
@pytest.mark.parametrize("raw_scalars", [False, True])
def test_a_changed_model_is_rebuilt_bit_by_bit(tmp_path: Path, change, raw_scalars):
    old = models.weights()
    _round_trip(tmp_path, models.onnx_bytes(old, raw_scalars=raw_scalars), models.onnx_bytes(change(old), raw_scalars=raw_scalars))


def test_a_model_with_other_tensors_is_rebuilt(tmp_path: Path):
    old = models.weights()
    new = models.tuned(models.weights(), 0.001)
    method, _ = _round_trip(
        tmp_path,
        models.onnx_bytes(old, extra={"gone": np.arange(9.0), "half": np.arange(64, dtype=np.float16)}),
        models.onnx_bytes(
            new,
            extra={"come": np.arange(700), "half": (np.arange(64) * 1.01).astype(np.float16), "double": np.arange(3.0)},
            raw_scalars=True,
        ),
    )
    assert method == Method.ONNX


def test_the_same_model_again_is_almost_nothing(tmp_path: Path):
    data = models.onnx_bytes(models.weights())
    assert _round_trip(tmp_path, data, data)[1] < HEADER_BYTES + 40


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("name", ["onnx/model.onnx", "tflite/model.tflite"])
def test_models_of_the_example_are_rebuilt(tmp_path: Path, name, version):
    old, new = DIGITS / "1.0" / name, DIGITS / version / name
    method, length = _round_trip(tmp_path, old.read_bytes(), new.read_bytes())
    assert method == (Method.ONNX if name.endswith("onnx") else Method.TFLITE)
    assert length < new.stat().st_size * 0.7


def test_no_delta_is_longer_than_the_compressed_file_and_a_header(tmp_path: Path):
    random = np.random.default_rng(0)
    assert _round_trip(tmp_path, random.bytes(5000), random.bytes(5000)) == (Method.FULL, 5000 + HEADER_BYTES)


@pytest.mark.parametrize("damage", [b"", b"\x08\x07", b"\x3a\xff\xff\xff\xff\x7f", b"\x08" * 3000])
def test_what_is_no_model_travels_by_another_method(tmp_path: Path, damage):
    data = models.onnx_bytes(models.weights())
    assert _round_trip(tmp_path, data, damage + data[: len(data) // 2])[0] in {Method.PATCH, Method.FULL}


_changes = st.fixed_dictionaries(
    {
        "amount": st.sampled_from([0.0, 1e-4, 1e-2, 0.3]),
        "seed": st.integers(0, 5),
        "share": st.sampled_from([0.0, 0.02, 1.0]),
        "channels": st.sampled_from([1, 3, 16]),
        "raw": st.booleans(),
        "extreme": st.sampled_from([None, "nan", "huge", "tiny", "zero"]),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(change=_changes)
def test_any_edit_of_any_model_is_rebuilt_bit_by_bit(tmp_path: Path, change):
    old = models.weights(change["seed"], channels=change["channels"])
    new = models.tuned(old, change["amount"], change["seed"])
    keep = np.random.default_rng(change["seed"]).random(old.conv.shape) >= change["share"]
    new = replace(new, conv=np.where(keep, old.conv, new.conv))
    new = replace(new, ranges={"huge": (1e30, 1e38, 3e38), "tiny": (1e-40, 1e-38, 1e-45)}.get(change["extreme"], new.ranges))
    data = models.onnx_bytes(new, raw_scalars=change["raw"])
    if change["extreme"] in {"nan", "zero"}:  # scales that no division may trip over
        made = {"nan": float("nan"), "zero": 0.0}[change["extreme"]]
        scale = struct.pack("<f", np.float32(new.ranges[1] / 255))
        data = data.replace(scale, struct.pack("<f", made))
    _round_trip(tmp_path, models.onnx_bytes(old, raw_scalars=change["raw"]), data)


def test_every_damaged_byte_is_refused_and_leaves_no_file(tmp_path: Path, tuned_pair):
    base, wanted, delta = tuned_pair
    data, bad, out = delta.read_bytes(), tmp_path / "bad", tmp_path / "out"
    random = np.random.default_rng(0)
    places = {*range(HEADER_BYTES + 150), *random.integers(0, len(data), 150).tolist()}
    for place in sorted(place for place in places if place < len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        bad.write_bytes(changed)
        try:
            apply(bad, base, out, max_new_bytes=LIMIT)
        except DeltaError:
            assert not out.exists()
            continue
        # what the decoder is free to ignore (declared memory, number of records) leaves the result as it was
        assert out.read_bytes() == wanted.read_bytes(), place
        out.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_every_cut_and_every_trailing_byte_is_refused(tmp_path: Path, tuned_pair):
    base, _, delta = tuned_pair
    data, bad, out = delta.read_bytes(), tmp_path / "bad", tmp_path / "out"
    for size in [*range(0, len(data), 17), len(data) - 1]:
        bad.write_bytes(data[:size])
        with pytest.raises(DeltaError):
            apply(bad, base, out, max_new_bytes=LIMIT)
    bad.write_bytes(data + b"\0")
    with pytest.raises(DeltaError):
        apply(bad, base, out, max_new_bytes=LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_limits_are_checked_before_anything_is_written(tmp_path: Path, tuned_pair):
    base, wanted, delta = tuned_pair
    out, length = tmp_path / "out", wanted.stat().st_size
    with pytest.raises(DeltaError, match="at most"):
        apply(delta, base, out, max_new_bytes=length - 1)
    with pytest.raises(DeltaError, match="KiB of memory"):
        apply(delta, base, out, max_new_bytes=length, memory_kib=100)
    with pytest.raises(DeltaError, match="is wanted"):
        apply(delta, base, out, max_new_bytes=length, expected_sha256=digest_of_file(base))
    with pytest.raises(DeltaError, match="was made for"):
        apply(delta, wanted, out, max_new_bytes=length)
    with pytest.raises(DeltaError, match="none was given"):
        apply(delta, None, out, max_new_bytes=length)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["skeleton_raw", "skeleton_packed", "table_raw", "table_packed"])
def test_a_bomb_in_the_header_is_refused(tmp_path: Path, tuned_pair, field):
    base, _, delta = tuned_pair
    header = Header.parse(delta.read_bytes()[:HEADER_BYTES])
    for size in (1, 64 << 20, (64 << 20) + 1, 2**32 - 1):
        (tmp_path / "bad").write_bytes(replace(header, **{field: size}).pack() + delta.read_bytes()[HEADER_BYTES:])
        with pytest.raises(DeltaError):
            apply(tmp_path / "bad", base, tmp_path / "out", max_new_bytes=LIMIT)
    assert not (tmp_path / "out").exists()


#: Old files of golden deltas that do not lie beside them.
BASES = {
    "full": None,
    "digits": DIGITS / "1.0" / "tflite" / "model.tflite",
    "digits-onnx": DIGITS / "1.0" / "onnx" / "model.onnx",
}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.delta")), ids=lambda path: path.stem)
def test_deltas_of_earlier_versions_are_still_applied(tmp_path: Path, path):
    header = Header.parse(path.read_bytes()[:HEADER_BYTES])
    base = path.stem.split(".")[0]
    old = BASES[base] if base in BASES else GOLDEN / base
    apply(path, old, tmp_path / "out", max_new_bytes=LIMIT)
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == header.new_sha256.removeprefix("sha256:")


def test_there_is_a_golden_delta_of_every_method_and_flag():
    headers = [Header.parse(path.read_bytes()[:HEADER_BYTES]) for path in GOLDEN.glob("*.delta")]
    assert {header.method for header in headers} == set(Method)
    assert {header.has_places for header in headers} == {False, True}


def test_inspecting_a_delta_that_is_cut_before_its_values_says_so(tuned_pair, tmp_path):
    _, _, delta = tuned_pair
    data, cut = delta.read_bytes(), tmp_path / "cut"
    longer = replace(Header.parse(data), table_raw=len(data), table_packed=len(data))
    cut.write_bytes(longer.pack() + data[HEADER_BYTES:])
    with pytest.raises(DeltaError, match=f"{len(data)} bytes"):
        inspect(cut)


def test_inspecting_says_where_the_bytes_go(tuned_pair):
    _, wanted, delta = tuned_pair
    shown = inspect(delta)
    assert shown["method_name"] == "onnx"
    assert shown["new_length"] == wanted.stat().st_size
    assert sum(shown["bytes"].values()) == shown["length"] == delta.stat().st_size


_CHILD = """
import sys, numpy, zstandard
from pathlib import Path
from protocol.delta.decoder import apply
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
before = peak()
apply(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), max_new_bytes=1 << 30)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    random = np.random.default_rng(0)
    weight = random.normal(0, 40, (1024, 9216)).clip(-127, 127).astype(np.int8)  # 9 MB
    moved = weight.copy()
    moved[:200] += random.integers(0, 2, (200, 9216)).astype(np.int8)
    old = models.onnx_bytes(models.weights(), extra={"large": weight})
    base, wanted, delta = _pair(tmp_path, old, models.onnx_bytes(models.weights(), extra={"large": moved}))
    assert encode(base, wanted, delta).method == Method.ONNX
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(delta), str(base), str(tmp_path / "out")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(child.stdout) < 8 << 10, "KiB above the interpreter with numpy: less than the model"
    assert (tmp_path / "out").read_bytes() == wanted.read_bytes()
