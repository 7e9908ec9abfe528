"""Runtimes that import and then kill, raise or lie: stand-in packages first on the path, probed as real ones are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import dataclasses, json, sys
from pathlib import Path
from runtime.base import BackendOptions, Candidate
from runtime.probe import _probe_backend
print(json.dumps(dataclasses.asdict(_probe_backend(Candidate("tflite"), Path(sys.argv[1]), BackendOptions(), 30))))
"""
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
OTHER_NUMPY = "class Interpreter:\n    def __init__(self, **_):\n        raise SystemError('_ARRAY_API not found')\n"
NO_LIBRARY = "raise ImportError('libfoo.so.1: cannot open shared object file')\n"
LIES = """
import numpy as np
class Interpreter:
    def __init__(self, **_): self.value = None
    def allocate_tensors(self): pass
    def get_input_details(self): return [_details("x", 0)]
    def get_output_details(self): return [_details("y", 1)]
    def set_tensor(self, index, value): self.value = value
    def invoke(self): pass
    def get_tensor(self, index): return self.value * 3
def _details(name, index):
    empty = {"scales": [], "zero_points": []}
    return {"name": name, "index": index, "shape": [1, 4], "dtype": np.float32, "quantization_parameters": empty}
"""


def probe_with(interpreter: str, folder: Path) -> dict:
    package = folder / "path" / "tflite_runtime"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(interpreter)
    about = folder / "path" / "tflite_runtime-9.9.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 9.9\n")
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder / "cache")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder / "path")},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("interpreter", "state", "words"),
    [
        (KILLED, "crashed", "SIGSEGV"),
        (OTHER_NUMPY, "error", "_ARRAY_API not found"),
        (NO_LIBRARY, "error", "libfoo.so.1"),
        (LIES, "mismatch", "differs by 3"),
        ("raise ZeroDivisionError('odd')\n", "error", "odd"),
    ],
    ids=["killed", "other numpy", "no library", "lies", "odd error"],
)
def test_a_broken_runtime_is_described_and_the_prober_lives(interpreter: str, state: str, words: str, tmp_path: Path):
    status = probe_with(interpreter, tmp_path)
    assert status["state"] == state
    assert words in status["text"]
    assert status["version"] == "9.9"


def test_a_runtime_that_kills_is_tried_twice_and_then_left_alone(tmp_path: Path):
    assert [probe_with(KILLED, tmp_path)["crashes"] for _ in range(3)] == [1, 2, 2]
