"""The decoder in its child process: real deltas on a real disk; whatever the child does becomes an answer that says who is to blame."""

import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from agent.children import child_environment
from agent.update.applier import INTERPRETER_BYTES, ChildApplier
from agent.update.assignment import NO_BASE, OfferedDelta, OfferedFile
from agent.update.fetch import StoppedError
from fleet.registry.delta_encoder import encode
from protocol.delta.errors import DeltaError
from protocol.errors import DeviceError
from protocol.files import digest_of_file


def keep_on() -> bool:
    return False


class Pair:
    """Two versions of a file, the delta between them and the compressed new one, on the disk."""

    def __init__(self, folder: Path, *, length: int = 400_000) -> None:
        chance = random.Random(3)  # noqa: S311 - test data
        old = chance.randbytes(length)
        new = bytearray(old)
        for at in range(0, length, length // 40):
            new[at] ^= 0xFF
        self.old, self.new, self.delta, self.full = (folder / name for name in ("old.onnx", "new.onnx", "delta", "full"))
        self.old.write_bytes(old)
        self.new.write_bytes(new)
        self.file = OfferedFile("model.onnx", length, digest_of_file(self.new), "https://fleet.test/new")
        made = encode(self.old, self.new, self.delta)
        self.offered = OfferedDelta(made.base_sha256, made.length, made.sha256, int(made.method), "https://fleet.test/delta")
        whole = encode(None, self.new, self.full)
        self.offered_full = OfferedDelta(NO_BASE, whole.length, whole.sha256, int(whole.method), "https://fleet.test/full")


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(tmp_path)


def apply(pair: Pair, tmp_path: Path, **changes: object) -> Path:
    result = tmp_path / "made-1"
    values = {"file": pair.file, "delta": pair.delta, "base": pair.old, **changes}
    ChildApplier().apply(values["file"], values["delta"], values["base"], result, should_stop=keep_on)
    return result


def test_a_delta_and_the_compressed_file_make_the_same_bytes(pair, tmp_path):
    assert pair.offered.length < pair.file.length // 50
    for delta, offered, base in ((pair.delta, pair.offered, pair.old), (pair.full, pair.offered_full, None)):
        ChildApplier().check(pair.file, offered, delta)
        result = apply(pair, tmp_path, delta=delta, base=base)
        assert result.read_bytes() == pair.new.read_bytes()
        result.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "full", "new.onnx", "old.onnx"]


@pytest.mark.parametrize("position", [3, 40, 113, -1])
def test_a_damaged_delta_is_the_deltas_fault_and_leaves_nothing(pair, tmp_path, position):
    data = bytearray(pair.delta.read_bytes())
    data[position] ^= 0x55
    pair.delta.write_bytes(data)
    with pytest.raises(DeltaError) as caught:
        apply(pair, tmp_path)
    assert caught.value.code == "delta_failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "full", "new.onnx", "old.onnx"]


def test_a_delta_that_makes_another_file_is_refused(pair, tmp_path):
    with pytest.raises(DeltaError):
        apply(pair, tmp_path, file=replace(pair.file, sha256=digest_of_file(pair.old)))


def test_a_base_that_is_another_file_is_refused(pair, tmp_path):
    with pytest.raises(DeltaError):
        apply(pair, tmp_path, base=pair.new)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pair: (replace(pair.file, length=5), pair.offered, 64), "wanted 5 bytes"),
        (lambda pair: (pair.file, replace(pair.offered, method=3), 64), "director says method 3"),
        (lambda pair: (pair.file, replace(pair.offered, base_sha256=pair.file.sha256), 64), "director says"),
        (lambda pair: (pair.file, pair.offered, 0), "allows 0"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_before_anything_is_written(pair, change, what):
    file, offered, memory_mb = change(pair)
    with pytest.raises(DeltaError, match=what):
        ChildApplier(memory_mb=lambda: memory_mb).check(file, offered, pair.delta)


def test_a_missing_base_is_the_disks_fault_not_the_deltas(pair, tmp_path):
    with pytest.raises(DeviceError, match="No such file") as caught:
        apply(pair, tmp_path, base=tmp_path / "nowhere")
    assert not isinstance(caught.value, DeltaError)
    assert caught.value.code == "disk_error"


def test_a_child_that_dies_is_no_fault_of_the_delta(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("agent.update.applier.sys.executable", "/bin/false")
    with pytest.raises(DeviceError, match="status 1") as caught:
        apply(pair, tmp_path)
    assert not isinstance(caught.value, DeltaError)
    assert caught.value.code == "delta_failed"


def test_a_child_that_shall_stop_is_ended(pair, tmp_path):
    with pytest.raises(StoppedError):
        ChildApplier().apply(pair.file, pair.delta, pair.old, tmp_path / "made-1", should_stop=lambda: True)
    assert not (tmp_path / "made-1").exists()


def test_the_child_has_a_bound_on_its_memory(tmp_path):
    program = (
        "import agent.update.applier as applier\n"
        f"applier._limit({INTERPRETER_BYTES} + (8 << 20))\n"
        "try:\n    bytearray(1 << 30)\nexcept MemoryError:\n    print('bounded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=child_environment(), cwd=tmp_path
    )
    assert done.stdout.strip() == "bounded"


def test_the_child_dies_with_its_parent(tmp_path):
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import agent.update.applier as a, time; a._limit(1 << 30); print(\"up\", flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "import threading; threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=child_environment(), cwd=tmp_path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(is_gone, what="the child's end")


def test_neither_numpy_nor_the_decoder_enters_the_control_process(pair, tmp_path):
    program = (
        "import sys, agent.update.applier\n"
        "print({n.split('.')[0] for n in sys.modules} & {'numpy', 'zstandard'}, 'protocol.delta.decoder' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=child_environment(), cwd=tmp_path
    )
    assert done.stdout.strip() == "set() False"
