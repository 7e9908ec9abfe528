"""Trying runtimes and models in a child process: whatever the child does, the parent gets a verdict."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_models import INSTALLED, MODULES, READABLE, make_slot, model_folder

from protocol.errors import InvalidError
from protocol.files import digest_of_file
from runtime.base import BackendOptions, LoadFailed, ProbeFailed
from runtime.golden import decode, encode
from runtime.manifest import from_bytes, to_bytes
from runtime.probe import RuntimeState, inspect_model, make_goldens, probe_environment, self_test
from runtime.records import environment_key


def test_installed_runtimes_compute_and_the_others_are_missing():
    states = {status.name: status.state for status in probe_environment(None)}
    assert states == {name: RuntimeState.OK if name in INSTALLED else RuntimeState.MISSING for name in MODULES}


def test_an_accelerator_that_is_not_there_is_reported_as_fallen_back():
    states = {status.name: status for status in probe_environment(None, options=BackendOptions(providers=("xnnpack",)))}
    assert states["onnx"].state is RuntimeState.OK, "the runtime itself works all the same"
    assert states["onnx:xnnpack"].state is RuntimeState.FELL_BACK
    assert states["onnx:xnnpack"].provider == "cpu"
    assert "--use_xnnpack" in states["onnx:xnnpack"].text
    if "litert" in INSTALLED:
        assert states["litert:xnnpack"].state is RuntimeState.OK


def test_results_are_kept_until_the_environment_changes(tmp_path: Path):
    first = probe_environment(tmp_path)
    cache = tmp_path / "runtimes.json"
    document = json.loads(cache.read_text())
    key = environment_key("onnx")
    document[key]["text"] = "from the cache"
    cache.write_text(json.dumps(document))
    second = {status.name: status for status in probe_environment(tmp_path)}
    assert second["onnx"].text == "from the cache"
    del document[key]
    cache.write_text(json.dumps(document))
    assert probe_environment(tmp_path) == first


@pytest.mark.parametrize("content", [b"", b"[]", b"{nonsense", b'{"a": 1}'])
def test_a_damaged_cache_is_no_obstacle(content: bytes, tmp_path: Path):
    (tmp_path / "runtimes.json").write_bytes(content)
    assert {status.name for status in probe_environment(tmp_path)} == set(MODULES)


def test_a_runtime_that_crashed_twice_is_left_alone_until_something_changes(tmp_path: Path):
    key = environment_key("onnx")
    crashed = {"name": "onnx", "state": "crashed", "version": "1", "text": "killed by SIGSEGV", "provider": "", "crashes": 2}
    (tmp_path / "runtimes.json").write_text(json.dumps({key: crashed}))
    assert next(status for status in probe_environment(tmp_path) if status.name == "onnx").state is RuntimeState.CRASHED
    (tmp_path / "runtimes.json").write_text(json.dumps({key: {**crashed, "crashes": 1}}))
    assert next(status for status in probe_environment(tmp_path) if status.name == "onnx").state is RuntimeState.OK


def test_a_child_that_does_not_answer_in_time_is_ended_and_reported():
    installed = [status for status in probe_environment(None, timeout_s=0.01) if status.name in INSTALLED]
    assert {status.state for status in installed} == {RuntimeState.TIMEOUT}


@pytest.mark.parametrize("variant", READABLE)
class TestInspecting:
    def test_a_model_s_tensors_are_read(self, variant: str):
        tensors = inspect_model(model_folder(variant) / f"model.{variant}")
        assert tensors.format == variant
        assert tensors.outputs[0].shape == (1, 10)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_a_file_cut_short_is_refused_with_a_reason(self, variant: str, share: float, tmp_path: Path):
        data = (model_folder(variant) / f"model.{variant}").read_bytes()
        path = tmp_path / f"model.{variant}"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises((LoadFailed, ProbeFailed), match=r"model|litert|tflite|onnx"):
            inspect_model(path)

    def test_damaged_bytes_never_take_the_caller_along(self, variant: str, tmp_path: Path):
        data = np.frombuffer((model_folder(variant) / f"model.{variant}").read_bytes(), np.uint8)
        rng = np.random.default_rng(3)
        for number in range(4):
            hurt = data.copy()
            places = rng.integers(8, hurt.size, 200)
            hurt[places] = rng.integers(0, 256, places.size)
            path = tmp_path / f"{number}.{variant}"
            path.write_bytes(hurt.tobytes())
            with contextlib.suppress(LoadFailed, ProbeFailed):
                assert inspect_model(path).format == variant


def test_an_unknown_suffix_is_refused(tmp_path: Path):
    with pytest.raises(InvalidError, match=r"\.bin.*\.onnx or \.tflite"):
        inspect_model(tmp_path / "model.bin")


@pytest.mark.parametrize("variant", READABLE)
class TestSelfTest:
    def test_a_good_release_passes_with_its_figures(self, variant: str, tmp_path: Path):
        result = self_test(make_slot(tmp_path / "slot", variant))
        assert (result.ok, result.code) == (True, "ok")
        assert result.provider.partition(":")[0] in INSTALLED
        assert result.load_s > 0
        assert result.infer_ms_p99 >= result.infer_ms_p50 > 0
        assert result.rss_mb > 10
        assert "16 golden vectors" in result.text

    def test_the_damaged_release_fails_and_says_by_how_much(self, variant: str, tmp_path: Path):
        result = self_test(make_slot(tmp_path / "slot", variant, "1.2"))
        assert (result.ok, result.code) == (False, "golden_mismatch")
        assert "differs by" in result.text
        assert "allowed" in result.text

    def test_a_file_that_is_not_the_manifest_s_is_found(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        shutil.copy(model_folder(variant, "1.0") / f"model.{variant}", slot / f"model.{variant}")
        result = self_test(slot)
        assert (result.ok, result.code) == (False, "file_mismatch")
        assert f"model.{variant}" in result.text

    def test_a_missing_file_is_found(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        (slot / "golden.cbor").unlink()
        assert self_test(slot).code == "file_mismatch"

    def test_a_slot_without_a_valid_manifest_is_refused(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        (slot / "manifest.json").write_bytes(b"{}")
        assert self_test(slot).code == "manifest_invalid"
        (slot / "manifest.json").unlink()
        assert self_test(slot).code == "manifest_invalid"

    def test_a_damaged_model_with_matching_digests_is_a_failed_load(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        data = (slot / f"model.{variant}").read_bytes()
        replace_file(slot, f"model.{variant}", data[: len(data) // 2])
        result = self_test(slot)
        assert not result.ok
        assert result.code in ("load_failed", "crashed")

    def test_damaged_golden_vectors_with_matching_digests_are_named(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        replace_file(slot, "golden.cbor", b"\xa0")
        assert self_test(slot).code == "golden_invalid"

    def test_another_model_under_this_manifest_is_a_mismatch(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        manifest = from_bytes((slot / "manifest.json").read_bytes())
        renamed = replace(manifest, outputs=(replace(manifest.outputs[0], name="other"),))
        (slot / "manifest.json").write_bytes(to_bytes(renamed))
        assert self_test(slot).code == "manifest_mismatch"

    def test_no_time_means_no_pass(self, variant: str, tmp_path: Path):
        assert self_test(make_slot(tmp_path / "slot", variant), timeout_s=0.01).code == "timeout"

    def test_an_accelerator_that_is_required_and_missing_refuses_the_release(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        asked = "cuda" if variant == "onnx" else "edgetpu"
        result = self_test(slot, BackendOptions(providers=(asked,), require=True))
        assert (result.ok, result.code) == (False, "accelerator_fallback")
        assert asked in result.text

    def test_an_accelerator_that_is_wished_and_missing_leaves_the_processor(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        asked = "cuda" if variant == "onnx" else "edgetpu"
        assert self_test(slot, BackendOptions(providers=(asked,))).provider.endswith(":cpu")

    def test_golden_vectors_of_a_model_are_made_and_pass(self, variant: str):
        folder = model_folder(variant)
        inputs = [dict(vector) for vector in decode((folder / "golden.cbor").read_bytes()).inputs[:8]]
        made = decode(make_goldens(folder / f"model.{variant}", inputs))
        assert len(made.inputs) == 8
        assert {key.partition("/")[0] for key in made.outputs} <= set(INSTALLED)
        assert decode(encode(made)).outputs.keys() == made.outputs.keys()

    def test_no_golden_vectors_are_refused(self, variant: str):
        with pytest.raises(InvalidError, match="0 golden vectors; wanted 1 to 64"):
            make_goldens(model_folder(variant) / f"model.{variant}", [])


def replace_file(slot: Path, name: str, data: bytes) -> None:
    """Put other bytes into the slot and their digest into its manifest."""
    (slot / name).write_bytes(data)
    manifest = from_bytes((slot / "manifest.json").read_bytes())
    entry = replace(manifest.files[name], sha256=digest_of_file(slot / name), length=len(data))
    (slot / "manifest.json").write_bytes(to_bytes(replace(manifest, files={**manifest.files, name: entry})))
