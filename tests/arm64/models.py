"""The models whose answers are compared across architectures, with what was measured of each, and slots of them."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper

from fleet.registry.drafts import complete, load_draft, parse_draft
from protocol.files import digest_of_file
from runtime.base import Array
from runtime.manifest import FileEntry, ModelManifest, to_bytes
from runtime.preprocess import Filler, Preprocessor, compile_plan
from runtime.probe import inspect_model
from runtime.readings import WindowFiller
from runtime.samples import sample_vectors

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
DEVICE_TYPES = ["linux-x86-64", "linux-arm64"]
#: Of each kind. The golden vectors of the largest model and the outputs of two machines have to fit into 4 MiB.
VECTORS = 12


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and how far its outputs on arm64 were from those on x86-64."""

    name: str
    #: Its bytes, given the data folder.
    source: Callable[[Path], bytes]
    variant: str
    draft: Mapping[str, Any] | Path
    needs_data: bool = True
    #: Largest difference of integers in steps, of floats absolute, by output, kind of vectors, or "*".
    bounds: Mapping[str, float] = field(default_factory=lambda: {"*": 0.0})
    #: Golden vectors of one architecture are refused by the other: each needs its own (ADR 0042).
    is_per_architecture: bool = False

    def bound_of(self, kind: str, output: str) -> float:
        """How far this output may be off for vectors of this kind; 0: bit-equal."""
        return next(self.bounds[key] for key in (output, kind, "*") if key in self.bounds)

    def write(self, folder: Path, data: Path) -> Path:
        """The model file in the folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"model.{self.variant}"
        file.write_bytes(self.source(data))
        return file

    def manifest(self, file: Path, files: Mapping[str, FileEntry] | None = None) -> ModelManifest:
        """The manifest that the server would make of the draft and the file."""
        draft = load_draft(self.draft) if isinstance(self.draft, Path) else parse_draft({"device_types": DEVICE_TYPES, **self.draft})
        entries = files or {file.name: _entry(file)}
        return complete(draft, inspect_model(file), line="arm64", release="1", counter=1, variant=self.variant, files=entries)


def make_slot(folder: Path, model: Model, file: Path, golden: bytes) -> None:
    """A slot folder as an installed release's, with these golden vectors."""
    folder.mkdir(parents=True)
    copied, vectors = folder / file.name, folder / "golden.cbor"
    shutil.copyfile(file, copied)
    vectors.write_bytes(golden)
    manifest = model.manifest(copied, {path.name: _entry(path) for path in (copied, vectors)})
    (folder / "manifest.json").write_bytes(to_bytes(manifest))


def picture_vectors(manifest: ModelManifest, data: Path) -> list[dict[str, Array]]:
    """Real pictures first, where there are any, then made-up ones or windows; every second state is not the first."""
    vectors = sample_vectors(manifest, count=VECTORS)
    if manifest.preprocess is not None:
        before = Preprocessor(compile_plan(manifest))
        for vector, path in zip(vectors, sorted((data / "images").glob("*.bmp")), strict=False):
            vector[manifest.inputs[0].name] = before.run(np.asarray(cv2.imread(str(path)))).copy()
    return vectors


def noise_vectors(manifest: ModelManifest) -> list[dict[str, Array]]:
    """Noise over all that the input and the state can hold."""
    random = np.random.default_rng(42)
    first = manifest.inputs[0]
    vectors = []
    for _ in range(VECTORS):
        vector = {tensor.name: _noise(tensor.dtype, tensor.shape, random) for tensor in manifest.inputs}
        if manifest.preprocess is not None:
            plan = compile_plan(manifest)
            pixels = random.integers(0, 256, (plan.height, plan.width, plan.channels), dtype=np.uint8)
            vector[first.name] = Filler(plan).fill(pixels).copy()
        elif manifest.window is not None:
            shape = (manifest.window.length, len(manifest.window.fields))
            vector[first.name] = WindowFiller(first, manifest.window).fill(random.uniform(-85, 15, shape).astype(np.float32)).copy()
        vectors.append(vector)
    return vectors


def _noise(dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if np.dtype(dtype).kind == "f":
        return random.uniform(-1, 1, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max + 1, shape).astype(dtype)


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=digest_of_file(path), length=path.stat().st_size)


