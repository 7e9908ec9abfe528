"""Golden answers of detectors: ranks may change between processors, what is clear may not."""

import numpy as np
import pytest

from fleet.registry.drafts import complete, parse_draft
from runtime.agreement import compare_answers
from runtime.base import ModelTensors, TensorSpec
from runtime.golden import Goldens
from runtime.manifest import FileEntry

pytest.importorskip("onnx", reason="the package onnx, which makes the models of these tests, is not in this environment")
from simulators.task_models import detection_draft

KEY, OTHER = "litert/2.1/x86_64-avx2", "litert/2.1/aarch64"
IMAGE = TensorSpec("x", (1, 8, 8, 3), "float32")
OUTPUTS = (
    TensorSpec("boxes", (1, 3, 4), "float32"),
    TensorSpec("classes", (1, 3), "float32"),
    TensorSpec("scores", (1, 3), "float32"),
)
MANIFEST = complete(
    parse_draft(detection_draft("ssd")),
    ModelTensors("onnx", "onnx", "1", (IMAGE,), OUTPUTS),
    line="l",
    release="1",
    counter=1,
    variant="v",
    files={"model.onnx": FileEntry(sha256="sha256:" + "0" * 64, length=1)},
)
ROWS = [((0.1, 0.1, 0.4, 0.4), 1, 0.9), ((0.5, 0.5, 0.9, 0.9), 0, 0.8), ((0.0, 0.6, 0.2, 0.9), 1, 0.2)]


def outputs(rows) -> dict[str, np.ndarray]:
    boxes, classes, scores = zip(*rows, strict=True)
    return {name: np.array([value], np.float32) for name, value in (("boxes", boxes), ("classes", classes), ("scores", scores))}


def differences(rows, *, key: str = OTHER):
    goldens = Goldens(({"x": np.zeros((1, 8, 8, 3), np.float32)},), {KEY: (outputs(ROWS),)}, {})
    return compare_answers(MANIFEST, goldens, [outputs(rows)], key=key)


def test_near_ties_may_change_places_on_another_processor():
    turned = [(ROWS[1][0], 0, 0.88), (ROWS[0][0], 1, 0.84), ROWS[2]]
    assert differences(turned) == ()
    assert differences(turned, key=KEY) != ()


@pytest.mark.parametrize(
    ("rows", "unit"),
    [
        ([ROWS[0], (ROWS[1][0], 0, 0.7), ROWS[2]], "score"),
        ([ROWS[0], (ROWS[1][0], 1, 0.8), ROWS[2]], "objects"),
        ([ROWS[0], ((0.1, 0.5, 0.5, 0.9), 0, 0.8), ROWS[2]], "objects"),
        ([ROWS[0], (ROWS[1][0], 0, np.nan), ROWS[2]], "score"),
    ],
    ids=["another score", "another class", "another place", "not finite"],
)
def test_what_is_clear_may_not_change(rows, unit: str):
    (difference,) = differences(rows)
    assert difference.unit == unit


def test_what_is_hardly_seen_may_lie_anywhere():
    assert differences([*ROWS[:2], ((0.3, 0.3, 0.4, 0.4), 0, 0.22)]) == ()
