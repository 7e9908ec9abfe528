"""Slot folders made of the models in the shared data folder, and where that folder is."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.registry.drafts import complete, parse_draft
from protocol.files import digest_of_file
from runtime.manifest import FileEntry, to_bytes
from runtime.probe import inspect_model

DATA = Path(os.environ.get("MOORING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
LINE = "bench"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model of the shared folder with what its author would write about it."""

    name: str
    #: Below the shared folder.
    path: str
    classes: int
    color: str = "RGB"
    activation: str = "none"

    @property
    def file(self) -> Path:
        return DATA / self.path

    @property
    def format(self) -> str:
        return self.file.suffix.removeprefix(".")

    def draft(self) -> dict[str, Any]:
        """As `mooring model import --manifest` reads it."""
        return {
            "task": "classification",
            "labels": [f"class {index}" for index in range(self.classes)],
            "activation": self.activation,
            "preprocess": {"color": self.color},
        }


VWW_INT8 = BenchModel("vww_96_int8", "models/vww_96_int8.tflite", 2)
VWW_FLOAT = BenchModel("vww_96_float", "models/vww_96_float.tflite", 2)
MOBILENET = BenchModel("mobilenet_v2", "models/mobilenet_v2_1.0_224_quant.tflite", 1001)
MBS_ONNX = BenchModel("mbs_v1", "delta-pairs/mbs_v1_int8.onnx", 10, color="GRAY", activation="softmax")
RN_ONNX = BenchModel("rn_v1", "delta-pairs/rn_v1_int8.onnx", 10, color="GRAY", activation="softmax")
MODELS = {model.name: model for model in (VWW_INT8, VWW_FLOAT, MOBILENET, MBS_ONNX, RN_ONNX)}


def make_slot(folder: Path, model: BenchModel, *, release: str = "1.0") -> Path:
    """The folder, made and filled as an installed release's slot. Raises: FileNotFoundError without the shared data."""
    folder.mkdir(parents=True)
    name = f"model.{model.format}"
    target = folder / name
    shutil.copyfile(model.file, target)
    files = {name: FileEntry(sha256=digest_of_file(target), length=target.stat().st_size)}
    manifest = complete(
        parse_draft({**model.draft(), "device_types": ["bench"]}),
        inspect_model(target),
        line=LINE,
        release=release,
        counter=1,
        variant=model.format,
        files=files,
    )
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
    return folder
