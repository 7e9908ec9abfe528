"""Models are profiled by themselves: in a child, with the device's own code; what comes of it travels with the release."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_models import manifest_for, model_folder
from registries import ANNA, DIGITS, T0
from simulators.task_models import counter_slot, halving_slot, yolo_slot

from agent.slots import SLOT_FILES
from fleet.registry import profiling, service, store
from fleet.registry.drafts import load_draft, parse_draft
from fleet.registry.evaluation import Evaluation
from fleet.registry.importing import inspect_upload
from fleet.registry.model import ModelVersion, ReleaseState
from fleet.registry.profiling import Profiled, make_in_child
from fleet.registry.repository import target_files
from fleet.registry.service import ReleaseModel
from protocol.canonical import digest_of
from protocol.errors import ConflictError, InvalidError
from protocol.ids import LineName
from protocol.sketches.profile import decode_profile
from protocol.trust.metadata import parse_target_path
from runtime.base import BackendOptions
from runtime.features import Extractor
from runtime.loader import load_first, read_slot
from runtime.manifest import from_bytes
from runtime.postprocess import answerer_for
from runtime.preprocess import Preprocessor, compile_plan

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
pytest.importorskip("cv2", reason="needs OpenCV to bring frames to the model's size")
COUNT = 130


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the example's evaluation data: tests pay for each frame."""
    path = tmp_path_factory.mktemp("evaluation") / "some.npz"
    with np.load(DIGITS / "evaluation.npz") as kept:
        np.savez(path, frames=kept["frames"][:COUNT], labels=kept["labels"][:COUNT])
    return path


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same frames without digits: nothing is damaged, which is quicker."""
    path = tmp_path_factory.mktemp("evaluation") / "unlabelled.npz"
    with np.load(DIGITS / "evaluation.npz") as kept:
        np.savez(path, frames=kept["frames"][:COUNT])
    return path


@pytest.fixture(scope="module")
def profiled(some: Path) -> Profiled:
    folder = model_folder("onnx", "1.0")
    return make_in_child(folder / "model.onnx", manifest_for(folder, "onnx", "1.0"), some)


def test_a_model_tells_how_right_it_was_and_how_damage_moves_it(profiled):
    accuracy = profiled.profile.accuracy
    assert profiled.profile.reference.rows == COUNT
    assert 0.85 < accuracy.acc0 <= 1
    assert {one.family for one in accuracy.families} == {"blur", "noise", "dark", "bright", "jpeg", "dirt"}
    assert len(accuracy.families) == 18
    worst = {one.family: one.accuracy for one in accuracy.families if one.severity == 3}
    assert worst["dirt"] < worst["jpeg"] - 0.1  # the estimates of one can be believed, those of the other cannot
    assert "dirt" not in accuracy.validated()
    assert "jpeg" in accuracy.validated()


def test_data_that_say_where_they_are_from_tell_how_right_the_model_was_at_each_place(some, tmp_path):
    path = tmp_path / "places.npz"
    with np.load(some) as kept:
        np.savez(path, **kept, places=np.arange(COUNT) % 2)
    folder = model_folder("onnx", "1.0")
    trials = make_in_child(folder / "model.onnx", manifest_for(folder, "onnx", "1.0"), path).profile.accuracy.trials
    assert {one.place for one in trials} == {"0", "1"}
    assert {one.family for one in trials} == {"", "blur", "noise", "dark", "bright", "jpeg", "dirt"}
    assert {one.rows for one in trials if not one.family} == {65}
    assert all(one.rows >= 24 for one in trials)
    dirt = [one.accuracy for one in trials if (one.family, one.severity) == ("dirt", 3)]
    assert max(dirt) < min(one.accuracy for one in trials if not one.family) - 0.1


@pytest.mark.parametrize(
    ("places", "per_place"),
    [(None, {None: 192}), (("a",) * 900 + ("b",) * 100, {"a": 96, "b": 96}), (tuple("abcd") * 250, dict.fromkeys("abcd", 64))],
    ids=["one", "unlike", "many"],
)
def test_of_each_place_as_many_frames_are_damaged_as_tell_something_of_it(places, per_place):
    chosen = profiling._chosen(Evaluation(1000, iter(()), None, places))
    seen = Counter(places[index] if places else None for index in chosen)
    assert seen == per_place
    assert max(chosen) - min(chosen) > 900


def test_gray_pictures_are_watched_without_color(profiled):
    names = {feature.name for feature in profiled.profile.grid.features}
    assert {"image.brightness", "image.sharpness", "output.confidence", "output.entropy"} <= names
    assert sum(name.startswith("embedding.") for name in names) >= 4
    assert profiled.left_out.items() >= {"image.red": "constant", "image.blue": "constant", "image.saturation": "constant"}.items()


def test_the_grid_is_that_of_the_rows_a_device_makes(profiled):
    folder = model_folder("onnx", "1.0")
    manifest = manifest_for(folder, "onnx", "1.0")
    backend, answerer = load_first(folder, manifest, BackendOptions()).backend, answerer_for(manifest)
    features = profiled.profile.grid.features
    extractor = Extractor(manifest, [feature.name for feature in features])
    with np.load(DIGITS / "evaluation.npz") as kept:
        frames = kept["frames"][:COUNT]
    runner = Preprocessor(compile_plan(manifest))
    rows = []
    for frame in frames:
        tensor = runner.run(frame)
        outputs = backend.infer({manifest.inputs[0].name: tensor})
        rows.append(extractor.row(tensor, answerer.run(outputs), outputs=outputs, size=frame.shape).copy())
    backend.close()
    seen = np.array(rows)
    assert seen.min(axis=0) == pytest.approx([feature.low for feature in features], rel=1e-5)
    assert seen.max(axis=0) == pytest.approx([feature.high for feature in features], rel=1e-5)


def test_a_release_of_a_model_with_evaluation_data_ships_its_profile_and_so_do_those_after_it(registry, import_digits, unlabelled):
    model: ModelVersion = import_digits(evaluation=unlabelled)
    data = registry.blobs.read(model.profile.sha256, limit=1 << 20)
    grid = decode_profile(data).grid
    assert service.get_model_version(registry, T0, model.id) == model
    release = service.create_release(registry, tenant=T0, by=ANNA, line=LineName("digits"), version="1.0", models=[ReleaseModel(model.id)])
    (variant,) = release.variants
    files = {file.name: file for file in variant.files}
    assert files["profile.cbor"].sha256 == digest_of(data)
    manifest = from_bytes(registry.blobs.read(files["manifest.json"].sha256, limit=1 << 20))
    assert manifest.files["profile.cbor"].sha256 == digest_of(data)
    assert manifest.grid_id == grid.grid_id.hex()
    targets = {parse_target_path(target.path).name for target in target_files(release)}  # a device that lists them knows each
    assert targets == files.keys()
    assert targets <= SLOT_FILES
    card = json.loads(registry.blobs.read(model.card.sha256, limit=1 << 20))
    assert card["evaluation"]["grid"] == grid.grid_id.hex()
    assert card["evaluation"]["rows"] == COUNT
    assert card["evaluation"]["profile_sha256"] == digest_of(data)
    # from here on the line is watched, and is not left without
    plain = import_digits("1.1")

    def create(one: ModelVersion, version: str):
        return service.create_release(registry, tenant=T0, by=ANNA, line=LineName("digits"), version=version, models=[ReleaseModel(one.id)])

    create(plain, "1.1")  # nothing of it is out yet
    with registry.database.transaction() as tx:
        store.save_release(tx, replace(release, state=ReleaseState.PUBLISHED, revision=release.revision + 1))
    with pytest.raises(ConflictError, match=r"Model digits-onnx\.2 has no reference profile; line digits is watched") as caught:
        create(plain, "1.2")
    assert caught.value.code == "no-profile"
    assert "--evaluation" in caught.value.hint
    assert create(model, "1.2").counter == 3


def test_a_model_without_evaluation_data_is_as_before(registry, import_digits):
    model = import_digits()
    release = service.create_release(registry, tenant=T0, by=ANNA, line=LineName("digits"), version="1.0", models=[ReleaseModel(model.id)])
    assert model.profile is None
    assert [file.name for file in release.variants[0].files] == ["model.onnx", "golden.cbor", "card.json", "manifest.json"]
    assert "evaluation" not in json.loads(registry.blobs.read(model.card.sha256, limit=1 << 20))


def test_nothing_is_kept_of_a_model_whose_evaluation_data_do_not_fit(registry, goldens_of, tmp_path):
    path = tmp_path / "few.npz"
    np.savez(path, frames=np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(InvalidError, match="There are 3 frames") as caught:
        service.import_model(
            registry,
            tenant=T0,
            by=ANNA,
            model="digits",
            file=DIGITS / "models/1.0/onnx/model.onnx",
            draft=load_draft(DIGITS / "onnx.toml"),
            goldens=goldens_of("1.0", "onnx"),
            evaluation=path,
        )
    assert caught.value.code == "too-little-data"
    assert service.list_model_versions(registry, T0) == []


def test_frames_that_are_all_the_same_are_refused(tmp_path):
    path, folder = tmp_path / "same.npz", model_folder("onnx", "1.0")
    np.savez(path, frames=np.zeros((COUNT, 32, 32), np.uint8))
    with pytest.raises(InvalidError, match="Are all frames the same") as caught:
        make_in_child(folder / "model.onnx", manifest_for(folder, "onnx", "1.0"), path)
    assert caught.value.code == "no-features"


def test_a_child_that_is_killed_is_told_and_nothing_else(some, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = model_folder("onnx", "1.0")
    with pytest.raises(InvalidError, match="killed by SIGSEGV") as caught:
        make_in_child(folder / "model.onnx", manifest_for(folder, "onnx", "1.0"), some)
    assert caught.value.code == "profile-crashed"


def test_a_child_that_does_not_end_is_ended(some, monkeypatch):
    monkeypatch.setattr(profiling, "TIMEOUT_S", 0.0)
    folder = model_folder("onnx", "1.0")
    with pytest.raises(InvalidError, match="Bring fewer frames") as caught:
        make_in_child(folder / "model.onnx", manifest_for(folder, "onnx", "1.0"), some)
    assert caught.value.code == "profile-timeout"


def test_a_model_that_does_not_load_is_told(some, tmp_path):
    folder = model_folder("onnx", "1.0")
    manifest = manifest_for(folder, "onnx", "1.0")
    broken = tmp_path / "model.onnx"
    broken.write_bytes((folder / "model.onnx").read_bytes()[:1000])
    with pytest.raises(InvalidError, match="cannot answer evaluation data here"):
        make_in_child(broken, manifest, some)


@pytest.mark.parametrize("make", [yolo_slot, counter_slot, halving_slot])
def test_models_of_every_task_are_profiled_without_labels(make, tmp_path):
    slot = make(tmp_path / "slot")
    manifest = read_slot(slot)
    random, path = np.random.default_rng(4), tmp_path / "evaluation.npz"
    if manifest.window is None:
        scene = random.integers(0, 256, (COUNT, 6, 6, 3)).repeat(8, axis=1).repeat(8, axis=2)
        np.savez(path, frames=(scene * random.uniform(0.3, 1, (COUNT, 1, 1, 1))).astype(np.uint8))
    else:
        shape = (COUNT, manifest.window.length, len(manifest.window.fields))
        np.savez(path, windows=random.normal(size=shape) * random.uniform(0.5, 2, (COUNT, 1, 1)))
    found = make_in_child(slot / "model.onnx", manifest, path)
    names = [feature.name for feature in found.profile.grid.features]
    assert found.profile.accuracy is None
    assert found.profile.reference.rows == COUNT
    assert any(name.startswith("sensor." if manifest.window else "image.") for name in names)
    assert Extractor(manifest, names).names == tuple(names)


def test_a_model_from_the_field_is_watched_by_all_numbers_of_a_street(data_dir, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to read the video")
    capture, frames = cv2.VideoCapture(str(data_dir / "video" / "car-detection.mp4")), []
    while len(frames) < COUNT:
        is_there, frame = capture.read()
        assert is_there
        frames.append(cv2.resize(frame, (160, 120))[:, :, ::-1])
    capture.release()
    np.savez(tmp_path / "street.npz", frames=np.array(frames))
    draft = parse_draft({"task": "classification", "labels": ["none", "person"], "preprocess": {"color": "RGB"}, "device_types": ["t"]})
    found = inspect_upload(data_dir / "models" / "vww_96_int8.tflite", draft, evaluation=tmp_path / "street.npz").profiled
    names = {feature.name for feature in found.profile.grid.features}
    assert {"image.red", "image.noise", "image.blocks", "output.entropy"} <= names
    assert sum(name.startswith("embedding.") for name in names) >= 6
    assert found.profile.reference.effective < COUNT / 3  # neighbouring frames repeat each other
