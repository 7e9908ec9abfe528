"""Trains the example's two digit classifiers on real scans and exports each as int8 ONNX and int8 TFLite; builds a damaged third.

    python examples/digits/train.py build      # environment of requirements.in: model files
    python examples/digits/train.py goldens    # each runtime's environment: golden vectors, keyed by runtime
    python examples/digits/train.py record     # the product's environment: accuracy and digests into RECORD.json

Release 1.2 is damaged on purpose: its classifier head is filled with random weights, while its golden vectors are those of 1.1, as
after a broken export. No flag says so; the device's self-test finds out.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import scans

from fleet.registry.drafts import complete, load_draft
from runtime.base import Array, BackendOptions
from runtime.golden import decode, encode, merge
from runtime.loader import load_first
from runtime.manifest import FileEntry, ModelManifest, to_bytes
from runtime.postprocess import Classifier
from runtime.preprocess import Preprocessor, compile_plan, plan_for
from runtime.probe import inspect_model, run_goldens, self_test

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
VARIANTS = ("onnx", "tflite")
SIDE = 32
SEED = 20
GOLDEN_VECTORS = 16
#: Per version: scans it learns from, rounds over them, frames drawn of each scan and round.
RECIPES = {"1.0": ("first", 14, 2), "1.1": ("second", 24, 3)}
DAMAGED, HONEST = "1.2", "1.1"


def tensor_frames(rows: tuple[int, ...], *, seed: int, copies: int) -> Array:
    """Frames of the rows as the device would see them: float32, n x 1 x 32 x 32."""
    from runtime.inputs import Color, Fit, Interpolation, Layout, Preprocess, TensorDescription

    tensor = TensorDescription(name="x", shape=(1, 1, SIDE, SIDE), layout=Layout.NCHW, dtype="float32")
    preprocess = Preprocess(color=Color.GRAY, fit=Fit.CROP, interpolation=Interpolation.LINEAR)
    runner = Preprocessor(plan_for(tensor, preprocess))
    pictures, _ = scans.load()
    frames = scans.frames_of(pictures, rows, seed=seed, copies=copies, size=(160, 120))
    return np.concatenate([runner.run(frame).copy() for frame in frames])


# --- build: the training environment ---


def train(version: str) -> Any:
    """The trained float network of a version."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    part, rounds, copies = RECIPES[version]
    rows = getattr(scans.split(), part)
    _, digits = scans.load()
    target = torch.tensor([digits[row] for row in rows for _ in range(copies)])
    network = new_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    for number in range(rounds):
        frames = torch.from_numpy(tensor_frames(rows, seed=SEED * 1000 + number, copies=copies))
        for batch in torch.randperm(len(frames)).split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(frames[batch]), target[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"{version}: round {number + 1} of {rounds}, loss {loss.item():.3f}")
    return network.eval()


def new_network() -> Any:
    """Three convolutions that halve the picture and one linear head: 11 thousand weights."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def damaged(network: Any) -> Any:
    """The network with its head filled with random weights."""
    import copy

    import torch

    torch.manual_seed(SEED + 1)
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken[-1].weight.normal_(0.0, 0.2)
        broken[-1].bias.normal_(0.0, 0.2)
    return broken


def calibration() -> Array:
    """200 training frames, one black and one white, so that the input's range is exactly 0 to 1."""
    frames = tensor_frames(scans.split().first[:198], seed=SEED + 5, copies=1)
    return np.concatenate([frames, np.zeros_like(frames[:1]), np.ones_like(frames[:1])])


