"""The model manifest: what an author writes, what is signed, and what is refused with which words."""

import json
from pathlib import Path

import pytest
from example_models import DIGITS
from hypothesis import given
from hypothesis import strategies as st

from fleet.registry.drafts import complete, load_draft, parse_draft
from protocol.canonical import canonical_json
from protocol.errors import InvalidError
from runtime.base import ManifestMismatch, ModelTensors, TensorSpec
from runtime.manifest import MAX_MANIFEST_BYTES, FileEntry, ModelManifest, check_against_tensors, from_bytes, load_manifest, to_bytes

DIGEST = "sha256:" + "ab" * 32
LABELS = [f"class {number}" for number in range(10)]
INT8_IN = TensorSpec("x", (1, 32, 32, 3), "int8", 1 / 255, -128)
INT8_OUT = TensorSpec("y", (1, 10), "int8", 1 / 256, -128)


def draft(**changes: object):
    document = {"task": "classification", "labels": LABELS, "preprocess": {"color": "RGB"}, "device_types": ["linux-x86-64"], **changes}
    return parse_draft(document)


def made(written=None, *, image: TensorSpec = INT8_IN, scores: TensorSpec = INT8_OUT, file_format: str = "tflite") -> ModelManifest:
    tensors = ModelTensors(file_format, {"tflite": "litert", "onnx": "onnx"}[file_format], "2.3.0", (image,), (scores,))
    files = {f"model.{file_format}": FileEntry(sha256=DIGEST, length=5), "golden.cbor": FileEntry(sha256=DIGEST, length=7)}
    return complete(written or draft(), tensors, line="digits", release="1.0", counter=1, variant=file_format, files=files)


def document_of(manifest: ModelManifest) -> dict:
    return json.loads(to_bytes(manifest))


class TestBytes:
    def test_a_manifest_comes_back_from_its_bytes(self):
        manifest = made()
        assert from_bytes(to_bytes(manifest)) == manifest

    def test_its_bytes_are_canonical_and_name_the_schema(self):
        data = to_bytes(made())
        assert canonical_json(json.loads(data)) == data
        assert json.loads(data)["schema"] == "model-manifest.1"

    def test_a_manifest_file_is_read(self, tmp_path: Path):
        (tmp_path / "manifest.json").write_bytes(to_bytes(made()))
        assert load_manifest(tmp_path / "manifest.json") == made()

    def test_one_byte_above_the_limit_is_refused(self, tmp_path: Path):
        data = b" " * (MAX_MANIFEST_BYTES + 1)
        (tmp_path / "manifest.json").write_bytes(data)
        with pytest.raises(InvalidError, match="262144"):
            from_bytes(data)
        with pytest.raises(InvalidError, match="262144"):
            load_manifest(tmp_path / "manifest.json")

    def test_labels_that_would_not_fit_are_refused_when_written(self):
        many = [f"{number:05d}{'x' * 100}" for number in range(4000)]
        with pytest.raises(InvalidError, match="at most 262144"):
            to_bytes(made(draft(labels=many), scores=TensorSpec("y", (1, 4000), "float32")))

    @pytest.mark.parametrize("data", [b"", b"null", b"[]", b"3", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"task": 5}'])
    def test_other_bytes_are_refused(self, data: bytes):
        with pytest.raises(InvalidError):
            from_bytes(data)

    @given(st.binary(max_size=300))
    def test_any_bytes_are_a_manifest_or_an_invalid_error(self, data: bytes):
        with pytest.raises(InvalidError):
            from_bytes(data)

    @given(st.data())
    def test_a_changed_field_is_a_manifest_or_an_invalid_error(self, data: st.DataObject):
        document = document_of(made())
        key = data.draw(st.sampled_from(sorted(document)))
        document[key] = data.draw(
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=6,
            )
        )
        try:
            manifest = from_bytes(json.dumps(document).encode())
        except InvalidError:
            return
        assert from_bytes(to_bytes(manifest)) == manifest

    def test_an_unknown_task_names_the_known_ones(self):
        document = document_of(made()) | {"task": "segmentation"}
        with pytest.raises(InvalidError, match=r"'segmentation' is not known.*classification"):
            from_bytes(json.dumps(document).encode())

    def test_an_unknown_field_is_refused_because_it_is_a_typing_error(self):
        document = document_of(made()) | {"budgets": {}}
        with pytest.raises(InvalidError, match="budgets"):
            from_bytes(json.dumps(document).encode())

    def test_a_file_name_with_a_path_is_refused(self):
        document = document_of(made())
        document["files"]["../model.tflite"] = document["files"]["model.tflite"]
        with pytest.raises(InvalidError, match="files"):
            from_bytes(json.dumps(document).encode())


