"""Methods 0 and 1: whole files, with and without an old one."""

from pathlib import Path

import pytest

from fleet.registry.delta_encoder import encode
from fleet.registry.delta_inspecting import inspect
from protocol.delta import patch
from protocol.delta.decoder import apply
from protocol.delta.errors import DeltaError
from protocol.files import digest_of_file


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _noise(count: int, seed: int = 0) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).bytes(count)


def test_a_file_without_base_travels_whole(tmp_path: Path):
    new = _write(tmp_path / "new", b"text " * 1000)
    made = encode(None, new, tmp_path / "delta")
    apply(tmp_path / "delta", None, tmp_path / "out", max_new_bytes=5000, expected_sha256=digest_of_file(new))
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert (made.method, made.base_sha256) == (0, "sha256:" + "0" * 64)
    assert made.length == (tmp_path / "delta").stat().st_size < 200


def test_noise_grows_by_the_header_only(tmp_path: Path):
    new = _write(tmp_path / "new", _noise(300_000))
    assert encode(None, new, tmp_path / "delta").length == 300_112
    apply(tmp_path / "delta", None, tmp_path / "out", max_new_bytes=300_000)
    assert (tmp_path / "out").read_bytes() == new.read_bytes()


@pytest.mark.parametrize("one_stream_bytes", [12 << 20, 0], ids=["one stream", "pieces"])
def test_a_moved_and_edited_file_travels_as_a_patch(tmp_path: Path, monkeypatch, one_stream_bytes):
    monkeypatch.setattr(patch, "ONE_STREAM_BYTES", one_stream_bytes)
    data = _noise(5 << 20)
    old, new = _write(tmp_path / "old", data), _write(tmp_path / "new", data[:1000] + b"inserted" + data[1000:])
    made = encode(old, new, tmp_path / "delta")
    assert made.method == 1
    assert made.length < 5000
    apply(tmp_path / "delta", old, tmp_path / "out", max_new_bytes=new.stat().st_size)
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert inspect(tmp_path / "delta")["base_sha256"] == digest_of_file(old)


def test_another_old_file_is_refused_and_leaves_nothing(tmp_path: Path):
    data = _noise(100_000)
    old, new = _write(tmp_path / "old", data), _write(tmp_path / "new", data + b"more")
    encode(old, new, tmp_path / "delta")
    other = _write(tmp_path / "other", data[:-1] + b"x")
    with pytest.raises(DeltaError, match="was made for"):
        apply(tmp_path / "delta", other, tmp_path / "out", max_new_bytes=200_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "new", "old", "other"]
