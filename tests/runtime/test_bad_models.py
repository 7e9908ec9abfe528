"""Models that a runtime cannot take: unknown operators, a version from the future, more memory than there is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_models import INSTALLED

from runtime.base import BackendOptions, LoadFailed, create

pytest.importorskip("onnx", reason="the package onnx, which makes the models of these tests, is not in this environment")
import onnx
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.skipif("onnx" not in INSTALLED, reason="ONNX Runtime is not installed")
ROOT = Path(__file__).resolve().parents[2]
#: Loads a model in a process that may not take more memory than it has, and some: what comes of it, in words.
LOAD_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import numpy
from runtime.base import BackendError, BackendOptions, create
from runtime.onemodel import ONE_OPERATION
backend = create("onnx")
small = Path(sys.argv[1]).with_name("small.onnx")
small.write_bytes(ONE_OPERATION["onnx"])
backend.load(small, None, BackendOptions())  # the runtime itself is loaded before memory gets short
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
try:
    backend.load(Path(sys.argv[1]), None, BackendOptions())
except BackendError as error:
    print(error.code, error)
backend.load(small, None, BackendOptions())
print("goes on")
"""


def model(path: Path, *, operator: str = "Add", opset: int = 13, weights: int = 4) -> Path:
    """y = x (operator) w over so many floats."""
    constant = numpy_helper.from_array(np.ones((1, weights), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, weights]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node(operator, ["x", "w"], ["y"])], "bad", [x], [y], [constant])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def refusal_of(path: Path) -> LoadFailed:
    with pytest.raises(LoadFailed) as caught:
        create("onnx").load(path, None, BackendOptions())
    return caught.value


def test_an_operator_that_nobody_knows_is_named(tmp_path: Path):
    error = refusal_of(model(tmp_path / "model.onnx", operator="Teleport"))
    assert "Teleport" in str(error)
    assert "operators this version does not know" in str(error.hint)


def test_an_operator_set_from_the_future_is_named(tmp_path: Path):
    assert "999" in str(refusal_of(model(tmp_path / "model.onnx", opset=999)))


def test_the_file_that_was_made_for_this_loads_when_nothing_is_wrong_with_it(tmp_path: Path):
    assert create("onnx").load(model(tmp_path / "model.onnx"), None, BackendOptions()).outputs[0].shape == (1, 4)
    assert onnx.__version__


def test_a_model_larger_than_memory_is_refused_and_the_process_goes_on(tmp_path: Path):
    path = model(tmp_path / "model.onnx", weights=32 << 20)  # 128 MiB
    done = subprocess.run([sys.executable, "-c", LOAD_WITH_LITTLE_MEMORY, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "load_failed" in done.stdout
    assert "goes on" in done.stdout
