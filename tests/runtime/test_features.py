"""Rows of what drift watches: the same numbers whatever the tensor looks like, and each moves with what it is named after."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fleet.registry.drafts import complete, parse_draft
from protocol.errors import InvalidError
from protocol.sketches.grid import FeatureGroup
from runtime.answers import Classification, ClassScore, Detected, Detections, Measurement
from runtime.base import ModelTensors, TensorSpec
from runtime.features import Extractor, Quality, candidates, choose_step, group_of
from runtime.image_features import EMBEDDING_NUMBERS, IMAGE_NUMBERS, SIDE
from runtime.manifest import FileEntry, ModelManifest
from runtime.output_features import entropy_of
from runtime.preprocess import Filler, compile_plan
from runtime.projection import filters, signs

LABELS = ["a", "b", "c"]


def manifest(
    side: int = 48, *, dtype: str = "uint8", layout: str = "NHWC", color: str = "RGB", outputs: tuple[TensorSpec, ...] = (), **draft: Any
) -> ModelManifest:
    """A classifier of square pictures, described without any file; `draft` adds to or replaces what its author wrote."""
    channels = 1 if color == "GRAY" else 3
    shape = (1, side, side, channels) if layout == "NHWC" else (1, channels, side, side)
    scale = {} if dtype == "float32" else {"scale": 1 / 255, "zero_point": -128 if dtype == "int8" else 0}
    source = TensorSpec("picture", shape, dtype, **scale)
    tensors = ModelTensors("onnx", "onnx", "1", (source,), outputs or (TensorSpec("scores", (1, 3), "float32"),))
    written = {"task": "classification", "labels": LABELS, "preprocess": {"color": color}, "layout": layout, "device_types": ["x"], **draft}
    return of(written, tensors)


def of(written: dict[str, Any], tensors: ModelTensors) -> ModelManifest:
    files = {"model.onnx": FileEntry(sha256=f"sha256:{'0' * 64}", length=1)}
    return complete(parse_draft(written), tensors, line="m", release="1", counter=1, variant="onnx", files=files)


def scene(side: int = 48, seed: int = 0) -> np.ndarray:
    """A picture with light, color, edges and a little noise: uint8, side x side x 3."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    light = np.stack([90 + 90 * rows, 120 + 60 * columns, 160 - 80 * rows * columns], axis=-1)
    light[(rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.05] = (210, 60, 40)
    return np.clip(light + random.normal(0, 3, light.shape), 0, 255).astype(np.uint8)


def answer(index: int = 0, score: float = 0.7) -> Classification:
    return Classification((ClassScore(LABELS[index], index, score),))


def numbers(picture: np.ndarray, **options: Any) -> dict[str, float]:
    """The row of a picture by name."""
    made = manifest(picture.shape[0], **options)
    extractor = Extractor(made)
    row = extractor.row(Filler(compile_plan(made)).fill(picture), answer())
    return dict(zip(extractor.names, row.tolist(), strict=True))


def blurred(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture.astype(np.float32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    return (sum(padded[y : y + height, x : x + width] for y in range(5) for x in range(5)) / 25).astype(np.uint8)


def blocky(picture: np.ndarray) -> np.ndarray:
    side = picture.shape[0] // 8
    means = picture.reshape(side, 8, side, 8, 3).mean(axis=(1, 3), keepdims=True)
    return np.broadcast_to(means, (side, 8, side, 8, 3)).reshape(picture.shape).astype(np.uint8)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_a_picture_has_the_same_numbers_in_every_tensor(dtype, layout):
    wanted, seen = numbers(scene()), numbers(scene(), dtype=dtype, layout=layout)
    assert seen == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_normalization_by_mean_and_deviation_is_undone():
    plan = {"color": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert numbers(scene(), dtype="float32", preprocess=plan) == pytest.approx(numbers(scene()), rel=1e-3, abs=1e-3)


def test_the_order_of_the_channels_does_not_move_a_number():
    picture = scene()
    assert numbers(picture[:, :, ::-1], color="BGR") == pytest.approx(numbers(picture), rel=1e-5, abs=1e-5)


def test_brightness_and_contrast_are_those_of_the_pixels():
    gray = scene()[:, :, :1]
    seen = numbers(gray, color="GRAY")
    assert seen["image.brightness"] == pytest.approx(gray.mean(), rel=1e-5)
    assert seen["image.contrast"] == pytest.approx(gray.std(), rel=1e-4)
    assert (seen["image.red"], seen["image.blue"], seen["image.saturation"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "change", "grows"),
    [
        ("image.brightness", lambda p: (p * 0.6).astype(np.uint8), False),
        ("image.contrast", lambda p: (p * 0.5 + 60).astype(np.uint8), False),
        ("image.sharpness", blurred, False),
        ("image.red", lambda p: (p * (1.0, 0.8, 0.8)).astype(np.uint8), True),
        ("image.blue", lambda p: (p * (0.8, 0.8, 1.0)).astype(np.uint8), True),
        ("image.saturation", lambda p: np.repeat(p.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8), False),
        ("image.noise", lambda p: np.clip(p + np.random.default_rng(1).normal(0, 15, p.shape), 0, 255).astype(np.uint8), True),
        ("image.dark", lambda p: (p * 0.1).astype(np.uint8), True),
        ("image.glare", lambda p: np.clip(p * 2.0, 0, 255).astype(np.uint8), True),
        ("image.edges", blurred, False),
        ("image.blocks", blocky, True),
        ("image.entropy", lambda p: (p // 64 * 64).astype(np.uint8), False),
    ],
)
@pytest.mark.parametrize("side", [48, 160])
def test_each_number_moves_with_what_it_is_named_after(name, change, grows, side):
    before, after = numbers(scene(side))[name], numbers(change(scene(side)))[name]
    assert (after > before) if grows else (after < before)


def test_responses_of_the_filters_tell_textures_apart_and_not_contrast():
    rows, columns = np.mgrid[0:48, 0:48]
    lying, standing = (128 + 90 * np.sin(axis / 1.5) for axis in (rows, columns))

    def responses(gray: np.ndarray) -> np.ndarray:
        seen = numbers(np.clip(gray, 0, 255).astype(np.uint8)[:, :, None], color="GRAY")
        return np.array([seen[name] for name in EMBEDDING_NUMBERS])

    fainter = np.abs(responses(lying) - responses(128 + 0.6 * (lying - 128))).max()
    turned = np.abs(responses(lying) - responses(standing)).max()
    assert turned > 5 * fainter


def test_large_pictures_are_looked_at_in_a_bounded_number_of_pixels(monkeypatch):
    import runtime.image_features as module

    seen = []
    monkeypatch.setattr(module, "_hash_of", lambda raw, tiles: seen.append((raw.shape, tiles.shape)) or 0)
    numbers(scene(640))
    ((high, wide, _), tiles) = seen[0]
    assert max(high, wide) <= SIDE
    assert tiles[0] * tiles[1] * tiles[2] <= SIDE * SIDE


def test_light_and_structure_of_a_large_picture_are_close_to_those_of_the_whole():
    picture = scene(640)
    seen = numbers(picture)
    assert seen["image.brightness"] == pytest.approx((picture @ (0.299, 0.587, 0.114)).mean(), rel=0.02)
    assert seen["image.noise"] == pytest.approx(numbers(scene(64))["image.noise"], rel=0.5)


def test_the_hash_tells_equal_pictures_from_others():
    made = manifest()
    extractor, filler = Extractor(made, ()), Filler(compile_plan(made))
    one = extractor.look(filler.fill(scene())).hash
    assert extractor.look(filler.fill(scene())).hash == one
    other = scene()
    other[20, 20, 1] ^= 1
    assert extractor.look(filler.fill(other)).hash != one


def test_bars_of_a_letterbox_are_not_part_of_the_picture():
    made = manifest(preprocess={"color": "RGB", "fit": "letterbox", "fill": 114})
    tensor = np.full((1, 48, 48, 3), 114, np.uint8)
    tensor[:, 12:36] = 3  # a black frame twice as wide as high
    extractor = Extractor(made, ["image.brightness", "image.contrast"])
    assert extractor.row(tensor, answer(), size=(240, 480)).tolist() == pytest.approx([3, 0], abs=1e-4)
    assert extractor.quality.deviation < 1
    assert extractor.row(tensor, answer())[1] > 20  # nobody said how large the frame was


def test_pixels_that_are_not_finite_are_counted_and_make_numbers_missing():
    made = manifest(dtype="float32")
    tensor = Filler(compile_plan(made)).fill(scene()).copy()
    tensor[0, 5, 5, 0] = np.nan
    extractor = Extractor(made)
    row = extractor.row(tensor, answer())
    assert extractor.quality.not_finite == 1
    assert np.isnan(row[0])
    assert np.isfinite(row[list(extractor.names).index("output.confidence")])


@pytest.mark.parametrize("side", [1, 2, 4, 7])
def test_tiny_pictures_have_numbers_too(side):
    assert np.isfinite(list(numbers(scene(side)).values())).all()


def test_a_row_has_the_names_that_were_asked_for_in_their_order():
    made = manifest()
    tensor = Filler(compile_plan(made)).fill(scene())
    every = Extractor(made)
    wanted = dict(zip(every.names, every.row(tensor, answer()).tolist(), strict=True))
    names = ["output.entropy", "embedding.3", "image.blocks"]
    row = Extractor(made, names).row(tensor, answer())
    assert row.dtype == np.float32
    assert row.tolist() == [wanted[name] for name in names]


def test_an_unknown_feature_is_refused_with_what_there_is():
    with pytest.raises(InvalidError, match=r"'image.smell'.*image.brightness"):
        Extractor(manifest(), ["image.smell"])


def test_names_say_where_a_feature_comes_from():
    names = candidates(manifest())
    assert names == (*IMAGE_NUMBERS, *EMBEDDING_NUMBERS, "output.confidence", "output.entropy")
    assert [group_of(name) for name in ("image.red", "sensor.x.step", "embedding.1", "output.count")] == [
        FeatureGroup.INPUT,
        FeatureGroup.INPUT,
        FeatureGroup.EMBEDDING,
        FeatureGroup.OUTPUT,
    ]


# --- answers ---


def test_confidence_and_entropy_are_of_all_classes():
    made = manifest(activation="softmax")
    logits = np.array([[2.0, 1.0, -1.0]], np.float32)
    shares = np.exp(logits[0]) / np.exp(logits).sum()
    extractor = Extractor(made, ["output.confidence", "output.entropy"])
    row = extractor.row(np.zeros((1, 48, 48, 3), np.uint8), answer(), outputs={"scores": logits})
    assert row.tolist() == pytest.approx([shares[0], -(shares * np.log(shares)).sum()], rel=1e-5)
    assert extractor.labels == ("a",)


def test_without_outputs_the_unnamed_classes_share_the_rest():
    extractor = Extractor(manifest(), ["output.confidence", "output.entropy"])
    row = extractor.row(np.zeros((1, 48, 48, 3), np.uint8), answer(1, 0.5))
    assert row.tolist() == pytest.approx([0.5, entropy_of(np.array([0.5, 0.25, 0.25]))])
    assert extractor.labels == ("b",)


@pytest.mark.parametrize(
    ("scores", "wanted"), [([1, 1, 1, 1], np.log(4)), ([1, 0, 0], 0), ([0, 0], 0), ([-1e9, 3], 0), ([5, 5], np.log(2))]
)
def test_entropy_of_any_scores(scores, wanted):
    assert entropy_of(np.array(scores, np.float32)) == pytest.approx(wanted, abs=1e-6)


def detector() -> ModelManifest:
    source = TensorSpec("picture", (1, 48, 48, 3), "uint8", 1 / 255, 0)
    outputs = [TensorSpec("boxes", (1, 9, 4), "float32"), TensorSpec("classes", (1, 9), "float32"), TensorSpec("scores", (1, 9), "float32")]
    tensors = ModelTensors("onnx", "onnx", "1", (source,), tuple(outputs))
    head = {"head": "ssd", "boxes": "boxes", "classes": "classes", "scores": "scores"}
    return of({"task": "detection", "labels": LABELS, "preprocess": {"color": "RGB"}, "detection": head, "device_types": ["x"]}, tensors)


def test_objects_of_a_frame_and_a_frame_without_any():
    names = ["output.count", "output.top-score", "output.mean-score", "output.area", "output.aspect"]
    extractor = Extractor(detector(), names)
    tensor = np.zeros((1, 48, 48, 3), np.uint8)
    found = Detections((Detected("a", 0, 0.9, (0, 0, 0.5, 0.25)), Detected("c", 2, 0.7, (0.5, 0.5, 1, 0.75))))
    assert extractor.row(tensor, found).tolist() == pytest.approx([2, 0.9, 0.8, 0.125, np.log(2)], rel=1e-5)
    assert extractor.labels == ("a", "c")
    assert extractor.row(tensor, Detections(())).tolist() == [0, 0, 0, 0, 0]
    assert extractor.labels == ()


def test_an_empty_box_does_not_spoil_a_row():
    row = Extractor(detector()).row(np.zeros((1, 48, 48, 3), np.uint8), Detections((Detected("a", 0, 0.9, (0.2, 0.2, 0.2, 0.2)),)))
    assert np.isfinite(row).all()


def test_a_value_and_its_step_to_the_one_before():
    source = TensorSpec("picture", (1, 48, 48, 3), "uint8", 1 / 255, 0)
    tensors = ModelTensors("onnx", "onnx", "1", (source,), (TensorSpec("level", (1, 1), "float32"),))
    made = of({"task": "regression", "preprocess": {"color": "RGB"}, "device_types": ["x"]}, tensors)
    extractor = Extractor(made, ["output.value", "output.step"])
    tensor = np.zeros((1, 48, 48, 3), np.uint8)
    seen = [extractor.row(tensor, Measurement(value, "")).tolist() for value in (5.0, 3.0)]
    assert seen == [[5, 0], [3, 2]]
    extractor.forget()
    assert extractor.row(tensor, Measurement(9.0, "")).tolist() == [9, 0]


# --- the model's own embedding ---


def test_an_embedding_that_the_manifest_names_is_brought_to_eight_numbers():
    outputs = (TensorSpec("scores", (1, 3), "float32"), TensorSpec("features", (1, 64), "int8", 0.5, 3))
    made = manifest(outputs=outputs, embedding="features")
    extractor = Extractor(made, EMBEDDING_NUMBERS)
    raw = np.arange(64, dtype=np.int8).reshape(1, 64)
    given = {"scores": np.array([[0.2, 0.7, 0.1]], np.float32), "features": raw}
    row = extractor.row(np.zeros((1, 48, 48, 3), np.uint8), answer(), outputs=given)
    assert row == pytest.approx((raw[0].astype(np.float32) - 3) * 0.5 @ signs("embedding", 64, 8), rel=1e-4)
    assert np.isnan(extractor.row(np.zeros((1, 48, 48, 3), np.uint8), answer())).all()


@pytest.mark.parametrize(
    ("name", "outputs", "text"),
    [
        ("nothing", (TensorSpec("scores", (1, 3), "float32"),), "names the output 'nothing'"),
        ("scores", (TensorSpec("scores", (1, 3), "float32"),), "should be one tensor"),
        ("big", (TensorSpec("scores", (1, 3), "float32"), TensorSpec("big", (1, 9000), "float32")), "wanted 2 to 8192"),
    ],
)
def test_an_embedding_that_cannot_be_is_refused(name, outputs, text):
    with pytest.raises(InvalidError, match=text):
        manifest(outputs=outputs, embedding=name)


def test_signs_and_filters_are_the_same_for_ever():
    digest = hashlib.sha256(signs("filters", 16, 8).astype("<f4").tobytes() + filters().astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == "c8783caf006aaa4b"
    assert np.abs(filters().sum(axis=0)).max() < 1e-5
    assert np.abs(signs("embedding", 64, 8)) == pytest.approx(1 / 8)


# --- what it costs ---


@pytest.mark.parametrize(("cost_ms", "step"), [(0.5, 1), (10.0, 1), (10.1, 2), (20.0, 2), (39.0, 4), (80.0, 8), (500.0, 8)])
def test_the_step_keeps_rows_below_a_hundredth_of_a_core(cost_ms, step):
    assert choose_step(cost_ms / 1000) == step


def test_the_quality_comes_from_the_same_pass():
    made = manifest()
    extractor = Extractor(made)
    extractor.row(Filler(compile_plan(made)).fill(scene()), answer())
    assert isinstance(extractor.quality, Quality)
    assert extractor.quality.shape == (1, 48, 48, 3)
    assert extractor.quality.mean == pytest.approx((scene() @ (0.299, 0.587, 0.114)).mean(), rel=1e-4)
    assert extractor.quality.sharpness == pytest.approx(numbers(scene())["image.sharpness"])