def as_float(model: bytes) -> bytes:
    """The float32 twin of a QDQ model: its weights, and its activations clipped to their ranges, which is where its ReLUs are."""
    proto = onnx.load_model_from_string(model)
    graph, known = proto.graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes, floats = [], {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
        elif node.input[0] in known:
            floats[node.output[0]] = _dequantized(node, known)
        else:
            low, high = _range_of(node, known)
            floats |= {f"{node.output[0]}.low": low, f"{node.output[0]}.high": high}
            source = makers[node.input[0]].input[0]
            nodes.append(helper.make_node("Clip", [source, f"{node.output[0]}.low", f"{node.output[0]}.high"], list(node.output)))
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in (known | floats).items() if name in used]
    made = helper.make_graph(nodes, "float", list(graph.input), list(graph.output), tensors)
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def _dequantized(node: onnx.NodeProto, known: Mapping[str, Array]) -> Array:
    whole, scale = known[node.input[0]], known[node.input[1]]
    zero = known[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, whole.dtype)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.ndim:
        shape = [1] * whole.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((whole.astype(np.float64) - zero.astype(np.float64)) * scale.astype(np.float64)).astype(np.float32)


def _range_of(node: onnx.NodeProto, known: Mapping[str, Array]) -> tuple[Array, Array]:
    scale, zero = known[node.input[1]], known[node.input[2]]
    limits = np.iinfo(zero.dtype)
    low, high = ((limit - int(zero)) * np.float32(scale) for limit in (limits.min, limits.max))
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def _given(path: str) -> Callable[[Path], bytes]:
    return lambda data: (data / path).read_bytes()


def _float_of(path: str) -> Callable[[Path], bytes]:
    return lambda data: as_float((data / path).read_bytes())


def _digits(variant: str) -> bytes:
    return (DIGITS / "models" / "1.1" / variant / f"model.{variant}").read_bytes()


def _classes(count: int, color: str = "RGB", **preprocess: Any) -> dict[str, Any]:
    labels = [f"class {index}" for index in range(count)]
    return {"task": "classification", "labels": labels, "preprocess": {"color": color, **preprocess}}


_AD01 = {
    "task": "anomaly",
    "window": {"fields": ["level"], "length": 640},
    "anomaly": {"score": "reconstruction", "threshold": 100.0, "unit": "dB²"},
}
#: Rows of near ties change places, so only the scores have a bound of their own; objects are compared by `runtime.agreement`.
_RANKED = {f"TFLite_Detection_PostProcess{end}": bound for end, bound in (("", math.inf), (":1", math.inf), (":2", 0.024))}
#: One step of the output's grid in 3 of 240 values.
_ONE_STEP = {"noise": 0.079, "*": 0.0}
_FLOAT = {"*": 1e-5}
_TRAFFIC = ROOT / "examples" / "traffic" / "traffic.toml"
MODELS = (
    Model("vww_96_int8", _given("models/vww_96_int8.tflite"), "tflite", _classes(2)),
    Model("vww_96_float", _given("models/vww_96_float.tflite"), "tflite", _classes(2), bounds={"*": 1.2e-7}),
    # its input is the pixel itself: scale 1, zero point -128
    Model("resnet8_int8", _given("models/resnet8_cifar10_int8.tflite"), "tflite", _classes(10, std=[1 / 255])),
    Model("ad01_int8", _given("models/ad01_int8.tflite"), "tflite", _AD01),
    Model(
        "mobilenet_v2_uint8",
        _given("models/mobilenet_v2_1.0_224_quant.tflite"),
        "tflite",
        _classes(1001, mean=[0.5], std=[0.5]),
        bounds={"pictures": 11.0, "noise": 2.0},
        is_per_architecture=True,
    ),
    Model("traffic_stateful", _given("models/traffic_model.tflite"), "tflite", _TRAFFIC, bounds={"*": 0.0, **_RANKED}),
    Model("digits_int8", lambda _: _digits("tflite"), "tflite", DIGITS / "tflite.toml", needs_data=False),
    Model("mbs_v1_int8", _given("delta-pairs/mbs_v1_int8.onnx"), "onnx", _classes(10, "GRAY"), bounds=_ONE_STEP),
    Model("rn_v1_int8", _given("delta-pairs/rn_v1_int8.onnx"), "onnx", _classes(10, "GRAY"), bounds=_ONE_STEP),
    Model("mbs_v1_fp32", _float_of("delta-pairs/mbs_v1_int8.onnx"), "onnx", _classes(10, "GRAY"), bounds=_FLOAT),
    Model("rn_v1_fp32", _float_of("delta-pairs/rn_v1_int8.onnx"), "onnx", _classes(10, "GRAY"), bounds=_FLOAT),
    Model("digits_onnx_int8", lambda _: _digits("onnx"), "onnx", DIGITS / "onnx.toml", needs_data=False),
    Model("digits_onnx_fp32", lambda _: as_float(_digits("onnx")), "onnx", DIGITS / "onnx.toml", needs_data=False, bounds=_FLOAT),
)