class TestWhatAFileSays:
    @pytest.mark.parametrize(
        ("image", "words"),
        [
            (TensorSpec("x", (4, 32, 32, 3), "int8", 0.1, 0), "batch 4, wanted 1"),
            (TensorSpec("x", (1, -1, 32, 3), "int8", 0.1, 0), "open or empty dimension"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", 0.0, 0), r"scale 0\.0"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", -1.0, 0), r"scale -1\.0"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", float("nan"), 0), "finite"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", float("inf"), 0), "finite"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", 0.1, 200), r"zero_point 200.*-128 to 127"),
            (TensorSpec("x", (1, 32, 32, 3), "uint8", 0.1, -1), r"zero_point -1.*0 to 255"),
            (TensorSpec("x", (1, 32, 32, 3), "float64"), "float64"),
            (TensorSpec("x", (1, 32, 32, 3), "int8"), "without scale and zero_point"),
            (TensorSpec("x", (1, 32, 32, 3), "float32", 0.1, 0), "outside its dtype"),
            (TensorSpec("x", (1, 32, 32, 4), "float32"), "does not show where the 3 channels"),
            (TensorSpec("x", (1, 3072), "float32"), "does not show where"),
            (TensorSpec("x", (1, 9000, 32, 3), "float32"), "8192"),
        ],
    )
    def test_an_input_that_cannot_be_filled_is_refused_in_words(self, image: TensorSpec, words: str):
        with pytest.raises(InvalidError, match=words):
            made(image=image)

    def test_channels_other_than_one_or_three_are_refused(self):
        with pytest.raises(InvalidError, match=r"4 channels.*1 or 3"):
            made(draft(layout="NHWC"), image=TensorSpec("x", (1, 32, 32, 4), "float32"))

    def test_a_color_that_does_not_fit_the_channels_is_refused(self):
        with pytest.raises(InvalidError, match=r"3 channels; color GRAY makes 1"):
            made(draft(preprocess={"color": "GRAY"}, layout="NHWC"))

    def test_another_number_of_labels_than_classes_is_refused(self):
        with pytest.raises(InvalidError, match=r"labels has 9 entries.*10 classes"):
            made(draft(labels=LABELS[:9]))

    def test_more_best_classes_than_classes_are_refused(self):
        with pytest.raises(InvalidError, match=r"top_k 11.*10 classes"):
            made(draft(top_k=11))

    def test_several_inputs_are_refused(self):
        tensors = ModelTensors("tflite", "litert", "2", (INT8_IN, INT8_IN), (INT8_OUT,))
        with pytest.raises(InvalidError, match="2 inputs and 1 outputs"):
            complete(draft(), tensors, line="l", release="1", counter=1, variant="v", files={})

    def test_quantization_that_a_file_does_not_carry_may_be_written(self):
        image = TensorSpec("x", (1, 3, 32, 32), "uint8")
        written = draft(quantization={"x": {"scale": 0.5, "zero_point": 3}})
        manifest = made(written, image=image, scores=TensorSpec("y", (1, 10), "float32"), file_format="onnx")
        assert (manifest.inputs[0].scale, manifest.inputs[0].zero_point, manifest.inputs[0].layout) == (0.5, 3, "NCHW")

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ({"nonsense": {"scale": 0.5, "zero_point": 3}}, "names the tensor 'nonsense'; the model has"),
            ({INT8_IN.name: {"scale": 0.5, "zero_point": 3}}, "written as scale 0.5, zero point 3; the file says"),
        ],
    )
    def test_quantization_of_another_tensor_or_other_than_the_files_own_is_refused(self, written: dict[str, object], said: str):
        with pytest.raises(InvalidError, match=said):
            made(draft(quantization=written))

    def test_a_backend_that_cannot_read_the_file_is_refused(self):
        with pytest.raises(InvalidError, match=r"none that reads tflite files.*litert"):
            made(draft(backends=["onnx"]))

    def test_the_model_file_must_be_among_the_files(self):
        tensors = ModelTensors("tflite", "litert", "2", (INT8_IN,), (INT8_OUT,))
        with pytest.raises(InvalidError, match=r"lacks 'model\.tflite'"):
            complete(
                draft(), tensors, line="l", release="1", counter=1, variant="v", files={"golden.cbor": FileEntry(sha256=DIGEST, length=1)}
            )


