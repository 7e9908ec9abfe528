"""A real little detector in a slot folder: it finds the one bright square of a picture. And videos in which such a square drives about."""

import random
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from simulators.color_models import write_manifest

from fleet.registry.drafts import parse_draft
from runtime.base import ModelTensors, TensorSpec

SIDE = 64
TENSORS = ModelTensors(
    format="onnx",
    backend="onnx",
    version="1",
    inputs=(TensorSpec("pixels", (1, SIDE, SIDE, 3), "float32"),),
    outputs=(
        TensorSpec("boxes", (1, 1, 4), "float32"),
        TensorSpec("classes", (1, 1), "float32"),
        TensorSpec("scores", (1, 1), "float32"),
    ),
)


def square_model() -> onnx.ModelProto:
    """The smallest box around all pixels whose mean brightness is above one half; its score is that of the brightest of them."""
    columns = np.arange(SIDE, dtype=np.float32).reshape(1, 1, SIDE) / SIDE
    numbers = {
        "channel": np.array([3], np.int64),
        "everywhere": np.array([1, 2], np.int64),
        "half": np.array(0.5, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "left": columns,
        "right": columns + np.float32(1 / SIDE),
        "top": columns.reshape(1, SIDE, 1),
        "bottom": columns.reshape(1, SIDE, 1) + np.float32(1 / SIDE),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "channel"], ["gray"], keepdims=0),
        helper.make_node("Greater", ["gray", "half"], ["bright"]),
        helper.make_node("Where", ["bright", "gray", "zero"], ["lights"]),
        helper.make_node("ReduceMax", ["lights", "everywhere"], ["score"], keepdims=1),
        helper.make_node("Squeeze", ["score", "last"], ["scores"]),
        helper.make_node("Mul", ["scores", "zero"], ["classes"]),
    ]
    for edge, kind, otherwise in (("left", "Min", "one"), ("top", "Min", "one"), ("right", "Max", "zero"), ("bottom", "Max", "zero")):
        nodes += [
            helper.make_node("Where", ["bright", edge, otherwise], [f"{edge}s"]),
            helper.make_node(f"Reduce{kind}", [f"{edge}s", "everywhere"], [f"{edge}most"], keepdims=1),
        ]
    nodes.append(helper.make_node("Concat", ["topmost", "leftmost", "bottommost", "rightmost"], ["boxes"], axis=2))
    graph = helper.make_graph(
        nodes,
        "square",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(one.name, TensorProto.FLOAT, list(one.shape)) for one in TENSORS.outputs],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def make_square_slot(folder: Path, *, release: str = "1.0", line: str = "squares") -> Path:
    """A slot folder with the detector and its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(square_model().SerializeToString())
    draft = parse_draft(
        {"task": "detection", "labels": ["square"], "preprocess": {"color": "RGB"}, "device_types": ["test"], "detection": {"head": "ssd"}}
    )
    write_manifest(folder, draft, tensors=TENSORS, release=release, line=line)
    return folder


def picture(place: tuple[float, float] | None, *, size: tuple[int, int] = (96, 96), share: float = 0.2) -> np.ndarray:
    """A dark picture, width x height, with a bright square around that place; None: without one."""
    made = np.full((size[1], size[0], 3), 20, np.uint8)
    if place is not None:
        x, y, half = place[0] * size[0], place[1] * size[1], share * size[0] / 2
        cv2.rectangle(made, (round(x - half), round(y - half)), (round(x + half), round(y + half)), (255, 255, 255), -1)
    return made


def write_square_video(path: Path, places: Sequence[tuple[float, float] | None], *, fps: float = 15.0, seed: int = 1) -> Path:
    """A video of the square at these places, trembling by a pixel or so."""
    rng = random.Random(seed)  # noqa: S311 - a shaky camera
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (96, 96))
    assert writer.isOpened()
    for place in places:
        shaken = None if place is None else (place[0] + rng.uniform(-0.01, 0.01), place[1] + rng.uniform(-0.01, 0.01))
        writer.write(picture(shaken))
    writer.release()
    return path
