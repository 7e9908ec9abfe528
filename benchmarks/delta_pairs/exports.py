"""A trained network as files: float ONNX, fp16 ONNX, int8 QDQ ONNX and int8 TFLite."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

Frames = NDArray[np.float32]
#: Exactly 0..1, as a manifest with scale 1/255 would have it.
INPUT_RANGE = {"min": np.zeros((1, 1, 1, 1), np.float32), "max": np.ones((1, 1, 1, 1), np.float32)}


@dataclass(frozen=True, slots=True)
class Style:
    """How an owner's script quantizes: type of activations, and whether shape inference and fusion run before."""

    activations: QuantType
    is_prepared: bool


#: Per architecture: not one script for all, as in the field.
STYLES = {
    "mobile": Style(QuantType.QInt8, is_prepared=True),
    "mobile2": Style(QuantType.QUInt8, is_prepared=True),
    "mobile3": Style(QuantType.QInt8, is_prepared=False),
    "residual": Style(QuantType.QInt8, is_prepared=True),
    "plain": Style(QuantType.QUInt8, is_prepared=False),
    "detector": Style(QuantType.QUInt8, is_prepared=True),
}


def write_float(network: nn.Module, path: Path, *, side: int) -> None:
    """The float32 ONNX file, normalisation folded into the convolutions by the exporter."""
    torch.onnx.export(
        copy.deepcopy(network).eval(),
        (torch.zeros(1, 1, side, side),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )


def write_half(source: Path, path: Path) -> None:
    """The float16 ONNX file of a float32 one; input and output stay float32."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def write_int8(source: Path, path: Path, frames: Frames, style: Style, *, pinned_to: Path | None = None) -> None:
    """The int8 QDQ ONNX file, per channel; with the weight scales of an older one where given."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._frames = iter(frames)

        def get_next(self) -> dict[str, Frames] | None:
            frame = next(self._frames, None)
            return None if frame is None else {"x": frame[np.newaxis]}

    with tempfile.TemporaryDirectory() as scratch:
        ready = source
        if style.is_prepared:
            ready = Path(scratch) / "ready.onnx"
            quant_pre_process(source, ready)
        quantize_static(
            ready,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=style.activations,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": _scales_of(pinned_to)} if pinned_to else {},
        )


def _scales_of(path: Path) -> dict[str, list[dict[str, object]]]:
    """The quantizer's settings that keep the weight scales of a file."""
    graph = onnx.load(path).graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    overrides: dict[str, list[dict[str, object]]] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or values.get(node.input[0], np.zeros(0)).dtype != np.int8:
            continue
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        scales, points = values[node.input[1]], values[node.input[2]]
        channels: list[dict[str, object]] = [
            {"quant_type": QuantType.QInt8, "scale": scale, "zero_point": point}
            for scale, point in zip(scales.reshape(-1), points.reshape(-1), strict=True)
        ]
        channels[0]["axis"] = axis
        overrides[node.input[0].removesuffix("_quantized")] = channels
    return overrides


def write_tflite(network: nn.Module, path: Path, frames: Frames) -> None:
    """The int8 TFLite file, channels last, int8 in and out."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    side = frames.shape[-1]
    model = litert_torch.to_channel_last_io(copy.deepcopy(network).eval(), args=[0]).eval()
    converted = litert_torch.convert(model, (torch.zeros(1, side, side, 1),))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "float.tflite"
        converted.export(str(source))
        worker = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        interpreter = Interpreter(model_path=str(source))
        signature, details = next(iter(interpreter.get_signature_list().items()))
        samples = [{details["inputs"][0]: frame.transpose(1, 2, 0)[np.newaxis].copy()} for frame in frames]
        ranges = worker.calibrate({signature: samples})
        ranges[str(interpreter.get_input_details()[0]["name"])] = dict(INPUT_RANGE)
        path.write_bytes(bytes(worker.quantize(ranges).quantized_model))
