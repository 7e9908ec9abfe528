"""Objects out of the outputs of detectors: both kinds of heads, floats and integers, and back into the frame as captured."""

import numpy as np
import pytest

from fleet.registry.drafts import complete, parse_draft
from runtime.base import InferFailed, ModelTensors, TensorSpec
from runtime.detection import Detector
from runtime.manifest import DetectionManifest, FileEntry

pytest.importorskip("onnx", reason="the package onnx, which makes the models of these tests, is not in this environment")
from simulators.task_models import LABELS, detection_draft

FILES = {"model.onnx": FileEntry(sha256="sha256:" + "0" * 64, length=1)}
IMAGE = TensorSpec("x", (1, 100, 200, 3), "float32")
SSD = (
    TensorSpec("boxes", (1, 3, 4), "float32"),
    TensorSpec("classes", (1, 3), "float32"),
    TensorSpec("scores", (1, 3), "float32"),
    TensorSpec("count", (1,), "float32"),
)


def detector(draft: dict, outputs: tuple[TensorSpec, ...], *, fit: str = "stretch") -> Detector:
    document = {**draft, "preprocess": {"color": "RGB", "fit": fit}, "device_types": ["test"]}
    tensors = ModelTensors("onnx", "onnx", "1", (IMAGE,), outputs)
    made = complete(parse_draft(document), tensors, line="l", release="1", counter=1, variant="v", files=FILES)
    assert isinstance(made, DetectionManifest)
    return Detector(made)


def ssd(boxes, classes, scores, count: float = 3.0) -> dict[str, np.ndarray]:
    rows = {"boxes": np.array([boxes]), "classes": np.array([classes]), "scores": np.array([scores]), "count": np.array([count])}
    return {name: row.astype(np.float32) for name, row in rows.items()}


BOXES = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 0.5, 0.5)]


class TestSsd:
    def test_objects_come_best_first_with_labels_and_boxes_as_left_top_right_bottom(self):
        found = detector(detection_draft("ssd"), SSD).run(ssd(BOXES, [1, 0, 1], [0.6, 0.9, 0.4])).items
        assert [(one.label, one.index, pytest.approx(one.score)) for one in found] == [("person", 0, 0.9), ("car", 1, 0.6)]
        assert found[1].box == pytest.approx((0.2, 0.1, 0.4, 0.3))

    def test_only_as_many_are_looked_at_as_the_count_says(self):
        assert len(detector(detection_draft("ssd"), SSD).run(ssd(BOXES, [1, 0, 1], [0.6, 0.9, 0.8], 1)).items) == 1
        assert detector(detection_draft("ssd"), SSD).run(ssd(BOXES, [1, 0, 1], [0.6, 0.9, 0.8], 0)).items == ()

    def test_a_background_class_shifts_the_labels(self):
        found = detector(detection_draft("ssd", first_class=1), SSD).run(ssd(BOXES, [1, 2, 1], [0.6, 0.9, 0.8])).items
        assert [one.label for one in found] == ["car", "person", "person"]

    def test_a_class_without_a_label_is_an_answer_that_makes_no_sense(self):
        with pytest.raises(InferFailed, match=r"names class 2; labels are for classes 0 to 1") as caught:
            detector(detection_draft("ssd"), SSD).run(ssd(BOXES, [1, 2, 1], [0.6, 0.9, 0.8]))
        assert caught.value.code == "bad_output"

    @pytest.mark.parametrize("what", ["boxes", "classes", "scores", "count"])
    def test_a_number_that_is_not_finite_is_no_answer(self, what: str):
        outputs = ssd(BOXES, [1, 0, 1], [0.6, 0.9, 0.8])
        outputs[what].reshape(-1)[0] = np.nan
        with pytest.raises(InferFailed, match="not finite") as caught:
            detector(detection_draft("ssd"), SSD).run(outputs)
        assert caught.value.code == "not_finite"

    def test_what_the_file_did_not_suppress_is_suppressed_on_request(self):
        twice = ssd([BOXES[1], (0.5, 0.5, 1.0, 0.9), BOXES[0]], [0, 1, 1], [0.9, 0.8, 0.7])
        assert len(detector(detection_draft("ssd"), SSD).run(twice).items) == 3
        assert len(detector(detection_draft("ssd", overlap=0.5), SSD).run(twice).items) == 3
        assert len(detector(detection_draft("ssd", overlap=0.5, class_agnostic=True), SSD).run(twice).items) == 2

    def test_no_more_objects_than_allowed(self):
        found = detector(detection_draft("ssd", max_detections=2), SSD).run(ssd(BOXES, [1, 0, 1], [0.6, 0.9, 0.8])).items
        assert [one.score for one in found] == [pytest.approx(0.9), pytest.approx(0.8)]


class TestPlaces:
    """The input is 200 wide and 100 high; the frame is 100 x 100."""

    def test_stretching_keeps_shares(self):
        found = detector(detection_draft("ssd"), SSD).run(ssd(BOXES, [1, 0, 1], [0.6, 0, 0]), size=(100, 100)).items
        assert found[0].box == pytest.approx((0.2, 0.1, 0.4, 0.3))

    def test_bars_of_a_letterbox_are_taken_away(self):
        boxes = [(0.0, 0.25, 1.0, 0.75), (0.25, 0.5, 0.5, 0.9), (0.1, 0.0, 0.9, 0.2)]
        found = detector(detection_draft("ssd"), SSD, fit="letterbox").run(ssd(boxes, [1, 0, 1], [0.9, 0.8, 0.7]), size=(100, 100)).items
        assert [one.box for one in found] == [pytest.approx((0, 0, 1, 1)), pytest.approx((0.5, 0.25, 1.0, 0.5))]  # one in a bar is none

    def test_what_was_cropped_away_is_put_back(self):
        found = detector(detection_draft("ssd"), SSD, fit="crop").run(ssd(BOXES, [1, 0, 1], [0, 0.9, 0]), size=(100, 100)).items
        assert found[0].box == pytest.approx((0.5, 0.5, 1.0, 0.75))

    def test_a_source_that_changes_its_size_is_followed(self):
        made = detector(detection_draft("ssd"), SSD, fit="letterbox")
        for width in range(50, 90):
            box = made.run(ssd([(0, 0, 1, 1)] * 3, [1, 0, 1], [0.9, 0, 0]), size=(100, width)).items[0].box
            assert box == pytest.approx((0, 0, 1, 1))


