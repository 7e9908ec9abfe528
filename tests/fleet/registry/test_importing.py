"""Real models of real sizes come in with golden vectors made of pictures, as many as fit, and a device accepts them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from registries import ANNA, DIGITS, T0

from fleet.registry import service
from fleet.registry.drafts import load_draft, parse_draft
from fleet.registry.importing import inspect_upload
from protocol.errors import InvalidError
from runtime.golden import MAX_GOLDEN_BYTES, compare, decode
from runtime.inputs import Layout, TensorDescription
from runtime.preprocess import Preprocessor, plan_for
from runtime.probe import run_goldens

LABELS = ["cat", "dog"]


def float_model(path: Path, size: int) -> Path:
    """A float32 NCHW classifier of `size` x `size` x 3 pixels: convolution, mean, product."""
    random = np.random.default_rng(7)
    weights = {
        "kernel": random.normal(size=(4, 3, 7, 7)).astype(np.float32),
        "head": random.normal(size=(4, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["features"], strides=[4, 4]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def draft(labels=LABELS, **changes):
    preprocess = {"color": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return parse_draft({"task": "classification", "labels": labels, "preprocess": preprocess, "device_types": ["linux-arm64"], **changes})


def test_a_float_model_of_224_pixels_is_imported_with_as_many_golden_vectors_as_fit(registry, tmp_path):
    file = float_model(tmp_path / "model.onnx", 224)
    model = service.import_model(registry, tenant=T0, by=ANNA, model="cats", file=file, draft=draft())
    data = registry.blobs.read(model.golden.sha256, limit=MAX_GOLDEN_BYTES)
    goldens = decode(data)
    assert len(goldens.inputs) == 6
    again = run_goldens(file, [dict(vector) for vector in goldens.inputs])
    for key, rows in again.outputs.items():
        assert compare(goldens, rows, key=key) == ()


def test_a_float_model_of_512_pixels_gets_the_one_vector_that_fits(tmp_path):
    assert len(decode(inspect_upload(float_model(tmp_path / "model.onnx", 512), draft()).golden).inputs) == 1


def test_golden_vectors_are_made_of_the_evaluation_data_where_there_are_any(tmp_path):
    random = np.random.default_rng(3)
    frames = random.integers(0, 256, (130, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "street.npz", frames=frames)
    found = inspect_upload(float_model(tmp_path / "model.onnx", 224), draft(), evaluation=tmp_path / "street.npz")
    vectors = [one["image"] for one in decode(found.golden).inputs]
    assert len(vectors) == 6
    assert found.profiled is not None
    tensor = TensorDescription(name="image", shape=(1, 3, 224, 224), layout=Layout.NCHW, dtype="float32")
    runner = Preprocessor(plan_for(tensor, draft().preprocess))
    # every 22nd of 130 frames, as the device makes its input of them
    for vector, place in zip(vectors, range(0, 130, 22), strict=True):
        assert np.array_equal(vector, runner.run(np.ascontiguousarray(frames[place][:, :, ::-1])))


def test_a_model_of_which_not_even_one_vector_fits_is_refused_with_what_to_do(registry, tmp_path):
    file = float_model(tmp_path / "model.onnx", 640)
    with pytest.raises(InvalidError, match="One golden vector of this model has 49152") as caught:
        service.import_model(registry, tenant=T0, by=ANNA, model="cats", file=file, draft=draft())
    assert caught.value.code == "golden-too-large"
    assert "int8" in caught.value.hint
    assert service.list_model_versions(registry, T0) == []


@pytest.mark.parametrize(
    ("name", "classes", "vectors"), [("vww_96_float", 2, 16), ("vww_96_int8", 2, 16), ("mobilenet_v2_1.0_224_quant", 1001, 16)]
)
def test_models_from_the_field_are_imported(data_dir, name, classes, vectors):
    labels = [f"class {number}" for number in range(classes)]
    changes = {"preprocess": {"color": "RGB"}} if name.startswith("vww") else {"preprocess": {"color": "RGB", "mean": [0.5], "std": [0.5]}}
    inspected = inspect_upload(data_dir / "models" / f"{name}.tflite", draft(labels, **changes))
    goldens = decode(inspected.golden)
    assert len(goldens.inputs) == vectors
    answers = {tuple(np.concatenate([array.ravel() for array in row.values()]).tolist()) for row in next(iter(goldens.outputs.values()))}
    assert len(answers) > 1


def test_golden_inputs_are_pictures_not_noise():
    goldens = decode(inspect_upload(DIGITS / "models/1.0/onnx/model.onnx", load_draft(DIGITS / "onnx.toml")).golden)
    for vector in goldens.inputs:
        image = np.squeeze(next(iter(vector.values()))).astype(np.float64)
        assert np.abs(np.diff(image, axis=-1)).mean() < 0.2 * (image.max() - image.min())
