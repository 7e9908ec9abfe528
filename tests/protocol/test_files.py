"""Files survive a cut and never surprise by their size."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.canonical import canonical_json, digest_of
from protocol.errors import InvalidError
from protocol.files import copy_hashed, digest_of_file, read_bounded, write_atomically


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "state.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_failed_write_keeps_the_old_bytes_and_no_temporary_file(tmp_path: Path):
    path = tmp_path / "state.json"
    path.mkdir()
    (path / "child").write_bytes(b"")
    with pytest.raises(OSError, match=r"directory|not empty"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_writer_killed_at_any_moment_leaves_old_or_new_bytes(tmp_path: Path):
    path = tmp_path / "state"
    old, new = b"o" * 100_000, b"n" * 100_000
    write_atomically(path, old)
    program = f"""
from pathlib import Path
from protocol.files import write_atomically
print("ready", flush=True)
while True:
    for letter in (b"n", b"o"):
        write_atomically(Path({str(path)!r}), letter * 100_000)
"""
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        assert path.read_bytes() in (old, new)


def test_reading_stops_at_the_limit(tmp_path: Path):
    path = tmp_path / "big"
    path.write_bytes(b"x" * 11)
    assert read_bounded(path, 11) == b"x" * 11
    with pytest.raises(InvalidError, match="10 bytes"):
        read_bounded(path, 10)


def test_copying_hashes_and_stops_at_the_limit(tmp_path: Path):
    out = io.BytesIO()
    assert copy_hashed([b"ab", b"c"], out, limit=3) == (3, digest_of(b"abc"))
    (tmp_path / "f").write_bytes(b"abc")
    assert digest_of_file(tmp_path / "f") == digest_of(b"abc")
    with pytest.raises(InvalidError, match="2 bytes"):
        copy_hashed([b"ab", b"c"], io.BytesIO(), limit=2)


def test_canonical_json_has_one_form_per_value():
    assert canonical_json({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, {"a": object()}, [b"bytes"]])
def test_a_value_without_one_json_form_is_refused(value: object):
    with pytest.raises(InvalidError):
        canonical_json(value)
