"""Who loads a heavy library, and when."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("cv2", "onnxruntime", "ai_edge_litert", "tflite_runtime", "sklearn")


@pytest.mark.parametrize(
    "module", ["manifest", "base", "golden", "preprocess", "postprocess", "probe", "loader", "samples", "selftest", "cpu", "onnx", "tflite"]
)
def test_importing_a_module_loads_no_heavy_library(module: str):
    code = f"import sys, runtime.{module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
