"""Evaluation data as people bring them, right and wrong."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fleet.registry import evaluation
from fleet.registry.drafts import complete, parse_draft
from fleet.registry.evaluation import MIN_ROWS, open_evaluation, pack_folder
from protocol.errors import InvalidError
from runtime.base import ModelTensors, TensorSpec
from runtime.manifest import FileEntry, ModelManifest

LABELS = ["cat", "dog"]
N = MIN_ROWS


def manifest(*, window: bool = False, labels: Sequence[str] = LABELS) -> ModelManifest:
    source = TensorSpec("x", (1, 8), "float32") if window else TensorSpec("x", (1, 6, 6, 3), "uint8", 1 / 255, 0)
    tensors = ModelTensors("onnx", "onnx", "1", (source,), (TensorSpec("y", (1, 2), "float32"),))
    given = {"window": {"fields": ["a", "b"], "length": 4}} if window else {"preprocess": {"color": "RGB"}}
    files = {"model.onnx": FileEntry(sha256=f"sha256:{'0' * 64}", length=1)}
    draft = parse_draft({"task": "classification", "labels": labels, "device_types": ["t"], **given})
    return complete(draft, tensors, line="m", release="1", counter=1, variant="onnx", files=files)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def frames(count: int = N) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 7, 3)).astype(np.uint8)


def test_frames_come_as_the_device_has_them(tmp_path):
    pictures = frames()
    path = saved(tmp_path / "e.npz", frames=pictures, labels=np.arange(N) % 2)
    with open_evaluation(path, manifest()) as found:
        seen = list(found.items)
        assert found.count == N
        assert found.truth == tuple(index % 2 for index in range(N))
    assert (seen[3] == pictures[3][:, :, ::-1]).all()  # RGB as people write it, BGR as cameras give it


@pytest.mark.parametrize("shape", [(N, 5, 7), (N, 5, 7, 1)])
def test_gray_frames_need_no_channel(tmp_path, shape):
    with open_evaluation(saved(tmp_path / "e.npz", frames=np.zeros(shape, np.uint8)), manifest()) as found:
        assert next(found.items).shape == (5, 7)
        assert found.truth is None


def test_labels_may_be_names(tmp_path):
    path = saved(tmp_path / "e.npz", frames=frames(), labels=np.array(["dog", "cat"] * (N // 2)))
    with open_evaluation(path, manifest()) as found:
        assert found.truth[:3] == (1, 0, 1)


def test_windows_of_readings(tmp_path):
    windows = np.random.default_rng(0).normal(size=(N, 4, 2))
    with open_evaluation(saved(tmp_path / "e.npz", windows=windows), manifest(window=True)) as found:
        first = next(found.items)
    assert first.dtype == np.float32
    assert first == pytest.approx(windows[0], rel=1e-6)


@pytest.mark.parametrize("places", [np.arange(N) % 3, np.array([str(index % 3) for index in range(N)])])
def test_where_the_data_are_from_may_be_said_in_numbers_or_names(tmp_path, places):
    with open_evaluation(saved(tmp_path / "e.npz", frames=frames(), places=places), manifest()) as found:
        assert found.places[:4] == ("0", "1", "2", "0")
    with open_evaluation(saved(tmp_path / "e.npz", windows=np.zeros((N, 4, 2)), places=places), manifest(window=True)) as found:
        assert found.places[:4] == ("0", "1", "2", "0")
    with open_evaluation(saved(tmp_path / "e.npz", frames=frames()), manifest()) as found:
        assert found.places is None


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"frames": frames(N - 1)}, f"{N - 1} frames; wanted {N} to 5000"),
        ({"frames": np.zeros((5001, 1, 1), np.uint8)}, "5001 frames; wanted"),
        ({"frames": frames().astype(np.float32)}, r"float32\[.*wanted uint8"),
        ({"frames": np.zeros((N, 4, 4, 2), np.uint8)}, r"wanted uint8 \[n, height, width\]"),
        ({"frames": np.zeros((N, 0, 4), np.uint8)}, "wanted uint8"),
        ({"frames": np.uint8(3)}, "single value"),
        ({"windows": np.zeros((N, 4, 2))}, "takes frames"),
        ({"frames": frames(), "labels": np.zeros(5, int)}, "5 labels for"),
        ({"frames": frames(), "labels": np.full(N, 2)}, "Label 2 is no place"),
        ({"frames": frames(), "labels": np.full(N, -1)}, "Label -1 is no place"),
        ({"frames": frames(), "labels": np.full(N, "cow")}, "'cow' is not among"),
        ({"frames": frames(), "labels": np.full(N, 0.5)}, "'0.5' is not among"),
        ({"frames": frames(), "places": np.zeros(5, int)}, "5 places for"),
        ({"frames": frames(), "places": np.arange(N)}, "128 places; wanted at most 40"),
        ({"frames": frames(), "places": np.full(N, 0.5)}, "Place '0.5'; wanted a whole number, or a name"),
        ({"frames": frames(), "places": np.full(N, "")}, "Place ''; wanted"),
        ({"frames": frames(), "places": np.full(N, "x" * 64)}, "Place 'xxx.*1 to 63"),
        ({"pictures": frames()}, r"have pictures\.npy; this model takes frames: .* Write numpy\.savez\(FILE, frames="),
    ],
)
def test_arrays_that_do_not_fit_are_refused_saying_what_is_wanted(tmp_path, arrays, text):
    with pytest.raises(InvalidError, match=text), open_evaluation(saved(tmp_path / "e.npz", **arrays), manifest()) as found:
        list(found.items)


def test_too_little_data_have_a_code_of_their_own(tmp_path):
    with pytest.raises(InvalidError) as caught, open_evaluation(saved(tmp_path / "e.npz", frames=frames(3)), manifest()):
        pass
    assert caught.value.code == "too-little-data"
    assert "docs/drift.md" in caught.value.hint


@pytest.mark.parametrize("shape", [(N, 5, 2), (N, 4, 3), (N, 8)])
def test_windows_of_another_shape_are_refused(tmp_path, shape):
    path = saved(tmp_path / "e.npz", windows=np.zeros(shape))
    with pytest.raises(InvalidError, match=r"wanted floats \[n, 4, 2\]: readings of a, b"), open_evaluation(path, manifest(window=True)):
        pass


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_archive_is_refused(tmp_path, data):
    path = tmp_path / "e"
    path.write_bytes(data)
    with pytest.raises(InvalidError, match=r"neither an \.npz file nor a packed folder"), open_evaluation(path, manifest()):
        pass


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return path


def test_an_array_that_promises_more_than_it_holds_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (N, 4, 4)})
    path = archive(tmp_path / "e", frames__npy=header.getvalue() + b"x" * 10)
    with pytest.raises(InvalidError, match="array frames cannot be read"), open_evaluation(path, manifest()):
        pass


def test_pickled_objects_are_never_opened(tmp_path):
    path = saved(tmp_path / "e.npz", frames=np.array([{"a": 1}] * N, dtype=object))
    with pytest.raises(InvalidError, match="cannot be read"), open_evaluation(path, manifest()):
        pass


def test_content_beyond_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_CONTENT_BYTES", 1000)
    path = archive(tmp_path / "e", frames__npy=b"\0" * 1001)
    with pytest.raises(InvalidError, match="1001 bytes; at most"), open_evaluation(path, manifest()):
        pass


# --- folders ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to write pictures")
    made = tmp_path / "pictures"
    (made / "sub").mkdir(parents=True)
    for index in range(N):
        picture = np.full((4, 6, 3), (index, 0, 200), np.uint8)
        (made / "sub" / f"{index:03}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return made


def packed(folder: Path, target: Path) -> Path:
    with target.open("wb") as out:
        assert pack_folder(folder, out) == N
    return target


def test_a_folder_of_pictures_with_labels(folder, tmp_path):
    lines = ["file,label", *(f"sub/{index:03}.png,{LABELS[index % 2]}" for index in range(N))]
    (folder / "labels.csv").write_text("\n".join(lines))
    with open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()) as found:
        assert found.truth[:2] == (0, 1)
        seen = list(found.items)
    assert seen[7][0, 0].tolist() == [7, 0, 200]


def test_labels_in_a_table_may_be_places_in_the_manifests_labels(folder, tmp_path):
    lines = ["file,label", *(f"sub/{index:03}.png,{index % 2}" for index in range(N))]
    (folder / "labels.csv").write_text("\n".join(lines))
    with open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()) as found:
        assert found.truth[:3] == (0, 1, 0)


def test_a_number_is_no_place_where_labels_are_numbers_themselves(tmp_path):
    path = saved(tmp_path / "e.npz", frames=frames(), labels=np.array(["1", "0"] * (N // 2)))
    with pytest.raises(InvalidError, match="'0' is not among"), open_evaluation(path, manifest(labels=["1", "7"])):
        pass


def test_a_folder_says_in_a_third_field_where_pictures_are_from(folder, tmp_path):
    lines = [f"sub/{index:03}.png,cat,{'yard' if index < 5 else 'gate'}" for index in range(N)]
    (folder / "labels.csv").write_text("\n".join(lines))
    with open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()) as found:
        assert found.places[4:6] == ("yard", "gate")
    (folder / "labels.csv").write_text("\n".join([*lines[:-1], f"sub/{N - 1:03}.png,cat"]))
    with pytest.raises(InvalidError, match="Place ''; wanted"), open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()):
        pass
    (folder / "labels.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    with open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()) as found:
        assert found.places is None


def test_a_folder_without_labels_is_not_labelled(folder, tmp_path):
    with open_evaluation(packed(folder, tmp_path / "e.zip"), manifest()) as found:
        assert found.truth is None
        assert len(list(found.items)) == N


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sub/000.png,cat", "no line for 'sub/001.png'"),
        ("sub/000.png", "one field"),
        ("".join(f"sub/{index:03}.png,2\n" for index in range(N)), "Label 2 is no place"),
        ("", "no line for 'sub/000.png'"),
    ],
)
def test_labels_that_do_not_fit_the_pictures_are_refused(folder, tmp_path, text, wanted):
    (folder / "labels.csv").write_text(text)
    path = packed(folder, tmp_path / "e.zip")
    with pytest.raises(InvalidError, match=wanted), open_evaluation(path, manifest()):
        pass


def test_a_file_that_is_no_picture_is_named(folder, tmp_path):
    (folder / "sub" / "005.png").write_bytes(b"nothing")
    path = packed(folder, tmp_path / "e.zip")
    with open_evaluation(path, manifest()) as found, pytest.raises(InvalidError, match=r"'sub/005\.png' of 7 bytes is no picture"):
        list(found.items)


def test_a_folder_with_too_few_pictures_is_not_even_packed(tmp_path):
    with pytest.raises(InvalidError, match="There are 0 pictures"), (tmp_path / "e.zip").open("wb") as out:
        pack_folder(tmp_path, out)