def export_onnx(network: Any, path: Path) -> None:
    """Write the int8 QDQ file: static, per channel, reduced range (right on processors without VNNI too)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    nodes, weights, last = [], [], "image"
    for index in (0, 2, 4):
        weights += [
            numpy_helper.from_array(network[index].weight.detach().numpy(), f"conv{index}.weight"),
            numpy_helper.from_array(network[index].bias.detach().numpy(), f"conv{index}.bias"),
        ]
        nodes.append(
            helper.make_node(
                "Conv",
                [last, f"conv{index}.weight", f"conv{index}.bias"],
                [f"conv{index}"],
                name=f"conv{index}",
                strides=[2, 2],
                pads=[1, 1, 1, 1],
            )
        )
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"], name=f"relu{index}"))
        last = f"relu{index}"
    weights += [
        numpy_helper.from_array(np.ascontiguousarray(network[7].weight.detach().numpy().T), "head.weight"),
        numpy_helper.from_array(network[7].bias.detach().numpy(), "head.bias"),
    ]
    nodes += [
        helper.make_node("Flatten", [last], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="mooring-example")
    onnx.checker.check_model(model, full_check=True)

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._frames = iter(calibration())

        def get_next(self) -> dict[str, Array] | None:
            frame = next(self._frames, None)
            return None if frame is None else {"image": frame[np.newaxis]}

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "float.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            path,
            Frames(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def export_tflite(network: Any, path: Path) -> None:
    """Write the int8 file with int8 input and output, NHWC."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    converted = litert_torch.convert(litert_torch.to_channel_last_io(network, args=[0]).eval(), (torch.zeros(1, SIDE, SIDE, 1),))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "float.tflite"
        converted.export(str(source))
        worker = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(source))
        signature, details = next(iter(interpreter.get_signature_list().items()))
        samples = [{details["inputs"][0]: frame.transpose(1, 2, 0)[np.newaxis].copy()} for frame in calibration()]
        ranges = worker.calibrate({signature: samples})
        name = str(interpreter.get_input_details()[0]["name"])
        ranges[name] = {"min": np.zeros((1, 1, 1, 1), np.float32), "max": np.ones((1, 1, 1, 1), np.float32)}  # scale 1/255 exactly
        result = worker.quantize(ranges)
        path.write_bytes(bytes(result.quantized_model))


def build() -> None:
    """Train and write all model files."""
    networks = {version: train(version) for version in RECIPES}
    networks[DAMAGED] = damaged(networks[HONEST])
    for version, network in networks.items():
        for variant, export in (("onnx", export_onnx), ("tflite", export_tflite)):
            folder = MODELS / version / variant
            folder.mkdir(parents=True, exist_ok=True)
            export(network, folder / f"model.{variant}")
            print(f"{folder / f'model.{variant}'}: {(folder / f'model.{variant}').stat().st_size} bytes")


# --- goldens: every environment that has a runtime ---


def goldens() -> None:
    """Write golden.cbor beside each model, adding this environment's runtimes to what is there."""
    for version in RECIPES:
        for variant in VARIANTS:
            folder = MODELS / version / variant
            model, path = folder / f"model.{variant}", folder / "golden.cbor"
            known = decode(path.read_bytes()) if path.exists() else None
            inputs = [dict(vector) for vector in known.inputs] if known else golden_inputs(folder, variant)
            made = run_goldens(model, inputs)
            path.write_bytes(encode(merge(known, made) if known else made))
            print(f"{path}: {', '.join(decode(path.read_bytes()).outputs)}")
    for variant in VARIANTS:
        (MODELS / DAMAGED / variant / "golden.cbor").write_bytes((MODELS / HONEST / variant / "golden.cbor").read_bytes())


def golden_inputs(folder: Path, variant: str) -> list[dict[str, Array]]:
    """Input tensors of held-out scans, made by the model's own plan."""
    manifest = manifest_of(folder, variant, "1.0", with_goldens=False)
    runner = Preprocessor(compile_plan(manifest))
    pictures, _ = scans.load()
    frames = scans.frames_of(pictures, scans.split().held_out[:GOLDEN_VECTORS], seed=SEED + 9)
    return [{manifest.inputs[0].name: runner.run(frame).copy()} for frame in frames]


