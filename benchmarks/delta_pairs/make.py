"""Trains the benchmark's own pairs of models into build/delta-pairs; about ten minutes on one core, once.

    .venv-bench/bin/python -m benchmarks.delta_pairs.make

Six networks learn scikit-learn's digits (the detector: mosaics of them) in a lab's light; each is changed for a site in every way that
`changes.py` knows, and each version is calibrated on what it sees there. Seeds are fixed. `manifest.json` names every file with its
digest, every pair, and how much of the weights moved; with the same scripts and whole files nothing is made again.
"""

import hashlib
import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.delta_pairs import changes, scenes
from benchmarks.delta_pairs.changes import CHANGES, HEAD, MEDIUM, RECALIBRATED, SMALL, Change
from benchmarks.delta_pairs.networks import DETECTOR_SIDE, SIDE, new_network

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "build" / "delta-pairs"
SCRIPTS = ("make.py", "networks.py", "scenes.py", "changes.py", "exports.py")
#: Seed and rounds over the lab's scans, per network.
RECIPES = {"mobile": (11, 8), "mobile2": (21, 8), "mobile3": (31, 8), "residual": (12, 5), "plain": (13, 8), "detector": (14, 60)}
#: The same residual network from other random weights: what a delta cannot help with.
SCRATCH_SEED = 99
CALIBRATION = 64
#: What each file format takes: every change is made in int8 ONNX, some also in others.
FLOAT_CHANGES = (HEAD, MEDIUM, SMALL)
TFLITE_CHANGES = (RECALIBRATED, HEAD, MEDIUM, SMALL)
FLOAT_NETWORKS = ("mobile", "plain")
TFLITE_NETWORKS = ("mobile", "residual", "plain")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions of one model: names of files in the folder."""

    name: str
    network: str
    change: str
    format: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Making:
    """One network being made: its first version and the pictures of lab and site."""

    kind: str
    first: nn.Module
    site: changes.Data
    lab: changes.Data
    judge: tuple[torch.Tensor, torch.Tensor]

    @property
    def side(self) -> int:
        return DETECTOR_SIDE if self.kind == "detector" else SIDE

    def calibration(self, data: changes.Data) -> np.ndarray:
        """Frames to calibrate with, one black and one white among them."""
        frames = data(777)[0][: CALIBRATION - 2].numpy()
        return np.concatenate([frames, np.zeros_like(frames[:1]), np.ones_like(frames[:1])])


def main() -> int:
    if is_whole():
        print(f"{FOLDER}: all pairs are there")
        return 0
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "manifest.json").unlink(missing_ok=True)
    began, used = time.monotonic(), time.process_time()
    pairs: list[Pair] = []
    accuracies: dict[str, float] = {}
    for kind, (seed, rounds) in RECIPES.items():
        making = begin(kind, seed=seed, rounds=rounds)
        made, judged = make(making, seed=seed)
        pairs += made
        accuracies |= judged
        print(f"{kind}: {len(made)} pairs, {time.monotonic() - began:.0f} s so far", flush=True)
    write_manifest(pairs, accuracies, wall_s=time.monotonic() - began, cpu_s=time.process_time() - used)
    return 0


def begin(kind: str, *, seed: int, rounds: int) -> Making:
    """Train a network's first version in the lab's light."""
    parts = scenes.load()
    lab = changes.data_of(kind, parts["first"], scenes.LAB, seed=seed)
    site = changes.data_of(kind, parts["second"], scenes.SITE, seed=seed + 1000)
    judge = changes.data_of(kind, parts["held_out"], scenes.SITE, seed=seed + 2000)(0)
    first = changes.train_first(new_network(kind, seed=seed), lab, rounds=rounds)
    return Making(kind, first, site, lab, judge)


def make(making: Making, *, seed: int) -> tuple[list[Pair], dict[str, float]]:
    """Write a network's first version and all its changed ones; returns the pairs and each version's accuracy at the site."""
    kind = making.kind
    write_version(making, "v1", making.first, None)
    judged = {f"{kind}_v1": changes.accuracy(making.first, making.judge)}
    pairs: list[Pair] = []
    for number, change in enumerate(CHANGES):
        torch.manual_seed(seed * 100 + number)
        network = changes.apply(change, making.first, making.site)
        judged[f"{kind}_{change.name}"] = changes.accuracy(network, making.judge)
        pairs += write_version(making, change.name, network, change)
    if kind == "residual":
        other = begin(kind, seed=SCRATCH_SEED, rounds=RECIPES[kind][1])
        pairs += write_version(making, "scratch", other.first, Change("scratch", None))
    return pairs, judged


def write_version(making: Making, name: str, network: nn.Module, change: Change | None) -> list[Pair]:
    """One version in every format that its pairs need; returns the pairs with the first version (none for that one itself)."""
    from benchmarks.delta_pairs import exports

    kind, style = making.kind, exports.STYLES[making.kind]
    frames = making.calibration(making.lab if change is None else making.site)
    pinned = FOLDER / f"{kind}_v1_int8.onnx" if change and change.is_pinned else None
    source = FOLDER / f"{kind}_{name}_fp32.onnx"
    exports.write_float(network, source, side=making.side)
    exports.write_int8(source, FOLDER / f"{kind}_{name}_int8.onnx", frames, style, pinned_to=pinned)
    formats = {"int8": "_int8.onnx"}
    if kind in FLOAT_NETWORKS and (change is None or change in FLOAT_CHANGES):
        exports.write_half(source, FOLDER / f"{kind}_{name}_fp16.onnx")
        formats |= {"fp32": "_fp32.onnx", "fp16": "_fp16.onnx"}
    else:
        source.unlink()
    if kind in TFLITE_NETWORKS and (change is None or change in TFLITE_CHANGES):
        exports.write_tflite(network, FOLDER / f"{kind}_{name}_int8.tflite", frames)
        formats |= {"tflite": "_int8.tflite"}
    if change is None:
        return []
    names = {"int8": f"{kind}_{name}"}
    return [
        Pair(names.get(form, f"{kind}_{name}_{form}"), kind, change.name, form, f"{kind}_v1{suffix}", f"{kind}_{name}{suffix}")
        for form, suffix in formats.items()
    ]


# --- the manifest ---


def write_manifest(pairs: list[Pair], accuracies: dict[str, float], *, wall_s: float, cpu_s: float) -> None:
    """Say what was made, of what, and how long it took."""
    files = sorted({name for pair in pairs for name in (pair.old, pair.new)})
    packages = ("torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer", "scikit-learn", "numpy")
    document = {
        "schema": "delta_pairs.1",
        "scripts": scripts(),
        "packages": {name: metadata.version(name) for name in packages},
        "recipes": {kind: {"seed": seed, "rounds": rounds} for kind, (seed, rounds) in RECIPES.items()},
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "accuracy_at_site": {name: round(value, 4) for name, value in accuracies.items()},
        "files": {name: {"sha256": sha256(FOLDER / name), "length": (FOLDER / name).stat().st_size} for name in files},
        "pairs": [asdict(pair) for pair in pairs],
    }
    (FOLDER / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{FOLDER}: {len(pairs)} pairs of {len(files)} files in {wall_s:.0f} s ({cpu_s:.0f} s of CPU)")


def is_whole() -> bool:
    """Whether all files are there as the manifest says, made by these scripts."""
    path = FOLDER / "manifest.json"
    if not path.exists():
        return False
    document = json.loads(path.read_text())
    if document["scripts"] != scripts():
        return False
    return all((FOLDER / name).exists() and sha256(FOLDER / name) == entry["sha256"] for name, entry in document["files"].items())


def scripts() -> dict[str, str]:
    """Digest of every script that shapes the files."""
    return {name: sha256(HERE / name) for name in SCRIPTS}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
