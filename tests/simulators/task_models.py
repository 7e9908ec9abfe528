"""Real little models of every task in slot folders. What they find is fixed; how sure they are is the brightness of the picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from simulators.color_models import write_manifest

from fleet.registry.drafts import parse_draft
from runtime.base import ModelTensors, TensorSpec

SIDE = 16
LABELS = ("person", "car")
#: Left, top, right, bottom of what the detectors find, shares of the input; its class and its score in a white picture.
OBJECTS = (((0.125, 0.25, 0.375, 0.75), 1, 0.9), ((0.5, 0.5, 0.75, 1.0), 0, 0.7), ((0.14, 0.26, 0.39, 0.76), 1, 0.6))
_PIXELS = TensorSpec("pixels", (1, SIDE, SIDE, 3), "float32")
_MEAN = [helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0)]
_AXES = numpy_helper.from_array(np.array([0, 1, 2, 3], np.int64), "axes")


def detection_draft(head: str, **options: object) -> dict[str, Any]:
    """What an author writes about one of the detectors."""
    return {
        "task": "detection",
        "labels": LABELS,
        "device_types": ["test"],
        "preprocess": {"color": "BGR"},
        "detection": {"head": head, **options},
    }


def ssd_slot(folder: Path, *, draft: Mapping[str, Any] | None = None) -> Path:
    """A detector with post-processed outputs: boxes as top, left, bottom, right in shares; four places for three objects."""
    boxes = np.array([[(one[1], one[0], one[3], one[2]) for one, _, _ in OBJECTS] + [(0, 0, 0, 0)]], np.float32)
    classes = np.array([[number for _, number, _ in OBJECTS] + [0]], np.float32)
    scores = np.array([[score for _, _, score in OBJECTS] + [0]], np.float32)
    constants = {"boxes": boxes, "classes": classes, "sure": scores, "count": np.array([3], np.float32)}
    nodes = [
        *_MEAN,
        helper.make_node("Mul", ["sure", "mean"], ["det_scores"]),
        helper.make_node("Identity", ["boxes"], ["det_boxes"]),
        helper.make_node("Identity", ["classes"], ["det_classes"]),
        helper.make_node("Identity", ["count"], ["num_det"]),
    ]
    outputs = (
        TensorSpec("det_boxes", (1, 4, 4), "float32"),
        TensorSpec("det_classes", (1, 4), "float32"),
        TensorSpec("det_scores", (1, 4), "float32"),
        TensorSpec("num_det", (1,), "float32"),
    )
    return _slot(folder, nodes, constants, (_PIXELS,), outputs, draft or detection_draft("ssd"))


def yolo_slot(folder: Path, *, draft: Mapping[str, Any] | None = None) -> Path:
    """A detector with a raw head of 20 places: center and size in pixels, then a score per class."""
    head = np.zeros((1, 4 + len(LABELS), 20), np.float32)
    for place, ((x0, y0, x1, y1), number, score) in enumerate(OBJECTS):
        head[0, :4, place] = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) * SIDE
        head[0, 4 + number, place] = score
    constants = {"places": head[:, :4], "sure": head[:, 4:]}
    nodes = [
        *_MEAN,
        helper.make_node("Mul", ["sure", "mean"], ["scores"]),
        helper.make_node("Concat", ["places", "scores"], ["head"], axis=1),
    ]
    return _slot(folder, nodes, constants, (_PIXELS,), (TensorSpec("head", head.shape, "float32"),), draft or detection_draft("yolo"))


def counter_slot(folder: Path, *, release: str = "1.0") -> Path:
    """A stateful regression: its value is how many frames it has seen before, plus the brightness."""
    nodes = [
        *_MEAN,
        helper.make_node("Add", ["seen", "one"], ["seen_now"]),
        helper.make_node("Add", ["seen", "mean"], ["value"]),
    ]
    draft = {
        "task": "regression",
        "device_types": ["test"],
        "preprocess": {"color": "BGR"},
        "state": [{"input": "seen", "output": "seen_now"}],
        "regression": {"unit": "frames"},
    }
    inputs = (_PIXELS, TensorSpec("seen", (1, 1), "float32"))
    outputs = (TensorSpec("seen_now", (1, 1), "float32"), TensorSpec("value", (1, 1), "float32"))
    return _slot(folder, nodes, {"one": np.ones((1, 1), np.float32)}, inputs, outputs, draft, release=release)


def halving_slot(folder: Path, *, threshold: float = 1.0, **window: object) -> Path:
    """An autoencoder over windows of 4 readings of 2 fields that gives back half of everything: the error is a quarter of the energy."""
    nodes = [helper.make_node("Mul", ["window", "half"], ["back"])]
    draft = {
        "task": "anomaly",
        "device_types": ["test"],
        "window": {"fields": ["a", "b"], "length": 4, **window},
        "anomaly": {"score": "reconstruction", "threshold": threshold, "unit": "g²"},
    }
    inputs, outputs = (TensorSpec("window", (1, 8), "float32"),), (TensorSpec("back", (1, 8), "float32"),)
    return _slot(folder, nodes, {"half": np.array(0.5, np.float32)}, inputs, outputs, draft)


def _slot(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    draft: Mapping[str, Any],
    *,
    release: str = "1.0",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    if any("axes" in node.input for node in nodes):
        initializers.append(_AXES)
    graph = helper.make_graph(nodes, "task", _values(inputs), _values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    tensors = ModelTensors("onnx", "onnx", "1", inputs, outputs)
    write_manifest(folder, parse_draft(draft), tensors=tensors, release=release, line="task")
    return folder


def _values(tensors: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape)) for tensor in tensors]