def manifest_of(folder: Path, variant: str, version: str, *, with_goldens: bool = True) -> ModelManifest:
    """The manifest that a release of the folder's files would get."""
    names = [f"model.{variant}", *(["golden.cbor"] if with_goldens else [])]
    return complete(
        load_draft(HERE / f"{variant}.toml"),
        inspect_model(folder / f"model.{variant}"),
        line="digits",
        release=version,
        counter=1,
        variant=variant,
        files={name: FileEntry(sha256=f"sha256:{_sha256(folder / name)}", length=(folder / name).stat().st_size) for name in names},
    )


# --- record: the product's environment ---


def record() -> None:
    """Measure every file with the device's own code on held-out scans and write RECORD.json."""
    parts = scans.split()
    files: dict[str, Any] = {}
    for version in (*RECIPES, DAMAGED):
        for variant in VARIANTS:
            folder = MODELS / version / variant
            manifest = manifest_of(folder, variant, version)
            right, provider = accuracy(folder, manifest)
            verdict = verdict_of(folder, manifest)
            files[f"{version}/{variant}"] = {
                "model": f"models/{version}/{variant}/model.{variant}",
                "sha256": _sha256(folder / f"model.{variant}"),
                "length": (folder / f"model.{variant}").stat().st_size,
                "golden_sha256": _sha256(folder / "golden.cbor"),
                "accuracy_held_out": round(right, 4),
                "measured_on": provider,
                "self_test": verdict,
            }
            print(version, variant, f"{right:.4f}", verdict)
    document = {
        "data": "scikit-learn digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0), 1,797 scans of 8 x 8 pixels",
        "script_sha256": {name: _sha256(HERE / name) for name in ("train.py", "scans.py")},
        "seed": SEED,
        "packages": json.loads((MODELS / "packages.json").read_text()),
        "split": {"seed": scans.SPLIT_SEED, "first": len(parts.first), "second": len(parts.second), "held_out": list(parts.held_out)},
        "files": files,
    }
    (HERE / "RECORD.json").write_text(json.dumps(document, indent=1) + "\n")


def accuracy(folder: Path, manifest: ModelManifest) -> tuple[float, str]:
    """Share of held-out scans named right through frame, plan, runtime and answer; and what ran."""
    runner, judge = Preprocessor(compile_plan(manifest)), Classifier(manifest)
    loaded = load_first(folder, manifest, BackendOptions())
    pictures, digits = scans.load()
    rows = scans.split().held_out
    right = 0
    for row, frame in zip(rows, scans.frames_of(pictures, rows, seed=SEED + 11), strict=True):
        answer = judge.run(loaded.backend.infer({manifest.inputs[0].name: runner.run(frame)}))
        right += answer.top[0].index == digits[row]
    loaded.backend.close()
    return right / len(rows), f"{loaded.backend.name} {loaded.backend.version}"


def verdict_of(folder: Path, manifest: ModelManifest) -> str:
    """Code of the device's self-test over the files as a slot."""
    with tempfile.TemporaryDirectory() as scratch:
        slot = Path(scratch)
        for name in manifest.files:
            (slot / name).write_bytes((folder / name).read_bytes())
        (slot / "manifest.json").write_bytes(to_bytes(manifest))
        return self_test(slot).code


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_packages() -> None:
    names = (
        "torch",
        "litert-torch",
        "ai-edge-quantizer",
        "ai-edge-litert",
        "onnx",
        "onnxruntime",
        "numpy",
        "scikit-learn",
        "opencv-python-headless",
    )
    (MODELS / "packages.json").write_text(json.dumps({name: metadata.version(name) for name in names}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "goldens", "record"))
    command = parser.parse_args().command
    if command == "build":
        build()
        _write_packages()
    elif command == "goldens":
        goldens()
    else:
        record()
    return 0


if __name__ == "__main__":
    sys.exit(main())
