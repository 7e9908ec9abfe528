"""ONNX Runtime reports to its vendor by default; here it never does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from example_models import INSTALLED, model_folder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif("onnx" not in INSTALLED, reason="ONNX Runtime is not installed")

WATCH = """
import builtins, os, sys
seen = []
original = builtins.__import__
def watch(name, *rest, **more):
    if name == "onnxruntime" and "onnxruntime" not in sys.modules:
        seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
    return original(name, *rest, **more)
builtins.__import__ = watch
from pathlib import Path
from runtime.base import BackendOptions, create
backend = create("onnx")
backend.load(Path(sys.argv[1]), None, BackendOptions())
backend.warm(2)
print(seen)
"""


def test_the_switch_is_set_before_the_import_and_nothing_is_queued_on_disk(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY" and not key.startswith("XDG_")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "XDG_DATA_HOME": str(home / ".local"), "TMPDIR": str(home)}
    model = model_folder("onnx") / "model.onnx"
    result = subprocess.run(
        [sys.executable, "-c", WATCH, str(model)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['1']"
    assert [path.name for path in home.rglob("*")] == []
