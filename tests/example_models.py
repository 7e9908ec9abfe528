"""The example's real models as slot folders, and which runtimes this environment has."""

import importlib.util
import shutil
from functools import cache
from pathlib import Path

from fleet.registry.drafts import complete, load_draft
from protocol.files import digest_of_file
from runtime.base import BACKENDS_OF_FORMAT, ON_DEMAND_OF_FORMAT, ModelTensors
from runtime.manifest import FileEntry, ModelManifest, to_bytes
from runtime.probe import inspect_model

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
MODULES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime", "onnx": "onnxruntime"}
INSTALLED = tuple(name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None)
#: With those that are used only when they are named.
CREATABLE = (*INSTALLED, "litert-compiled") if "litert" in INSTALLED else INSTALLED
#: Formats that some installed runtime reads.
READABLE = tuple(name for name, backends in BACKENDS_OF_FORMAT.items() if set(backends) & set(INSTALLED))


def variant_of(backend: str) -> str:
    """The format that a backend reads."""
    return next(name for name, backends in BACKENDS_OF_FORMAT.items() if backend in (*backends, *ON_DEMAND_OF_FORMAT[name]))


def model_folder(variant: str, version: str = "1.1") -> Path:
    """Where the model and its golden vectors lie."""
    return DIGITS / "models" / version / variant


@cache
def _tensors(model: Path) -> ModelTensors:
    return inspect_model(model)


def manifest_for(folder: Path, variant: str, version: str = "1.1") -> ModelManifest:
    """The manifest of the files in the folder."""
    names = [f"model.{variant}", "golden.cbor"]
    files = {name: FileEntry(sha256=digest_of_file(folder / name), length=(folder / name).stat().st_size) for name in names}
    tensors = _tensors(model_folder(variant, version) / f"model.{variant}")
    draft = load_draft(DIGITS / f"{variant}.toml")
    return complete(draft, tensors, line="digits", release=version, counter=2, variant=variant, files=files)


def make_slot(folder: Path, variant: str, version: str = "1.1") -> Path:
    """The folder, made a slot of one version and variant of the example."""
    shutil.copytree(model_folder(variant, version), folder)
    (folder / "manifest.json").write_bytes(to_bytes(manifest_for(folder, variant, version)))
    return folder
