"""Drafts of every task: what is found in the file, what must be written, and what is refused with which words."""

import json
from typing import Any

import pytest

from fleet.registry.drafts import complete, parse_draft
from protocol.errors import InvalidError
from runtime.base import ModelTensors, TensorSpec
from runtime.manifest import FileEntry, ModelManifest, from_bytes, to_bytes

FILES = {"model.tflite": FileEntry(sha256="sha256:" + "0" * 64, length=1)}
IMAGE = TensorSpec("image", (1, 64, 64, 3), "uint8", 1 / 255, 0)
BASE: dict[str, Any] = {"device_types": ["test"], "preprocess": {"color": "RGB"}}
LABELS = ["person", "car", "dog"]


def f32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, "float32")


TF = "TFLite_Detection_PostProcess"
TF_OUTPUTS = (f32(TF, 1, 40, 4), f32(f"{TF}:1", 1, 40), f32(f"{TF}:2", 1, 40), f32(f"{TF}:3", 1))


def made(draft: dict[str, Any], outputs: tuple[TensorSpec, ...], *inputs: TensorSpec) -> ModelManifest:
    tensors = ModelTensors("tflite", "litert", "2", inputs or (IMAGE,), outputs)
    manifest = complete(parse_draft({**BASE, **draft}), tensors, line="l", release="1", counter=1, variant="v", files=FILES)
    assert from_bytes(to_bytes(manifest)) == manifest
    return manifest


def head(draft: dict[str, Any], outputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    return json.loads(to_bytes(made({"task": "detection", "labels": LABELS, "detection": draft}, outputs)))["postprocess"]


class TestSsd:
    def found(self, outputs: tuple[TensorSpec, ...], **written: object) -> list[str]:
        post = head({"head": "ssd", **written}, outputs)
        return [post[role] for role in ("boxes", "classes", "scores", "count") if role in post]

    def test_outputs_of_tensorflows_operation_are_known_by_their_names(self):
        assert self.found(TF_OUTPUTS) == [TF, f"{TF}:1", f"{TF}:2", f"{TF}:3"]

    def test_outputs_are_told_apart_by_words_shape_and_type_in_any_order(self):
        outputs = (
            TensorSpec("labels", (1, 9), "int64"),
            f32("dets", 1, 9, 4),
            f32("detection_scores", 1, 9),
            TensorSpec("n", (1, 1), "int32"),
        )
        assert self.found(outputs) == ["dets", "labels", "detection_scores", "n"]

    def test_a_count_may_be_missing(self):
        assert self.found((f32("b", 1, 9, 4), f32("scores", 1, 9), f32("classes", 1, 9))) == ["b", "classes", "scores"]

    def test_names_that_say_nothing_must_be_written(self):
        outputs = (f32("a", 1, 9), f32("b", 1, 9, 4), f32("c", 1, 9), f32("d", 1))
        with pytest.raises(InvalidError, match=r"which is classes and scores: 'a' float32\[1, 9\].*under \[detection\]"):
            self.found(outputs)
        assert self.found(outputs, classes="c", scores="a") == ["b", "c", "a", "d"]

    def test_another_number_of_scores_than_boxes_is_refused(self):
        with pytest.raises(InvalidError, match=r"scores 'scores' \[1, 8\] has 8 values for the 9 boxes"):
            self.found((f32("b", 1, 9, 4), f32("scores", 1, 8), f32("classes", 1, 9)))

    def test_a_wrong_name_is_told_with_the_right_ones(self):
        with pytest.raises(InvalidError, match=r"output 'nonsense' of the ssd head is not among the outputs"):
            self.found(TF_OUTPUTS, boxes="nonsense")


class TestYolo:
    @pytest.mark.parametrize(
        ("shape", "axes", "objectness"),
        [((1, 7, 99), "channels-boxes", False), ((1, 99, 7), "boxes-channels", False), ((1, 99, 8), "boxes-channels", True)],
    )
    def test_the_form_is_read_from_the_shape(self, shape: tuple[int, ...], axes: str, objectness: bool):  # noqa: FBT001 - a parameter
        post = head({"head": "yolo"}, (f32("out", *shape),))
        assert (post["axes"], post["objectness"], post["output"]) == (axes, objectness, "out")

    def test_a_shape_that_can_be_read_in_several_ways_must_be_written(self):
        with pytest.raises(InvalidError, match="in 2 ways with 3 labels"):
            head({"head": "yolo"}, (f32("out", 1, 7, 8),))
        assert head({"head": "yolo", "axes": "boxes-channels"}, (f32("out", 1, 7, 8),))["objectness"]

    def test_labels_that_do_not_fit_are_told_with_the_wanted_sizes(self):
        with pytest.raises(
            InvalidError, match=r"shape \[1, 84, 8400\]; 3 labels want 1 x 7 x boxes or 1 x boxes x 7, or 8 with objectness"
        ):
            head({"head": "yolo"}, (f32("out", 1, 84, 8400),))

    def test_one_of_several_outputs_must_be_named(self):
        outputs = (f32("out", 1, 7, 99), f32("protos", 1, 32, 16, 16))
        with pytest.raises(InvalidError, match="has 2: 'out'"):
            head({"head": "yolo"}, outputs)
        assert head({"head": "yolo", "output": "out"}, outputs)["output"] == "out"


class TestState:
    STATE = TensorSpec("h_in", (1, 8), "uint8", 0.02, 3)
    OUT = TensorSpec("h_out", (1, 8), "uint8", 0.02, 3)
    DRAFT: dict[str, Any] = {"task": "regression", "state": [{"input": "h_in", "output": "h_out"}]}  # noqa: RUF012 - never changed

    def test_a_state_is_an_input_that_an_output_feeds(self):
        manifest = made(self.DRAFT, (self.OUT, f32("y", 1, 1)), self.STATE, IMAGE)
        assert [tensor.name for tensor in manifest.inputs] == ["image", "h_in"]

    def test_inputs_that_nobody_explains_are_refused_with_what_to_write(self):
        with pytest.raises(InvalidError, match=r"2 inputs and 2 outputs: 'image'.*Write \[\[state\]\]"):
            made({"task": "regression"}, (self.OUT, f32("y", 1, 1)), IMAGE, self.STATE)

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ([{"input": "x", "output": "h_out"}], r"state names the input 'x'; the model has the inputs 'image'"),
            ([{"input": "h_in", "output": "x"}], r"state names the output 'x'"),
            ([{"input": "h_in", "output": "y"}], r"state 'h_in' is uint8\[1, 8\].*'y' is float32\[1, 1\]"),
            ([{"input": "h_in", "output": "h_out"}, {"input": "image", "output": "h_out"}], r"'h_out' twice"),
        ],
    )
    def test_a_state_that_does_not_close_its_circle_is_refused(self, state: list[dict[str, str]], words: str):
        with pytest.raises(InvalidError, match=words):
            made({"task": "regression", "state": state}, (self.OUT, f32("y", 1, 1)), IMAGE, self.STATE)


