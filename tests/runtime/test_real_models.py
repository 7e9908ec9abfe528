"""Published models on real video and photographs, through our own plan, runtime and answer."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from example_models import INSTALLED

from fleet.registry.drafts import complete, parse_draft
from runtime.answers import Measurement
from runtime.base import Backend, BackendOptions, create
from runtime.manifest import FileEntry, ModelManifest
from runtime.postprocess import Classifier, answerer_for
from runtime.preprocess import Preprocessor, compile_plan
from runtime.readings import WindowFiller

pytestmark = pytest.mark.needs_data
FILES = {"model.tflite": FileEntry(sha256="sha256:" + "0" * 64, length=1)}
TFLITE_BACKENDS = [name for name in INSTALLED if name != "onnx"]


class Runner:
    """A model with its plan and its answer."""

    def __init__(self, backend: Backend, manifest: ModelManifest) -> None:
        self._backend, self._manifest = backend, manifest
        self._before, self._after = Preprocessor(compile_plan(manifest)), Classifier(manifest)

    def scores(self, frame: np.ndarray) -> np.ndarray:
        inputs = {self._manifest.inputs[0].name: self._before.run(frame)}
        return self._after.scores(self._backend.infer(inputs))


def runner(name: str, path: Path, **changes: object) -> Runner:
    backend = create(name)
    tensors = backend.load(path, None, BackendOptions())
    draft = parse_draft({"task": "classification", "preprocess": {"color": "RGB"}, "device_types": ["linux-x86-64"], **changes})
    manifest = complete(draft, tensors, line="real", release="1", counter=1, variant="tflite", files=FILES)
    backend.load(path, manifest.spec, BackendOptions())
    return Runner(backend, manifest)


@pytest.mark.parametrize("name", TFLITE_BACKENDS)
@pytest.mark.parametrize(("video", "percent"), [("one-by-one-person-detection", 37), ("car-detection", 0)])
def test_persons_are_seen_where_persons_are(name: str, video: str, percent: int, data_dir: Path):
    model = runner(name, data_dir / "models" / "vww_96_int8.tflite", labels=["no person", "person"])
    capture = cv2.VideoCapture(str(data_dir / "video" / f"{video}.mp4"))
    seen, number = [], 0
    while capture.grab():
        if number % 10 == 9:  # the 10th, the 20th, …
            ok, frame = capture.retrieve()
            assert ok
            seen.append(bool(model.scores(frame)[1] > 0.5))
        number += 1
    capture.release()
    assert len(seen) > 20
    assert abs(100 * sum(seen) / len(seen) - percent) <= (2 if percent else 0)


@pytest.mark.parametrize("name", TFLITE_BACKENDS)
@pytest.mark.parametrize(("image", "label"), [("cat", "Egyptian cat"), ("grace_hopper", "military uniform"), ("sunflower", "daisy")])
def test_photographs_are_named(name: str, image: str, label: str, data_dir: Path):
    labels = (data_dir / "labels" / "imagenet_labels.txt").read_text().splitlines()
    model = runner(name, data_dir / "models" / "mobilenet_v2_1.0_224_quant.tflite", labels=labels)
    scores = model.scores(cv2.imread(str(data_dir / "images" / f"{image}.bmp")))
    assert labels[int(scores.argmax())].startswith(label)


@pytest.mark.parametrize("name", TFLITE_BACKENDS)
def test_an_autoencoder_scores_what_it_cannot_give_back_higher(name: str, data_dir: Path):
    """ad01_int8: five frames of a log-mel spectrogram, -80 to 0 dB; what is far outside its training scores higher, also beyond int8."""
    path = data_dir / "models" / "ad01_int8.tflite"
    draft = {
        "task": "anomaly",
        "window": {"fields": ["level"], "length": 640},
        "anomaly": {"score": "reconstruction", "threshold": 100.0, "unit": "dB²"},
        "device_types": ["linux-x86-64"],
    }
    backend = create(name)
    tensors = backend.load(path, None, BackendOptions())
    manifest = complete(parse_draft(draft), tensors, line="real", release="1", counter=1, variant="tflite", files=FILES)
    assert manifest.window is not None
    filler, answerer = WindowFiller(manifest.inputs[0], manifest.window), answerer_for(manifest)

    def score(levels: np.ndarray) -> float:
        inputs = {manifest.inputs[0].name: filler.fill(levels.astype(np.float32).reshape(640, 1))}
        answer = answerer.run(backend.infer(inputs), inputs=inputs, reference=filler.values)
        assert isinstance(answer, Measurement)
        assert answer.is_anomaly == (answer.value > 100.0)
        return answer.value

    hum = -35 + 8 * np.cos(np.linspace(0, 3, 128))
    calm, odd, wild = (score(np.tile(level, 5)) for level in (hum, -hum[::-1], hum - 400))
    assert calm < 100 < odd < wild