class TestAgainstTensors:
    def test_the_file_it_was_made_from_fits(self):
        check_against_tensors(made(), ModelTensors("tflite", "litert", "2", (INT8_IN,), (INT8_OUT,)))

    @pytest.mark.parametrize(
        ("image", "words"),
        [
            (TensorSpec("x", (1, 28, 28, 3), "int8", 1 / 255, -128), r"shape \[1, 28, 28, 3\].*says \[1, 32, 32, 3\]"),
            (TensorSpec("x", (1, 32, 32, 3), "uint8", 1 / 255, -128), "dtype uint8.*says int8"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", 0.5, -128), r"scale 0\.5.*says 0\.0039"),
            (TensorSpec("x", (1, 32, 32, 3), "int8", 1 / 255, 0), "zero_point 0.*says -128"),
            (TensorSpec("z", (1, 32, 32, 3), "int8", 1 / 255, -128), r"inputs \['z'\].*says \['x'\]"),
        ],
    )
    def test_another_file_is_named_with_what_differs(self, image: TensorSpec, words: str):
        with pytest.raises(ManifestMismatch, match=words):
            check_against_tensors(made(), ModelTensors("tflite", "litert", "2", (image,), (INT8_OUT,)))

    def test_scales_are_compared_in_the_precision_of_files(self):
        image = TensorSpec("x", (1, 32, 32, 3), "int8", 0.003921568859368563, -128)
        check_against_tensors(made(), ModelTensors("tflite", "litert", "2", (image,), (INT8_OUT,)))


class TestDraft:
    @pytest.mark.parametrize("variant", ["onnx", "tflite"])
    def test_the_examples_are_drafts_with_labels_from_a_file(self, variant: str):
        loaded = load_draft(DIGITS / f"{variant}.toml")
        assert loaded.labels[3] == "three"
        assert loaded.preprocess.color == "GRAY"

    def test_json_is_a_draft_too(self, tmp_path: Path):
        path = tmp_path / "draft.json"
        path.write_text(json.dumps({"task": "classification", "labels": LABELS, "preprocess": {"color": "BGR"}}))
        assert load_draft(path).preprocess.color == "BGR"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"task": "segmentation"}, "segmentation.*classification.*regression"),
            ({"labels": []}, "labels"),
            ({"labels": ["a", ""]}, "labels"),
            ({"preprocess": {"color": "HSV"}}, "color.*RGB.*HSV"),
            ({"preprocess": {"color": "RGB", "fit": "zoom"}}, "fit.*stretch.*zoom"),
            ({"preprocess": {"color": "RGB", "interpolation": "cubic"}}, "interpolation.*linear.*cubic"),
            ({"preprocess": {"color": "RGB", "std": [1, 0, 1]}}, "contains 0"),
            ({"preprocess": {"color": "RGB", "std": [float("inf")]}}, "finite"),
            ({"preprocess": {"color": "RGB", "mean": [float("nan")]}}, "finite"),
            ({"preprocess": {"color": "RGB", "mean": [0, 0]}}, "mean has 2 numbers; RGB wants 1 or 3"),
            ({"preprocess": {"color": "GRAY", "mean": [0, 0, 0]}}, "GRAY wants 1 or 1"),
            ({"activation": "relu"}, "activation.*softmax.*relu"),
            ({"threshold": 1.5}, "threshold"),
            ({"top_k": 0}, "top_k"),
            ({"temperature": 0}, "temperature"),
            ({"backends": ["torch"]}, "'torch' is not known.*litert"),
            ({"device_types": ["Not A Name"]}, "device_types"),
            ({"colour": "RGB"}, "colour"),
        ],
    )
    def test_a_bad_field_is_named_with_what_was_wanted(self, changes: dict, words: str):
        with pytest.raises(InvalidError, match=words):
            draft(**changes)

    @pytest.mark.parametrize("name", ["../labels.txt", "/etc/passwd", "a/b"])
    def test_a_labels_file_lies_beside_the_draft(self, name: str, tmp_path: Path):
        path = tmp_path / "draft.toml"
        path.write_text(f'task = "classification"\nlabels = "{name}"\n[preprocess]\ncolor = "RGB"\n')
        with pytest.raises(InvalidError, match="plain name of a file beside it"):
            load_draft(path)

    @pytest.mark.parametrize(("name", "text"), [("d.toml", "task = "), ("d.json", "{"), ("d.json", "[]"), ("d.toml", "\x00")])
    def test_a_file_that_is_no_document_is_refused(self, name: str, text: str, tmp_path: Path):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidError, match=name):
            load_draft(tmp_path / name)


def test_the_budget_of_a_device_type_is_its_own_or_the_one_for_all():
    manifest = made(draft(budget={"*": {"rss_mb": 100}, "jetson": {"rss_mb": 900}}))
    assert manifest.budget_for("jetson").rss_mb == 900
    assert manifest.budget_for("linux-x86-64").rss_mb == 100
    assert made().budget_for("linux-x86-64").rss_mb is None
