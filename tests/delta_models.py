"""Small quantized models, old and new, as a fine-tuning, a recalibration or another change would make them."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Weights:
    """Float weights of a net of one convolution and one dense layer, and the ranges of its activations."""

    conv: np.ndarray
    conv_bias: np.ndarray
    dense: np.ndarray
    dense_bias: np.ndarray
    ranges: tuple[float, float, float]


def weights(seed: int = 0, *, channels: int = 16, classes: int = 10) -> Weights:
    random = np.random.default_rng(seed)
    return Weights(
        random.normal(0, 0.3, (channels, 3, 3, 3)).astype(np.float32),
        random.normal(0, 0.1, channels).astype(np.float32),
        random.normal(0, 0.2, (classes, channels * 4)).astype(np.float32),
        random.normal(0, 0.1, classes).astype(np.float32),
        (1.0, 3.0, 7.0),
    )


def recalibrated(old: Weights) -> Weights:
    return replace(old, ranges=(1.03, 3.31, 6.4))


def tuned(old: Weights, amount: float = 0.01, seed: int = 1) -> Weights:
    random = np.random.default_rng(seed)

    def moved(one: np.ndarray) -> np.ndarray:
        return (one + amount * random.normal(0, 1, one.shape)).astype(np.float32)

    return replace(
        recalibrated(old),
        conv=moved(old.conv),
        conv_bias=moved(old.conv_bias),
        dense=moved(old.dense),
        dense_bias=moved(old.dense_bias),
    )


def normalized(old: Weights, seed: int = 2) -> Weights:
    """As a gentle training with batch normalization leaves it: rows grow or shrink as a whole, few weights change their place in them."""
    random = np.random.default_rng(seed)
    factors = (1 + 0.04 * random.normal(0, 1, len(old.conv))).astype(np.float32)
    step = np.abs(old.conv).max() / 127
    moved = np.where(random.random(old.conv.shape) < 0.02, step, 0).astype(np.float32)
    return replace(recalibrated(old), conv=(old.conv + moved) * factors[:, None, None, None], conv_bias=old.conv_bias * factors)


def new_head(old: Weights) -> Weights:
    return replace(recalibrated(old), dense=weights(7).dense, dense_bias=weights(7).dense_bias)


def pruned(old: Weights, seed: int = 3) -> Weights:
    """As a sparse training leaves it: in every second row a tenth of the weights is another one, none as large as the row's largest."""
    random = np.random.default_rng(seed)

    def moved(one: np.ndarray) -> np.ndarray:
        rows = one.reshape(len(one), -1)
        top = np.abs(rows).max(axis=1, keepdims=True)
        is_moved = (random.random(rows.shape) < 0.1) & (np.abs(rows) < 0.9 * top) & (np.arange(len(rows))[:, None] % 2 == 0)
        return np.where(is_moved, random.uniform(-0.9, 0.9, rows.shape) * top, rows).astype(np.float32).reshape(one.shape)

    return replace(old, conv=moved(old.conv), dense=moved(old.dense))


def onnx_bytes(made: Weights, *, extra: dict[str, np.ndarray] | None = None, raw_scalars: bool = False) -> bytes:
    """An ONNX model as quantizers write it: int8 with scales, int32 biases, zero points in varying length."""
    tensors, nodes = [], []

    def scalar(name: str, kind: int, value: float) -> None:
        if raw_scalars:
            array = np.array(value, helper.tensor_dtype_to_np_dtype(kind))
            tensors.append(numpy_helper.from_array(array, name))
        else:
            tensors.append(helper.make_tensor(name, kind, [], [value]))

    def activation(name: str, top: float, zero: int) -> np.float32:
        scale = np.float32(top / 255)
        scalar(f"{name}_scale", TensorProto.FLOAT, float(scale))
        scalar(f"{name}_zero", TensorProto.INT8, zero)
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [f"{name}_d"]))
        return scale

    def layer(name: str, weight: np.ndarray, bias: np.ndarray, source: np.float32) -> None:
        rows = weight.shape[0]
        scale = (np.abs(weight.reshape(rows, -1)).max(axis=1) / 127).astype(np.float32)
        whole = np.clip(np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))), -127, 127).astype(np.int8)
        product = (source * scale).astype(np.float32)
        with np.errstate(all="ignore"):
            quantized = np.rint(bias / product).astype(np.int32)
        for suffix, array in (("w", whole), ("w_scale", scale), ("b", quantized), ("b_scale", product)):
            tensors.append(numpy_helper.from_array(array, f"{name}_{suffix}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_w", f"{name}_w_scale"], [f"{name}_wd"], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_b", f"{name}_b_scale"], [f"{name}_bd"], axis=0))

    zero = int(made.ranges[1] * 17) % 250 - 125
    layer("conv", made.conv, made.conv_bias, activation("x", made.ranges[0], -128))
    nodes.append(helper.make_node("Conv", ["x_d", "conv_wd", "conv_bd"], ["h"], strides=[2, 2]))
    scale = activation("h", made.ranges[1], zero)
    nodes.append(helper.make_node("Flatten", ["h_d"], ["f"]))
    layer("dense", made.dense, made.dense_bias, scale)
    nodes.append(helper.make_node("Gemm", ["h_d", "dense_wd", "dense_bd"], ["y"], transB=1))
    activation("y", made.ranges[2], 3)
    tensors += [numpy_helper.from_array(array, name) for name, array in (extra or {}).items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y_d", TensorProto.FLOAT, [1, 10])],
        tensors,
    )
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