def yolo(objects, *, places: int = 50, objectness: int = 0) -> np.ndarray:
    """float32 [1, channels, places] with (center x, center y, width, height, class, score[, object score])."""
    head = np.zeros((1, 4 + objectness + len(LABELS), places), np.float32)
    for place, (*box, number, score) in enumerate(objects):
        head[0, :4, place] = box
        if objectness:
            head[0, 4, place], head[0, 5 + number, place] = score
        else:
            head[0, 4 + number, place] = score
    return head


THREE = [(100, 50, 40, 20, 1, 0.9), (102, 50, 40, 20, 1, 0.8), (100, 50, 40, 20, 0, 0.6)]


class TestYolo:
    def outputs(self, shape, dtype="float32", scale=None, zero_point=None) -> tuple[TensorSpec, ...]:
        return (TensorSpec("head", shape, dtype, scale, zero_point),)

    def test_boxes_of_one_class_that_overlap_are_one_object(self):
        head = yolo(THREE)
        found = detector(detection_draft("yolo"), self.outputs(head.shape)).run({"head": head}).items
        assert [(one.label, pytest.approx(one.score)) for one in found] == [("car", 0.9), ("person", 0.6)]
        assert found[0].box == pytest.approx((0.4, 0.4, 0.6, 0.6))

    def test_both_ways_to_lie_are_read(self):
        head = yolo(THREE)
        turned = np.ascontiguousarray(head.transpose(0, 2, 1))
        one, other = (detector(detection_draft("yolo"), self.outputs(rows.shape)).run({"head": rows}) for rows in (head, turned))
        assert one == other

    def test_a_score_is_the_product_with_the_score_for_an_object(self):
        head = yolo([(100, 50, 40, 20, 1, (0.9, 0.8)), (20, 50, 40, 20, 1, (0.6, 0.8)), (160, 50, 40, 20, 0, (0.4, 1.0))], objectness=1)
        found = detector(detection_draft("yolo"), self.outputs(head.shape)).run({"head": head}).items
        assert [pytest.approx(one.score) for one in found] == [0.72]

    def test_scores_before_their_sigmoid_are_compared_before_it(self):
        head = yolo([(100, 50, 40, 20, 1, 2.0), (20, 50, 40, 20, 0, 0.1)])
        head[0, 4:][head[0, 4:] == 0] = -5
        found = detector(detection_draft("yolo", activation="sigmoid"), self.outputs(head.shape)).run({"head": head}).items
        assert [(one.label, pytest.approx(one.score)) for one in found] == [
            ("car", 1 / (1 + np.exp(-2))),
            ("person", 1 / (1 + np.exp(-0.1))),
        ]

    @pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -128), ("uint8", 0)])
    def test_integers_say_the_same_as_the_numbers_they_stand_for(self, dtype: str, zero_point: int):
        random = np.random.default_rng(4)
        head = np.zeros((1, 4 + len(LABELS), 300), np.float32)
        head[0, :4] = random.uniform(0.1, 0.9, (4, 300))
        head[0, 4:] = random.uniform(0, 1, (2, 300))
        scale = 1 / 255
        steps = np.rint(head / scale + zero_point).astype(dtype)
        real = ((steps.astype(np.float32) - zero_point) * np.float32(scale)).astype(np.float32)
        draft = detection_draft("yolo", units="normalized", threshold=0.7)
        exact = detector(draft, self.outputs(head.shape)).run({"head": real}).items
        quick = detector(draft, self.outputs(head.shape, dtype, scale, zero_point)).run({"head": steps}).items
        assert len(exact) > 10
        assert [(one.label, one.score, one.box) for one in quick] == [
            (one.label, pytest.approx(one.score), pytest.approx(one.box)) for one in exact
        ]

    def test_of_too_many_candidates_the_best_are_looked_at(self):
        head = yolo([(4 * place, 50, 1, 20, 1, 0.5 + place / 200) for place in range(50)])
        found = detector(detection_draft("yolo", max_candidates=10), self.outputs(head.shape)).run({"head": head}).items
        assert [pytest.approx(one.score, abs=1e-6) for one in found] == [0.5 + place / 200 for place in range(49, 39, -1)]

    @pytest.mark.parametrize("place", [(0, 3), (4, 3), (5, 49)])
    def test_a_number_that_is_not_finite_is_no_answer(self, place: tuple[int, int]):
        head = yolo([(100, 50, 40, 20, 1, 0.9)] * 50)
        head[0, place[0], place[1]] = np.nan
        with pytest.raises(InferFailed, match="not finite"):
            detector(detection_draft("yolo"), self.outputs(head.shape)).run({"head": head})

    def test_how_sure_it_was_is_known_even_without_an_object(self):
        made = detector(detection_draft("yolo"), self.outputs(yolo([]).shape))
        assert made.run({"head": yolo([(100, 50, 40, 20, 1, 0.2)])}).items == ()
        assert made.best == pytest.approx(0.2)
