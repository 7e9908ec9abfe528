"""What every backend promises, checked on every runtime that is installed, with a real int8 model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from example_models import CREATABLE, DIGITS, variant_of

from runtime.base import BackendOptions, InferFailed, LoadFailed, ManifestMismatch, ModelSpec, ModelTensors, create
from runtime.golden import compare, decode, key_of


def model_of(backend: str) -> Path:
    variant = variant_of(backend)
    return DIGITS / "models" / "1.1" / variant / f"model.{variant}"


@pytest.mark.parametrize("name", CREATABLE)
class TestBackendContract:
    def test_it_says_its_name_and_version(self, name: str):
        backend = create(name)
        backend.load(model_of(name), None, BackendOptions())
        assert backend.name == name
        assert backend.version[0].isdigit()
        backend.close()

    def test_it_reads_the_file_s_own_tensors(self, name: str):
        tensors = loaded(name)[1]
        assert tensors.inputs[0].shape in ((1, 1, 32, 32), (1, 32, 32, 1))
        assert tensors.outputs[0].shape == (1, 10)
        assert tensors.format == variant_of(name)
        if tensors.inputs[0].dtype == "int8":
            assert tensors.inputs[0].scale == pytest.approx(1 / 255)
            assert tensors.inputs[0].zero_point == -128

    def test_it_answers_the_golden_vectors(self, name: str):
        backend, _ = loaded(name)
        goldens = decode((model_of(name).parent / "golden.cbor").read_bytes())
        results = [{key: value.copy() for key, value in backend.infer(dict(vector)).items()} for vector in goldens.inputs]
        assert compare(goldens, results, key=key_of(name, backend.version)) == ()

    def test_it_gives_the_same_answer_twice(self, name: str):
        backend, tensors = loaded(name)
        inputs = ramp(tensors)
        first = {key: value.copy() for key, value in backend.infer(inputs).items()}
        second = backend.infer(inputs)
        assert all(np.array_equal(first[key], second[key]) for key in first)

    def test_it_survives_results_that_the_caller_still_holds(self, name: str):
        backend, tensors = loaded(name)
        held = [backend.infer(ramp(tensors)) for _ in range(3)]
        assert len(held) == 3

    def test_warming_up_infers(self, name: str):
        backend, _ = loaded(name)
        backend.warm(2)

    def test_an_input_of_another_shape_is_refused_by_name(self, name: str):
        backend, tensors = loaded(name)
        wrong = {tensors.inputs[0].name: np.zeros((1, 31, 32, 1), tensors.inputs[0].dtype)}
        with pytest.raises(InferFailed, match=r"31, 32.*wanted"):
            backend.infer(wrong)

    def test_an_input_of_another_dtype_is_refused(self, name: str):
        backend, tensors = loaded(name)
        with pytest.raises(InferFailed, match="float64"):
            backend.infer({tensors.inputs[0].name: np.zeros(tensors.inputs[0].shape, np.float64)})

    def test_a_missing_input_is_refused(self, name: str):
        with pytest.raises(InferFailed, match="missing"):
            loaded(name)[0].infer({})

    @pytest.mark.parametrize("change", [{"shape": (1, 28, 28, 1)}, {"dtype": "uint8"}, {"name": "picture"}])
    def test_a_manifest_that_promises_another_input_is_a_mismatch(self, name: str, change: dict[str, object]):
        tensors = loaded(name)[1]
        other = ModelSpec((dataclasses.replace(tensors.inputs[0], **change),), tensors.outputs)
        with pytest.raises(ManifestMismatch, match="the model manifest says") as caught:
            create(name).load(model_of(name), other, BackendOptions())
        assert (caught.value.backend, caught.value.artifact) == (name, model_of(name).name)

    def test_a_manifest_with_another_scale_is_a_mismatch_where_files_carry_scales(self, name: str):
        tensors = loaded(name)[1]
        if tensors.inputs[0].scale is None:
            pytest.skip("ONNX files declare no scale at their border")
        other = ModelSpec((dataclasses.replace(tensors.inputs[0], scale=0.5),), tensors.outputs)
        with pytest.raises(ManifestMismatch, match=r"scale 0\.0039.*says 0\.5"):
            create(name).load(model_of(name), other, BackendOptions())

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 4096, b"PK\x03\x04" + b"x" * 100], ids=["empty", "text", "zeros", "zip"])
    def test_a_file_of_another_type_is_refused_with_a_reason(self, name: str, content: bytes, tmp_path: Path):
        path = tmp_path / model_of(name).name
        path.write_bytes(content)
        with pytest.raises(LoadFailed, match=r"model\.") as caught:
            create(name).load(path, None, BackendOptions())
        assert caught.value.backend == name

    def test_a_missing_file_is_refused_with_a_reason(self, name: str, tmp_path: Path):
        with pytest.raises(LoadFailed, match="cannot be read"):
            create(name).load(tmp_path / model_of(name).name, None, BackendOptions())

    def test_the_other_format_is_refused(self, name: str, tmp_path: Path):
        other = {"onnx": "tflite", "tflite": "onnx"}[variant_of(name)]
        path = tmp_path / model_of(name).name
        path.write_bytes((DIGITS / "models" / "1.1" / other / f"model.{other}").read_bytes())
        with pytest.raises(LoadFailed):
            create(name).load(path, None, BackendOptions())

    def test_a_fallback_to_the_processor_is_told(self, name: str):
        backend = create(name)
        asked = {"onnx": "cuda", "litert-compiled": "npu"}.get(name, "edgetpu")
        backend.load(model_of(name), None, BackendOptions(providers=(asked,)))
        assert backend.effective_provider.asked == asked
        assert backend.effective_provider.effective == "cpu"
        assert backend.effective_provider.fell_back
        assert asked in backend.effective_provider.reason

    def test_a_fallback_is_a_refusal_when_the_provider_is_required(self, name: str):
        asked = {"onnx": "cuda", "litert-compiled": "npu"}.get(name, "edgetpu")
        with pytest.raises(LoadFailed, match="required") as caught:
            create(name).load(model_of(name), None, BackendOptions(providers=(asked,), require=True))
        assert caught.value.code == "accelerator_fallback"

    def test_two_threads_give_the_same_classes(self, name: str):
        one, tensors = loaded(name)
        two = create(name)
        two.load(model_of(name), None, BackendOptions(threads=2))
        output = tensors.outputs[0].name
        assert one.infer(ramp(tensors))[output].argmax() == two.infer(ramp(tensors))[output].argmax()

    def test_closing_twice_is_allowed_and_inferring_afterwards_is_a_programming_error(self, name: str):
        backend, tensors = loaded(name)
        backend.close()
        backend.close()
        with pytest.raises(RuntimeError):
            backend.infer(ramp(tensors))

    def test_a_closed_backend_can_load_again(self, name: str):
        backend, _ = loaded(name)
        backend.close()
        backend.load(model_of(name), None, BackendOptions())
        backend.warm(1)


def loaded(name: str):
    backend = create(name)
    tensors = backend.load(model_of(name), None, BackendOptions())
    return backend, tensors


def ramp(tensors: ModelTensors) -> dict[str, np.ndarray]:
    tensor = tensors.inputs[0]
    size = int(np.prod(tensor.shape))
    values = (np.arange(size) % 251) - 125
    return {tensor.name: (values / 255 if tensor.dtype == "float32" else values).astype(tensor.dtype).reshape(tensor.shape)}
