"""Two versions of a large int8 ONNX file without any training: memory of a decoder must not grow with the model.

Its weights are random numbers of a trained layer's spread, one in twenty of them moved by one; so it says nothing about sizes.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Square layers, and their side: 64 MiB of weights.
LAYERS, SIDE = 16, 2048
SEED = 5
NAMES = ("large_v1_int8.onnx", "large_moved_int8.onnx")


def ensure(folder: Path) -> tuple[Path, Path]:
    """Both files in the folder, made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    old, new = (folder / name for name in NAMES)
    if not (old.exists() and new.exists()):
        draw = np.random.default_rng(SEED)
        weights = [np.clip(np.rint(draw.normal(0, 30, (SIDE, SIDE))), -127, 127).astype(np.int8) for _ in range(LAYERS)]
        _write(old, weights, scale=0.001)
        for weight in weights:
            moved = draw.random(weight.shape) < 0.05
            weight[moved] = np.clip(weight[moved].astype(np.int16) + draw.choice([-1, 1], np.count_nonzero(moved)), -127, 127)
        _write(new, weights, scale=0.001)
    return old, new


def _write(path: Path, weights: list[np.ndarray], *, scale: float) -> None:
    nodes, values, last = [], [], "x"
    for number, weight in enumerate(weights):
        names = [f"layer{number}.{part}" for part in ("weight_quantized", "weight_scale", "weight_zero_point")]
        arrays = (weight, np.full(SIDE, scale, np.float32), np.zeros(SIDE, np.int8))
        values += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"weight{number}"], axis=1))
        nodes.append(helper.make_node("MatMul", [last, f"weight{number}"], [f"y{number}"]))
        last = f"y{number}"
    shape = [1, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
