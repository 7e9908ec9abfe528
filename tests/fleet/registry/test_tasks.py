"""Models of every task come in, get golden vectors, pass the device's self-test, and say their task."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from registries import ANNA, T0
from simulators.task_models import counter_slot, halving_slot, ssd_slot, yolo_slot

from fleet.registry import service
from fleet.registry.drafts import parse_draft
from protocol.errors import InvalidError
from protocol.files import digest_of_file
from protocol.ids import LineName
from runtime.golden import MAX_GOLDEN_BYTES, decode
from runtime.manifest import from_bytes
from runtime.probe import self_test

KEPT = {"task", "labels", "preprocess", "window", "device_types"}


def draft_of(slot: Path):
    """What its author would write about the model of a slot."""
    document = json.loads((slot / "manifest.json").read_bytes())
    options = {key: value for key, value in document["postprocess"].items() if key not in {"labels", "output"}}
    table = {"detection": "detection", "anomaly": "anomaly", "regression": "regression"}[document["task"]]
    draft = {key: document[key] for key in KEPT & document.keys()} | {table: options, "state": document.get("state", [])}
    return parse_draft(draft | ({"labels": document["postprocess"]["labels"]} if table == "detection" else {}))


@pytest.mark.parametrize(
    ("make", "task"), [(ssd_slot, "detection"), (yolo_slot, "detection"), (counter_slot, "regression"), (halving_slot, "anomaly")]
)
def test_a_model_comes_in_and_passes_its_own_self_test(registry, tmp_path: Path, make, task: str):
    slot = make(tmp_path / "slot")
    model = service.import_model(registry, tenant=T0, by=ANNA, model="m", file=slot / "model.onnx", draft=draft_of(slot))
    made = service.create_release(
        registry, tenant=T0, by=ANNA, line=LineName("l"), version="1.0", models=[service.ReleaseModel(model.id, device_types=("test",))]
    )
    (variant,) = made.variants
    assert variant.task == task
    assert service.get_release(registry, T0, made.line, made.version).variants[0].task == task
    folder = tmp_path / "device"
    folder.mkdir()
    for file in variant.files:
        (folder / file.name).write_bytes(registry.blobs.read(file.sha256, limit=MAX_GOLDEN_BYTES))
    assert from_bytes((folder / "manifest.json").read_bytes()).task == task
    verdict = self_test(folder)
    assert (verdict.ok, verdict.code) == (True, "ok"), verdict.text
    goldens = decode((folder / "golden.cbor").read_bytes())
    assert len(goldens.inputs) == 16
    if make is counter_slot:
        assert {float(vector["seen"][0, 0]) == 0.0 for vector in goldens.inputs} == {True, False}
    if make is ssd_slot:  # another answer than the golden one is seen
        (folder / "model.onnx").write_bytes((yolo_slot(tmp_path / "other") / "model.onnx").read_bytes())
        assert self_test(folder).code == "file_mismatch"
        assert digest_of_file(folder / "model.onnx") != variant.model_file.sha256


def identity(
    path: Path, *, kind: int = TensorProto.FLOAT, shape=(1, 8, 8, 3), operator: str = "Identity", domain: str = "", opset: int = 18
) -> Path:
    """A model file of one operator."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)],
        "one",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", kind, list(shape))],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"operator": "Nonsense", "domain": "nobody.knows"}, "cannot load.*nobody.knows"),
        ({"opset": 99}, "cannot load.*(opset|99)"),
        ({"kind": TensorProto.INT64}, "'x' has dtype 'int64'; wanted one of int8, uint8, float32"),
        ({"shape": (1, "height", "width", 3)}, "open or empty dimension"),
        ({"shape": (4, 8, 8, 3)}, "batch 4, wanted 1"),
    ],
    ids=["operator", "opset", "dtype", "dynamic", "batch"],
)
def test_a_file_that_devices_cannot_run_is_refused_with_what_was_seen(registry, tmp_path: Path, odd: dict, words: str):
    file = identity(tmp_path / "model.onnx", **odd)
    draft = parse_draft({"task": "regression", "preprocess": {"color": "RGB"}, "device_types": ["test"]})
    with pytest.raises(InvalidError, match=f"(?s){words}"):
        service.import_model(registry, tenant=T0, by=ANNA, model="m", file=file, draft=draft)
    assert service.list_model_versions(registry, T0) == []


def test_a_model_whose_own_answer_is_not_finite_is_not_imported(registry, tmp_path: Path):
    slot = halving_slot(tmp_path / "slot")
    model = onnx.load(slot / "model.onnx")
    model.graph.initializer[0].raw_data = np.array(np.inf, np.float32).tobytes()
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InvalidError, match="not finite"):
        service.import_model(registry, tenant=T0, by=ANNA, model="m", file=tmp_path / "model.onnx", draft=draft_of(slot))
