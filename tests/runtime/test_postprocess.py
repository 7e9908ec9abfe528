"""From the output tensor to the best classes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.registry.drafts import complete, parse_draft
from runtime.base import InferFailed, ModelTensors, TensorSpec
from runtime.heads import Activation
from runtime.manifest import FileEntry, ModelManifest
from runtime.postprocess import Classifier, activate

FILES = {"model.tflite": FileEntry(sha256="sha256:" + "0" * 64, length=1)}


def manifest(classes: int, *, dtype: str = "float32", scale=None, zero_point=None, **changes: object) -> ModelManifest:
    labels = [f"c{number}" for number in range(classes)]
    draft = parse_draft(
        {"task": "classification", "labels": labels, "preprocess": {"color": "RGB"}, "device_types": ["d"], "layout": "NHWC", **changes}
    )
    tensors = ModelTensors(
        "tflite", "litert", "2", (TensorSpec("x", (1, 4, 4, 3), "float32"),), (TensorSpec("y", (1, classes), dtype, scale, zero_point),)
    )
    return complete(draft, tensors, line="l", release="1", counter=1, variant="v", files=FILES)


def answer(values, made: ModelManifest):
    return Classifier(made).run({"y": np.asarray([values], made.outputs[0].dtype)})


def test_the_best_classes_come_best_first_with_their_labels():
    top = answer([0.1, 0.7, 0.2], manifest(3, top_k=2)).top
    assert [(score.label, score.index) for score in top] == [("c1", 1), ("c2", 2)]
    assert top[0].score == pytest.approx(0.7)


def test_integers_are_dequantized():
    top = answer([-128, 127], manifest(2, dtype="int8", scale=1 / 256, zero_point=-128)).top
    assert top[0].score == pytest.approx(255 / 256)


def test_small_integers_do_not_wrap_around():
    scores = Classifier(manifest(2, dtype="uint8", scale=1.0, zero_point=255)).scores({"y": np.array([[0, 255]], np.uint8)})
    assert scores.tolist() == [-255.0, 0.0]


def test_classes_below_the_threshold_are_left_out():
    assert answer([0.4, 0.35, 0.25], manifest(3, top_k=3, threshold=0.3)).top[-1].label == "c1"
    assert answer([0.1, 0.2, 0.25], manifest(3, threshold=0.3)).top == ()


def test_equal_scores_are_ordered_by_class():
    assert [score.index for score in answer([0.5, 0.5, 0.5, 0.1], manifest(4, top_k=3)).top] == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_an_error_not_an_answer(value: float):
    with pytest.raises(InferFailed, match="not finite") as caught:
        answer([0.1, value], manifest(2))
    assert caught.value.code == "not_finite"


def test_an_output_of_another_size_is_an_error():
    with pytest.raises(InferFailed, match="has 3 values; wanted 2"):
        answer([0.1, 0.2, 0.3], manifest(2))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20), st.floats(0.25, 4))
@settings(deadline=None)
def test_softmax_sums_to_one_and_keeps_the_order(values: list[float], temperature: float):
    array = np.asarray(values, np.float32)
    shares = activate(array, Activation.SOFTMAX, temperature)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-4)
    assert shares[array.argmax()] == shares.max()


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
@settings(deadline=None)
def test_sigmoid_stays_between_zero_and_one(values: list[float]):
    shares = activate(np.asarray(values, np.float32), Activation.SIGMOID)
    assert ((shares >= 0) & (shares <= 1)).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=50, unique=True), st.integers(1, 4))
@settings(deadline=None)
def test_the_best_k_are_those_of_a_full_sort(values: list[float], k: int):
    seen = [score.index for score in answer(values, manifest(len(values), top_k=k, activation="softmax")).top]
    logits = Classifier(manifest(len(values), activation="softmax")).scores({"y": np.asarray([values], np.float32)})
    assert [float(logits[index]) for index in seen] == sorted(logits.tolist(), reverse=True)[:k]


@given(
    st.lists(st.integers(-128, 127), min_size=2, max_size=64),
    st.sampled_from(["float32", "int8"]),
    st.sampled_from(["none", "softmax", "sigmoid"]),
    st.sampled_from([0.25, 1.0, 4.0]),
)
@settings(deadline=None)
def test_the_best_of_few_is_the_one_that_all_scores_together_say(values: list[int], dtype: str, activation: str, temperature: float):
    quantized = {"scale": 0.0625, "zero_point": -3} if dtype == "int8" else {}
    made = manifest(len(values), dtype=dtype, activation=activation, temperature=temperature, **quantized)
    scores = Classifier(made).scores({"y": np.asarray([values], made.outputs[0].dtype)})
    answered = answer(values, made).top
    if max(values) <= 0 and not answered:  # a plain score below the threshold of 0
        assert scores.max() < 0
        return
    (best,) = answered
    assert best.index == values.index(max(values))
    assert scores[best.index] == scores.max()
    assert best.score == pytest.approx(float(scores.max()), rel=1e-5, abs=1e-7)  # the resolution of float32 below 1