class TestValues:
    WINDOW: dict[str, Any] = {"preprocess": None, "window": {"fields": ["a", "b"], "length": 3}}  # noqa: RUF012 - never changed

    def test_a_reconstruction_has_as_many_values_as_its_input(self):
        draft = {"task": "anomaly", "anomaly": {"score": "reconstruction", "threshold": 1}, **self.WINDOW}
        assert made(draft, (f32("y", 1, 6),), f32("x", 1, 3, 2)).inputs[0].layout is None
        with pytest.raises(InvalidError, match=r"'y' \[1, 5\] has 5 values and input 'x' \[1, 3, 2\] has 6"):
            made(draft, (f32("y", 1, 5),), f32("x", 1, 3, 2))

    def test_an_index_beyond_the_output_is_refused(self):
        with pytest.raises(InvalidError, match=r"index 3 is beyond the 3 values"):
            made({"task": "regression", "regression": {"index": 3}}, (f32("y", 1, 3),))

    def test_an_anomaly_needs_a_threshold(self):
        with pytest.raises(InvalidError, match=r"anomaly\.threshold: Field required"):
            parse_draft({**BASE, "task": "anomaly", "anomaly": {}})

    def test_a_range_the_wrong_way_round_is_refused(self):
        with pytest.raises(InvalidError, match=r"range \[5\.0, 1\.0\] is empty"):
            parse_draft({**BASE, "task": "regression", "regression": {"range": [5, 1]}})

    def test_a_window_of_another_size_than_the_input_is_refused(self):
        with pytest.raises(InvalidError, match=r"has 8 values in .*a window of 3 readings of 2 fields has 6"):
            made({"task": "regression", **self.WINDOW}, (f32("y", 1, 1),), f32("x", 1, 8))

    @pytest.mark.parametrize(("both", "said"), [({}, "both"), ({"preprocess": None, "window": None}, "neither")])
    def test_a_model_takes_frames_or_windows(self, both: dict[str, Any], said: str):
        with pytest.raises(InvalidError, match=f"there is {said} of preprocess and window"):
            parse_draft({**BASE, "task": "regression", "window": self.WINDOW["window"], **both})

    def test_detection_takes_no_windows(self):
        with pytest.raises(InvalidError, match="finds objects in frames"):
            made({"task": "detection", "labels": LABELS, "detection": {"head": "ssd"}, **self.WINDOW}, TF_OUTPUTS, f32("x", 1, 6))

    def test_classes_of_a_regression_are_a_typing_error(self):
        with pytest.raises(InvalidError, match="labels"):
            parse_draft({**BASE, "task": "regression", "labels": LABELS})


def test_a_manifest_of_a_classifier_has_the_fields_it_always_had():
    manifest = made({"task": "classification", "labels": LABELS}, (f32("y", 1, 3),))
    fields = (
        "backends budget counter device_types files inputs line lineage "
        "outputs postprocess preprocess probe release runtime schema task variant"
    )
    assert sorted(json.loads(to_bytes(manifest))) == fields.split()
