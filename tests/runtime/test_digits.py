"""The example: what RECORD.json says, and that the models read real scans out of an encoded video."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import pytest
from example_models import DIGITS, READABLE, manifest_for, model_folder

from runtime.base import BackendOptions
from runtime.loader import load_first
from runtime.postprocess import Classifier
from runtime.preprocess import Preprocessor, compile_plan

RECORD = json.loads((DIGITS / "RECORD.json").read_text())


@pytest.fixture(scope="module")
def video_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("video", DIGITS / "video.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["video"] = module  # dataclasses look their module up
    sys.path.insert(0, str(DIGITS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DIGITS))
    return module


def test_the_record_names_the_files_that_are_there():
    for name, entry in RECORD["files"].items():
        model = DIGITS / entry["model"]
        assert hashlib.sha256(model.read_bytes()).hexdigest() == entry["sha256"], name
        assert hashlib.sha256((model.parent / "golden.cbor").read_bytes()).hexdigest() == entry["golden_sha256"], name
    for name, digest in RECORD["script_sha256"].items():
        assert hashlib.sha256((DIGITS / name).read_bytes()).hexdigest() == digest, f"{name} changed: run train.py record"


def test_the_second_version_is_better_and_the_damaged_one_fails_its_self_test():
    files = RECORD["files"]
    for variant in ("onnx", "tflite"):
        assert files[f"1.1/{variant}"]["accuracy_held_out"] > files[f"1.0/{variant}"]["accuracy_held_out"] + 0.03
        assert files[f"1.2/{variant}"]["accuracy_held_out"] < 0.3
        assert [files[f"{version}/{variant}"]["self_test"] for version in ("1.0", "1.1", "1.2")] == ["ok", "ok", "golden_mismatch"]


def test_videos_show_only_scans_that_no_version_learned_from(video_module: ModuleType):
    split = video_module.scans.split()
    assert set(split.held_out).isdisjoint(split.second)
    assert set(split.first) <= set(split.second)
    assert list(split.held_out) == RECORD["split"]["held_out"]


@pytest.mark.parametrize("variant", READABLE)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_digits_are_read_out_of_an_encoded_video(variant: str, suffix: str, video_module: ModuleType, tmp_path: Path):
    path = tmp_path / f"digits{suffix}"
    truth = video_module.make_video(path, fps=10, frames=240, frames_per_scan=2, seed=5)
    assert json.loads(path.with_suffix(".json").read_text())["digits"] == list(truth.digits)
    folder = model_folder(variant)
    manifest = manifest_for(folder, variant)
    runner, judge = Preprocessor(compile_plan(manifest)), Classifier(manifest)
    backend = load_first(folder, manifest, BackendOptions()).backend
    capture = cv2.VideoCapture(str(path))
    seen = []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        seen.append(judge.run(backend.infer({manifest.inputs[0].name: runner.run(frame)})).top[0].index)
    capture.release()
    backend.close()
    assert len(seen) == len(truth.digits)
    assert sum(a == b for a, b in zip(seen, truth.digits, strict=True)) / len(seen) > 0.9
